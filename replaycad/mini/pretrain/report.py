"""Figures of the bundled models for their card: `python -m replaycad.mini.pretrain.report`.

Real classes are read from a folder that the user names; without one the procedural classes alone
are measured. Nothing here is trained on what is measured, and nothing is chosen by it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Annotated

import numpy as np
import timm
import torch
import typer
from rich.console import Console
from rich.table import Table

from replaycad.continual.coverage import pyramids
from replaycad.data.images import load_images
from replaycad.data.layouts import find_classes, test_samples, train_samples
from replaycad.detectors.encoders import IMAGENET_MEAN, IMAGENET_STD, Encoder, load_encoder
from replaycad.detectors.patchcore.network import PatchCore
from replaycad.detectors.patchcore.preset import PatchCorePreset
from replaycad.diffusion.backbones import load_backbone
from replaycad.engine.builder import Builder
from replaycad.engine.compress import CompressStage
from replaycad.engine.evaluate import EvalStage
from replaycad.engine.settings import RunSettings
from replaycad.engine.staleness import input_header
from replaycad.engine.train import TrainStage
from replaycad.experiments.contact_sheet import draw_sheet
from replaycad.metrics import image_auroc
from replaycad.mini.pretrain.encoder import OUT_INDICES, TIMM_NAME
from replaycad.mini.pretrain.pool import Pool, open_pool
from replaycad.mini.pretrain.sam import WHOLE_FRAME
from replaycad.mini.world.pictures import HELD_OUT_SEED, draw_class, write_dataset
from replaycad.progress import silent
from replaycad.runtime import generator
from replaycad.segmentation.sam import load_segmenter

PARTS = ("vae", "sam", "encoder", "inversion")
IMAGE_SIZE, BANK_LIMIT = 128, 4000
FIRST_HELD_OUT, NUM_HELD_OUT = HELD_OUT_SEED + 2000, 6  # in a row: none is picked for its looks
NUM_TRAIN, NUM_GOOD, NUM_DEFECTIVE = 60, 20, 30
CONDITIONINGS: Mapping[str, dict[str, str]] = {
    "both": {"conditioning": "both"},
    "semantic": {"conditioning": "semantic"},
    "spatial": {"conditioning": "spatial"},
    # The class's word in a prompt, nothing learned: what the model knows without compressing.
    "none": {"conditioning": "semantic", "init": "word", "num_steps": "0"},
}
FIGURES = ("image_auroc", "pixel_ap")
Figures = dict[str, float]


def main(
    parts: Annotated[list[str] | None, typer.Argument(help=f"of {', '.join(PARTS)}")] = None,
    data: Annotated[Path | None, typer.Option(help="folder of real classes")] = None,
    reference: Annotated[str, typer.Option(help="an encoder to compare with")] = "",
    work: Annotated[Path, typer.Option(help="drawn data and artifacts")] = Path(".report"),
    seed: Annotated[int, typer.Option(help="of compress, replay and train")] = 0,
    num: Annotated[int, typer.Option(help="replays of each class")] = 100,
) -> None:
    """Print the figures of the bundled models and write them to `WORK/report.json`."""
    torch.manual_seed(0)
    held_out = held_out_data(work)
    groups = {"procedural": held_out} | ({"real": data} if data else {})
    found: dict[str, dict[str, Figures]] = {}
    for part in parts or PARTS:
        if part == "vae":
            found["PSNR of the autoencoder, dB"] = {
                group: autoencoder_psnr(folder) for group, folder in groups.items()
            }
        elif part == "sam":
            pool = open_pool(work, 64, 2, 1, first_class=HELD_OUT_SEED)
            found["IoU of the segmenter"] = {"procedural": segmenter_iou(pool)}
        elif part == "encoder":
            found["image AUROC of nearest neighbours"] = {
                f"{group}, {name}": nearest_neighbour_auroc(folder, encoder)
                for group, folder in groups.items()
                for name, encoder in encoders(reference).items()
            }
        elif part == "inversion":
            for group, folder in groups.items():
                found |= inversion(folder, work / group, group, seed, num)
        else:
            raise typer.BadParameter(f"'{part}' is none of {', '.join(PARTS)}")
    for title, rows in found.items():
        show(title, rows)
    (work / "report.json").write_text(json.dumps(found, indent=1) + "\n")


def held_out_data(work: Path) -> Path:
    """Draw the held-out procedural classes into `work/held-out`, once; returns that folder."""
    folder = work / "held-out"
    seeds = range(FIRST_HELD_OUT, FIRST_HELD_OUT + NUM_HELD_OUT)
    classes = {f"{draw_class(seed).family}{seed - FIRST_HELD_OUT}": seed for seed in seeds}
    if not folder.exists():
        write_dataset(folder, classes, NUM_TRAIN, NUM_GOOD, NUM_DEFECTIVE, seed=0)
    return folder


def autoencoder_psnr(data: Path) -> Figures:
    """PSNR of the autoencoder on the normal test images of each class, dB, and the mean."""
    diffusion = load_backbone("mini", torch.device("cpu"))
    found = {}
    for name in find_classes(data):
        samples = [sample for sample in test_samples(data, name) if not sample.is_anomalous]
        images = torch.from_numpy(load_images(samples, diffusion.image_size))
        again = diffusion.decode(diffusion.encode_images(images)[0])
        error = (again.float() - images.float()).square().mean((1, 2, 3)).clamp_min(1e-3)
        found[name] = (10 * torch.log10(255**2 / error)).mean().item()
    return {**found, "mean": mean(found.values())}


def segmenter_iou(pool: Pool) -> Figures:
    """Mean IoU (0..1) of what four corner prompts leave as the object, over parts, not surfaces."""
    segmenter, found = load_segmenter("mini"), []
    for images, masks in zip(pool.images, pool.object_masks, strict=True):
        for image, mask in zip(images, masks > 0, strict=True):
            if mask.mean() < WHOLE_FRAME:
                ours = segmenter.corner_mask(image)
                found.append((ours & mask).sum() / max((ours | mask).sum(), 1))
    return {"mean": float(np.mean(found)), "median": float(np.median(found))}


def encoders(reference: str) -> dict[str, Encoder]:
    """The bundled encoder, one of the same shape with random weights, and the reference if any."""
    model = timm.create_model(TIMM_NAME, features_only=True, out_indices=OUT_INDICES)
    found = {"bundled": load_encoder("mini"), "random": Encoder(model, IMAGENET_MEAN, IMAGENET_STD)}
    return found | ({"reference": load_encoder(reference)} if reference else {})


def nearest_neighbour_auroc(data: Path, encoder: Encoder) -> Figures:
    """Image AUROC (0..1) of a PatchCore bank of each class's real images, and the mean."""
    found = {}
    for name in find_classes(data):
        preset = PatchCorePreset(image_size=IMAGE_SIZE, bank_limit=BANK_LIMIT)
        detector = PatchCore(encoder.channels, encoder.strides, IMAGE_SIZE, preset)
        normal, tested = train_samples(data, name), test_samples(data, name)
        detector.fit(
            pyramids(load_images(normal, IMAGE_SIZE), encoder), 0, generator(0, "report", name)
        )
        shown = pyramids(load_images(tested, IMAGE_SIZE), encoder)
        scores = torch.cat([detector.anomaly_maps(levels).amax((1, 2)) for levels in shown])
        found[name] = image_auroc(scores.numpy(), [sample.is_anomalous for sample in tested])
    return {**found, "mean": mean(found.values())}


def inversion(
    data: Path, work: Path, group: str, seed: int, num_images: int
) -> dict[str, dict[str, Figures]]:
    """Detectors of one class each, trained on real images and on replays alone.

    Returns:
        One table per figure, rows `real` and the conditionings; its column `of real` is the mean
        over the mean of the real row.
    """
    classes = find_classes(data)
    tables: dict[str, dict[str, Figures]] = {figure: {} for figure in FIGURES}
    for kind in ("real", *CONDITIONINGS):
        settings = RunSettings(
            data=data, root=work / kind, seed=seed,
            overrides={
                "compress": CONDITIONINGS.get(kind, {}),
                "replay": {"num_images": str(num_images)},
                "train": {"detector": "patchcore"},
            },
        )  # fmt: skip
        with Builder(settings, silent) as builder:
            scores = [_class_scores(builder, name, is_real=kind == "real") for name in classes]
        if kind != "real":
            drawn = {one: {"replay": one} for one in classes}
            draw_sheet(data, builder.store, drawn, work / f"{kind}.png")
        for figure, rows in tables.items():
            row = dict(zip(classes, (one[figure] for one in scores), strict=True))
            row["mean"] = mean(row.values())
            rows[kind] = {**row, "of real": row["mean"] / rows.get("real", row)["mean"]}
    return {f"{group} classes, {figure}": rows for figure, rows in tables.items()}


def _class_scores(builder: Builder, name: str, is_real: bool) -> Figures:
    if is_real:
        builder.build(TrainStage(builder, [name], [], name))
    else:
        builder.build(CompressStage(builder, name))
        builder.build(TrainStage(builder, [], [name], name))
    plan = builder.build(EvalStage(builder, [name], name)).plan
    return input_header(plan.path, "scores")["metrics"]["classes"][name]


def show(title: str, rows: Mapping[str, Figures]) -> None:
    """Print one table; fractions as percent."""
    factor, unit = (1, "") if title.endswith("dB") else (100, ", %")
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    table = Table("", *columns, title=title + unit, title_justify="left")
    for name, row in rows.items():
        cells = (f"{factor * row[column]:.1f}" if column in row else "-" for column in columns)
        table.add_row(name, *cells)
    Console(width=max(80, 14 * (len(columns) + 2))).print(table)


if __name__ == "__main__":
    typer.run(main)
