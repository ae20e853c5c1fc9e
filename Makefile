# Each stage is a command that reads and writes artifacts; make only chains them.
PYTHON  ?= python3
DATA    ?= data
STORE   ?= artifacts
CLASSES ?= bottle grid screw
OPTIONS ?=
RECIPE  ?= paper
STRATEGY ?= final,joint
BACKBONES ?= mini
WORKERS ?= 2

BIN       := .venv/bin
REPLAYCAD := $(BIN)/replaycad
INSTALLED := .venv/.installed
RUN       := $(REPLAYCAD)
comma     := ,
empty     :=
space     := $(empty) $(empty)
# A file stays in one process, for the sake of what its tests share.
PARALLEL  := --numprocesses $(WORKERS) --dist loadfile
NAMES     := $(subst $(space),$(comma),$(strip $(CLASSES)))
NEWEST    := $(lastword $(CLASSES))
PAST      := $(filter-out $(NEWEST),$(CLASSES))

# The authors' order; the last class is the one that is real in the paper's single training.
in_order = $(shell $(BIN)/python -c "from replaycad.config.paper_classes import $(1) as names; print(*names, sep=',')")

export REPLAYCAD_DATA := $(DATA)
export REPLAYCAD_STORE := $(STORE)

.DEFAULT_GOAL := help
.SECONDEXPANSION:
.DELETE_ON_ERROR:
.PHONY: help install demo test test-long test-full lint fmt bench torture fuzz mutants docs pictures clean mask compress replay train eval continual mvtec visa

help: ## show this
	@grep -hE '^[a-z%$$()/.A-Z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 44

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

install: $(INSTALLED) ## create .venv and install everything into it

demo: $(INSTALLED) ## draw three classes, learn them one after another, judge defects of the first (8 minutes)
	$(BIN)/python -m replaycad.mini.world.demo demo/data --size 256
	$(REPLAYCAD) run --data demo/data --store demo/artifacts --class all --strategy finetune,fragments,exemplars,joint \
	  --detector patchcore --budget 50kB --set replay.num_images=60 $(OPTIONS)
	$(REPLAYCAD) predict demo/data/pill/test/broken --store demo/artifacts --name run-fragments-3-patchcore-50kB --out demo/heatmaps
	@echo "contact sheet: demo/artifacts/results/run.png; heat maps of the first class, after two more: demo/heatmaps"

test: $(INSTALLED) ## run the tests
	$(BIN)/python -m pytest $(PARALLEL)

test-long: $(INSTALLED) ## the long tests: whole commands, faults, pre-training, torchrun, Ray, OpenVINO (8 minutes)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[ray,openvino]'
	$(BIN)/python -m pytest -m long $(PARALLEL)

test-full: $(INSTALLED) ## the full-size networks with random weights on the CPU (20 GB of memory, an hour)
	$(BIN)/python -m pytest -m slow tests/full

lint: $(INSTALLED) ## check style and types
	$(BIN)/ruff check
	$(BIN)/mypy replaycad

fmt: $(INSTALLED) ## let ruff repair what it can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(INSTALLED) ## measure memory and speed (build/bench.json); BACKBONES="sd15 ldm256" with random weights
	$(BIN)/python -m tests.bench $(BACKBONES)

torture: $(INSTALLED) ## kill, starve and spoil runs 200 times; each must end as if nothing had been (5 minutes)
	$(BIN)/python -m tests.torture --faults 200

fuzz: $(INSTALLED) ## a million hostile inputs to every reader
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	$(BIN)/python -m tests.fuzz --inputs 1000000

mutants: $(INSTALLED) ## change the program wrongly, one change at a time; a test must notice each (6 minutes)
	$(BIN)/python -m tests.mutants

docs: $(INSTALLED) ## update the generated parts of the README and the guide
	$(BIN)/python -m cogapp -r README.md replaycad/guide/*.md

pictures: $(INSTALLED) ## draw the README's picture with the bundled models
	$(BIN)/python -m tests.pictures build/pictures

clean: ## remove what make made, but neither data nor artifacts
	rm -rf .venv build demo .pytest_cache .ruff_cache .mypy_cache

# One artifact by its file name: make artifacts/conditions/bottle.safetensors
$(STORE)/masks/%.safetensors: $$(wildcard $(DATA)/$$*/train/good/*) | $(INSTALLED)
	$(RUN) mask --class $* $(OPTIONS) && touch $@

$(STORE)/conditions/%.safetensors: $(STORE)/masks/%.safetensors | $(INSTALLED)
	$(RUN) compress --class $* $(OPTIONS) && touch $@

$(STORE)/replays/%.safetensors: $(STORE)/conditions/%.safetensors | $(INSTALLED)
	$(RUN) replay --class $* $(OPTIONS) && touch $@

.PRECIOUS: $(STORE)/masks/%.safetensors $(STORE)/conditions/%.safetensors $(STORE)/replays/%.safetensors

mask: $(CLASSES:%=$(STORE)/masks/%.safetensors) ## object masks of CLASSES
compress: $(CLASSES:%=$(STORE)/conditions/%.safetensors) ## conditions of CLASSES; -j2 does two at a time
replay: $(CLASSES:%=$(STORE)/replays/%.safetensors) ## replayed images of CLASSES

train: $(PAST:%=$(STORE)/conditions/%.safetensors) | $(INSTALLED) ## the last of CLASSES real, the others from what is kept of them
	$(RUN) train --class $(NEWEST) $(if $(PAST),--past $(subst $(space),$(comma),$(strip $(PAST)))) $(OPTIONS)

eval: train ## metrics of that detector on CLASSES
	$(RUN) eval --class $(NAMES) $(OPTIONS)

continual: $(INSTALLED) ## the whole sequence over CLASSES
	$(RUN) run --class $(NAMES) --strategy finetune,replay,joint $(OPTIONS)

mvtec: $(INSTALLED) ## the paper on MVTec AD in DATA; RECIPE=release, STRATEGY=replay,joint for step by step
	$(RUN) run --recipe $(RECIPE) --store $(STORE)/$(RECIPE) --class $(call in_order,MVTEC) --strategy $(STRATEGY) --name mvtec $(OPTIONS)

visa: $(INSTALLED) ## the paper on VisA in DATA; likewise
	$(RUN) run --recipe $(RECIPE) --store $(STORE)/$(RECIPE) --class $(call in_order,VISA) --strategy $(STRATEGY) --name visa $(OPTIONS)
