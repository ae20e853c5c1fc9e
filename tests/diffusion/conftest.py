"""Tiny random backbones, made once per run of the tests."""

import pytest

from replaycad.diffusion.backbones import Diffusion
from tests.tiny import tiny_diffusion


@pytest.fixture(scope="session")
def diffusion(tmp_path_factory) -> Diffusion:
    """CLIP text model, folders as sd15 has them."""
    return tiny_diffusion(tmp_path_factory.mktemp("clip") / "backbone")


@pytest.fixture(scope="session")
def ldm(tmp_path_factory) -> Diffusion:
    """LDMBert text model, folders as ldm256 has them."""
    return tiny_diffusion(tmp_path_factory.mktemp("ldmbert") / "backbone", "ldmbert")
