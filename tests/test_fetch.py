"""One command brings what a recipe needs: whole files only, and it goes on where it stopped."""

import errno
import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from replaycad.config.paper_classes import VISA
from replaycad.detectors.encoder_files import PUBLISHED, locate_encoder
from replaycad.detectors.registry import DETECTORS
from replaycad.detectors.settings import STANDARD_ENCODER
from replaycad.diffusion.presets import BACKBONES, backbone_files, locate_backbone, needed_files
from replaycad.errors import ConfigError, WeightsError
from replaycad.fetch import converting, parts, transfer
from replaycad.fetch.parts import parts_of_recipe
from replaycad.segmentation import presets as segmenters
from tests.cli.test_cli import one_line_error
from tests.conftest import invoke
from tests.hub import Hub
from tests.tiny import make_tiny_backbone

SD, LDM = BACKBONES["sd15"], BACKBONES["ldm256"]
ENCODER = "wide_resnet50_2.racm_in1k"
MAIN = "0123456789" * 4
RAW = "unet/diffusion_pytorch_model.non_ema.safetensors"
PICKLES = {
    "vqvae/diffusion_pytorch_model.bin": "vqvae/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.bin": "unet/diffusion_pytorch_model.safetensors",
    "bert/pytorch_model.bin": "bert/model.safetensors",
}


@pytest.fixture(scope="session")
def published(tmp_path_factory) -> Path:
    """Tiny networks laid out as their publishers do: OWNER/MODEL/PATH."""
    folder = tmp_path_factory.mktemp("published")
    sd = make_tiny_backbone(folder / SD.hub_id, "clip")
    plain = sd / "unet" / "diffusion_pytorch_model.safetensors"
    for ending in (".non_ema", ".fp16"):
        state = {name: value + 1 for name, value in load_file(plain).items()}
        save_file(state, plain.with_name(f"diffusion_pytorch_model{ending}.safetensors"))
    (sd / "v1-5-pruned.safetensors").write_bytes(b"the whole model in one file")
    ldm = make_tiny_backbone(folder / LDM.hub_id, "ldmbert")
    for pickle, tensors in PICKLES.items():
        torch.save(load_file(ldm / tensors), ldm / pickle)
        (ldm / tensors).unlink()
    encoder = folder / "timm" / ENCODER
    encoder.mkdir(parents=True)
    save_file({"weight": torch.arange(200_000)}, encoder / "model.safetensors")
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """Empty places for everything that is fetched."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("REPLAYCAD_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr(transfer, "PAUSE_S", 0.0)
    return tmp_path


@pytest.fixture
def sam(monkeypatch) -> tuple[str, bytes]:
    """A small checkpoint that is called as vit_h is: by six digits of its digest."""
    content = b"sam" * 100_000
    name = f"sam_vit_h_{hashlib.md5(content).hexdigest()[:6]}.pth"
    known = dict(segmenters.SEGMENTERS)
    known["vit_h"] = replace(known["vit_h"], file_name=name)
    monkeypatch.setattr(segmenters, "SEGMENTERS", known)
    monkeypatch.setattr(parts, "SEGMENTERS", known)
    return name, content


@pytest.fixture
def hub(published, cache, sam, monkeypatch):
    """A hub that publishes all that the paper needs, and nothing fetched from it yet."""
    assert not (cache / "hub").exists()
    hub = Hub()
    hub.publish(SD.hub_id, SD.revision, published / SD.hub_id)
    hub.publish(LDM.hub_id, LDM.revision, published / LDM.hub_id)
    hub.publish(f"timm/{ENCODER}", MAIN, published / "timm" / ENCODER)
    hub.checkpoints[sam[0]] = sam[1]
    # Whoever runs the tests offline can still ask a hub on this machine.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.address)
    template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("REPLAYCAD_SAM_URL", f"{hub.address}/sam")
    yield hub
    hub.close()


def fetch(*arguments):
    return invoke(["fetch", *arguments, "--data", "no/such/folder"])


def fetched(*arguments) -> dict[str, str]:
    result = fetch(*arguments, "--json", "--quiet")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return {f"{one['kind']} {one['name']}": one["state"]
            for one in json.loads(result.stdout)["parts"]}  # fmt: skip


def files_below(folder: Path) -> list[str]:
    """What counts: no locks, no empty folders and no notes of the library."""
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*")
        if path.is_file() and ".locks" not in path.parts and path.name != "CACHEDIR.TAG"
        and path.name != ".digests.json"
    )  # fmt: skip


def blob(cache: Path, preset, path: str) -> Path:
    model = cache / "hub" / f"models--{preset.hub_id.replace('/', '--')}"
    return model / "snapshots" / preset.revision / path


def same_tensors(one: Path, other: dict[str, torch.Tensor]) -> bool:
    found = load_file(one)
    return set(found) == set(other) and all(torch.equal(found[n], other[n]) for n in found)


PAPER = ["backbone ldm256", "backbone sd15", "segmenter vit_h", f"encoder {ENCODER}"]


def test_one_command_brings_all_that_the_paper_reads_and_the_second_does_nothing(
    hub, published, sam
):
    assert fetched("--recipe", "paper") == dict.fromkeys(PAPER, "fetched")

    asked = len(hub.asked)
    raw = backbone_files(locate_backbone("sd15"))["unet"][1]
    assert raw.read_bytes() == (published / SD.hub_id / RAW).read_bytes()
    assert not {"v1-5-pruned.safetensors", "unet/diffusion_pytorch_model.safetensors",
                "unet/diffusion_pytorch_model.fp16.safetensors"} & set(hub.got())  # fmt: skip
    folder = locate_backbone("ldm256")
    for pickle, tensors in PICKLES.items():
        assert same_tensors(folder / tensors, torch.load(published / LDM.hub_id / pickle))
    assert segmenters.locate("vit_h").weights.read_bytes() == sam[1]
    assert locate_encoder(ENCODER).files[0].read_bytes() == (
        published / "timm" / ENCODER / "model.safetensors").read_bytes()  # fmt: skip

    assert fetched("--recipe", "paper") == dict.fromkeys(PAPER, "present")
    assert len(hub.asked) == asked


def test_a_dry_run_says_what_there_is_and_asks_nobody(hub, cache, sam):
    fetched("--segmenter", "vit_h")
    asked = len(hub.asked)

    shown = fetch("--recipe", "paper", "--dry-run").stdout

    assert len(hub.asked) == asked
    assert files_below(cache) == [f"weights/{sam[0]}"]
    assert f"https://huggingface.co/{SD.hub_id}/resolve/{SD.revision}/{RAW}" in shown
    assert "segmenter vit_h: present" in shown
    assert "sd15: missing, 4.3 GB, CreativeML OpenRAIL-M" in shown


def test_the_variant_decides_which_weights_come(hub):
    fetched("--backbone", "sd15:ema")
    asked = len(hub.asked)
    assert "unet/diffusion_pytorch_model.safetensors" in hub.got()
    assert RAW not in hub.got()

    assert fetched("--backbone", "sd15") == {"backbone sd15": "fetched"}
    assert hub.got()[-1] == RAW
    assert [one[0] for one in hub.asked[asked:]].count("GET") == 2, "the listing and one file"


def test_weights_come_last_so_that_where_they_are_whole_everything_is(hub):
    fetched("--backbone", "sd15")

    weights = [name.endswith(".safetensors") for name in hub.got()]
    assert weights == sorted(weights)
    assert {"tokenizer/merges.txt", "tokenizer/tokenizer_config.json"} < set(hub.got())


def test_a_model_that_is_no_preset_is_fetched_by_its_id(hub, published):
    hub.publish("some/body", MAIN, published / SD.hub_id)

    assert set(fetched("--backbone", "some/body").values()) == {"fetched"}
    assert locate_backbone("some/body").name == MAIN
    assert set(fetched("--backbone", f"some/body@{MAIN}").values()) == {"present"}
    assert "404" in one_line_error(fetch("--backbone", "no/body", "--quiet"))


@pytest.mark.parametrize("path", [f"/{SD.hub_id}/resolve/{SD.revision}/{RAW}", "/sam/"])
def test_a_connection_that_drops_is_taken_up_where_it_broke(hub, path, sam):
    path = path if "/resolve/" in path else path + sam[0]
    hub.drops[path] = 1000

    fetched("--recipe", "paper")

    ranges = [one[2] for one in hub.asked if one[:2] == ("GET", path)]
    assert ranges == ["", "bytes=1000-"]


@pytest.mark.parametrize("what", [("--segmenter", "vit_h"), ("--encoder", ENCODER)])
def test_an_interrupted_command_leaves_what_came_and_the_next_goes_on(
    hub, cache, what, monkeypatch
):
    stop = {"left": 1}

    def interrupt(*_, **__):
        if stop["left"]:
            stop["left"] -= 1
            raise KeyboardInterrupt

    monkeypatch.setattr("replaycad.cli.console.TerminalReport.step", interrupt)

    result = fetch(*what)
    parts_left = [name for name in files_below(cache) if name.endswith(".part")]
    assert result.exit_code == 130
    assert "Run the same command again" in result.stderr
    assert len(parts_left) == 1
    have = (cache / parts_left[0]).stat().st_size
    assert have > 0

    assert set(fetched(*what).values()) == {"fetched"}
    assert [one[2] for one in hub.asked if one[2]] == [f"bytes={have}-"]
    assert not [name for name in files_below(cache) if name.endswith(".part")]


@pytest.mark.parametrize(("kind", "method"), [("pages", ""), ("pages", "GET "), ("spoiled", "")])
def test_an_answer_that_is_not_the_file_is_found_and_leaves_nothing(
    hub, cache, sam, kind, method
):
    bad = {f"/sam/{sam[0]}": ("--segmenter", "vit_h"),
           f"/timm/{ENCODER}/resolve/{MAIN}/model.safetensors": ("--encoder", ENCODER)}  # fmt: skip
    getattr(hub, kind).update(method + path for path in bad)
    for path, what in bad.items():
        line = one_line_error(fetch(*what, "--quiet"))
        assert path.rpartition("/")[2] in line
        assert files_below(cache) == []
        getattr(hub, kind).remove(method + path)
        assert set(fetched(*what).values()) == {"fetched"}
        for folder in ("hub", "weights"):
            shutil.rmtree(cache / folder, ignore_errors=True)


def test_a_login_page_in_place_of_the_listing_is_found(hub, cache):
    hub.pages.add(f"/api/models/{SD.hub_id}/revision/{SD.revision}")

    line = one_line_error(fetch("--backbone", "sd15", "--quiet"))

    assert "does not answer as a hub does" in line
    assert files_below(cache) == []


@pytest.mark.usefixtures("hub")
def test_bytes_that_were_damaged_later_are_found_and_only_they_are_removed(cache, sam):
    fetched("--recipe", "paper")
    before = files_below(cache)
    for place, what in ((blob(cache, SD, RAW), "sd15"), (cache / "weights" / sam[0], "vit_h")):
        content = bytearray(place.read_bytes())
        content[-1] ^= 1
        place.write_bytes(content)

        line = one_line_error(fetch("--recipe", "paper", "--quiet"))
        assert what in line
        assert place.name in line
        assert "run the same command again" in line
        assert not place.exists()
        assert "fetched" in fetched("--recipe", "paper").values()
        assert files_below(cache) == before


def test_without_a_network_one_line_says_what_is_missing(hub, cache):
    hub.close()

    line = one_line_error(fetch("--recipe", "paper", "--quiet"))

    assert "127.0.0.1" in line
    assert "backbone ldm256, backbone sd15, segmenter vit_h, encoder" in line
    assert "--dry-run" in line
    assert "--from" in line
    assert files_below(cache) == []


def test_the_hubs_own_switch_forbids_every_request(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "replaycad", "fetch", "--segmenter", "vit_b"],
        env={"HF_HUB_OFFLINE": "1", "REPLAYCAD_WEIGHTS": str(tmp_path), "HOME": str(tmp_path),
             "PATH": "", "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: dl.fbaipublicfiles.com may not be asked")
    assert files_below(tmp_path) == []


def test_a_disk_that_fills_up_while_converting_keeps_the_original(hub, cache, monkeypatch):
    whole = converting.save

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(converting, "save", full)
    line = one_line_error(fetch("--backbone", "ldm256", "--quiet"))

    assert "No space left on device" in line
    assert all(blob(cache, LDM, path).is_file() for path in PICKLES)
    assert not [name for name in files_below(cache) if name.endswith((".safetensors", ".tmp"))]
    monkeypatch.setattr(converting, "save", whole)
    asked = len(hub.asked)
    assert fetched("--backbone", "ldm256") == {"backbone ldm256": "fetched"}
    assert len(hub.asked) == asked, "nothing but the conversion was left to do"


def test_a_disk_that_is_too_small_is_refused_before_anything_is_fetched(hub, cache, monkeypatch):
    small = shutil.disk_usage(cache)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: small)

    line = one_line_error(fetch("--backbone", "sd15", "--quiet"))

    assert "0.0 GB free" in line
    assert hub.got() == []
    assert files_below(cache) == []


def test_a_disk_that_fills_up_while_fetching_keeps_what_came(hub, cache, monkeypatch):
    whole = transfer.os.fsync

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(transfer.os, "fsync", full)
    line = one_line_error(fetch("--encoder", ENCODER, "--quiet"))

    assert "No space left on device" in line
    assert "free some space" in line
    assert [name.rpartition(".")[2] for name in files_below(cache)] == ["part"]
    monkeypatch.setattr(transfer.os, "fsync", whole)
    got = len(hub.got())
    assert fetched("--encoder", ENCODER) == {f"encoder {ENCODER}": "fetched"}
    assert len(hub.got()) == got, "every byte was there"


@pytest.mark.usefixtures("hub")
def test_a_folder_that_cannot_be_made_is_named(cache):
    (cache / "weights").write_text("a file")

    assert "REPLAYCAD_WEIGHTS" in one_line_error(fetch("--segmenter", "vit_h", "--quiet"))


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("ran"),)


def test_a_pickle_that_would_run_something_is_refused_by_name(tmp_path, monkeypatch, published):
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(published / LDM.hub_id, tmp_path / "mine")
    torch.save({"weight": Evil()}, folder / "unet" / "diffusion_pytorch_model.bin")

    line = one_line_error(fetch("--backbone", folder, "--quiet"))

    assert "unet/diffusion_pytorch_model.bin holds more than tensors: " in line
    assert "pathlib.Path" in line
    assert not (folder / PICKLES["unet/diffusion_pytorch_model.bin"]).exists()
    assert not Path("ran").exists()


def test_tensors_that_share_bytes_or_lie_askew_are_converted(tmp_path):
    square = torch.arange(6.0).reshape(2, 3)
    tensors = {"a": square, "b": square[1], "c": square.T, "d": torch.tensor(True)}
    torch.save(tensors, tmp_path / "in.bin")

    converting.convert(tmp_path / "in.bin", tmp_path / "out.safetensors")

    assert same_tensors(tmp_path / "out.safetensors", tensors)


@pytest.mark.parametrize("content", [b"<html></html>", b"", [1, 2], {"a": 1}])
def test_what_is_no_dictionary_of_tensors_is_refused(tmp_path, content):
    path = tmp_path / "in.bin"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)

    with pytest.raises(WeightsError, match=r"in\.bin"):
        converting.convert(path, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("is_offline", [True, False])
def test_files_brought_by_hand_are_taken_and_converted(
    hub, published, sam, tmp_path, is_offline
):
    if is_offline:
        hub.close()
    brought = shutil.copytree(published, tmp_path / "brought")
    (brought / sam[0]).write_bytes(sam[1])

    found = fetched("--recipe", "paper", "--from", brought)

    assert found == dict.fromkeys(PAPER, "fetched")
    assert hub.asked == []
    assert locate_backbone("sd15").name == SD.revision
    assert same_tensors(
        locate_backbone("ldm256") / "bert/model.safetensors",
        torch.load(published / LDM.hub_id / "bert/pytorch_model.bin"),
    )
    assert locate_encoder(ENCODER).files[0].is_file()
    assert fetched("--recipe", "paper") == dict.fromkeys(PAPER, "present")


def test_what_was_brought_by_hand_is_checked(cache, published, sam, tmp_path):
    brought = shutil.copytree(published, tmp_path / "brought")
    (brought / sam[0]).write_bytes(b"x" + sam[1])
    weights = brought / "timm" / ENCODER / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    (brought / SD.hub_id / "vae" / "config.json").unlink()

    for what, word in ((("--segmenter", "vit_h"), sam[0]), (("--encoder", ENCODER), str(weights)),
                       (("--backbone", "ldm256:non_ema"), "non_ema"),
                       (("--backbone", "sd15"), "its vae has no config.json")):  # fmt: skip
        assert word in one_line_error(fetch(*what, "--from", brought, "--quiet"))
    assert files_below(cache / "weights") == []
    assert not [name for name in files_below(cache / "hub") if name.endswith(".safetensors")]
    assert "no folder" in one_line_error(
        fetch("--backbone", "no/body", "--from", brought, "--quiet")
    )
    assert fetch("--backbone", "sd15", "--from", brought / "nowhere").exit_code == 2


def test_other_weights_than_those_of_the_preset_are_not_taken_for_them(cache, published, tmp_path):
    brought = shutil.copytree(published, tmp_path / "brought")
    (brought / SD.hub_id / RAW).unlink()

    line = one_line_error(fetch("--backbone", "sd15", "--from", brought, "--quiet"))

    assert f"lacks {RAW}" in line
    assert files_below(cache / "hub") == []
    assert set(fetched("--backbone", "sd15:ema", "--from", brought).values()) == {"fetched"}


def named(found) -> set[tuple[str, str]]:
    return {(one.kind, one.name) for one in found}


def test_parts_are_those_of_the_classes():
    ldm, sd, vit = ("backbone", "ldm256"), ("backbone", "sd15"), ("segmenter", "vit_h")
    wide = ("encoder", ENCODER)

    assert named(parts_of_recipe("paper", ["bottle"])) == {ldm, vit, wide}
    assert named(parts_of_recipe("paper", ["pcb1"])) == {sd, vit, wide}
    assert named(parts_of_recipe("paper", ["a_new_product"])) == {ldm, vit, wide}
    assert named(parts_of_recipe("release", ["macaroni2"])) == {ldm, wide}, "it needs no masks"
    assert named(parts_of_recipe("fast", VISA)) == {ldm, vit, ("encoder", "resnet34.bt_in1k")}
    assert named(parts_of_recipe("paper", ["pcb1"], ["uniad", "dinomaly-lite"])) == {
        sd, vit, ("encoder", "tf_efficientnet_b4.aa_in1k"),
        ("encoder", "vit_small_patch14_reg4_dinov2.lvd142m"),
    }  # fmt: skip
    assert named(parts_of_recipe("paper", ["pcb1"], ["cdad-full", "ucad-full"])) == {
        sd, vit, ("segmenter", "vit_b"), ("encoder", "resnet50.a1_in1k"),
        ("encoder", "vit_base_patch16_224.augreg_in21k"),
    }  # fmt: skip
    with pytest.raises(ConfigError, match="no settings for class 'myclass'"):
        parts_of_recipe("release", ["myclass"])


@pytest.mark.usefixtures("cache")
def test_the_classes_are_those_of_the_data_or_of_the_papers(data):
    told = invoke(["fetch", "--recipe", "fast", "--data", data, "--dry-run"])
    assert "recipe fast, for the 2 classes in" in told.stderr
    told = fetch("--recipe", "release", "--dry-run")
    assert "for the classes of MVTec AD and VisA" in told.stderr
    assert "sd15" in told.stdout


def test_the_bundled_parts_need_nothing(cache):
    told = fetch("--recipe", "mini")

    assert "nothing to fetch" in told.stdout
    assert files_below(cache) == []


@pytest.mark.parametrize(("typed", "word"), [
    ([], "nothing is named"), (["--detector", "uniad"], "--recipe"),
    (["--recipe", "papr"], "papr"), (["--segmenter", "vit_x"], "vit_x"),
    (["--backbone", "sd16"], "sd16"), (["--encoder", "a b"], "a b"),
    (["--recipe", "paper", "--class", "all", "--detector", "nothing"], "nothing"),
])  # fmt: skip
@pytest.mark.usefixtures("hub")
def test_names_that_mean_nothing_are_refused_in_one_line(typed, word):
    assert word in one_line_error(fetch(*typed, "--quiet"))


def test_every_encoder_of_a_detector_has_its_licence():
    presets = [preset for kind in DETECTORS.values() for preset in kind.values()]
    used = {one for preset in presets for one in (preset.encoder, preset.transformer)}
    used -= {"mini", ""}

    assert {*PUBLISHED, STANDARD_ENCODER} == used
    assert "ImageNet" in parts.part_named("encoder", STANDARD_ENCODER).licence
    assert "licence not known, see https://" in parts.part_named("encoder", "resnet18.x").licence


def test_files_are_chosen_as_they_are_read():
    vae = ["vae/config.json", "vae/diffusion_pytorch_model.bin"]
    rest = ["unet/config.json", "unet/diffusion_pytorch_model.fp16.safetensors",
            "unet/diffusion_pytorch_model.bin", "text_encoder/config.json",
            "text_encoder/pytorch_model.bin", "tokenizer/vocab.json", "tokenizer/sub/../x.json",
            "scheduler/scheduler_config.json", "README.md"]  # fmt: skip

    chosen = needed_files([*vae, *rest])

    assert chosen["vae/diffusion_pytorch_model.bin"] == "vae/diffusion_pytorch_model.safetensors"
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in chosen
    assert "unet/diffusion_pytorch_model.bin" not in chosen
    assert chosen["text_encoder/pytorch_model.bin"] == "text_encoder/model.safetensors"
    assert "tokenizer/sub/../x.json" not in chosen
    with pytest.raises(WeightsError, match="no folder vae"):
        needed_files(rest)
    with pytest.raises(WeightsError, match="two text encoders"):
        needed_files([*vae, *rest, "text_encoder_2/config.json"])
