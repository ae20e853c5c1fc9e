"""`compress --add`: a class grows by new photos alone, in the form and the bytes that it has."""

import shutil

import numpy as np
import pytest
from PIL import Image

from replaycad.artifacts import format as files
from replaycad.artifacts.conditions import ConditionsArtifact
from replaycad.continual.exemplars import encode, resized, stored_size
from replaycad.continual.growth import grown_record, joined_rows, known_photos, photo_digest
from replaycad.detectors.limits import combined
from replaycad.engine.builder import Builder
from replaycad.stages import compress as compressing
from tests.conftest import invoke, states
from tests.toy import SIZE, draw_object

NUM_OLD, NUM_NEW = 6, 3


@pytest.fixture
def photos(tmp_path):
    """New photos of `disc`: green ones, unlike any that it was compressed from."""
    folder = tmp_path / "new"
    folder.mkdir()
    for number in range(NUM_NEW):
        pixels = np.asarray(draw_object("disc", 10 + number)).copy()
        pixels[8:24, 8:24] = (10, 250, 10 * number)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store" / "conditions" / "disc.safetensors"


@pytest.fixture
def keep(run, models, path):
    """Compress `disc` into a form."""

    def call(form, *options):
        typed = ["--keep", form, *options]
        if form == "features":
            typed += ["--set", "train.detector=patchcore"]
        typed += ["--set", f"train.encoder={models.encoder}"]
        result = run("compress", "--class", "disc", *typed)
        assert result.exit_code == 0, result.output
        return ConditionsArtifact.load(path)

    return call


@pytest.fixture
def add(models, tmp_path):
    """Add photos to `disc`, with no data folder."""

    def call(*photos, name="disc", options=()):
        typed = [part for photo in photos for part in ("--add", photo)]
        networks = ("--backbone", models.backbone, "--set", f"encoder={models.encoder}",
                    "--set", "mask.segmenter=none")  # fmt: skip
        return invoke(["compress", "--class", name, *typed, *networks, *options, "--recipe", "mini",
                       "--data", tmp_path / "gone", "--store", tmp_path / "store",
                       "--device", "cpu"])  # fmt: skip

    return call


def grown(result, path):
    assert result.exit_code == 0, result.output
    return ConditionsArtifact.load(path)


@pytest.mark.parametrize("form", ["features", "exemplars", "conditions", "hybrid"])
def test_every_form_grows_in_its_bytes_and_stands_for_both(form, keep, add, photos, path):
    budget = 0 if form == "conditions" else 9_000
    before = keep(form, *(["--budget", str(budget)] if budget else []))

    after = grown(add(photos), path)

    assert before.header["num_images"] == NUM_OLD
    assert after.header["num_images"] == NUM_OLD + NUM_NEW
    assert after.header["added"]["photos"] == NUM_NEW
    assert after.header["content_id"] != before.header["content_id"]
    for field in ("form", "config", "seed", "weights", "policy", "class_name"):
        assert after.header[field] == before.header[field], field
    assert set(after.header["inputs"]) == {*before.header["inputs"], "added/disc"}
    assert path.stat().st_size == after.file_bytes()
    assert bool(after.exemplars) == bool(before.exemplars)
    assert after.is_drawn == before.is_drawn
    if budget:
        assert path.stat().st_size <= budget


def test_a_patch_far_from_all_that_is_kept_comes_into_the_bank(keep, add, photos, path):
    before = keep("features")

    after = grown(add(photos), path)

    old, new = (one.features.decoded() for one in (before, after))
    apart = np.linalg.norm(new[:, None] - old[None], axis=2).min(1)
    between = np.linalg.norm(old[:, None] - old[None], axis=2).max()
    assert (apart > 0.5 * between).any(), "of the green discs"
    left = np.linalg.norm(old[:, None] - new[None], axis=2).min(1)
    assert np.median(left) < 0.1 * between, "of the others"
    limits = [one.header["features"]["limits"] for one in (before, after)]
    for name in ("image", "pixel", "product"):
        assert limits[1][name] >= limits[0][name], name


def test_few_patches_of_a_small_budget_are_of_both_sides(keep, add, photos, path, monkeypatch):
    monkeypatch.setattr("replaycad.continual.features.STEPS", (1.0,))
    monkeypatch.setattr("replaycad.continual.features.BASIS_SHARE", 1.0)
    before = keep("features")
    budget = path.stat().st_size + 450
    before = keep("features", "--budget", str(budget))

    result = add(photos)

    after = grown(result, path)
    assert path.stat().st_size <= budget
    old, new = (one.features.decoded() for one in (before, after))
    apart = np.linalg.norm(new[:, None] - old[None], axis=2).min(1)
    between = np.linalg.norm(old[:, None] - old[None], axis=2).max()
    assert (apart > 0.5 * between).any(), "of the green discs"
    assert (apart < 0.2 * between).any(), "of the others"
    assert "of them were kept before" in result.stderr


def test_an_image_that_stays_keeps_its_bytes_and_one_far_off_comes_first(
    keep, add, photos, path
):
    before = keep("exemplars")
    assert len(before.exemplars) == NUM_OLD, "all of them fit"
    room = path.stat().st_size
    before = keep("exemplars", "--budget", str(room))
    kept = before.exemplars

    after = grown(add(photos), path)

    stay = [one for one in after.exemplars if one in kept]
    assert 0 < len(stay) < len(after.exemplars)
    assert after.header["exemplar_quality"] == before.header["exemplar_quality"]
    places = dict(zip(before.exemplars, before.exemplar_poses, strict=True))
    for one, place in zip(after.exemplars, after.exemplar_poses, strict=True):
        if one in places:
            assert np.array_equal(place, places[one])


def test_photos_are_stored_as_finely_as_the_others(keep, add, photos, path):
    before = keep("exemplars", "--set", "exemplar_size=16", "--set", "exemplar_quality=40")

    after = grown(add(photos), path)

    fresh = [one for one in after.exemplars if one not in before.exemplars]
    assert len(fresh) == NUM_NEW
    assert {stored_size(one) for one in after.exemplars} == {16}
    shown = np.asarray(Image.open(photos / "1.png").convert("RGB")).transpose(2, 0, 1)
    assert encode(resized(shown, 16), 40) in fresh


def test_photos_that_were_added_are_told_and_not_counted_twice(keep, add, photos, path):
    keep("exemplars")
    grown(add(photos), path)
    once = path.read_bytes()

    again = add(photos)

    assert again.exit_code == 0, again.output
    assert "3 of 3 photos left out" in again.stderr
    assert path.read_bytes() == once
    shutil.copy(photos / "0.png", photos / "copy.png")
    draw_object("disc", 30).save(photos / "more.png")
    result = add(photos)
    assert "4 of 5 photos left out" in result.stderr
    after = grown(result, path)
    assert after.header["num_images"] == NUM_OLD + NUM_NEW + 1
    assert len(known_photos(after.header)) == after.header["added"]["photos"] == NUM_NEW + 1


def test_a_class_that_grew_stays_until_its_folder_has_the_photos_or_the_user_insists(
    run, keep, add, photos, path, data, tmp_path, models
):
    options = ("--class", "disc", "--keep", "exemplars", "--set",
               f"train.encoder={models.encoder}")  # fmt: skip
    keep("exemplars")
    grown(add(photos), path)
    once = path.read_bytes()
    assert states(run, "compress", *options) == [("hit", "")]
    assert run("compress", *options).exit_code == 0
    assert path.read_bytes() == once
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    draw_object("disc", 40).save(folder / "disc/train/good/new.png")

    for dry in ((), ("--dry-run",)):
        refused = run("compress", *options, *dry, data=folder)
        assert refused.exit_code == 1
        assert "stands for 3 photos that were added" in refused.stderr
        assert "images/disc changed" in refused.stderr
        assert path.read_bytes() == once

    for photo in photos.iterdir():
        shutil.copy(photo, folder / "disc/train/good" / f"added{photo.name}")
    assert run("compress", *options, data=folder).exit_code == 0
    header = files.read_header(path)
    assert header["num_images"] == NUM_OLD + NUM_NEW + 1
    assert "added" not in header
    assert "added/disc" not in header["inputs"]
    path.write_bytes(once)
    assert run("compress", *options, "--force").exit_code == 0
    assert files.read_header(path)["num_images"] == NUM_OLD


def test_a_command_that_finds_a_grown_class_up_to_date_reads_it(
    run, keep, add, photos, path, models, monkeypatch
):
    keep("exemplars")
    after = grown(add(photos), path)
    builders = []
    real = Builder.__enter__
    monkeypatch.setattr(Builder, "__enter__", lambda self: builders.append(self) or real(self))

    result = run("compress", "--class", "disc", "--keep", "exemplars", "--set",
                 f"train.encoder={models.encoder}")  # fmt: skip

    assert result.exit_code == 0, result.output
    (builder,) = builders
    assert isinstance(builder, Builder)
    assert builder.content("conditions", "disc") == after.header["content_id"]


def test_what_was_made_from_a_class_is_stale_when_it_has_grown(run, keep, add, photos, path):
    keep("exemplars")
    train = ("train", "--class", "plate", "--past", "disc", "--detector", "patchcore")
    assert run(*train).exit_code == 0
    assert states(run, *train) == [("hit", "")]

    grown(add(photos), path)

    drawn = states(run, "replay", "--class", "disc")
    assert drawn == [("stale", "conditions/disc changed; limits changed")]
    assert run(*train).exit_code == 0


def test_a_choice_that_grew_stays_what_was_chosen(run, keep, add, photos, path, models):
    before = keep("auto", "--budget", "20000")
    auto = ("compress", "--class", "disc", "--keep", "auto", "--budget", "20000", "--set")

    after = grown(add(photos), path)

    assert before.header["form"] == after.header["form"]
    assert after.header["config"]["keep"] == "auto"
    assert "separations" not in after.header
    assert states(run, *auto, f"train.encoder={models.encoder}") == [("hit", "")]


@pytest.mark.parametrize("what", ["lost", "other", "typed", "two", "empty", "damaged", "another"])
def test_what_cannot_be_added_is_said_in_one_line_and_changes_nothing(
    what, keep, add, photos, path
):
    keep("exemplars")
    once = path.read_bytes()
    name, options = "disc", ()
    expected = {
        "lost": "there is nothing to add to (run `replaycad compress --class plate`",
        "other": "holds conditions of disc, not of plate",
        "typed": "budget cannot be set with it",
        "two": "--add takes photos of one class",
        "empty": "holds no images",
        "damaged": "2.png",
        "another": "was made with another encoder than 'mini'",
    }[what]
    if what in ("lost", "other"):
        name = "plate"
    if what == "other":
        shutil.copy(path, path.with_name("plate.safetensors"))
    if what == "two":
        name = "disc,plate"
        shutil.copy(path, path.with_name("plate.safetensors"))
    if what == "typed":
        options = ("--budget", "90kB")
    if what == "empty":
        for photo in photos.iterdir():
            photo.unlink()
    if what == "damaged":
        (photos / "2.png").write_bytes((photos / "2.png").read_bytes()[:60])
    if what == "another":
        options = ("--set", "encoder=mini")

    result = add(photos, name=name, options=options)

    assert result.exit_code == 1, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert expected in errors[0]
    assert path.read_bytes() == once


def test_photos_of_another_size_than_what_is_ignored_are_refused(
    run, add, photos, path, data, tmp_path, models
):
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    ignored = Image.new("L", (SIZE, SIZE), 0)
    ignored.paste(255, (0, 0, 6, 6))
    ignored.save(folder / "disc/ignore.png")
    assert run("compress", "--class", "disc", "--keep", "exemplars", "--set",
               f"train.encoder={models.encoder}", data=folder).exit_code == 0  # fmt: skip
    once = path.read_bytes()
    Image.new("RGB", (40, 40)).save(photos / "large.png")

    result = add(photos)

    assert result.exit_code == 1
    assert "large.png has 40 x 40 px" in result.stderr
    assert path.read_bytes() == once
    (photos / "large.png").unlink()
    after = grown(add(photos), path)
    assert after.header["view"]["ignore"]


def test_interrupted_it_leaves_what_was_there(keep, add, photos, path, monkeypatch):
    keep("exemplars")
    once = path.read_bytes()

    def stop(*_args, **_names):
        raise KeyboardInterrupt

    for place in ("stages.exemplars.coverage_order", "artifacts.format.replacing",
                  "artifacts.atomic.os.replace"):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(f"replaycad.{place}", stop)
            assert add(photos).exit_code == 130
        assert path.read_bytes() == once
        assert [one.name for one in path.parent.iterdir()] == [path.name]
    grown(add(photos), path)


def test_a_dry_run_tells_and_changes_nothing(keep, add, photos, path):
    keep("exemplars")
    once = path.read_bytes()

    result = add(photos, options=("--dry-run", "--json"))

    assert result.exit_code == 0, result.output
    assert '"reason": "added/disc is new"' in result.stdout
    assert path.read_bytes() == once


def test_conditions_are_searched_among_as_many_replays_as_images_before_and_the_photos(
    keep, add, photos, path, monkeypatch
):
    before = keep("conditions")
    seen = {}
    real = compressing.search

    def watched(diffusion, conditions, images, masks, *others):
        seen["images"] = images.mean.shape[1]
        seen["masks"] = masks.mean.shape[1]
        return real(diffusion, conditions, images, masks, *others)

    monkeypatch.setattr(compressing, "search", watched)

    after = grown(add(photos), path)

    assert seen["images"] == seen["masks"] == NUM_OLD + NUM_NEW
    assert len(after.poses) == NUM_OLD + NUM_NEW
    assert len(after.object_masks) == len(before.object_masks)


def test_rows_stand_for_as_many_images_of_either_side():
    old, new = np.zeros((64, 3), np.float32), np.ones((50, 3), np.float32)

    shared = joined_rows(old, new, num_before=150, most=64)
    all_of_them = joined_rows(old, new[:16], num_before=64, most=256)
    few = joined_rows(old[:4], new, num_before=50, most=64)

    assert (len(shared), shared[:, 0].sum()) == (64, 16)
    assert (len(all_of_them), all_of_them[:, 0].sum()) == (80, 16)
    assert (len(few), few[:, 0].sum()) == (8, 4)


def test_limits_are_the_higher_and_what_is_typical_the_mean():
    before = {"false_alarm_rate": 0.01, "image": 4.0, "typical_image": 1.0, "pixel": 2.0,
              "typical_pixel": 1.0, "product": 3.0}  # fmt: skip
    added = {**before, "image": 3.0, "typical_image": 5.0, "pixel": 6.0, "product": 9.0}

    found = combined(before, added, num_before=30, num_added=10)

    assert found == {"false_alarm_rate": 0.01, "image": 4.0, "typical_image": 2.0, "pixel": 6.0,
                     "typical_pixel": 1.0, "product": 9.0}  # fmt: skip


def test_digests_of_the_last_photos_are_remembered_within_a_share_of_the_bytes():
    digests = [photo_digest(f"{number:064x}"[::-1]) for number in range(600)]

    first = grown_record({}, digests[:500], budget=0)
    both = grown_record({"added": first}, digests[500:], budget=0)
    small = grown_record({"added": first}, digests[500:], budget=40_000)

    assert both["photos"] == small["photos"] == 600
    assert known_photos({"added": both}) == digests[-512:]
    assert known_photos({"added": small}) == digests[-100:]
    assert len(set(digests)) == 600
    assert known_photos({}) == known_photos({"added": 3}) == []
