"""The protocol as data: what is done, in which order, and what is read from the matrix."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from replaycad.config.stages import CompressConfig, TrainConfig
from replaycad.detectors.registry import DETECTORS
from replaycad.errors import ConfigError
from replaycad.experiments.plan import (
    Cell,
    Step,
    comparison,
    label,
    orders,
    size_text,
    steps,
)
from replaycad.experiments.results import figures, results_csv, results_document, spread
from replaycad.experiments.strategies import STRATEGIES, check_strategies

ALL = ("finetune", "replay", "joint")


def plan(classes: list[str], strategies: Sequence[str], seeds: list[int]) -> list[Step]:
    return steps(comparison(classes, strategies, seeds), "run")


def owners(step: Step) -> tuple[str, ...]:
    return tuple(dict.fromkeys(cell.strategy for cell in step.cells))


def document_of(cells: list[Cell], scores, seconds=lambda _: 1.0, num_bytes=lambda *_: 10):
    return results_document(
        named={cell: label(cell, cells) for cell in cells}, detector="invad",
        planned=steps(cells, "run"), scores=scores, seconds=seconds, num_bytes=num_bytes,
    )  # fmt: skip


def by_name(planned: list[Step], stage: str) -> dict[str, Step]:
    return {step.name: step for step in planned if step.stage == stage}


def test_every_step_reads_only_what_was_made_before():
    planned = plan(["a", "b", "c"], ALL, [0, 1])

    made: set[tuple[str, str]] = set()
    reads = {"compress": "mask", "replay": "compress", "train": "replay", "eval": "train"}
    for step in planned:
        for source in step.sources:
            assert (reads[step.stage], source) in made, step
        if step.init:
            assert ("train", step.init) in made, step
        assert (step.stage, step.name) not in made, "nothing is done twice"
        made.add((step.stage, step.name))


def test_the_first_training_is_shared_by_all_who_walk():
    trained = by_name(plan(["a", "b"], ALL, [0]), "train")

    assert owners(trained["run-step-1"]) == ("finetune", "replay")
    assert set(trained) == {"run-step-1", "run-finetune-2", "run-replay-2", "run-joint-2"}


def test_finetune_goes_on_and_replay_starts_from_scratch():
    trained = by_name(plan(["a", "b", "c"], ALL, [0]), "train")

    finetuned, replayed, joint = (trained[f"run-{name}-3"] for name in ALL)
    assert (finetuned.class_names, finetuned.sources, finetuned.init) == (
        ("c",), (), "run-finetune-2",
    )  # fmt: skip
    assert (replayed.class_names, replayed.sources, replayed.init) == (("c",), ("a", "b"), "")
    assert (joint.class_names, joint.sources, joint.init) == (("a", "b", "c"), (), "")


def test_penalties_walk_alone_from_the_first_step_and_go_on_from_their_own():
    trained = by_name(plan(["a", "b"], ("finetune", "ewc", "mas"), [0]), "train")

    assert list(trained) == [
        "run-step-1", "run-ewc-1", "run-mas-1", "run-finetune-2", "run-ewc-2", "run-mas-2",
    ]  # fmt: skip
    found = [(dict(step.changes).get("penalty"), step.init) for step in trained.values()]
    assert found == [
        (None, ""), ("ewc", ""), ("mas", ""),
        (None, "run-step-1"), ("ewc", "run-ewc-1"), ("mas", "run-mas-1"),
    ]  # fmt: skip


def test_banks_walk_from_the_shared_first_step_and_are_extended():
    trained = by_name(plan(["a", "b"], ("finetune", "features"), [0]), "train")

    assert list(trained) == ["run-step-1", "run-finetune-2", "run-features-2"]
    assert trained["run-step-1"].changes == ()
    assert trained["run-features-2"].changes == (("banks", "extend"),)
    assert trained["run-features-2"].init == "run-step-1"

    trained = by_name(plan(["a", "b"], ("features", "ucad"), [0]), "train")
    assert list(trained) == ["run-step-1", "run-ucad-1", "run-features-2", "run-ucad-2"]
    assert trained["run-ucad-1"].changes == trained["run-ucad-2"].changes
    assert trained["run-ucad-2"].init == "run-ucad-1"


def test_dne_walks_with_its_own_detector_once_whatever_others_are_compared():
    cells = comparison(["a", "b"], ("finetune", "dne", "dne-panda"), detectors=("x", "y"))
    trained = by_name(steps(cells, "run"), "train")

    named = [label(cell, cells) for cell in cells]
    assert named == ["finetune x", "finetune y", "dne", "dne-panda"]
    assert trained["run-dne-2"].changes == (("detector", "dne"),)
    assert trained["run-dne-panda-2"].changes == (("detector", "dne"), ("preset", "panda"))
    assert [trained[f"run-{name}-2"].init for name in ("dne", "dne-panda")] == [
        "run-dne-1", "run-dne-panda-1",
    ]  # fmt: skip


def test_each_form_of_keeping_a_class_has_artifacts_of_its_own_but_the_same_masks():
    planned = plan(["a", "b"], ("replay", "exemplars", "final"), [0, 1])

    assert list(by_name(planned, "mask")) == ["a", "b"]
    compressed = by_name(planned, "compress")
    assert sorted(compressed) == sorted(
        f"{name}{form}{seed}" for name in "ab" for form in ("", "-exemplars")
        for seed in ("", "-seed1")
    )  # fmt: skip
    assert compressed["a-exemplars"].changes == (("keep", "exemplars"),)
    assert owners(compressed["a"]) == ("replay", "final")
    assert owners(compressed["b"]) == ("replay",)  # the last class of `final` is real
    trained = by_name(planned, "train")
    assert trained["run-exemplars-2-seed1"].sources == ("a-exemplars-seed1",)
    assert owners(trained["run-replay-2"]) == ("replay", "final")


def test_ablations_differ_from_replay_in_what_compress_is_told_alone():
    names = ("replay", "semantic", "spatial", "none", "noisy", "box")
    compressed = by_name(plan(["a"], names, [0]), "compress")

    told = {name: dict(step.changes) for name, step in compressed.items()}
    assert told == {
        "a": {},
        "a-semantic": {"conditioning": "semantic"},
        "a-spatial": {"conditioning": "spatial"},
        "a-none": {"conditioning": "semantic", "init": "word", "num_steps": 0},
        "a-noisy": {"spoil_masks": "noisy"}, "a-box": {"spoil_masks": "box"},
    }  # fmt: skip


def test_every_step_is_evaluated_on_the_classes_seen_so_far():
    scored = by_name(plan(["a", "b", "c"], ("replay",), [0]), "eval")

    assert [step.class_names for step in scored.values()] == [("a",), ("a", "b"), ("a", "b", "c")]


def test_strategies_without_replay_need_no_generator():
    stages = {step.stage for step in plan(["a", "b"], ("finetune", "joint"), [0])}

    assert stages == {"train", "eval"}


def test_one_class_needs_one_training_for_all_strategies():
    trained = by_name(plan(["a"], ALL, [0]), "train")

    assert [owners(step) for step in trained.values()] == [ALL]


def test_final_is_the_last_step_of_replay_and_shares_its_training():
    alone = plan(["a", "b", "c"], ("final", "joint"), [0])
    both = by_name(plan(["a", "b", "c"], ("final", "replay"), [0]), "train")

    trained = by_name(alone, "train")
    assert set(trained) == {"run-replay-3", "run-joint-3"}
    assert (trained["run-replay-3"].class_names, trained["run-replay-3"].sources) == (
        ("c",), ("a", "b"),
    )  # fmt: skip
    # The last class is real: 20,000 steps and 800 images of it would be read by nothing.
    assert [sorted(by_name(alone, stage)) for stage in ("mask", "compress", "replay")] == (
        [["a", "b"]] * 3
    )
    assert owners(both["run-replay-3"]) == ("final", "replay")
    assert [name for name in both if "final" in owners(both[name])] == ["run-replay-3"]


def test_final_fills_the_last_row_and_has_a_gap_but_no_forgetting():
    cells = comparison(["a", "b"], ("final", "joint"))
    document = document_of(
        cells,
        lambda step: {
            name: {"image_auroc": 0.9 if "joint" in owners(step) else 0.7, "pixel_ap": 0.5}
            for name in "ab"
        },
    )

    entry = document["strategies"]["final"]["image_auroc"]
    assert entry["matrix"] == [[None, None], [0.7, 0.7]]
    assert (entry["mean"], entry["fm"]) == (pytest.approx(0.7), None)
    assert entry["joint_gap"] == pytest.approx(0.2)


def test_later_seeds_have_their_own_artifacts_but_share_the_masks():
    planned = plan(["a", "b"], ("replay",), [0, 7])

    assert sorted(by_name(planned, "mask")) == ["a", "b"]
    assert sorted(by_name(planned, "compress")) == ["a", "a-seed7", "b", "b-seed7"]
    assert by_name(planned, "train")["run-replay-2-seed7"].sources == ("a-seed7",)


def test_unknown_strategy_is_refused_with_the_valid_ones():
    with pytest.raises(ConfigError, match="finetune, ewc, mas, features, ucad, ucad-prompt, "):
        check_strategies(["magic"])


@pytest.mark.parametrize("name", STRATEGIES)
def test_an_entry_tells_stages_settings_that_they_have_and_the_reader_one_sentence(name):
    strategy = STRATEGIES[name]

    replace(CompressConfig(), **dict(strategy.compress or ()))
    replace(TrainConfig(), **dict((*strategy.train, *strategy.later)))
    assert strategy.detector in ("", *DETECTORS)
    assert strategy.named_as in ("", *STRATEGIES)
    assert strategy.description[-1] == "."
    assert ". " not in strategy.description


def test_figures_of_a_hand_worked_matrix():
    matrix = [[0.9, None, None], [0.7, 0.8, None], [0.6, 0.7, 1.0]]

    found = figures(matrix, joint_row=[0.9, 0.9, 0.9])

    assert found["mean"] == pytest.approx(2.3 / 3)
    assert found["mean_past"] == pytest.approx(0.65)
    assert found["fm"] == pytest.approx((0.3 + 0.1) / 2)
    assert found["joint_gap"] == pytest.approx(0.9 - 2.3 / 3)


def test_joint_has_only_a_last_row_and_no_forgetting():
    found = figures([[None, None], [0.8, 0.6]], joint_row=[0.8, 0.6])

    assert found["mean"] == pytest.approx(0.7)
    assert found["fm"] is None
    assert found["joint_gap"] == pytest.approx(0.0)


def test_one_class_has_neither_past_nor_forgetting():
    found = figures([[0.5]], joint_row=None)

    assert (found["mean"], found["mean_past"], found["fm"], found["joint_gap"]) == (
        0.5, None, None, None,
    )  # fmt: skip


def test_several_seeds_give_means_with_their_spread_beside():
    runs = [figures([[0.9, None], [0.8, 0.6]], None), figures([[0.7, None], [0.6, 0.6]], None)]

    merged = spread(runs)

    assert merged["matrix"] == [[pytest.approx(0.8), None], [pytest.approx(0.7), 0.6]]
    assert merged["mean"] == pytest.approx(0.65)
    assert merged["std"]["mean"] == pytest.approx(0.05)
    assert merged["std"]["joint_gap"] is None


def test_document_has_the_keys_that_other_tools_rely_on():
    def scores(step: Step) -> dict[str, dict[str, float]]:
        return {name: {"image_auroc": 0.9, "pixel_ap": 0.5} for name in step.class_names}

    document = document_of(comparison(["a", "b"], ALL), scores, num_bytes=lambda *_: 100)

    assert document["classes"] == ["a", "b"]
    assert document["seeds"] == [0]
    entry = document["strategies"]["replay"]
    assert entry["image_auroc"]["matrix"] == [[0.9, None], [0.9, 0.9]]
    assert set(entry["pixel_ap"]) == {"matrix", "mean", "mean_past", "fm", "joint_gap"}
    assert entry["bytes_per_class"] == {"a": 100, "b": 100}
    assert entry["seconds"] == 10.0  # two each of masks, searches, replays, trainings, evals
    assert document["strategies"]["joint"]["image_auroc"]["matrix"][0] == [None, None]


def test_the_newest_class_is_drawn_last_so_that_it_can_be_looked_at():
    planned = plan(["a", "b", "c"], ["replay"], [0])

    assert [step.name for step in planned if step.stage == "replay"] == ["a", "b", "c"]
    assert (planned[-1].stage, planned[-1].name) == ("replay", "c")


def test_orders_put_each_class_once_at_each_place():
    found = orders(["a", "b", "c"], 3)

    assert found[0] == ("a", "b", "c")
    assert [sorted(place) for place in zip(*found, strict=True)] == [["a", "b", "c"]] * 3
    assert len(set(orders("abcd", 8))) == 8
    with pytest.raises(ConfigError, match="1 to 2 orders, not 3"):
        orders(["a", "b"], 3)


def test_budgets_multiply_only_what_keeps_something_of_a_class():
    cells = comparison(
        ["a", "b"], ("finetune", "exemplars", "joint"), [0, 1], ["invad", "patchcore"],
        [25_000, 50_000], num_orders=2,
    )  # fmt: skip

    counts = {name: sum(cell.strategy == name for cell in cells) for name in ("finetune", "joint")}
    assert counts == {"finetune": 8, "joint": 4}
    assert sum(cell.strategy == "exemplars" for cell in cells) == 16
    assert len(set(cells)) == len(cells)


def test_a_comparison_does_once_what_its_cells_share():
    cells = comparison(
        ["a", "b"], ("finetune", "exemplars"), [0], ["invad", "patchcore"], [25_000, 50_000]
    )
    planned = steps(cells, "run")

    compressed = by_name(planned, "compress")
    assert list(compressed) == [
        "a-exemplars-25kB", "a-exemplars-50kB", "b-exemplars-25kB", "b-exemplars-50kB",
    ]  # fmt: skip
    assert dict(compressed["b-exemplars-50kB"].changes) == {"keep": "exemplars", "budget": 50_000}
    trained = by_name(planned, "train")
    assert list(trained)[:2] == ["run-step-1-invad", "run-step-1-patchcore"]
    assert len(trained["run-step-1-invad"].cells) == 3
    assert trained["run-exemplars-2-invad-25kB"].sources == ("a-exemplars-25kB",)
    assert dict(trained["run-finetune-2-patchcore"].changes) == {"detector": "patchcore"}


def test_names_stand_whatever_else_is_compared():
    some = {step.name for step in steps(comparison(["a", "b"], ["replay"], [1]), "run")}
    wide = comparison(["a", "b"], ("replay", "auto"), [0, 1, 2], num_orders=2)
    more = {step.name for step in steps(wide, "run")}

    assert some < more


def test_entries_are_named_by_what_differs_and_spread_over_seeds_and_orders():
    cells = comparison(["a", "b"], ("replay", "joint"), [0, 1], ["invad"], [9_000, 25_000], 2)

    def scores(step: Step) -> dict[str, dict[str, float]]:
        last = step.class_names[-1]
        value = {"a": 0.9, "b": 0.7}[last] + 0.1 * step.seed
        return {name: {"image_auroc": value, "pixel_ap": 0.5} for name in step.class_names}

    document = document_of(cells, scores)

    assert list(document["strategies"]) == ["replay 9kB", "replay 25kB", "joint"]
    entry = document["strategies"]["replay 9kB"]
    assert (entry["budget"], entry["detector"]) == (9_000, "invad")
    assert [(run["seed"], run["order"]) for run in entry["runs"]] == [
        (0, ["a", "b"]), (1, ["a", "b"]), (0, ["b", "a"]), (1, ["b", "a"]),
    ]  # fmt: skip
    figures_ = entry["image_auroc"]
    assert figures_["matrix"] == [
        [pytest.approx(0.95), None], [pytest.approx(0.75), pytest.approx(0.75)],
    ]  # fmt: skip
    assert figures_["mean"] == pytest.approx(0.85)
    assert figures_["std"]["mean"] == pytest.approx(0.0125**0.5)
    # the joint training of the same seed, whatever the order
    gaps = [run["image_auroc"]["joint_gap"] for run in entry["runs"]]
    assert gaps == pytest.approx([0.0, 0.0, -0.2, -0.2])
    rows = results_csv(document).splitlines()
    assert rows[0].startswith("strategy,detector,budget,seed,order,metric,mean,")
    assert len(rows) == 1 + 2 * (4 + 4 + 2)
    assert rows[1].startswith("replay 9kB,invad,9000,0,a b,image_auroc,0.7")


@pytest.mark.parametrize(
    ("size", "text"), [(25_000, "25kB"), (1_500_000, "1.5MB"), (12_345, "12345"), (500, "500")]
)
def test_budgets_are_named_as_they_are_typed(size, text):
    assert size_text(size) == text
