"""What the engine decides before a stage runs."""

import subprocess
import sys

import pytest

from replaycad.continual.representations import chosen_representation
from replaycad.engine.train import shared_out
from replaycad.errors import ConfigError


def test_a_budget_of_replays_is_shared_alike():
    asked = ((0, 3), (9, 0), (9, 3), (10, 3), (3, 3))

    assert [shared_out(*one) for one in asked] == [0, 0, 3, 3, 1]
    with pytest.raises(ConfigError, match="replay_budget 2 is below"):
        shared_out(2, 3)


def test_a_later_form_has_to_be_better_by_a_margin():
    assert chosen_representation({"conditions": 0.645, "exemplars": 0.6}) == "exemplars"
    assert chosen_representation({"conditions": 0.66, "exemplars": 0.6}) == "conditions"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a child starts from nothing")
def test_the_peak_memory_of_a_process_is_not_that_of_its_parent():
    program = (
        "import subprocess, sys; held = b'x' * 2**30; child = 'from replaycad.runtime import "
        "peak_memory_bytes; print(peak_memory_bytes())'; subprocess.run([sys.executable, '-c', "
        "child], check=True)"
    )

    told = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)

    assert 2**26 < int(told.stdout) < 2**30
