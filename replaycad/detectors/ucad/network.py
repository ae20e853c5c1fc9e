"""UCAD: a memory bank per class, of a transformer that a learned prompt of the class steers.

Liu et al., AAAI 2024. A key of each class, made without its prompt, says whose an image is; its
knowledge, made with it, what is normal there. Both stay as they are when later classes come.

Deviation: images are routed one by one, as the paper says; the program is told the class.

Deviation: a prompt reaches each image alike. In the program's batch the first half gets the key in
place of the value too, and the second half the value in place of the key.

Deviation: an image's score is the maximum of its map after smoothing, as of other detectors. The
program takes it before, which gives bottle an image AUROC of 95.3 for 96.3, transistor 66.2 for
70.5 (prompts as drawn, bundled transformer, one seed).
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from replaycad.anomaly import apply_both_axes, map_matrix
from replaycad.detectors.encoders import images_of
from replaycad.detectors.interface import Detector, evaluating, make_room
from replaycad.detectors.patchcore.coreset import greedy_coreset, nearest_squared_distances
from replaycad.detectors.pyramid import check_picture, picture_of
from replaycad.detectors.ucad.prefixes import load_blocks
from replaycad.detectors.ucad.preset import UCADPreset
from replaycad.detectors.ucad.regions import contrastive_loss, region_map
from replaycad.segmentation.sam import Segmenter, load_segmenter

_MEMORY = ("memory_class", "memory_key", "memory_knowledge", "memory_place", "memory_prompt")


class UCAD(Detector):
    """A prompt that is learned, and of each class that is known a key, a knowledge and a prompt.

    Args:
        channels: of the levels; the picture comes first.
        strides: of the levels.
        image_size: side of the input images in pixels.
        preset: structure.

    Raises:
        ConfigError: if the picture is not among the levels.
        WeightsError: if transformer or segmenter are not there.

    Attributes:
        memory_class: `[T]` int64, index of each class.
        memory_key, memory_knowledge: `[T, M, D]` float32, vectors without and with the prompt.
        memory_place: `[T, M]` int64, which of the class's images each of the latter is from.
        memory_prompt: `[T, L, 2, D]` float32.
    """

    trained_by = "both"
    is_graph = False  # the prompt is chosen by the image
    memory_class: torch.Tensor
    memory_key: torch.Tensor
    memory_knowledge: torch.Tensor
    memory_place: torch.Tensor
    memory_prompt: torch.Tensor
    _to_image: torch.Tensor

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        image_size: int,
        preset: UCADPreset,
    ) -> None:
        """Draw a prompt; no class is known yet."""
        super().__init__()
        check_picture("UCAD", channels, strides)
        self.image_size, self.preset = image_size, preset
        # In a tuple: its weights do not belong to this detector.
        self._frozen = (load_blocks(preset.transformer, preset.num_blocks),)
        self._segmenter: Segmenter | None = None
        self._regions: dict[bytes, torch.Tensor] = {}
        width = self._frozen[0].width
        self.prompt = nn.Parameter(torch.empty(preset.num_blocks, 2, width))
        self._draw()
        self.register_buffer("memory_class", torch.zeros(0, dtype=torch.int64))
        for name in ("memory_key", "memory_knowledge"):
            self.register_buffer(name, torch.zeros(0, preset.num_picks, width))
        places = torch.zeros(0, preset.num_picks, dtype=torch.int64)
        self.register_buffer("memory_place", places)
        self.register_buffer("memory_prompt", torch.zeros(0, *self.prompt.shape))
        self._grid = self._frozen[0].grid(preset.transformer_px)
        sigma = preset.sigma_px * image_size / 224
        to_image = map_matrix(image_size, self._grid, sigma, align_corners=False)
        self.register_buffer("_to_image", to_image, persistent=False)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "UCAD":
        """Take the frozen transformer along to another device."""
        self._frozen[0].owner._apply(fn)
        return super()._apply(fn, recurse)

    def begin(self, num_classes: int, is_first: bool) -> None:
        """Draw a prompt for the class to come."""
        self._draw()

    def _draw(self) -> None:
        nn.init.uniform_(self.prompt, -1, 1)

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Features `[B, D, h, w]` under the prompt that is learned, of levels `[B, C, H, W]`."""
        found = self._frozen[0].features(self._tokens(features), self.prompt)
        return [found.transpose(1, 2).unflatten(2, (self._grid, self._grid))]

    def loss(self, features: Sequence[torch.Tensor], progress: float = 0.0) -> torch.Tensor:
        """The mean of the contrastive loss over images `[B, ...]` of two regions or more.

        An image of one region has nothing to be told apart from.
        """
        total, number = 0.0 * self.prompt.sum(), 0
        if self.preset.loss_weight:
            found = self._frozen[0].features(self._tokens(features), self.prompt)
            for one, regions in zip(found, self._regions_of(features), strict=True):
                if len(regions.unique()) > 1:
                    total = total + contrastive_loss(one, regions, self.preset.temperature)
                    number += 1
        return self.preset.loss_weight * total / max(number, 1)

    @torch.no_grad()
    def fit(
        self,
        features: Iterable[Sequence[torch.Tensor]],
        class_index: int,
        generator: torch.Generator,
    ) -> None:
        """Keep key, knowledge and prompt of one class, in place of earlier ones of it.

        Args:
            features: pyramids of the class's normal images, batch by batch, levels `[B, C, H, W]`.
            class_index: which class this is.
            generator: CPU random stream of the coresets.

        Raises:
            ValueError: if there is not a single batch.
        """
        plain, prompted = [], []
        with evaluating(self):
            for pyramid in features:
                tokens = self._tokens(pyramid)
                plain.append(self._frozen[0].features(tokens))
                prompted.append(self._frozen[0].features(tokens, self.prompt))
        if not plain:
            raise ValueError("cannot keep a class of no images")
        (key, _), (knowledge, places) = (
            self._picked(torch.cat(parts), generator) for parts in (plain, prompted)
        )
        new = (
            torch.tensor(class_index, device=key.device), key, knowledge, places,
            self.prompt.detach().clone(),
        )  # fmt: skip
        others = self.memory_class != class_index
        for name, value in zip(_MEMORY, new, strict=True):
            known = getattr(self, name)
            setattr(self, name, torch.cat([known[others], value[None].to(known)]))

    def _picked(
        self, found: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A coreset of features `[B, N, D]`, and which image each is from; few are repeated."""
        pool, wanted = found.flatten(0, 1), self.preset.num_picks
        picks = greedy_coreset(
            pool, min(wanted, len(pool)), generator, self.preset.projection_width
        )
        picks = picks.repeat(-(-wanted // len(picks)))[:wanted]
        return pool[picks], picks // found.shape[1]

    @torch.no_grad()
    def anomaly_maps(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Smoothed squared distances to the knowledge of the class that each image is nearest to.

        Returns:
            `[B, image_size, image_size]` float32, at least 0 up to rounding.

        Raises:
            ValueError: if no class has been fitted.
        """
        if not len(self.memory_class):
            raise ValueError("UCAD knows no class yet: call fit first")
        with evaluating(self):
            tokens = self._tokens(features)
            return self._maps(tokens, self.routes(self._frozen[0].features(tokens)))

    @torch.no_grad()
    def fitted_maps(
        self, features: Sequence[torch.Tensor], class_index: Sequence[int], places: Sequence[int]
    ) -> torch.Tensor:
        """Maps `[B, image_size, image_size]` of fitted images, each without its own vectors."""
        rows = [(self.memory_class == one).nonzero()[0, 0] for one in class_index]
        with evaluating(self):
            return self._maps(self._tokens(features), torch.stack(rows), places)

    def routes(self, plain: torch.Tensor) -> torch.Tensor:
        """Which of the known classes images are nearest to, `[B]` int64 (eq. 4).

        Args:
            plain: features without a prompt, `[B, N, D]`.
        """
        # A classes' loop: all distances at once would take their number of times the memory.
        found = [
            torch.stack([nearest_squared_distances(one, key).clamp_min(0).sqrt().sum()
                         for one in self._wide(plain)])
            for key in self._wide(self.memory_key)
        ]  # fmt: skip
        return torch.stack(found, dim=1).argmin(dim=1)

    def _maps(
        self, tokens: torch.Tensor, rows: torch.Tensor, places: Sequence[int] | None = None
    ) -> torch.Tensor:
        """Maps under prompts and against knowledge of rows `[B]` of the memory."""
        distances = tokens.new_zeros(len(tokens), self._grid**2)
        for row in rows.unique().tolist():
            own = (rows == row).nonzero()[:, 0]
            found = self._frozen[0].features(tokens[own], self.memory_prompt[row])
            for image, one in zip(own.tolist(), found, strict=True):
                bank = self.memory_knowledge[row]
                if places is not None:
                    others = self.memory_place[row] != places[image]
                    bank = bank[others] if others.any() else bank
                distances[image] = nearest_squared_distances(self._wide(one), self._wide(bank))
        maps = distances.unflatten(1, (self._grid, self._grid))
        return apply_both_axes(maps, self._to_image)

    def _wide(self, vectors: torch.Tensor) -> torch.Tensor:
        """Vectors `[..., D]` as they are compared; kept are D numbers of each, which say it all."""
        wide = self.preset.compared_width
        return F.adaptive_avg_pool1d(vectors, wide) if wide else vectors

    def _tokens(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        return self._frozen[0].embedded(self._pictures(features))

    def _pictures(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        return picture_of(features, self.preset.transformer_px)

    @torch.no_grad()
    def _regions_of(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Region maps of images; those that it has seen before are remembered."""
        found = []
        for picture in images_of(self._pictures(features)).cpu().permute(0, 2, 3, 1).numpy():
            name = hashlib.sha256(picture.tobytes()).digest()
            if name not in self._regions:
                if self._segmenter is None:
                    device = self.prompt.device
                    self._segmenter = load_segmenter(self.preset.segmenter, device)
                masks, _ = self._segmenter.everything(picture)
                self._regions[name] = region_map(masks, self._grid, self._grid)
            found.append(self._regions[name].to(self.prompt.device))
        return found

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Let the memory take the size it was saved with."""
        make_room(self, _MEMORY, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)
