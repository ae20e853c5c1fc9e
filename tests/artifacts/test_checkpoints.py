import numpy as np
import pytest

from replaycad.artifacts.checkpoints import Checkpoint
from replaycad.errors import ArtifactError

STATE = {"a.exp_avg": np.array([1.5, np.nan], np.float32), "step": np.array(3, np.int64)}


def test_a_checkpoint_comes_back(tmp_path):
    checkpoint = Checkpoint(tmp_path / "x" / "a.safetensors", key="k")
    assert checkpoint.load() is None

    checkpoint.save(12, STATE)
    checkpoint.save(13, STATE)
    step, tensors = checkpoint.load()

    assert step == 13
    assert tensors.keys() == STATE.keys()
    for name, values in STATE.items():
        np.testing.assert_array_equal(tensors[name], values)
    assert Checkpoint(checkpoint.path, key="other").load() is None


def test_a_checkpoint_that_is_not_sound_counts_as_none(tmp_path):
    checkpoint = Checkpoint(tmp_path / "a")
    checkpoint.save(12, STATE)
    sound = checkpoint.path.read_bytes()

    for place in range(0, len(sound), 23):
        checkpoint.path.write_bytes(sound[:place])
        assert checkpoint.load() is None
        checkpoint.path.write_bytes(sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1 :])
        assert checkpoint.load() is None
    checkpoint.path.write_bytes(sound)
    assert checkpoint.load() is not None


def test_a_cleared_checkpoint_is_gone(tmp_path):
    checkpoint = Checkpoint(tmp_path / "a")
    checkpoint.save(1, STATE)

    checkpoint.clear()
    checkpoint.clear()

    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_cannot_be_removed_or_written_is_told(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    checkpoint = Checkpoint(tmp_path / "a")

    with pytest.raises(ArtifactError, match="cannot write"):
        checkpoint.clear()
    with pytest.raises(ArtifactError, match="cannot write"):
        checkpoint.save(1, STATE)
