"""Speed of the five stages against the published recipe in plain loops, on one machine's cores."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from statistics import fmean, median

import numpy as np
import torch
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from replaycad.artifacts.conditions import ConditionsArtifact
from replaycad.artifacts.format import read_header
from replaycad.config.recipes import stage_config
from replaycad.config.stages import CompressConfig, ReplayConfig, TrainConfig
from replaycad.data.images import load_images
from replaycad.data.layouts import find_classes, train_samples
from replaycad.data.mixture import Mixture, Source
from replaycad.data.samples import Sample
from replaycad.detectors.encoders import load_encoder
from replaycad.detectors.feature_cache import FeatureCache
from replaycad.detectors.optimization import make_optimizers, optimize_step
from replaycad.detectors.registry import build_detector, preset_for, resolve_defaults
from replaycad.diffusion.backbones import Diffusion, load_backbone
from replaycad.diffusion.conditioning import Conditions
from replaycad.diffusion.posterior import Posterior, encode_posterior
from replaycad.diffusion.sampling import sample
from replaycad.diffusion.search import search
from replaycad.diffusion.start import start_conditions
from replaycad.diffusion.variation import principal_variation
from replaycad.engine.builder import Builder
from replaycad.engine.compress import CompressStage
from replaycad.engine.evaluate import EvalStage
from replaycad.engine.replay import ReplayStage
from replaycad.engine.settings import RunSettings
from replaycad.engine.train import TrainStage
from replaycad.experiments.plan import comparison
from replaycad.experiments.run import run_sequence
from replaycad.metrics import pixel_metrics
from replaycad.progress import silent
from replaycad.stages.replay import rebuild_conditions
from tests.bench.backbone import CLASSES, configs
from tests.bench.pairs import paired, taken, told
from tests.bench.published import PublishedSearch, noise_loss, published_images
from tests.detectors.grouped import per_sample
from tests.full_size import random_diffusion, random_encoder

STEP_BAR, LOSS_BAR, REPLAY_BAR, TRAIN_BAR, RUN_BAR, METRICS_BAR = 2.2, 8, 2.2, 1.6, 4, 20
CPU = torch.device("cpu")
FIXED_DRAWS = 128  # (latent, noise, timestep) that the loss is measured on
LOOK_EVERY = 25  # steps of the published search between two looks at that loss
MOST_STEPS = 3000  # of it, after which it counts as slower than that; likewise after
MOST_TIMES = 45  # times the seconds of ours


def full_size(name: str, device: torch.device) -> tuple[Diffusion, Diffusion]:
    """A backbone of random weights in 32 bits, and as it runs on this device."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "tokenizer"
        exact = random_diffusion(name, device, place, torch.float32)
        return exact, exact if device.type == "cpu" else random_diffusion(name, device, place / "2")


def compress_step(
    name: str, images_at_once: int = 2, repeats: int = 3, device: torch.device = CPU
) -> dict:
    """A step through a full-size backbone of random weights: cached and uncached."""
    exact, diffusion = full_size(name, device)
    config = replace(configs(name)[0], batch_size=images_at_once, num_steps=1, init_word="screw")
    size = diffusion.image_size
    images = np.random.default_rng(0).integers(0, 256, (4, 3, size, size), np.uint8)
    masks = np.ones((4, size, size), np.bool_)
    shape = (1, 4, *diffusion.latent_shape)
    cached = Posterior(torch.zeros(shape), torch.ones(shape))
    conditions, plain = (start_conditions(one, cached, config, 0) for one in (diffusion, exact))
    published = PublishedSearch(exact, plain, images, masks, config)
    more = 2 if device.type == "cpu" else 20

    def ours(num_steps: int) -> float:
        return taken(lambda: search(
            diffusion, conditions, cached, cached, replace(config, num_steps=num_steps), 0
        ))  # fmt: skip

    if device.type != "cpu":
        published.step()
        ours(1)
    # What a search does once, such as encoding its prompts, is no part of a step.
    pairs = [
        (taken(published.step), (ours(1 + more) - ours(1)) / more) for _ in range(repeats)
    ]  # fmt: skip
    ratios = sorted(theirs / own for theirs, own in pairs)
    return told(
        f"compress, a step of {images_at_once} images ({name})", median(p[0] for p in pairs),
        median(p[1] for p in pairs), STEP_BAR, ratios,
    )  # fmt: skip


@dataclass(frozen=True)
class _FixedSet:
    """Draws on which two searches of one class are compared."""

    diffusion: Diffusion
    latents: torch.Tensor
    mask_latents: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    rows: torch.Tensor

    @torch.no_grad()
    def loss(self, conditions: Conditions, coefficients: torch.Tensor | None) -> float:
        """The paper's loss, with one prompt throughout."""
        placed = None if coefficients is None else coefficients[0, self.rows]
        return float(
            noise_loss(
                self.diffusion, conditions, self.latents, self.mask_latents,
                ["a photo of a *"] * len(self.rows), self.timesteps, self.noise,
                self.diffusion.alphas_cumprod, placed,
            )
        )  # fmt: skip


def _fixed_set(diffusion: Diffusion, images: Posterior, masks: Posterior) -> _FixedSet:
    rng = torch.Generator().manual_seed(1)
    rows = torch.randint(images.mean.shape[1], (FIXED_DRAWS,), generator=rng)
    return _FixedSet(
        diffusion, images.mean[0, rows].float(), masks.mean[0, rows].float(),
        torch.randn(FIXED_DRAWS, *diffusion.latent_shape, generator=rng),
        torch.arange(FIXED_DRAWS) * len(diffusion.alphas_cumprod) // FIXED_DRAWS, rows,
    )  # fmt: skip


def compress_to_loss(data: Path, class_names: list[str]) -> tuple[dict, dict[str, float]]:
    """Time to the loss that ours ends with, on a fixed set of draws, summed over classes.

    Both see the images as they lie. The published search starts from a word, encodes in each step
    and has a batch of 32; its rates are ours, which suit the bundled model.

    Returns:
        the row, and seconds of the published search by class.
    """
    diffusion = load_backbone("mini", torch.device("cpu"))
    config = stage_config("mini", "compress", {}, "")
    assert isinstance(config, CompressConfig)
    times: dict[str, tuple[float, float]] = {}
    for name in class_names:
        images = load_images(train_samples(data, name), diffusion.image_size)
        object_masks = np.ones((len(images), diffusion.image_size, diffusion.image_size), np.bool_)
        start = time.perf_counter()
        encoded = encode_posterior(diffusion, [torch.from_numpy(images)])
        seen = encode_posterior(
            diffusion, [torch.full((len(images), 3, *object_masks.shape[1:]), 255).byte()]
        )
        variation = principal_variation(encoded.mean, config.num_variations)
        assert variation is not None
        conditions = start_conditions(diffusion, encoded, config, 0, "", variation)
        search(diffusion, conditions, encoded, seen, config, 0,
               coefficients=variation.coefficients)  # fmt: skip
        ours = time.perf_counter() - start
        fixed = _fixed_set(diffusion, encoded, seen)
        goal = fixed.loss(conditions, variation.coefficients)
        plain = replace(config, batch_size=32, init="word", num_variations=0)
        other = start_conditions(diffusion, encoded, plain, 0, "object")
        published, theirs = PublishedSearch(diffusion, other, images, object_masks, plain), 0.0
        for number in count(1):
            theirs += taken(published.step)
            if number % LOOK_EVERY == 0 and fixed.loss(other, None) <= goal:
                break
            if number >= MOST_STEPS or theirs > MOST_TIMES * ours:
                break
        times[name] = (theirs, ours)
    ratios = sorted(theirs / ours for theirs, ours in times.values())
    theirs, ours = (sum(part) for part in zip(*times.values(), strict=True))
    row = told(f"compress to equal loss, {len(times)} classes (mini)", theirs, ours, LOSS_BAR,
               ratios)  # fmt: skip
    return row, {name: pair[0] for name, pair in times.items()}


def replay(kept: ConditionsArtifact, num_images: int = 8) -> dict:
    """An image from the bundled model: DDIM in 50 steps, and ours."""
    diffusion = load_backbone("mini", torch.device("cpu"))
    conditions = rebuild_conditions(kept, diffusion)
    config = stage_config("mini", "replay", {}, "")
    assert isinstance(config, ReplayConfig)
    masks = [np.ones((diffusion.image_size,) * 2, np.bool_)] * num_images
    coefficients = np.zeros((num_images, len(kept.semantic_variations)), np.float32)
    return paired(
        f"replay, {num_images} images (mini)",
        lambda: published_images(diffusion, conditions, masks, 50, 1.0, coefficients),
        lambda: list(
            sample(diffusion, conditions, masks, range(num_images), config,
                   coefficients=coefficients)
        ),
        REPLAY_BAR,
    )  # fmt: skip


def train_step(
    data: Path,
    class_name: str,
    steps: int = 40,
    device: torch.device = CPU,
    preset: str = "mini",
    *,
    is_compiled: bool = False,
) -> dict:
    """Steps of InvAD's training, images and features included: encoded anew, and kept."""
    config = resolve_defaults(TrainConfig(detector="invad", preset=preset))
    chosen = preset_for("invad", preset)
    training = chosen.training
    if preset == "mini":
        encoder = load_encoder("mini", device)
    else:
        encoder = random_encoder(chosen.encoder, chosen.levels, device)
    samples = train_samples(data, class_name)
    mixture = Mixture([Source(class_index=0, samples=samples)], config.image_size)
    features = FeatureCache(encoder, mixture.images, len(mixture), config.batch_size, uses=100)

    def walk(detector: torch.nn.Module, look: Callable) -> Callable[[], None]:
        optimizers = make_optimizers(detector, training, config.learning_rate)
        detector.train()

        def steps_() -> None:
            rng = np.random.default_rng(0)
            for _ in range(steps):
                rows = rng.integers(0, len(mixture), config.batch_size)
                optimize_step(detector, optimizers, look(rows), training)

        return steps_

    ours, plain = (
        build_detector("invad", preset, encoder.channels, encoder.strides, config.image_size, 0)
        .to(device)
        for _ in range(2)
    )
    if is_compiled:
        ours.forward = torch.compile(ours.forward)
    works = (
        walk(per_sample(plain), _decoded_anew(samples, config.image_size, encoder)),
        walk(ours, features),
    )
    if device.type != "cpu":
        for work in works:  # what a first step does once, such as compiling, is no part of it
            work()
    name = f"{preset}, compiled" if is_compiled else preset
    return paired(f"train, {steps} steps of InvAD with their images ({name})", *works, TRAIN_BAR)


def _decoded_anew(samples: list[Sample], size: int, encoder: torch.nn.Module) -> Callable:
    return lambda rows: encoder.encode_images(
        torch.from_numpy(load_images([samples[row] for row in rows], size))
    )


def metrics(num_images: int = 200, size: int = 256) -> dict:
    """Pixel AUROC, AP and F1 of one class of VisA's size: scikit-learn's, and ours; equal values.

    Ours gives AUPRO as well, which scikit-learn does not have.
    """
    rng = np.random.default_rng(0)
    maps = rng.gamma(2.0, 1.0, (num_images, size, size)).astype(np.float32)
    masks = np.zeros(maps.shape, np.bool_)
    masks[: num_images // 2, 40:70, 50:90] = True
    maps[masks] += 1.5
    found: dict[str, tuple[float, ...]] = {}

    def theirs() -> None:
        flat, labels = maps.ravel(), masks.ravel()
        precision, recall, _ = precision_recall_curve(labels, flat)
        best = (2 * precision * recall / np.maximum(precision + recall, 1e-12)).max()
        found["theirs"] = (
            roc_auc_score(labels, flat), average_precision_score(labels, flat), best
        )  # fmt: skip

    def ours() -> None:
        own = pixel_metrics(maps, masks)
        found["ours"] = (own["pixel_auroc"], own["pixel_ap"], own["f1_max"])

    row = paired(f"eval, metrics of {num_images} x {size} x {size}", theirs, ours, METRICS_BAR)
    error = float(np.abs(np.subtract(found["theirs"], found["ours"])).max())
    assert error < 1e-9, f"values differ by {error}"
    return row


def fast_replays(data: Path, classes: list[str]) -> dict:
    """What a detector loses that learns from our replays and not from 50 steps of DDIM."""
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for sampler, steps in (("dpm++", "10"), ("ddim", "50")):
            settings = RunSettings(
                data=data, root=Path(folder),
                overrides={
                    "replay": {"sampler": sampler, "num_inference_steps": steps,
                               "num_images": "100"},
                    "train": {"detector": "patchcore"},
                },
            )  # fmt: skip
            with Builder(settings, silent) as builder:
                for name in classes[:-1]:
                    builder.build(CompressStage(builder, name))
                    builder.build(ReplayStage(builder, name))
                builder.build(TrainStage(builder, classes[-1:], classes[:-1], sampler))
                outcome = builder.build(EvalStage(builder, classes, sampler))
            of = read_header(outcome.plan.path)["metrics"]["classes"]
            figures[sampler] = [
                100 * fmean(of[one][figure] for one in classes[:-1])
                for figure in ("image_auroc", "pixel_ap")
            ]
    lost = [b - a for a, b in zip(figures["dpm++"], figures["ddim"], strict=True)]
    return {
        "row": "replay, detector on 10 steps, not 50 of DDIM: image AUROC / pixel AP",
        "reference": " / ".join(f"{value:.1f}" for value in figures["ddim"]),
        "ours": " / ".join(f"{value:.1f}" for value in figures["dpm++"]),
        "difference": " / ".join(f"{-value:+.1f}" for value in lost),
        "bar": "at most 1 point lower", "met": max(lost) <= 1,
    }  # fmt: skip


def whole_run(
    data: Path, classes: list[str], published_compress: dict[str, float], rows: list[dict]
) -> dict:
    """`run` of all classes with InvAD, and the published sequence added up from its stages.

    Those are its search to the loss of ours, 50 steps of DDIM and InvAD's training, at the speed of
    the rows above. Masks and evaluation are the same in both.

    Args:
        data: folder of the images.
        classes: in the order learned.
        published_compress: seconds of the published search by class.
        rows: of `replay` and `train_step`, whose ratios count.
    """
    spent = dict.fromkeys(("mask", "compress", "replay", "train", "eval"), 0.0)
    with tempfile.TemporaryDirectory() as folder:
        detector = {"train": {"detector": "invad"}}
        settings = RunSettings(data=data, root=Path(folder), overrides=detector)
        with Builder(settings, silent) as builder:
            cells = comparison(classes, ("replay",))
            for outcome in run_sequence(builder, cells, "bench")["outcomes"]:
                spent[outcome.plan.stage] += outcome.seconds
    replays, training = (row["ratio"] for row in rows)
    theirs = (
        spent["mask"] + spent["eval"] + sum(published_compress.values())
        + replays * spent["replay"] + training * spent["train"]
    )  # fmt: skip
    row = f"run of {len(classes)} classes with InvAD (mini), the reference added up"
    return told(row, theirs, sum(spent.values()), RUN_BAR)


def measure(data: Path, backbones: list[str]) -> list[dict]:
    """All rows; those of the bundled models on the classes in `data`."""
    classes = find_classes(data)
    rows = [metrics(), *(compress_step(name) for name in backbones if name in CLASSES)]
    loss_row, published = compress_to_loss(data, classes)
    with tempfile.TemporaryDirectory() as folder:
        settings = RunSettings(data=data, root=Path(folder), overrides={})
        with Builder(settings, silent) as builder:
            path = builder.build(CompressStage(builder, classes[0])).plan.path
        drawing = replay(ConditionsArtifact.load(path))
    training = train_step(data, classes[0])
    whole = whole_run(data, classes, published, [drawing, training])
    return [*rows, loss_row, drawing, fast_replays(data, classes), training, whole]
