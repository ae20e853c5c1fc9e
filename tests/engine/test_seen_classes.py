"""Tiles, padding and ignored pixels through all commands, as a user types them."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image, ImageDraw

from replaycad.artifacts.conditions import ConditionsArtifact
from replaycad.artifacts.detector import DetectorArtifact
from replaycad.artifacts.format import read_header
from replaycad.artifacts.masks import MasksArtifact
from replaycad.artifacts.replays import ReplaysReader
from replaycad.artifacts.scores import ScoresArtifact
from replaycad.config.stages import MaskConfig
from replaycad.data.views import BLANK, View, view_of
from replaycad.engine.settings import RunSettings, split_settings
from tests.conftest import invoke, states

SIDE, TILE = 96, 48


def draw_plate(seed, spot=None, size=(SIDE, SIDE)):
    """Grey noise, with a dark spot of 10 px around a place."""
    rng = np.random.default_rng(seed)
    pixels = (150 + 6 * rng.standard_normal(size[::-1])).clip(0, 255).astype(np.uint8)
    picture = Image.fromarray(pixels).convert("RGB")
    if spot:
        x, y = spot
        ImageDraw.Draw(picture).rectangle((x - 5, y - 5, x + 4, y + 4), fill=(20, 20, 20))
    return picture


def write_plates(folder, size=(SIDE, SIDE), num=3):
    """A class `sheet` of plates with a spot across the border of two tiles."""
    root = folder / "sheet"
    for part in ("train/good", "test/good", "test/spot", "ground_truth/spot"):
        (root / part).mkdir(parents=True)
    for index in range(num):
        draw_plate(index, size=size).save(root / f"train/good/{index}.png")
    for index in range(2):
        place = (size[0] // 2 + 20 * index, size[1] // 2)
        draw_plate(10 + index, size=size).save(root / f"test/good/{index}.png")
        draw_plate(20 + index, place, size).save(root / f"test/spot/{index}.png")
        mask = Image.new("L", size)
        x, y = place
        ImageDraw.Draw(mask).rectangle((x - 5, y - 5, x + 4, y + 4), fill=255)
        mask.save(root / f"ground_truth/spot/{index}_mask.png")
    return folder


@pytest.fixture(scope="module")
def plates(tmp_path_factory):
    return write_plates(tmp_path_factory.mktemp("plates"))


def header_of(tmp_path, label):
    return read_header(tmp_path / "store" / f"{label}.safetensors")


PATCHCORE = ("--detector", "patchcore", "--set", "train.image_size=48")


@pytest.fixture
def tiled(run, plates, tmp_path):
    """The whole chain with tiles, typed once."""
    for command in (
        ("mask", "--class", "sheet", "--tile", str(TILE)),
        ("compress", "--class", "sheet"),
        ("replay", "--class", "sheet"),
        ("train", "--class", "sheet", *PATCHCORE),
        ("eval", "--class", "sheet"),
    ):
        result = run(*command, data=plates)
        assert result.exit_code == 0, result.output
    return tmp_path / "store"


def test_tiles_are_typed_once_and_travel_in_the_artifacts(tiled, run, plates, tmp_path):
    masks = MasksArtifact.load(tiled / "masks/sheet.safetensors")
    assert len(masks.image_ids) == 3 * 9
    assert masks.image_ids[1] == "train/good/0.png#24,0"
    assert masks.object_masks.all()
    assert (masks.rule, masks.header["policy"]["mask_rule"]) == ("frame", "frame")
    for label in ("masks/sheet", "conditions/sheet", "replays/sheet"):
        view = View.from_dict(header_of(tmp_path, label)["view"])
        assert (view.tile, view.num_tiles) == (TILE, 9), label
    assert ConditionsArtifact.load(tiled / "conditions/sheet.safetensors").poses is None
    trained = DetectorArtifact.load(tiled / "detectors/sheet.safetensors")
    assert view_of(trained.header, "sheet") == View(tile=TILE, fit="pad")
    scores = ScoresArtifact.load(tiled / "scores/sheet.safetensors")
    assert len(scores.image_scores) == 4, "one score for each picture"
    found = scores.metrics["classes"]["sheet"]
    assert found["image_auroc"] == 1
    assert found["pixel_auroc"] > 0.95
    for stage in ("mask", "compress"):
        assert states(run, stage, "--class", "sheet", "--tile", str(TILE), data=plates) == [
            ("hit", "")
        ]
    assert states(run, "train", "--class", "sheet", *PATCHCORE, data=plates) == [("hit", "")]


def test_a_past_class_keeps_its_tiles_beside_a_new_one_that_has_none(tiled, run, data, tmp_path):
    both = shutil.copytree(data, tmp_path / "both")

    result = run("train", "--class", "disc", "--past", "sheet", *PATCHCORE, data=both)

    assert result.exit_code == 0, result.output
    trained = DetectorArtifact.load(tiled / "detectors/disc.safetensors")
    assert view_of(trained.header, "sheet").tile == TILE
    assert view_of(trained.header, "disc").tile == 0


@pytest.mark.usefixtures("tiled")
def test_another_tile_makes_stale_what_was_made_with_the_first_in_plain_words(run, plates):
    compress = ("compress", "--class", "sheet", "--tile", "32")
    ((_, reason),) = states(run, "mask", "--class", "sheet", "--tile", "32", data=plates)
    assert "tile 48 -> 32" in reason

    assert run("mask", "--class", "sheet", "--tile", "32", data=plates).exit_code == 0

    ((state, reason),) = states(run, *compress, data=plates)
    assert state == "stale"
    assert "view of sheet tiles of 48 px -> tiles of 32 px" in reason
    ((state, reason),) = states(run, "train", "--class", "sheet", *PATCHCORE, data=plates)
    assert state == "stale"
    assert "view of sheet tiles of 48 px -> tiles of 32 px" in reason


def predict(tiled, *arguments):
    return invoke(["predict", "--store", tiled, "--device", "cpu", "--json", *arguments])


def test_predict_stitches_one_map_over_the_whole_picture(tiled, models, plates, tmp_path):
    shown = plates / "sheet/test/spot/0.png"

    result = predict(tiled, shown, "--encoder", models.encoder, "--out", tmp_path / "maps")

    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["verdict"] == "anomalous"
    drawn = np.asarray(Image.open(told["overlay"]), np.float32)
    assert drawn.shape == (SIDE, SIDE, 3)
    changed = np.abs(drawn - np.asarray(Image.open(shown), np.float32)).sum(-1)
    assert changed[SIDE // 2 - 5 : SIDE // 2 + 5, SIDE // 2 - 5 : SIDE // 2 + 5].mean() > (
        3 * changed.mean()
    )
    normal = json.loads(
        predict(tiled, plates / "sheet/test/good/0.png", "--encoder", models.encoder).stdout
    )
    assert normal["score"] < told["score"]


def test_predict_names_a_picture_that_is_smaller_than_a_tile_and_goes_on(
    tiled, models, plates, tmp_path
):
    small, sound = tmp_path / "small.png", plates / "sheet/test/good/0.png"
    draw_plate(0, size=(40, 30)).save(small)

    result = predict(tiled, small, sound, "--encoder", models.encoder)

    first, second = (json.loads(line) for line in result.stdout.splitlines())
    assert "a tile of 48 px is larger than a picture of 40 x 30 px" in first["error"]
    assert second["verdict"] in ("normal", "anomalous")
    assert result.exit_code == 1


def test_predict_asks_for_the_class_where_classes_are_seen_differently(
    tiled, run, models, plates
):
    assert run("train", "--class", "disc", "--past", "sheet", *PATCHCORE).exit_code == 0
    shown = plates / "sheet/test/spot/0.png"
    named = ("--name", "disc", "--encoder", models.encoder)

    refused = predict(tiled, shown, *named)

    assert refused.exit_code == 1
    assert refused.stderr.count("\n") == 1
    assert "sees its classes in different ways" in refused.stderr
    assert "sheet: tiles of 48 px" in refused.stderr
    assert "name the class with --class" in refused.stderr
    assert predict(tiled, shown, *named, "--class", "sheet").exit_code == 0
    assert predict(tiled, shown, *named, "--class", "disc").exit_code == 0


@pytest.mark.parametrize("stage", ["mask", "train"])
def test_a_tile_larger_than_the_pictures_is_refused_in_one_line(stage, run, plates):
    result = run(stage, "--class", "sheet", "--tile", "200", data=plates)

    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "a tile of 200 px is larger than a picture of 96 x 96 px" in result.stderr
    assert "train/good/0.png" in result.stderr


@pytest.mark.parametrize("text", ["16", "-3", "sheet=16", "wide", "sheet=wide", "2.5"])
def test_a_tile_that_is_none_is_refused_in_one_line(text, run, plates):
    result = run("mask", "--class", "sheet", "--tile", text, data=plates)

    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "mask: " in result.stderr


def test_a_class_that_is_not_asked_for_has_no_tile(run, plates):
    result = run("mask", "--class", "sheet", "--tile", "sheat=48", data=plates)

    assert result.exit_code == 1
    assert "--tile names sheat" in result.stderr


def test_tiles_differ_from_class_to_class():
    typed = split_settings(["mask.tile=sheet=256, board=512", "mask.image_size=64"], None)
    settings = RunSettings(data="d", root="s", overrides=typed)

    tiles = {name: settings.config(MaskConfig, name).tile for name in ("sheet", "board", "bolt")}

    assert tiles == {"sheet": 256, "board": 512, "bolt": 0}
    assert settings.of_class("mask", "bolt") == {"image_size": "64"}
    both = split_settings(["mask.tile=128,sheet=256"], None)
    settings = RunSettings(data="d", root="s", overrides=both)
    assert settings.config(MaskConfig, "bolt").tile == 128
    assert settings.config(MaskConfig, "sheet").tile == 256


def test_pictures_that_are_not_square_are_padded_unless_asked(run, tmp_path):
    data = write_plates(tmp_path / "wide", size=(96, 48))
    for command in (("mask",), ("compress",), ("replay",), ("train", *PATCHCORE), ("eval",)):
        result = run(*command, "--class", "sheet", data=data)
        assert result.exit_code == 0, result.output
    trained = DetectorArtifact.load(tmp_path / "store/detectors/sheet.safetensors")
    assert view_of(trained.header, "sheet") == View(fit="pad")

    squashed = run("mask", "--class", "sheet", "--set", "mask.fit=squash", data=data)

    assert squashed.exit_code == 0
    ((state, reason),) = states(run, "train", "--class", "sheet", *PATCHCORE, data=data)
    assert (state, reason) == ("stale", "view of sheet whole, padded -> whole, squashed")


def write_ignored(data, box, size=(SIDE, SIDE), value=255):
    picture = Image.new("L", size)
    ImageDraw.Draw(picture).rectangle(box, fill=value)
    picture.save(data / "sheet" / "ignore.png")


def test_what_is_ignored_travels_and_is_blank_in_training_replays_and_use(run, models, tmp_path):
    data = write_plates(tmp_path / "plates", num=6)
    write_ignored(data, (0, 0, 95, 23))  # the upper quarter
    for command in (("mask",), ("compress",), ("replay",), ("train", *PATCHCORE), ("eval",)):
        result = run(*command, "--class", "sheet", data=data)
        assert result.exit_code == 0, result.output
    replays = ReplaysReader(tmp_path / "store/replays/sheet.safetensors")
    images = replays.images(range(len(replays)))
    quarter = images.shape[-1] // 4
    assert (images[:, :, :quarter] == np.array(BLANK)[:, None, None]).all()
    assert len(np.unique(images[:, :, quarter:])) > 3

    # A clock in the upper quarter changes nothing; a spot below still does.
    shown = [data / "sheet/test/good/0.png", tmp_path / "clock.png"]
    clock = Image.open(shown[0]).convert("RGB")
    ImageDraw.Draw(clock).rectangle((30, 5, 60, 18), fill=(255, 0, 0))
    clock.save(shown[1])
    shown.append(data / "sheet/test/spot/0.png")
    result = predict(tmp_path / "store", *shown, "--encoder", models.encoder,
                     "--out", tmp_path / "maps")  # fmt: skip
    plain, other, spot = (json.loads(line) for line in result.stdout.splitlines())
    assert plain["score"] == other["score"]
    assert spot["score"] > plain["score"]
    drawn = np.asarray(Image.open(other["overlay"]).convert("RGB"))
    assert np.array_equal(drawn[:23], np.asarray(clock)[:23]), "shown as it is"


def test_ignoring_something_else_makes_all_of_it_stale_in_words(run, tmp_path):
    data = write_plates(tmp_path / "plates")
    for command in (("mask",), ("compress",)):
        assert run(*command, "--class", "sheet", data=data).exit_code == 0
    write_ignored(data, (0, 0, 40, 40))

    assert states(run, "mask", "--class", "sheet", data=data) == [
        ("stale", "ignore.png of sheet is new")
    ]
    assert run("compress", "--class", "sheet", data=data).exit_code == 0
    write_ignored(data, (0, 0, 30, 30))
    ((_, reason),) = states(run, "mask", "--class", "sheet", data=data)
    assert reason == "ignore.png of sheet changed"


def test_a_picture_that_ignores_nothing_or_all_or_does_not_fit_is_told(run, tmp_path):
    data = write_plates(tmp_path / "plates")
    write_ignored(data, (0, 0, 95, 95), value=0)
    result = run("mask", "--class", "sheet", data=data)
    assert result.exit_code == 0
    assert "ignore.png is all black: nothing of sheet is ignored" in " ".join(
        result.stderr.split()
    )
    for box, size, told in (
        ((0, 0, 95, 95), (SIDE, SIDE), "all of a picture is ignored"),
        ((0, 0, 5, 5), (50, 60), "ignore.png of sheet has 50 x 60 px"),
    ):
        write_ignored(data, box, size)
        result = run("mask", "--class", "sheet", data=data)
        assert result.exit_code == 1
        assert result.stderr.count("\n") == 1
        assert told in result.stderr
    (data / "sheet/ignore.png").write_bytes(b"none")
    result = run("mask", "--class", "sheet", data=data)
    assert result.exit_code == 1
    assert "ignore.png is no image of a known format" in result.stderr


def test_an_export_says_that_its_image_is_a_tile(tiled, models, tmp_path):
    result = invoke(
        ["export", "--name", "sheet", "--encoder", models.encoder, "--store", tiled,
         "--format", "torch", "--out", tmp_path / "sheet.pt2"]
    )  # fmt: skip

    assert result.exit_code == 0, result.output
    assert "an image of sheet is a tile of 48 px" in result.stdout
    beside = json.loads((tmp_path / "sheet.pt2.json").read_text())
    assert beside["image_size"] == TILE
    seen = {"tile": TILE, "fit": "pad", "white": 255, "ignore": ""}
    assert beside["views"] == {"sheet": seen}


def test_a_run_with_tiles_reports_whole_pictures(run, plates, tmp_path):
    result = run("run", "--class", "sheet", "--tile", str(TILE), "--detector", "patchcore",
                 "--set", "train.image_size=48", data=plates)  # fmt: skip

    assert result.exit_code == 0, result.output
    assert "wrote no report page" not in result.stderr
    page = (tmp_path / "store/results/run.html").read_text()
    assert page.count("data:image/webp") >= 12
    with Image.open(tmp_path / "store/results/run.png") as sheet:
        assert sheet.width > 3 * 128
