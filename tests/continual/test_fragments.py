"""Fragments: which squares are cut, that they fit, and that what is put together goes on."""

from dataclasses import replace

import numpy as np
import pytest

from replaycad.artifacts.conditions import ConditionsArtifact
from replaycad.artifacts.fragments import Fragments, encode_squares
from replaycad.artifacts.masks import MasksArtifact
from replaycad.artifacts.replays import ReplaysReader
from replaycad.config.stages import CompressConfig
from replaycad.continual.fragments import Frame, cut, cut_order, lattice, shown_cells
from replaycad.continual.kept_fragments import KeptFragments, kept_fragments
from replaycad.continual.quilting import Quilter, seams
from replaycad.continual.real_limits import measure
from replaycad.data.images import load_images
from replaycad.data.layouts import train_samples
from replaycad.detectors.encoders import load_encoder
from replaycad.detectors.patchcore.preset import PRESETS
from replaycad.engine.real_limits import _left_out
from replaycad.errors import ArtifactError
from replaycad.stages.fragments import LEAST_IMAGES, _divided, keep_fragments
from tests.artifacts import artifact_examples
from tests.conftest import invoke

SIDE, SIZE, OVERLAP = 64, 16, 4
PLACES = [0, 12, 24, 36, 48]
FRAGMENTS = ("--keep", "fragments")


def order_of(count, seen=None, side=SIDE):
    seen = np.ones((count, side, side), np.bool_) if seen is None else seen
    return cut_order([shown_cells(seen, SIZE, OVERLAP)], np.random.default_rng(0))


def cut_from(pictures, quality=100, room=10**6):
    found = cut([pictures], order_of(len(pictures)), SIZE, OVERLAP, quality, room)
    assert found is not None
    return found


def joined(fragments, seeds, frame=None, symmetries=()):
    return KeptFragments(fragments, frame or Frame(SIDE, None), symmetries).draw(seeds)


def steps(images):
    """Largest step between neighbouring pixels."""
    levels = images.astype(int)
    return max(np.abs(np.diff(levels, axis=axis)).max() for axis in (2, 3))


def rising(count=1):
    """Pictures `[count, 3, 64, 64]` of one gradient from the left to the right, all alike."""
    row = np.linspace(20, 200, SIDE).round().astype(np.uint8)
    return np.broadcast_to(row, (count, 3, SIDE, SIDE)).copy()


@pytest.mark.parametrize(("canvas", "places"), [(64, PLACES), (16, [0]), (28, [0, 12]),
                                                (30, [0, 7, 14]), (20, [0, 4])])  # fmt: skip
def test_squares_cover_the_canvas_evenly_and_share_at_least_the_overlap(canvas, places):
    assert lattice(canvas, SIZE, OVERLAP).tolist() == places


def test_of_no_image_more_than_a_quarter_is_cut_and_no_two_squares_touch():
    order = order_of(40)

    for image in range(40):
        cells = [divmod(cell, 5) for cell, owner in order if owner == image]
        assert len(set(cells)) == len(cells) == 4, "of 16 that would cover it"
        gaps = [
            max(abs(one[0] - two[0]), abs(one[1] - two[1]))
            for one in cells for two in cells if one != two
        ]  # fmt: skip
        assert min(gaps) >= 2, "between them lies a cell that is not cut"


def test_every_cell_gets_as_many_squares_wherever_the_budget_ends():
    order = order_of(40)
    for count in (25, 50, 75):
        numbers = np.bincount([cell for cell, _ in order[:count]], minlength=25)
        assert numbers.max() - numbers.min() <= 1
    assert len(order) == 160


def test_a_square_is_cut_only_where_an_image_shows_a_quarter_of_it():
    seen = np.zeros((8, SIDE, SIDE), np.bool_)
    seen[:, :4] = True  # of the cells of the first row a quarter, of all others nothing

    assert {cell for cell, _ in order_of(8, seen)} == {0, 1, 2, 3, 4}
    seen[:, 3] = False
    assert order_of(8, seen) == []


def test_squares_lie_where_they_were_cut_and_fill_the_room():
    random = np.random.default_rng(1)
    coarse = random.integers(0, 256, (12, 1, 8, 8)).astype(np.uint8)  # grey: colours are halved
    pictures = coarse.repeat(3, 1).repeat(8, 2).repeat(8, 3)
    whole = cut_from(pictures)

    for square, cell, owner in zip(whole.squares(), whole.cells, whole.owners, strict=True):
        top, left = PLACES[cell // 5], PLACES[cell % 5]
        real = pictures[owner, :, top : top + SIZE, left : left + SIZE].astype(int)
        assert np.abs(square - real).mean() < 3
    used = len(whole.sheet) + 2 * len(whole)
    half = cut_from(pictures, room=used // 2)
    assert 0.85 * used // 2 < len(half.sheet) + 2 * len(half) <= used // 2
    assert cut([pictures], order_of(12), SIZE, OVERLAP, 100, 200) is None


def test_a_cut_runs_where_both_differ_least_by_a_pixel_a_row_at_most():
    error = np.full((2, 4, 5), 9.0, np.float32)
    error[0, [0, 1, 2, 3], [1, 2, 3, 3]] = 0
    error[1, :, 2] = 1
    error[1, 3, 0] = 0  # too far away to be worth the way

    found = seams(error)

    assert found[0].argmax(1).tolist() == [1, 2, 3, 3]
    assert found[1].argmax(1).tolist() == [2, 2, 2, 2]
    assert found[0, 0].tolist() == [False, True, True, True, True], "the new one from the cut on"


def test_pictures_that_are_all_alike_are_put_together_to_the_same_again():
    drawn = joined(cut_from(rising(12)), range(3))

    assert drawn.shape == (3, 3, SIDE, SIDE)
    assert np.abs(drawn.astype(int) - rising(3)).max() <= 3


def test_a_square_goes_on_from_what_lies_there():
    # Half of the images are dark and half bright: none is put together of both.
    pictures = np.full((120, 3, SIDE, SIDE), 60, np.uint8)
    pictures[::2] = 190

    drawn = joined(cut_from(pictures), range(12))

    means = drawn.mean((1, 2, 3))
    assert (drawn.std((1, 2, 3)) < 3).all()
    assert (means < 70).any()
    assert (means > 180).any()


def test_squares_stand_where_they_belong():
    # Every cell of the lattice has a grey of its own in its middle, the same in all images.
    greys = np.random.default_rng(2).permutation(25) * 10
    pictures = np.full((16, 3, SIDE, SIDE), 128, np.uint8)
    for cell, grey in enumerate(greys):
        top, left = PLACES[cell // 5] + 6, PLACES[cell % 5] + 6
        pictures[:, :, top : top + 4, left : left + 4] = grey

    drawn = joined(cut_from(pictures), [5])[0]

    for cell, grey in enumerate(greys):
        top, left = PLACES[cell // 5] + 7, PLACES[cell % 5] + 7
        assert abs(int(drawn[0, top, left]) - grey) <= 6


def test_light_passes_over_the_overlap_without_a_step():
    # Squares of unlike brightness, of which no other goes on better.
    fragments = replace(cut_from(np.full((8, 3, SIDE, SIDE), 100, np.uint8)), sheet=b"")
    squares = np.full((len(fragments), 3, SIZE, SIZE), 100, np.uint8)
    squares[::2] = 116
    seen = np.ones((len(fragments), SIZE, SIZE), np.bool_)
    quilter = Quilter(fragments, squares, seen)

    drawn = quilter.draw(np.ones((1, SIDE, SIDE), np.bool_), [np.random.default_rng(0)])

    assert drawn.max() - drawn.min() > 12
    assert steps(drawn) <= 8, "of 16, four a pixel, twice that where two overlaps cross"


def test_an_image_is_its_seeds_alone():
    random = np.random.default_rng(3)
    pictures = random.integers(0, 256, (24, 3, 8, 8)).astype(np.uint8).repeat(8, 2).repeat(8, 3)
    fragments = cut_from(pictures, quality=60)

    together = joined(fragments, range(5))

    assert np.array_equal(joined(fragments, [3])[0], together[3])
    assert len({image.tobytes() for image in together}) == 5


def bars(angles):
    """A bright bar from the middle to the right on grey, turned clockwise by these degrees."""
    ys, xs = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    pictures = np.full((len(angles), 3, SIDE, SIDE), 80, np.uint8)
    for picture, angle in zip(pictures, np.deg2rad(angles), strict=True):
        along = xs * np.cos(angle) + ys * np.sin(angle)
        across = ys * np.cos(angle) - xs * np.sin(angle)
        picture[:, (along > 0) & (along < 24) & (np.abs(across) < 4)] = 220
    return pictures


def test_images_that_turn_are_cut_upright_and_put_together_at_poses_of_theirs():
    angles = np.arange(72) * 5.0
    poses = np.stack([angles, 0 * angles, 0 * angles], 1).astype(np.float32)
    frame, rows = Frame(SIDE, poses), range(72)
    upright = frame.moved(bars(angles), rows)
    assert upright.shape == (72, 3, 96, 96)
    assert np.abs(upright.astype(int) - upright[:1]).mean() < 5, "all alike in the frame"
    shown = shown_cells(frame.seen(rows), SIZE, OVERLAP)
    order = cut_order([shown], np.random.default_rng(0))
    fragments = cut([upright], order, SIZE, OVERLAP, 100, 10**6)

    drawn = joined(fragments, range(8), frame)

    corners = [drawn[:, :, down, right] for down in (0, 63) for right in (0, 63)]
    assert np.abs(np.stack(corners).astype(int) - 80).max() < 5, "none is left black"
    nearest = [
        np.abs(bars(angles).astype(int) - image).mean((1, 2, 3)) for image in drawn.astype(int)
    ]
    assert max(differences.min() for differences in nearest) < 4
    assert len({int(differences.argmin()) for differences in nearest}) > 3, "in many poses"


def test_what_no_square_of_its_place_shows_others_stand_in_for():
    fragments = cut_from(rising(8))
    squares = fragments.squares()
    squares[fragments.cells == 24] = 0  # padding
    seen = np.ones((len(fragments), SIZE, SIZE), np.bool_)
    seen[fragments.cells == 24] = False
    whole = np.ones((1, SIDE, SIDE), np.bool_)

    drawn = Quilter(fragments, squares, seen).draw(whole, [np.random.default_rng(0)])

    assert drawn[0, 0, 50, 50] > 120, "as its neighbours, not padding"


def test_turns_and_flips_that_the_class_allows_are_drawn():
    drawn = joined(cut_from(rising(12)), range(12), symmetries=[[0, ""], [180, ""]])

    left = drawn[:, 0, :, :8].mean((1, 2))
    assert (left < 60).any()
    assert (left > 150).any()


def stored(**changes):
    pictures = rising(8)
    return artifact_examples.conditions(
        semantic_embedding=np.zeros((0, 0), np.float32), spatial_weight=None, spatial_bias=None,
        object_masks=np.zeros((0, SIDE, SIDE), np.bool_), fragments=cut_from(pictures), **changes,
    )  # fmt: skip


def test_fragments_come_back_from_their_file(tmp_path):
    kept = stored()

    kept.save(tmp_path / "a.safetensors")
    read = ConditionsArtifact.load(tmp_path / "a.safetensors")

    assert (tmp_path / "a.safetensors").stat().st_size == kept.file_bytes()
    assert read.fragments.record() == {"size": 16, "overlap": 4, "canvas": 64}
    assert np.array_equal(read.fragments.squares(), kept.fragments.squares())
    assert np.array_equal(read.fragments.cells, kept.fragments.cells)
    assert kept.num_bytes == len(kept.fragments.sheet) + 2 * len(kept.fragments)


@pytest.mark.parametrize("record", [{}, {"size": 16, "overlap": 16, "canvas": 64},
                                    {"size": 0, "overlap": 4, "canvas": 64},
                                    {"size": 16, "overlap": 4, "canvas": 10**9},
                                    {"size": "16", "overlap": 4, "canvas": 64}])  # fmt: skip
def test_a_file_that_does_not_say_how_large_its_fragments_are_is_damaged(
    tmp_path, record, monkeypatch
):
    kept = stored()
    monkeypatch.setattr(Fragments, "record", lambda _: record)
    kept.save(tmp_path / "a.safetensors")

    with pytest.raises(ArtifactError, match="fragments"):
        ConditionsArtifact.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize("change", [{"sheet": b"no picture"}, {"canvas": 60}, {"size": 12},
                                    {"cells": np.full(50, 25, np.uint8)}])  # fmt: skip
def test_fragments_that_cannot_be_read_are_named(change):
    kept = stored()
    if "cells" in change:
        change = {"cells": np.full(len(kept.fragments), 25, np.uint8)}
    wrong = replace(kept, fragments=replace(kept.fragments, **change))

    with pytest.raises(ArtifactError, match="fragments of bottle cannot be read"):
        kept_fragments(wrong)


def test_squares_of_a_sheet_are_counted_before_it_is_unpacked():
    sheet = encode_squares(np.zeros((5, 3, SIZE, SIZE), np.uint8), 50)
    cells = np.zeros(50, np.uint8)

    with pytest.raises(ValueError, match="px"):
        Fragments(sheet, cells, cells, SIZE, OVERLAP, SIDE).squares()


def test_a_class_is_kept_as_fragments_and_replayed_without_a_diffusion_model(
    run, data, tmp_path, monkeypatch
):
    monkeypatch.setattr("replaycad.stages.fragments.LEAST_IMAGES", 6)
    path = tmp_path / "store" / "conditions" / "disc.safetensors"
    drawing = ("replay", "--class", "disc", "--set")

    result = run("compress", "--class", "disc", *FRAGMENTS, "--budget", "30000")

    assert result.exit_code == 0, result.output
    kept = ConditionsArtifact.load(path)
    assert path.stat().st_size <= 30_000
    real = load_images(train_samples(data, "disc"), kept.exemplar_size)
    assert set(kept.fragments.owners.tolist()) <= set(range(5)), "one is left to judge by"
    means = set(map(tuple, np.rint(real.mean((2, 3))).astype(int).tolist()))
    assert len(kept.fragments.colours) == 5
    assert set(map(tuple, kept.fragments.colours.tolist())) <= means
    assert run(*drawing, "num_images=9").exit_code == 0
    path = tmp_path / "store" / "replays" / "disc.safetensors"
    first, replays = path.read_bytes(), ReplaysReader(path)
    images = replays.images(range(9))
    assert replays.header["weights"] == {}
    assert images.shape[1:] == real.shape[1:]
    assert run(*drawing, "num_images=9", "--force").exit_code == 0
    assert path.read_bytes() == first
    assert run(*drawing, "num_images=4", "--set", "batch_size=3").exit_code == 0
    assert np.array_equal(ReplaysReader(path).images(range(4)), images[:4])
    told = invoke(["inspect", path, "--audit", "--data", data]).stdout
    most = max(kept.fragments.owners.tolist().count(owner) for owner in range(5))
    share = f"squares of images, of none more than {most / 16:.0%} of its area"
    assert f"hold {len(kept.fragments)} {share}" in told.replace("\n", " ")
    refused = run("compress", "--class", "disc", "--add", str(data / "disc" / "train" / "good"))
    assert refused.exit_code == 1
    assert "nothing can be added to fragments" in refused.stderr


def test_too_few_images_and_too_few_bytes_are_said(run):
    few = run("compress", "--class", "disc", *FRAGMENTS)

    assert few.exit_code == 1
    assert f"disc has 6 images; fragments are cut from {LEAST_IMAGES} or more" in few.stderr


def test_a_budget_that_holds_no_fragment_says_so(run, monkeypatch):
    monkeypatch.setattr("replaycad.stages.fragments.LEAST_IMAGES", 6)

    poor = run("compress", "--class", "disc", *FRAGMENTS, "--budget", "900")

    assert poor.exit_code == 1
    assert "900 bytes holds no fragments of disc" in poor.stderr


def test_images_that_give_no_fragment_are_left_to_judge_by():
    judged, given = _divided(600)

    assert (len(judged), len(given)) == (32, 256)
    assert not set(judged) & set(given)
    assert [len(part) for part in _divided(10)] == [2, 8]


def test_of_two_ways_the_coarser_is_kept_unless_the_finer_is_clearly_better(
    data, monkeypatch
):
    monkeypatch.setattr("replaycad.stages.fragments.LEAST_IMAGES", 6)
    samples = train_samples(data, "disc")
    masks = MasksArtifact(
        "disc", [one.image_id for one in samples], np.ones((6, 8, 8), np.bool_),
        np.ones(6, np.float32), "frame",
        {"policy": {"mask_rule": "frame", "train_augmentation": "none"}},
    )  # fmt: skip
    config = CompressConfig(keep="fragments", budget=30_000, image_size=64, alignment="none")
    least = {}  # of the qualities, the coarsest at which not all squares fit
    monkeypatch.setattr(
        "replaycad.stages.fragments.cut",
        lambda pictures, order, size, overlap, quality, room: cut(
            pictures, order[: len(order) - (quality >= least["of"])], size, overlap, quality, room
        ),
    )
    for least["of"], gains, quality in (
        (90, (), 85), (85, (0.005,), 70), (70, (0.005, 0.008), 50), (70, (0.02, 0.029), 70),
        (70, (0.02, 0.031), 85),
    ):  # fmt: skip
        scores = iter([0.6, *(0.6 + gain for gain in gains)])
        monkeypatch.setattr(
            "replaycad.stages.fragments.separations",
            lambda *_, scores=scores: {"": next(scores)},
        )
        heard = []
        report = type("Heard", (), {"note": lambda _, text, heard=heard: heard.append(text)})()
        keep_fragments(samples, masks, load_encoder("mini"), PRESETS["mini"], config, 0, {}, report)
        assert f"quality {quality}" in heard[0]


def test_limits_of_real_images_are_found_by_those_that_gave_no_fragment(run, data, monkeypatch):
    assert _left_out("abcdefgh", [0, 2, 4, 6]) == ["b", "d", "f", "h"]
    assert _left_out("abcdefgh", [0, 1, 2, 4, 6]) == "abcdefgh", "three are too few"
    monkeypatch.setattr("replaycad.stages.fragments.LEAST_IMAGES", 6)
    monkeypatch.setattr("replaycad.engine.real_limits.LEAST_LEFT_OUT", 1)
    judged = []

    def heard(samples, rows, *others):
        judged.extend([samples, rows])
        return measure(samples, rows, *others)

    monkeypatch.setattr("replaycad.continual.real_limits.measure", heard)
    result = run("compress", "--class", "disc", *FRAGMENTS)

    assert result.exit_code == 0, result.output
    first = train_samples(data, "disc")[0]
    assert [one.path for one in judged[0]] == [first.path], "of six the first gives none"
    assert judged[1] == ()


def test_a_file_of_no_fragments_is_damaged(tmp_path):
    kept, none = stored(), np.zeros(0, np.uint8)
    empty = replace(kept, fragments=replace(kept.fragments, cells=none, owners=none))
    empty.save(tmp_path / "a.safetensors")

    with pytest.raises(ArtifactError, match="fragments"):
        ConditionsArtifact.load(tmp_path / "a.safetensors")


def test_a_replay_has_the_mean_colour_of_one_image_wherever_its_squares_are_from():
    random = np.random.default_rng(0)
    means = np.array([60, 100, 140, 180] * 10)
    noise = random.integers(-40, 41, (40, 1, SIDE, SIDE))
    pictures = (means[:, None, None, None] + noise).repeat(3, 1).astype(np.uint8)
    fragments = cut_from(pictures)
    wanted = np.array([[70, 100, 120], [140, 110, 90]], np.uint8)

    own = joined(fragments, range(16)).mean((2, 3))
    drawn = joined(replace(fragments, colours=wanted), range(16)).mean((2, 3))

    away = np.abs(drawn[:, None] - wanted).max(2)
    assert away.min(1).max() < 0.6, "that of one of them, rounded"
    assert set(away.argmin(1)) == {0, 1}
    assert np.abs(own[:, None] - wanted).max(2).min() > 20, "squares of grey images are grey"


def test_mean_colours_and_poses_do_not_go_together(tmp_path):
    kept = stored()
    colours = np.zeros((2, 3), np.uint8)
    poses = np.zeros((3, 3), np.float32)
    both = replace(kept, fragments=replace(kept.fragments, colours=colours), poses=poses)
    both.save(tmp_path / "a.safetensors")

    with pytest.raises(ArtifactError, match="both poses and mean colours"):
        kept_fragments(ConditionsArtifact.load(tmp_path / "a.safetensors"))
    none = replace(kept, fragments=replace(kept.fragments, colours=colours[:0]))
    none.save(tmp_path / "b.safetensors")
    with pytest.raises(ArtifactError, match="mean colours of no image"):
        ConditionsArtifact.load(tmp_path / "b.safetensors")
