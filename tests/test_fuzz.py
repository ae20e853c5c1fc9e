"""A few spoilt inputs of each kind; `make fuzz` gives the same readers a million."""

import random

import pytest

from tests.fuzz.targets import TARGETS

INPUTS = 150


def spoilt(stream, content):
    """Some bytes changed, cut out or put in twice."""
    found = bytearray(content)
    for _ in range(stream.randint(1, 6)):
        place = stream.randrange(len(found) + 1)
        how = stream.randrange(4)
        if how == 0:
            found[place : place + stream.randrange(9)] = b""
        elif how == 1:
            found[place:place] = found[place : place + stream.randrange(9)]
        elif how == 2:
            found[place:place] = stream.randbytes(stream.randrange(5))
        elif place < len(found):
            found[place] ^= 1 << stream.randrange(8)
    return bytes(found)


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_but_a_foreseen_failure_comes_of_hostile_input(name, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)  # a target puts its own there
    target, seeds = TARGETS[name]
    stream = random.Random(name)
    for seed in seeds:
        target(tmp_path, seed)
    for _ in range(INPUTS):
        target(tmp_path, spoilt(stream, stream.choice(seeds)))
