"""Class tokens that other programs read, and theirs that we read."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.numpy import load_file, save_file

from replaycad.artifacts.conditions import ConditionsArtifact
from replaycad.artifacts.embedding import read_embedding, write_embedding
from replaycad.artifacts.replays import ReplaysReader
from replaycad.diffusion.backbones import load_backbone
from replaycad.diffusion.prompts import Prompts
from replaycad.diffusion.sampling import make_scheduler
from replaycad.errors import ArtifactError
from tests.conftest import invoke
from tests.tiny import WIDTH, make_tiny_backbone

VECTORS = np.random.default_rng(0).standard_normal((3, WIDTH)).astype(np.float32)


@pytest.fixture
def kept(tmp_path):
    """A store with conditions of `disc` whose tokens stand inside a prompt."""
    write_conditions(tmp_path / "store", "prompt")
    return tmp_path / "store"


def write_conditions(store, placement, vectors=VECTORS):
    ConditionsArtifact(
        class_name="disc", semantic_embedding=vectors, spatial_weight=None, spatial_bias=None,
        object_masks=np.ones((1, 32, 32), bool), policy={"class_name": "disc"},
        header={"placement": placement, "key": "k"},
    ).save(store / "conditions" / "disc.safetensors")  # fmt: skip


def export(store, *arguments):
    return invoke(["export", "--class", "disc", "--store", store, *arguments])


def test_an_exported_token_says_in_diffusers_what_it_says_here(kept, tmp_path):
    target = tmp_path / "disc-token.safetensors"
    made = export(kept, "--out", target)
    assert f'next: pipeline.load_textual_inversion("{target}") in diffusers' in made.stdout
    assert made.exit_code == 0, made.output
    assert "3 vectors of 32 for the token <disc>" in made.stdout
    folder = make_tiny_backbone(tmp_path / "backbone")
    ours, theirs = (load_backbone(folder, torch.device("cpu")) for _ in range(2))
    pipeline = StableDiffusionPipeline(
        vae=theirs.vae, text_encoder=theirs.text_encoder, tokenizer=theirs.tokenizer,
        unet=theirs.unet, scheduler=make_scheduler("ddim", theirs.scheduler_config),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip

    pipeline.load_textual_inversion(str(target))
    encoded, _ = pipeline.encode_prompt("a photo of <disc>", "cpu", 1, False)

    book = Prompts(ours.tokenizer, ours.text_encoder, ["a photo of *"], "prompt", 3)
    here = book.encode(torch.tensor([0]), torch.from_numpy(VECTORS))
    torch.testing.assert_close(encoded, here, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(here, book.encode(torch.tensor([0]), torch.zeros(3, WIDTH)))


def test_what_is_exported_comes_back_bit_by_bit_and_can_be_drawn(kept, tmp_path):
    target, other = tmp_path / "token.safetensors", tmp_path / "other"
    folder = make_tiny_backbone(tmp_path / "backbone")
    assert export(kept, "--out", target, "--token", "<thing>").exit_code == 0
    assert list(load_file(target)) == ["<thing>"]

    made = invoke(["import", target, "--class", "disc", "--backbone", folder, "--store", other])
    assert made.exit_code == 0, made.output
    drawn = invoke(["replay", "--class", "disc", "--store", other, "--backbone", folder, "--num",
                    "2", "--device", "cpu", "--set", "num_inference_steps=2"])  # fmt: skip
    assert drawn.exit_code == 0, drawn.output

    back = ConditionsArtifact.load(other / "conditions" / "disc.safetensors")
    assert np.array_equal(back.semantic_embedding, VECTORS)
    assert back.num_bytes == VECTORS.nbytes
    assert (back.spatial_weight, back.header["placement"]) == (None, "prompt")
    replays = ReplaysReader(other / "replays" / "disc.safetensors")
    assert replays.images([0, 1]).shape == (2, 3, 32, 32)
    again = invoke(["import", target, "--class", "disc", "--backbone", folder, "--store", other])
    assert "--force" in again.output


def test_tokens_beside_the_prompt_have_no_place_in_other_programs(tmp_path):
    write_conditions(tmp_path / "store", "context")

    failed = export(tmp_path / "store", "--out", tmp_path / "token.safetensors")

    assert failed.exit_code == 1
    assert "semantic_placement=prompt" in " ".join(failed.output.split())
    assert not (tmp_path / "token.safetensors").exists()


def test_a_token_that_reads_like_a_word_is_refused(kept, tmp_path):
    failed = export(kept, "--out", tmp_path / "token.safetensors", "--token", "disc")

    assert failed.exit_code == 1
    assert "reads like a word" in failed.output


def test_missing_conditions_are_named_with_the_command_that_makes_them(tmp_path):
    failed = export(tmp_path / "store", "--out", tmp_path / "token.safetensors")

    assert failed.exit_code == 1
    assert "replaycad compress --class disc" in " ".join(failed.output.split())


def test_one_vector_of_half_precision_is_one_token(tmp_path):
    path = tmp_path / "one.safetensors"
    save_file({"emb_params": VECTORS[0].astype(np.float16)}, path)

    token, embedding = read_embedding(path)

    assert token == "emb_params"
    assert (embedding.shape, embedding.dtype) == ((1, WIDTH), np.float32)


def test_files_that_are_no_embedding_are_refused_in_one_line(tmp_path):
    path = tmp_path / "one.safetensors"

    def refused(match):
        with pytest.raises(ArtifactError, match=match) as caught:
            read_embedding(path)
        assert "\n" not in str(caught.value)

    refused("cannot be read: No such file")
    torch.save({"string_to_param": {"*": torch.zeros(2, WIDTH)}}, path)
    refused("cannot be read as safetensors")
    write_embedding(path, "<a>", VECTORS)
    path.write_bytes(path.read_bytes()[:-4])
    refused("cannot be read as safetensors")
    save_file({"a": VECTORS, "b": VECTORS}, path)
    refused("holds 2 tensors")
    save_file({"a": VECTORS.astype(np.int32)}, path)
    refused("expected float32 or float16")
    save_file({"a": VECTORS * np.inf}, path)
    refused("not finite")
    with pytest.raises(ArtifactError, match="holds a space"):
        write_embedding(path, "a b", VECTORS)


def test_an_embedding_of_another_width_is_refused(tmp_path):
    path = tmp_path / "one.safetensors"
    write_embedding(path, "<a>", VECTORS[:, :16])
    folder = make_tiny_backbone(tmp_path / "backbone")

    failed = invoke(["import", path, "--class", "disc", "--backbone", folder, "--store",
                     tmp_path / "store"])  # fmt: skip

    assert failed.exit_code == 1
    assert "16 wide" in failed.output
