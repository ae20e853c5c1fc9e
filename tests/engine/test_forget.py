"""`replaycad forget`: a class leaves the store and its detectors, and nothing else changes."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from replaycad.artifacts import traces
from replaycad.artifacts.conditions import ConditionsArtifact
from replaycad.artifacts.detector import DetectorArtifact
from replaycad.artifacts.format import read_header
from replaycad.artifacts.masks import MasksArtifact
from replaycad.artifacts.pieces import PIECE_BYTES, Piece, search, telling
from replaycad.artifacts.replays import ReplaysReader, ReplaysWriter
from replaycad.artifacts.scores import ScoresArtifact
from replaycad.artifacts.store import Store
from replaycad.artifacts.traces import names_of, survey
from replaycad.engine import forget as forgetting
from replaycad.engine.forget import forget
from replaycad.engine.recorded import Others, header_without
from replaycad.errors import ConfigError
from tests.artifacts import artifact_examples as examples
from tests.conftest import invoke, states

SIDE = 64
PERIODS = {"stripe": 32, "stripe-2": 8, "wide stripe": 16}  # px; a name lies in the others
NAMED = re.compile(rb"(?<![\w-])(?<!wide )stripe(-25kB)?(?![\w-])")
DETECTOR = ("--set", "train.detector=patchcore", "--set", "train.preset=standard",
            "--set", "train.encoder=efficientnet-lite0", "--set", f"train.image_size={SIDE}",
            "--set", "mask.segmenter=none", "--device", "cpu", "--quiet")  # fmt: skip


def striped(period, seed, spot=False):
    """Grey stripes `[64, 64, 3]` uint8 with noise, a little moved."""
    random = np.random.default_rng(seed)
    wave = np.sin(2 * np.pi * (np.arange(SIDE) + random.integers(0, 3)) / period)
    noise = random.normal(0, 6, (SIDE, SIDE))
    grey = (128 + 60 * wave[:, None] + noise).clip(0, 255).astype(np.uint8)
    if spot:
        grey[20:30, 20:30] = 255
    return np.repeat(grey[..., None], 3, axis=2)


def write_striped_replays(path, class_name, count=7):
    header = {"class_name": class_name, "key": class_name, "inputs": {}, "view": {"fit": "pad"}}
    writer = ReplaysWriter(path, header, count, SIDE, shard_images=3)
    images = np.stack([striped(PERIODS[class_name], 50 + seed) for seed in range(count)])
    masks = np.ones((count, SIDE, SIDE), bool)
    writer.append(images.transpose(0, 3, 1, 2), masks, np.arange(count))
    writer.close()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("striped")
    for count, (name, period) in enumerate(PERIODS.items(), start=6):
        for part in ("train/good", "test/good", "test/spot"):
            (folder / name / part).mkdir(parents=True)
            for seed in range(count if part == "train/good" else 2):
                pixels = striped(period, 10 * len(part) + seed, "spot" in part)
                Image.fromarray(pixels).save(folder / name / part / f"{seed}.png")
    return folder


def train(photos, store, new, past, *options):
    typed = ["train", "--class", new, "--data", photos, "--store", store, *DETECTOR, *options]
    return invoke([*typed, *(["--past", past] if past else [])])


@pytest.fixture(scope="module")
def learned(photos, tmp_path_factory):
    """A store of real artifacts: features of one class, replays of others, three detectors."""
    store = tmp_path_factory.mktemp("learned") / "store"
    done = [invoke(["compress", "--class", "stripe", "--keep", "features", "--budget", "20kB",
                    "--data", photos, "--store", store, *DETECTOR])]  # fmt: skip
    write_striped_replays(store / "replays/stripe-2.safetensors", "stripe-2")
    write_striped_replays(store / "replays/stripe-25kB.safetensors", "stripe")
    done += [
        train(photos, store, "wide stripe", "stripe,stripe-2", "--name", "line"),
        train(photos, store, "wide stripe", "stripe-25kB,stripe-2", "--name", "drawn"),
        train(photos, store, "stripe", "stripe-2"),
        train(photos, store, "stripe", "", "--name", "only"),
    ]
    assert [one.exit_code for one in done] == [0] * 5, [one.output for one in done]
    examples.scores().save(store / "scores/other.safetensors")
    scores = replace(examples.scores(), classes=["stripe", "wide stripe"])
    scores.save(store / "scores/line.safetensors")
    return store


@pytest.fixture
def store(learned, tmp_path):
    return shutil.copytree(learned, tmp_path / "store")


def content(root):
    """Bytes of every file by its place."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*")) if path.is_file()
    }  # fmt: skip


def verdicts(photos, store, name, *classes):
    pictures = [photos / one / "test" for one in classes]
    return invoke(["predict", *pictures, "--name", name, "--store", store, "--json", "--quiet"])


def test_images_of_other_classes_are_judged_to_the_bit_as_before(photos, store):
    others = ("stripe-2", "wide stripe")
    for name in ("line", "drawn"):
        before = verdicts(photos, store, name, *others)
        assert before.exit_code == 0, before.output
        told = [json.loads(line) for line in before.stdout.splitlines()]
        assert {one["class"] for one in told} == {"stripe-2", "wide stripe"}
        assert {one["verdict"] for one in told} >= {"normal", "anomalous"}
    before = [verdicts(photos, store, name, *others).stdout for name in ("line", "drawn")]

    assert invoke(["forget", "stripe", "--store", store]).exit_code == 0

    after = [verdicts(photos, store, name, *others).stdout for name in ("line", "drawn")]
    assert after == before
    (unknown, *_) = verdicts(photos, store, "line", "stripe").stdout.splitlines()
    assert json.loads(unknown)["verdict"] == "unknown product"


def test_no_byte_of_it_is_left_and_the_command_says_so(store):
    conditions = load_file(store / "conditions/stripe.safetensors")
    kept = [array.tobytes() for array in conditions.values()]
    for shard in (store / "replays/stripe-25kB.shards").iterdir():
        kept += [image.tobytes() for image in load_file(shard)["images"]]
    for name in ("line", "drawn", "stripe", "only"):
        found = DetectorArtifact.load(store / f"detectors/{name}.safetensors")
        own = found.state["bank_class_index"] == found.class_order.index("stripe")
        assert own.any()
        kept += [row.tobytes() for row in found.state["bank"][own]]
        kept += [repr(value).encode() for limit, value in
                 found.thresholds["by_class"]["stripe"].items() if limit != "false_alarm_rate"]
    telling_ones = [one for one in kept if len(set(one)) > 4]
    assert len(telling_ones) > 100
    held = b"\0".join(content(store).values())
    assert all(one in held for one in telling_ones), "the search finds what is there"

    result = invoke(["forget", "stripe", "--store", store])

    assert result.exit_code == 0, result.output
    files = content(store)
    held = b"\0".join(files.values())
    assert [one for one in telling_ones if one in held] == []
    assert [place for place, bytes_ in files.items() if NAMED.search(bytes_)] == []
    assert [place for place in files if NAMED.search(place.encode())] == []
    said = re.search(r"searched (\d+) files, .* for (\d+) pieces of what was kept of stripe: none",
                     result.stdout)  # fmt: skip
    assert said, result.stdout
    assert int(said[1]) == len(files)
    assert int(said[2]) > 50


def test_what_is_of_other_classes_stays_to_the_byte(store):
    before = content(store)

    forget(Store(store), "stripe")

    after = content(store)
    others = {place: one for place, one in before.items() if place.startswith("replays/stripe-2.")}
    assert len(others) == 4
    assert {place: after.get(place) for place in others} == others
    assert after["scores/other.safetensors"] == before["scores/other.safetensors"]
    assert ReplaysReader(store / "replays/stripe-2.safetensors").header["class_name"] == "stripe-2"
    assert Store(store).list("detectors") == ["drawn", "line", "stripe-2"]
    assert not [place for place in after if place.startswith((".banks", ".digests", "conditions"))]


def test_a_detector_is_what_a_training_without_the_class_gives(photos, store, tmp_path):
    fresh = tmp_path / "fresh"
    write_striped_replays(fresh / "replays/stripe-2.safetensors", "stripe-2")
    result = train(photos, fresh, "wide stripe", "stripe-2", "--name", "line")
    assert result.exit_code == 0, result.output
    expected = DetectorArtifact.load(fresh / "detectors/line.safetensors")

    forget(Store(store), "stripe")

    for name in ("line", "drawn"):
        found = DetectorArtifact.load(store / f"detectors/{name}.safetensors")
        assert found.header["content_id"] == expected.header["content_id"]
        assert found.header["key"] == expected.header["key"]
        assert found.class_order == ["stripe-2", "wide stripe"]
        assert found.thresholds["by_class"] == expected.thresholds["by_class"]
        assert found.header["views"] == expected.header["views"]
        image = [own["image"] for own in found.thresholds["by_class"].values()]
        assert found.thresholds["image"] == max(image)
        assert found.thresholds["typical_image"] == pytest.approx(np.mean([
            own["typical_image"] for own in found.thresholds["by_class"].values()]))  # fmt: skip

    def run(stage, *typed, data=photos):
        return invoke([stage, *typed, *DETECTOR, "--data", data, "--store", store])

    line = ("train", "--class", "wide stripe", "--name", "line", "--past")
    assert states(run, *line, "stripe-2") == [("hit", "")]


def bank(class_order, seed=0, **header):
    """A routed memory bank of three patches a class, with limits."""
    numbers = np.random.default_rng(seed)
    index = np.repeat(np.arange(len(class_order)), 3)
    limits = {
        name: {"false_alarm_rate": 0.01, **{
            kind: float(numbers.random()) for kind in
            ("image", "typical_image", "pixel", "typical_pixel", "product")}}
        for name in class_order
    }  # fmt: skip
    overall = dict.fromkeys(("image", "typical_image", "pixel", "typical_pixel"), 0.5)
    state = {"bank": numbers.random((len(index), 32)).astype(np.float32),
             "bank_class_index": index}  # fmt: skip
    inputs = {"class order": " +  + " + ",".join(class_order)}
    inputs |= {f"images/{name}": "ab" for name in class_order}
    facts = {"stage": "train", "stage_version": 1, "seed": 0, "config": {"init": ""},
             "inputs": inputs, "weights": {}, "key": "of " + ",".join(class_order),
             "classes": class_order}  # fmt: skip
    return DetectorArtifact(
        "patchcore", "standard", "mini", 32, class_order, state,
        {"false_alarm_rate": 0.01, **overall, "by_class": limits}, facts | header,
    )  # fmt: skip


@pytest.fixture
def small(tmp_path):
    """A store of every kind of file, drawn in code: `bottle` and `grid`."""
    root = tmp_path / "small"
    for name in ("bottle", "grid"):
        numbers = np.random.default_rng(len(name))
        masks = numbers.random((3, 16, 64)) > 0.5
        masks[:, :, :8] = False
        MasksArtifact(name, list("abc"), masks, masks.mean((1, 2)), "corners",
                      {"config": {"tile": 0}}).save(root / f"masks/{name}.safetensors")  # fmt: skip
        tokens = numbers.normal(size=(4, 32)).astype(np.float32)
        for stored in (name, f"{name}-25kB"):
            ConditionsArtifact(name, tokens, None, None, masks, {}, exemplars=(
                numbers.bytes(200),)).save(root / f"conditions/{stored}.safetensors")  # fmt: skip
            header = {"class_name": name, "key": stored}
            writer = ReplaysWriter(root / f"replays/{stored}.safetensors", header, 5, 16, 2)
            images = numbers.integers(0, 256, (5, 3, 16, 16), dtype=np.uint8)
            writer.append(images, np.ones((5, 16, 16), bool), np.arange(5))
            writer.close()
        for place in (f".timings/conditions/{name}.json", f".locks/conditions/{name}.lock",
                      f".partial/conditions/{name}-9kB.0123456789abcdef.safetensors",
                      f"replays/{name}-9kB.shards/0123456789abcdef-00000.safetensors",
                      f"conditions/.{name}.safetensors.0123abcd.tmp"):  # fmt: skip
            path = root / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"work of " + name.encode())
    first = bank(["bottle", "grid"])
    first.save(root / "detectors/first.safetensors")
    facts = {"inputs": {"class order": "bottle,grid +  + pill", "images/pill": "ef",
                        "detectors/first": first.content_id},
             "config": {"init": "first"}}  # fmt: skip
    bank(["bottle", "grid", "pill"], 1, **facts).save(root / "detectors/later.safetensors")
    bank(["grid", "bottle"], 2).save(root / "detectors/bottle.safetensors")
    bank(["bottle"], 3).save(root / "detectors/only.safetensors")
    bank(["grid"], 4).save(root / "detectors/grid.safetensors")
    for name, classes in (("both", ["bottle", "grid"]), ("rest", ["grid"])):
        scores = ScoresArtifact(classes, np.zeros(1, np.float32), np.zeros(1, np.uint8),
                                np.zeros(1, np.int64), ["a"], {"classes": {}})  # fmt: skip
        scores.save(root / f"scores/{name}.safetensors")
        (root / "results").mkdir(exist_ok=True)
        (root / f"results/{name}.json").write_text(json.dumps({"classes": classes}))
        for suffix in ("csv", "html", "png"):
            (root / f"results/{name}.{suffix}").write_text("a grid of pictures")
        (root / ".timings/results").mkdir(exist_ok=True)
        (root / f".timings/results/{name}.txt").write_text("a digest")
    for place in (".banks/0123.safetensors", ".digests.json",
                  ".partial/detectors/any.0123456789abcdef.safetensors"):  # fmt: skip
        (root / place).parent.mkdir(exist_ok=True, parents=True)
        (root / place).write_text("of nobody knows which class")
    return root


def test_every_kind_of_file_of_the_class_goes_and_no_other(small):
    before = content(small)

    document = forget(Store(small), "bottle")

    assert document["left"] == []
    after = content(small)
    expected = {
        place for place in before
        if "bottle" not in place and "both" not in place
        and not place.startswith((".banks/", ".digests", ".partial/detectors/", "detectors/only"))
        and not place.endswith(".tmp")  # a killed command's
    } | {"detectors/grid-2.safetensors"}  # fmt: skip
    assert {place for place in after if not place.startswith(".locks/detectors")} == expected
    changed = {place for place in expected if before.get(place) != after[place]}
    assert changed == {f"detectors/{name}.safetensors" for name in ("first", "later", "grid-2")}
    assert set(document["removed"]) == {
        place for place in before
        if place not in after and not place.endswith(".tmp")
        and place != "detectors/bottle.safetensors"
    }  # fmt: skip


def test_rows_and_numbers_of_the_others_are_what_they_were(small):
    names = {"first": "first", "later": "later", "bottle": "grid-2"}
    for name in ("later", "bottle"):  # as if all classes had been replayed
        detector = DetectorArtifact.load(small / f"detectors/{name}.safetensors")
        count = len(detector.class_order)
        looks = np.arange(count, dtype=np.float32)[:, None, None] * np.ones((65, 64), np.float32)
        state = {"looks.rows": looks, "looks.class_index": np.arange(count)}
        replace(detector, state={**detector.state, **state}).save(
            small / f"detectors/{name}.safetensors"
        )
    before = {name: DetectorArtifact.load(small / f"detectors/{name}.safetensors")
              for name in names}  # fmt: skip

    assert forget(Store(small), "bottle")["reduced"] == names

    for name, new in names.items():
        old, left = before[name], DetectorArtifact.load(small / f"detectors/{new}.safetensors")
        assert left.class_order == [one for one in old.class_order if one != "bottle"]
        assert set(left.state["bank_class_index"]) == set(range(len(left.class_order)))
        assert left.state["bank_class_index"].dtype == np.int64
        assert list(left.thresholds["by_class"]) == sorted(left.class_order)
        for one in left.class_order:
            rows = [found.state["bank"][found.state["bank_class_index"]
                                        == found.class_order.index(one)] for found in (old, left)]
            assert rows[0].shape == (3, 32)
            assert np.array_equal(*rows)
            place = left.class_order.index(one)
            if name != "first":
                assert left.state["looks.class_index"][place] == place
                assert (left.state["looks.rows"][place] == old.class_order.index(one)).all()
            assert left.thresholds["by_class"][one] == old.thresholds["by_class"][one]
        count = 0 if name == "first" else len(left.class_order)
        assert len(left.state.get("looks.rows", ())) == count
    first, later = (read_header(small / f"detectors/{name}.safetensors")
                    for name in ("first", "later"))  # fmt: skip
    assert later["inputs"]["detectors/first"] == first["content_id"]
    assert later["inputs"]["class order"] == "grid +  + pill"


def test_interrupted_anywhere_and_called_again_it_comes_to_the_same(small, tmp_path, monkeypatch):
    whole = shutil.copytree(small, tmp_path / "whole")
    forget(Store(whole), "bottle")
    expected = content(whole)
    remove, save = forgetting._remove, DetectorArtifact.save
    calls = [0, 0]

    def counted(action, stop):
        def wrapped(*args):
            if calls[0] == stop:
                raise KeyboardInterrupt
            calls[0] += 1
            return action(*args)
        return wrapped

    for stop in range(1000):
        root = shutil.copytree(small, tmp_path / f"stop-{stop}")
        calls[0] = 0
        monkeypatch.setattr(forgetting, "_remove", counted(remove, stop))
        monkeypatch.setattr(DetectorArtifact, "save", counted(save, stop))
        try:
            forget(Store(root), "bottle")
            break
        except KeyboardInterrupt:
            monkeypatch.undo()
        assert forget(Store(root), "bottle")["left"] == []
        assert content(root) == expected, stop
        shutil.rmtree(root)
    assert stop > 30


def test_detectors_that_were_trained_on_it_are_refused_by_name(small):
    examples.detector().save(small / "detectors/worn.safetensors")
    unrouted = replace(bank(["bottle", "grid"]), preset="lite")
    unrouted.save(small / "detectors/mixed.safetensors")
    before = content(small)

    result = invoke(["forget", "bottle", "--store", small])

    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "cannot lose it: mixed, worn (" in result.stderr
    assert "--remove-detectors" in result.stderr
    assert content(small) == before

    result = invoke(["forget", "bottle", "--store", small, "--remove-detectors"])

    assert result.exit_code == 0, result.output
    assert Store(small).list("detectors") == ["first", "grid", "grid-2", "later"]


def test_limits_that_no_other_class_has_cannot_be_taken_from_a_detector(small):
    partly = bank(["bottle", "grid"])
    del partly.thresholds["by_class"]["grid"]
    partly.save(small / "detectors/partly.safetensors")

    with pytest.raises(ConfigError, match="cannot lose it: partly"):
        forget(Store(small), "bottle")


def test_a_dry_run_tells_all_and_changes_nothing(small):
    examples.detector().save(small / "detectors/worn.safetensors")
    before = content(small)

    result = invoke(["forget", "bottle", "--store", small, "--dry-run"])
    told = invoke(["forget", "bottle", "--store", small, "--dry-run", "--json"]).stdout
    document = json.loads(told)

    assert result.exit_code == 0
    assert "would remove: conditions/bottle.safetensors" in result.stdout
    assert "would lose bottle: detectors/bottle and is called grid-2" in result.stdout
    assert "cannot lose bottle: detectors/worn" in result.stdout
    assert document["trained"] == ["worn"]
    assert content(small) == before
    (small / "detectors/worn.safetensors").unlink()
    done = json.loads(invoke(["forget", "bottle", "--store", small, "--json"]).stdout)
    assert (done["removed"], done["reduced"]) == (document["removed"], document["reduced"])


def test_an_unknown_class_is_told_which_there_are(small, tmp_path):
    result = invoke(["forget", "bottel", "--store", small])

    assert result.exit_code == 1
    assert "knows no class 'bottel' (it knows bottle, grid, pill)" in result.stderr
    result = invoke(["forget", "bottle", "--store", tmp_path / "absent"])
    assert result.exit_code == 1
    assert "it knows none" in result.stderr


def test_what_is_left_is_named_and_fails(small, monkeypatch):
    copy = small / "detectors/copy.bin"
    shutil.copy(small / "detectors/first.safetensors", copy)
    remove = forgetting._remove
    monkeypatch.setattr(
        forgetting, "_remove", lambda path: None if path.stem == "bottle-25kB" else remove(path)
    )

    result = invoke(["forget", "bottle", "--store", small])

    assert result.exit_code == 1
    assert "left: detectors/copy.bin holds detectors/first a row of its bank" in result.stdout
    assert "left: conditions/bottle-25kB.safetensors holds conditions/bottle-25kB" in result.stdout
    assert "left: replays/bottle-25kB.safetensors names it: class_name" in result.stdout
    assert "some are left in " in result.stdout


def test_a_damaged_file_of_the_class_goes_and_one_that_may_be_of_it_is_refused(small):
    (small / "masks/bottle.safetensors").write_bytes(b"cut")
    assert forget(Store(small), "bottle", dry_run=True)
    (small / "conditions/case.safetensors").write_bytes(b"cut")
    result = invoke(["forget", "bottle", "--store", small])
    assert result.exit_code == 1
    assert "case.safetensors" in result.stderr
    (small / "conditions/case.safetensors").unlink()

    assert forget(Store(small), "bottle")["left"] == []
    assert not (small / "masks/bottle.safetensors").exists()


def test_inspect_says_which_files_name_a_class(small):
    result = invoke(["inspect", small, "--lacks", "bottle"])

    assert result.exit_code == 1
    assert "detectors/first.safetensors: names it in class_order, classes, " in result.stdout
    assert "detectors/grid.safetensors: -" in result.stdout
    assert ".timings/conditions/bottle.json: names it in its file name" in result.stdout
    forget(Store(small), "bottle")
    result = invoke(["inspect", small, "--lacks", "bottle", "--json"])
    assert result.exit_code == 0
    files = json.loads(result.stdout)["files"]
    assert files["detectors/first.safetensors"] == []
    assert invoke(["inspect", small, "--lacks", "pill"]).exit_code == 1
    assert invoke(["inspect", small / "absent", "--lacks", "pill"]).exit_code == 1


def test_words_of_the_program_are_no_names_of_classes(small):
    masks = MasksArtifact.load(small / "masks/grid.safetensors")
    header = {**masks.header, "policy": {"init_word": "tile"}, "view": {"tile": 0, "fit": "pad"}}
    replace(masks, header=header).save(small / "masks/grid.safetensors")

    for word in ("tile", "pad", "corners", "masks", "train", "image"):
        assert not any(traces.traces_of(Store(small), word).values()), word


def test_a_name_is_a_word_of_its_own(small):
    numbers = np.zeros((1, 4), np.float32)
    for name in ("bottle-2", "milk bottle"):
        ConditionsArtifact(name, numbers, None, None, np.zeros((0, 4, 8), bool), {}).save(
            small / f"conditions/{name}.safetensors")  # fmt: skip

    names = names_of("bottle", survey(Store(small)))

    assert names.own == {"bottle", "bottle-25kB"}
    own = ("bottle", "view of bottle", "replays/bottle", "grid,bottle +  + ", "masks/bottle-25kB")
    assert [text for text in own if not names.in_text(text)] == []
    others = ("bottle-2", "milk bottle", "bottles", "conditions/milk bottle,grid", "bottle_2")
    assert [text for text in others if names.in_text(text)] == []
    assert names.in_text("milk bottle,bottle")
    assert names.is_own("bottle-9kB")
    assert not names.is_own("bottle-2")
    assert not names.is_own("bottle-2-25kB")


def test_pieces_are_telling_and_none_is_shared_with_another_class(small):
    assert telling(bytes(1000)) == []
    assert telling(bytes(range(8))) == []
    raw = bytes(500) + bytes(range(200)) + bytes(500)
    assert telling(raw)
    assert all(one in raw and len(set(one)) >= 4 for one in telling(raw))
    shutil.copy(small / "masks/grid.safetensors", small / "copy")
    masks = MasksArtifact.load(small / "masks/grid.safetensors")
    replace(masks, class_name="bottle").save(small / "masks/bottle.safetensors")

    assert forget(Store(small), "bottle")["left"] == [], "the masks of grid are its own"

    found = search([small / "copy"], [Piece("a", b"area_fraction"), Piece("b", b"not in there")])
    assert [piece.origin for _, piece in found.found] == ["a"]
    assert (found.num_files, found.num_bytes) == (1, (small / "copy").stat().st_size)


def test_a_piece_is_found_wherever_it_lies_in_a_file(tmp_path, monkeypatch):
    block = 1000
    monkeypatch.setattr("replaycad.artifacts.pieces.BLOCK_BYTES", block)
    numbers = np.random.default_rng(0)
    pieces = [Piece(str(size), numbers.bytes(size)) for size in (12, 13, 40, 63, PIECE_BYTES)]
    zeros = bytes(30) + b"abcdef" + bytes(10)
    pieces.append(Piece("zeros", zeros))
    size = 2 * block + 101
    (tmp_path / "none").write_bytes(bytes(100))
    (tmp_path / "empty").write_bytes(b"")
    for place in (0, 1, 777, block - 20, block - 1, 2 * block, size - PIECE_BYTES):
        for piece in pieces:
            raw = bytearray(size)
            raw[place : place + len(piece.content)] = piece.content
            (tmp_path / "file").write_bytes(raw[:size])

            found = search([tmp_path / "none", tmp_path / "file", tmp_path / "empty"], pieces)

            assert found.found == [(tmp_path / "file", piece)], (place, piece.origin)
            assert (found.num_files, found.num_bytes) == (3, size + 100)
    (tmp_path / "file").write_bytes(numbers.bytes(5) + pieces[2].content[1:] + zeros[1:-1])
    assert search([tmp_path / "file"], pieces).found == []
    assert search([tmp_path / "file"], []).num_files == 1


def test_unfinished_work_alone_makes_no_class(small):
    (small / ".locks/masks").mkdir()
    (small / ".locks/masks/cap-2.lock").write_text("")

    with pytest.raises(ConfigError, match="knows no class 'cap'"):
        forget(Store(small), "cap")
    assert forget(Store(small), "cap-2")["removed"] == [
        ".digests.json", ".banks/0123.safetensors",
        ".partial/detectors/any.0123456789abcdef.safetensors", ".locks/masks/cap-2.lock",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("order", "past", "classes", "expected"),
    [
        (" + bottle-25kB,grid-25kB + pill", ["bottle-25kB", "grid-25kB"],
         {"bottle-25kB": "bottle", "grid-25kB": "grid"}, " + grid-25kB + pill"),
        (" + one,two + pill", ["one", "two"], {}, " + two + pill"),  # they are gone by now
        (" + bottle,grid + pill", ["bottle", "grid"], {}, " + grid + pill"),
        ("bottle,grid +  + pill", [], {}, "grid +  + pill"),
        (" + grid + pill,bottle", ["grid"], {"grid": "grid"}, " + grid + pill"),
    ],
)  # fmt: skip
def test_inputs_lose_the_class_under_whatever_name_it_was_kept(order, past, classes, expected):
    inputs = {f"replays/{name}": "ab" for name in past}
    inputs |= {f"images/{name}": "cd" for name in order.rpartition(" + ")[2].split(",")}
    header = {"class_order": ["bottle", "grid", "pill"], "config": {"init": ""},
              "inputs": {**inputs, "class order": order, "view of bottle": "whole", "preset": "x"},
              "key": "old"}  # fmt: skip

    found = header_without(header, "bottle", Others(classes))

    assert found["inputs"]["class order"] == expected
    left = {name for name in found["inputs"] if name.partition("/")[2]}
    kept = expected.split(" + ")[1]
    assert left == {f"replays/{name}" for name in kept.split(",") if name} | {"images/pill"}
    assert "view of bottle" not in found["inputs"]
    assert found["key"] not in ("old", "")


def test_a_budget_of_replays_stays_what_each_class_had():
    inputs = {f"replays/{name}": "ab" for name in ("bottle", "grid", "pill")}
    header = {"class_order": ["bottle", "grid", "pill", "cap"], "key": "old",
              "config": {"replay_budget": 100, "init": ""},
              "inputs": {**inputs, "class order": " + bottle,grid,pill + cap"}}  # fmt: skip

    assert header_without(header, "bottle", Others({}))["config"]["replay_budget"] == 66
    assert header_without(header, "cap", Others({}))["config"]["replay_budget"] == 100


def test_a_detector_that_went_on_from_one_of_the_class_alone_began_with_its_next():
    header = {"class_order": ["bottle", "grid"], "key": "old", "config": {"init": "bottle"},
              "inputs": {"class order": "bottle +  + grid", "detectors/bottle": "ab",
                         "images/grid": "cd"}}  # fmt: skip

    found = header_without(header, "bottle", Others({}, removed={"bottle"}))
    moved = header_without(header, "bottle", Others({}, {"ab": "ef"}, {"bottle": "cap"}))

    assert found["config"]["init"] == ""
    assert found["inputs"] == {"class order": " +  + grid", "images/grid": "cd"}
    assert moved["config"]["init"] == "cap"
    assert moved["inputs"]["detectors/cap"] == "ef"
