"""How a class is seen: from what was typed, from what is stored of it, and from its folder."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from replaycad.config.stages import MaskConfig
from replaycad.data.images import picture_size, read_ignored
from replaycad.data.layouts import ignore_path
from replaycad.data.pixels import range_of
from replaycad.data.samples import Sample
from replaycad.data.views import View
from replaycad.errors import DatasetError

if TYPE_CHECKING:
    from replaycad.engine.builder import Builder

VIEW_OF = "view of "
"""Begins the name of an input that says in words how a class is seen."""


def configured_view(
    builder: "Builder", class_name: str, samples: Sequence[Sample], tile: int, fit: str
) -> View:
    """The view of a class whose pictures are at hand: a setting, and `ignore.png` beside them.

    Raises:
        DatasetError: if that picture cannot be read, has another size than the first sample, or
            leaves nothing to be judged; a tile is larger than a picture; or pictures have several
            ranges.
    """
    ignore = _ignored(builder, class_name, samples[0])
    view = View.from_dict({"tile": tile, "fit": fit})
    white, colours = _pixels(builder, class_name, samples)
    view = replace(view, ignore=ignore, white=white, colours=colours)
    if not tile:
        return view
    count = 0
    for sample in samples:
        width, height = picture_size(sample.path)
        view.check(width, height, str(sample.path))
        count += len(view.windows(width, height))
    return replace(view, num_tiles=round(count / len(samples)))


def wanted_view(builder: "Builder", class_name: str, samples: Sequence[Sample]) -> View:
    """The view of a class that is learned from real images.

    What was typed counts, else what its masks or conditions in the store were made with, else the
    recipe.

    Raises:
        DatasetError: as `configured_view`.
    """
    settings = builder.settings
    config = settings.config(MaskConfig, class_name)
    tile, fit = config.tile, config.fit
    if not {"tile", "fit"} & set(settings.of_class("mask", class_name)):
        for kind in ("masks", "conditions"):
            header = builder.header(kind, class_name)
            if header and f"{kind}/{class_name}" not in builder.changing:
                stored = View.from_dict(header.get("view"))
                tile, fit = stored.tile, stored.fit
                break
    return configured_view(builder, class_name, samples, tile, fit)


def told(class_name: str, view: View) -> dict[str, str]:
    """The view as an input of a stage: a change is then told in words."""
    return {f"{VIEW_OF}{class_name}": str(view)}


def stored_view(header: Mapping[str, Any]) -> View:
    """The view in the header of masks, conditions or replays.

    Raises:
        ArtifactError: if it is none.
    """
    return View.from_dict(header.get("view"))


def _pixels(
    builder: "Builder", class_name: str, samples: Sequence[Sample]
) -> tuple[float, str]:
    """The level that is shown as white, and whether there are colours; found once by a command."""
    if class_name not in builder.pixels:
        found = range_of(sample.path for sample in samples)
        if found.note:
            builder.report.note(f"{class_name}: {found.note}")
        builder.pixels[class_name] = found.white, found.colours
    return builder.pixels[class_name]


def _ignored(builder: "Builder", class_name: str, first: Sample) -> bytes:
    """What is ignored in the pictures of a class; read once by a command."""
    if class_name not in builder.ignored:
        path = ignore_path(builder.settings.data, class_name)
        ignore = read_ignored(path) if path else b""
        if path and not ignore:
            builder.report.note(f"{path} is all black: nothing of {class_name} is ignored")
        builder.ignored[class_name] = ignore
    ignore = builder.ignored[class_name]
    if ignore:
        height, width = View(ignore=ignore).size
        found = picture_size(first.path)
        if found != (width, height):
            raise DatasetError(
                f"ignore.png of {class_name} has {width} x {height} px, but {first.path} has "
                f"{found[0]} x {found[1]} px",
                "draw it in the size of the pictures",
            )
    return ignore
