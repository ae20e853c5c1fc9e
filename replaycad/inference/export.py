"""A detector as one file that other programs run: from an RGB image to its map and score."""

import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from replaycad.artifacts.atomic import replacing, write_text
from replaycad.artifacts.store import Store
from replaycad.data.views import view_of
from replaycad.errors import ConfigError, ReplayCadError
from replaycad.inference.graph import DetectorGraph
from replaycad.inference.predict import load_predictor

INPUT = "images"
METADATA = "replaycad"
TOLERANCE = 1e-3  # of scores and maps, where 1 is the threshold
Answers = list[np.ndarray]


class ExportError(ReplayCadError):
    """The written file gives other scores than the detector."""


def export_detector(
    store: Store, name: str, encoder: str, target: Path, form: str
) -> dict[str, Any]:
    """Write a detector with its encoder and hold what the file answers against our own.

    The file takes `images`, `[1, 3, S, S]` uint8 RGB, and gives what `DetectorGraph.forward` does:
    `image_scores` `[1]` and `anomaly_maps` `[1, S, S]` float32, where 0 is typical of normal images
    and 1 the threshold. Where the detector tells classes apart also `class_index` `[1]`, the place
    of the image's class among `classes`, and `product_distances` `[1]`, above 1 for an image of
    none of them.

    Args:
        store: that holds the detector.
        name: of the detector; empty where the store holds one alone.
        encoder: as `eval` takes it; empty for the one that it was trained with.
        target: the file to replace; OpenVINO writes a `.bin` beside it.
        form: key of `FORMATS`.

    A file named as the target with `.json` behind it, and the file's own metadata under the name
    `replaycad` (in a torch file, as `replaycad.json`), say how pictures become such images:
    `image_size`, `channels` (the order of colours), and by class under `views` its `tile` in pixels
    (0: whole pictures), its `fit`, and the level that becomes 255, its `white`; `classes` are those
    that are told apart.

    Returns:
        `file`, `format`, `image_size`, `views`, `outputs`, `num_bytes` and `max_difference` of
        the outputs.

    Raises:
        ConfigError: an unknown format, a file name that does not end as it should, missing
            packages, or a detector that is no graph.
        ExportError: if scores or maps of the file differ by more than `TOLERANCE`; it is not kept.
    """
    if form not in FORMATS:
        raise ConfigError(f"unknown format '{form}'", f"choose from: {', '.join(FORMATS)}")
    suffix, packages, write, run = FORMATS[form]
    if target.suffix != suffix:
        raise ConfigError(f"--out must end in {suffix}, not in '{target.suffix}'")
    for package in packages:
        try:
            import_module(package)
        except ImportError:
            message = f"--format {form} needs the package {package}"
            raise ConfigError(message, f"run `pip install replaycad[{form}]`") from None
    predictor = load_predictor(store, name, encoder, torch.device("cpu"))
    graph, size = predictor.graph, predictor.image_size
    if not graph.detector.is_graph:
        raise ConfigError(
            f"a detector of this kind ({predictor.header['detector']}) cannot be exported: what it "
            "does differs from image to image",
            "use `replaycad predict`, or export a memory bank (--detector patchcore)",
        )
    shown = np.random.default_rng(0).integers(0, 256, (1, 3, size, size), np.uint8)
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder, _quiet():
        expected = [part.numpy() for part in graph(torch.from_numpy(shown))]
        made = Path(folder) / target.name
        views = _views(predictor.header)
        facts = {
            "image_size": size, "channels": "RGB", "views": views, "classes": graph.classes,
        }  # fmt: skip
        write(graph, torch.from_numpy(shown), made, json.dumps(facts))
        pairs = zip(run(made, shown), expected, strict=True)
        difference = max(float(np.abs(one - other).max()) for one, other in pairs)
        if not difference <= TOLERANCE:
            raise ExportError(
                f"the {form} file differs from the detector by up to {difference:.2g}",
                "use another format and report this",
            )
        for file in sorted(Path(folder).iterdir()):  # the .bin of OpenVINO before its .xml
            with replacing(target.with_name(file.name)) as out, file.open("rb") as source:
                shutil.copyfileobj(source, out)
    write_text(target.with_name(f"{target.name}.json"), json.dumps(facts, indent=1) + "\n")
    return {
        "file": str(target), "format": form, "image_size": size, "views": views,
        "outputs": list(graph.outputs), "num_bytes": target.stat().st_size,
        "max_difference": difference,
    }  # fmt: skip


def _views(header: Mapping[str, Any]) -> dict[str, Any]:
    """Tile, fit, level of white, and what is ignored as a PNG in base64, by class."""
    views = {name: view_of(header, name) for name in header["class_order"]}
    return {
        name: {"tile": view.tile, "fit": view.fit, "white": view.white or 255,
               "ignore": view.as_dict().get("ignore", "")}
        for name, view in views.items()
    }


def _write_onnx(
    graph: DetectorGraph, example: torch.Tensor, path: Path, facts: str
) -> None:
    program = torch.onnx.export(
        graph, (example,), dynamo=True, input_names=[INPUT], output_names=list(graph.outputs),
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props[METADATA] = facts
    program.save(str(path), external_data=False)


def _run_onnx(path: Path, images: np.ndarray) -> Answers:
    import onnxruntime  # noqa: PLC0415 - an extra

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {INPUT: images})


def _write_torch(
    graph: DetectorGraph, example: torch.Tensor, path: Path, facts: str
) -> None:
    with path.open("wb") as file:
        exported = torch.export.export(graph, (example,))
        torch.export.save(exported, file, extra_files={f"{METADATA}.json": facts})


def _run_torch(path: Path, images: np.ndarray) -> Answers:
    with path.open("rb") as file:
        found = torch.export.load(file).module()(torch.from_numpy(images))
    return [part.detach().numpy() for part in found]


def _write_openvino(
    graph: DetectorGraph, example: torch.Tensor, path: Path, facts: str
) -> None:
    import openvino  # noqa: PLC0415 - an extra

    model = openvino.convert_model(graph, example_input=example)
    model.set_rt_info(facts, METADATA)
    openvino.save_model(model, path, compress_to_fp16=False)


def _run_openvino(path: Path, images: np.ndarray) -> Answers:
    import openvino  # noqa: PLC0415 - an extra

    # Of itself OpenVINO takes 16 bits where the processor has them; that is the user's choice.
    whole = {"INFERENCE_PRECISION_HINT": "f32"}
    found = openvino.Core().compile_model(path, "CPU", whole)(images)
    return [found[index] for index in range(len(found))]


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters talk; what matters is checked afterwards."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


FORMATS: Mapping[
    str,
    tuple[
        str,
        tuple[str, ...],
        Callable[[DetectorGraph, torch.Tensor, Path, str], None],
        Callable[[Path, np.ndarray], Answers],
    ],
] = {
    "onnx": (".onnx", ("onnx", "onnxscript", "onnxruntime"), _write_onnx, _run_onnx),
    "torch": (".pt2", (), _write_torch, _run_torch),
    "openvino": (".xml", ("openvino",), _write_openvino, _run_openvino),
}
"""Format -> ending of its files, the packages it needs, what writes it, what runs it."""
