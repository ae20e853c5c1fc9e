"""PatchCore: keeps a few patches of every class and measures the distance to the nearest."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from replaycad.anomaly import apply_both_axes
from replaycad.detectors.interface import Detector
from replaycad.detectors.patchcore.coreset import greedy_coreset, nearest_squared_distances
from replaycad.detectors.patchcore.embedding import PUBLISHED_WIDTH, embed
from replaycad.detectors.patchcore.looks import Looks, some
from replaycad.detectors.patchcore.preset import PatchCorePreset
from replaycad.detectors.pyramid import check_pyramid, smoothing_matrix
from replaycad.errors import ConfigError

POOL_BYTES = 2**28  # of patches that a bank is picked from at once
ROUTE_PICKS = 500
"""Patches of each bank that an image is routed by, the first of its coreset. Of 757 images of six
real classes, 0 went to a wrong class by 200, 500 or all 4,000 patches, 157 (all screws) by 50."""
NO_PLACE = -2  # a place that no patch of a bank is from; -1 are those of banks that were loaded
OWN_SHARE = 0.25
"""Of the patches of an image, which the distance to a class exceeds: defects leave these alone. On
six real classes, in parts of the median of good images, good ones came to 1.2, defective ones to
1.6 and the nearest image of another class to 1.8; by half of the patches to 1.2, 1.9 and 1.8."""


def _class_distances(
    patches: torch.Tensor, firsts: torch.Tensor, squares: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """How far an image is from classes: the mean over its patches, and what `OWN_SHARE` stay below.

    Args:
        patches: `[P, D]` of the image.
        firsts: `[K, M, D]`, the first picks of each class.
        squares: `[K, M]`, their squared lengths, infinite where a row is to be left out.

    Returns:
        both `[K]`, squared distances to the nearest of the picks.
    """
    partial = torch.addmm(squares.flatten(), patches, firsts.flatten(0, 1).T, alpha=-2)
    nearest = partial.reshape(len(patches), *squares.shape).amin(dim=2)
    nearest = nearest + patches.square().sum(dim=1, keepdim=True)
    return nearest.mean(dim=0), nearest.sort(dim=0).values[int(OWN_SHARE * len(patches))]


class PatchCore(Detector):
    """Memory banks of patches, one per class; nothing is trained by gradients (Roth et al. 2022).

    Args:
        channels: of the encoder's levels, from fine to coarse; the last two are used.
        strides: of the encoder's levels.
        image_size: side of the input images in pixels, a multiple of the last stride.
        preset: size of the banks.

    Raises:
        ConfigError: if encoder and image size do not fit.
    """

    trained_by = "fit"
    bank: torch.Tensor
    bank_class_index: torch.Tensor
    _bank_place: torch.Tensor
    _banks: torch.Tensor
    _squares: torch.Tensor
    _to_image: torch.Tensor

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        image_size: int,
        preset: PatchCorePreset,
    ) -> None:
        """Start with empty banks."""
        super().__init__()
        # the levels of a transformer are of one size
        is_one_size = len(set(strides)) == 1
        check_pyramid("PatchCore", strides[-1:] if is_one_size else strides, image_size)
        if len(channels) < 2:
            raise ConfigError(
                f"PatchCore does not fit an encoder with channels {tuple(channels)}",
                "use one with two levels, such as those of resnet34.bt_in1k",
            )
        self.image_size = image_size
        self.preset = preset
        to_image = smoothing_matrix(image_size, image_size // strides[-2], align_corners=False)
        self.register_buffer("_to_image", to_image, persistent=False)
        width = sum(min(c, PUBLISHED_WIDTH // 2) for c in channels[-2:])
        self.register_buffer("bank", torch.zeros(0, width))
        self.register_buffer("bank_class_index", torch.zeros(0, dtype=torch.int64))
        # Which of the fitted images a patch is from; not saved, and -1 for banks that were loaded.
        places = torch.zeros(0, dtype=torch.int64)
        self.register_buffer("_bank_place", places, persistent=False)
        # The same banks side by side, filled up with rows at no distance to anything.
        self.register_buffer("_banks", torch.zeros(0, 0, width), persistent=False)
        self.register_buffer("_squares", torch.zeros(0, 0), persistent=False)
        # The first picks of each class likewise, by which images are told apart.
        self.register_buffer("_firsts", torch.zeros(0, 0, width), persistent=False)
        self.register_buffer("_first_squares", torch.zeros(0, 0), persistent=False)
        self.looks = Looks(width)  # of replayed classes

    @property
    def is_separate(self) -> bool:
        """Whether what is said of an image of one class does not depend on the other classes."""
        return self.preset.is_routed

    def fit(
        self,
        features: Iterable[Sequence[torch.Tensor]],
        class_index: int,
        generator: torch.Generator,
    ) -> None:
        """Fill the bank of one class, replacing an earlier bank of that class.

        Deviation: where the patches of a class take more than `POOL_BYTES`, those at hand are
        reduced to `bank_limit` before more come (a coreset of coresets); the published program
        holds all of them.

        Args:
            features: pyramids of the class's normal images, batch by batch, levels `[B, C, H, W]`.
            class_index: which class this is.
            generator: CPU random stream of the coreset.

        Raises:
            ValueError: if there is not a single batch.
        """
        pool: torch.Tensor | None = None  # patches so far, in its first rows
        images = torch.empty(0, dtype=torch.int64)  # which image each of them is from
        num_images = num_patches = 0
        for pyramid in features:
            patches = self.patches(pyramid).flatten(0, 1)
            batch = torch.arange(num_images, num_images + len(pyramid[-2]), device=patches.device)
            batch = batch.repeat_interleave(len(patches) // len(batch))
            num_images, num_patches = num_images + len(pyramid[-2]), num_patches + len(patches)
            if pool is None:  # room that is not written to takes no memory on a CPU
                rows = max(POOL_BYTES // patches[0].nbytes, 2 * self.preset.bank_limit)
                pool = patches.new_empty(rows + len(patches), patches.shape[1])
                images = images.to(patches.device)
            if len(images) + len(patches) > len(pool):
                picks = self._picks(pool[: len(images)], self.preset.bank_limit, generator)
                pool[: len(picks)], images = pool[picks], images[picks]
            pool[len(images) : len(images) + len(patches)] = patches
            images = torch.cat([images, batch])
        if pool is None:
            raise ValueError("cannot fill a memory bank from no images")
        num_picks = max(1, round(self.preset.bank_fraction * num_patches))
        num_picks = min(num_picks, self.preset.bank_limit)
        picks = self._picks(pool[: len(images)], num_picks, generator)
        self.set_bank(class_index, pool[picks], images[picks])

    def bank_of(self, class_index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The bank of one class `[M, D]` and which of its images each patch is from, `[M]`."""
        own = self.bank_class_index == class_index
        return self.bank[own], self._bank_place[own]

    def set_bank(self, class_index: int, bank: torch.Tensor, places: torch.Tensor) -> None:
        """Give a class a bank `[M, D]` in place of an earlier one; arguments as `bank_of` gives."""
        others = self.bank_class_index != class_index
        bank, places = bank.to(self.bank), places.to(self._bank_place)
        self.bank = torch.cat([self.bank[others], bank])
        index = torch.full_like(places, class_index)
        self.bank_class_index = torch.cat([self.bank_class_index[others], index])
        self._bank_place = torch.cat([self._bank_place[others], places])
        self._arrange()

    def _arrange(self) -> None:
        """Bring `_banks` and `_firsts` up to date, and their squares."""
        if self.preset.is_routed:
            self._banks, self._squares = self._side_by_side()
            self._firsts = self._banks[:, :ROUTE_PICKS]
            self._first_squares = self._squares[:, :ROUTE_PICKS]
        else:
            self._banks, self._squares = self.bank[None], self.bank.square().sum(dim=1)[None]
            self._firsts, self._first_squares = self._side_by_side(ROUTE_PICKS)
        self.looks.arrange(self.known_classes())

    def _side_by_side(self, limit: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Banks of the classes, `[K, M, D]`, at most `limit` patches of each; squares `[K, M]`."""
        classes, counts = self.bank_class_index.unique(return_counts=True)
        size = int(counts.max()) if len(counts) else 0
        size = size if limit is None else min(size, limit)
        banks = self.bank.new_zeros(len(classes), size, self.bank.shape[1])
        squares = self.bank.new_full((len(classes), size), torch.inf)
        for row, index in enumerate(classes):
            own = self.bank[self.bank_class_index == index][:size]
            banks[row, : len(own)] = own
            squares[row, : len(own)] = own.square().sum(dim=1)
        return banks, squares

    def _picks(
        self, patches: torch.Tensor, num_picks: int, generator: torch.Generator
    ) -> torch.Tensor:
        """Rows of the coreset, all of them if there are no more."""
        return greedy_coreset(
            patches, min(num_picks, len(patches)), generator, self.preset.projection_width
        )

    def shrink(self) -> None:
        """Keep the first picks of each class, as many in all as one bank may have.

        Picks are made farthest first, so those that stay are the coreset of the smaller size: a
        coreset of fixed size over a growing number of classes, after CADIC (arXiv 2511.08634).
        Banks that images are routed to stay whole, as UCAD's do.
        """
        if self.preset.is_routed:
            return
        classes, counts = self.bank_class_index.unique(return_counts=True)
        room = max(1, self.preset.bank_limit // max(1, len(classes)))
        if int(counts.sum()) <= self.preset.bank_limit:
            return
        kept = torch.cat([(self.bank_class_index == c).nonzero()[:room, 0] for c in classes])
        self.bank, self.bank_class_index = self.bank[kept], self.bank_class_index[kept]
        self._bank_place = self._bank_place[kept]
        self._arrange()

    @torch.no_grad()
    def anomaly_maps(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Smoothed squared distance of every patch to the nearest of any class, or of one.

        Returns:
            `[B, image_size, image_size]` float32, at least 0 up to rounding, higher is more
            anomalous.

        Raises:
            ValueError: if no class has been fitted.
        """
        if not len(self.bank):
            raise ValueError("PatchCore has no memory bank yet: call fit first")
        return self.routed_maps(features)[0]

    @torch.no_grad()
    def routed_maps(
        self, features: Sequence[torch.Tensor], row: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Maps as `anomaly_maps`, and how far images are from classes.

        Args:
            features: pyramid, levels `[B, C, H, W]`.
            row: of the class among `known_classes` whose bank judges, where banks are apart; None
                for that of the class that each image is nearest to.

        Returns:
            maps, `[B, image_size, image_size]` float32, and `class_distances`.
        """
        patches = self.patches(features)
        means, lows = self.class_distances(patches)
        routes = means.argmin(dim=1) if row is None else torch.full_like(means[:, 0], row).long()
        nearest = [self._nearest(one, route) for one, route in zip(patches, routes, strict=True)]
        return self._to_maps(torch.stack(nearest), features), means, lows

    @torch.no_grad()
    def class_distances(self, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """How far images with patches `[B, P, D]` are from classes.

        Returns:
            the mean distance of an image to the bank of each class, by which it is routed, and the
            distance that `OWN_SHARE` of its patches stay below, or that of its look (`looks`)
            if that is more, both `[B, K]` float32, squared, in the order of `known_classes`.
        """
        patches = some(patches)
        found = [_class_distances(one, self._firsts, self._first_squares) for one in patches]
        means, lows = (torch.stack(parts) for parts in zip(*found, strict=True))
        if len(self.looks.rows):
            lows = torch.maximum(lows, self.looks(patches))
        return means, lows

    def known_classes(self) -> list[int]:
        """Indices of the classes that have a bank, in rising order."""
        return [int(index) for index in self.bank_class_index.unique()]

    def _nearest(self, patches: torch.Tensor, route: torch.Tensor) -> torch.Tensor:
        """Squared distances `[P]` of the patches of one image `[P, D]` to one of the banks."""
        bank, squares = self._banks[:1], self._squares[:1]
        if len(self._banks) > 1:
            own = route[None]
            bank, squares = self._banks.index_select(0, own), self._squares.index_select(0, own)
        return nearest_squared_distances(patches, bank[0], squares[0])

    @torch.no_grad()
    def fitted_maps(
        self, features: Sequence[torch.Tensor], class_index: Sequence[int], places: Sequence[int]
    ) -> torch.Tensor:
        """Maps `[B, image_size, image_size]`, each image held against all others' patches.

        Where images are routed these are the others of its class.
        """
        return self._held_apart(features, self.patches(features), class_index, places)

    @torch.no_grad()
    def fitted(
        self, features: Sequence[torch.Tensor], class_index: Sequence[int], places: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps as `fitted_maps`, and the distances to the own class `[B]`, as `routed_maps`."""
        patches = self.patches(features)
        rows = zip(patches, class_index, places, strict=True)
        lows = torch.stack([self._own_distance(*row) for row in rows])
        return self._held_apart(features, patches, class_index, places), lows

    def _held_apart(
        self,
        features: Sequence[torch.Tensor],
        embedded: torch.Tensor,
        class_index: Sequence[int],
        places: Sequence[int],
    ) -> torch.Tensor:
        """`fitted_maps` of patches `[B, P, D]`."""
        distances = []
        for patches, index, place in zip(embedded, class_index, places, strict=True):
            own = self.bank_class_index == index
            among = own if self.preset.is_routed else torch.ones_like(own)
            others = among & ~(own & (self._bank_place == place))
            if not others.any():  # an only image: there is nothing else to hold it against
                others = among
            bank = self.bank[others]
            distances.append(nearest_squared_distances(patches, bank))
        return self._to_maps(torch.stack(distances), features)

    @torch.no_grad()
    def fitted_distances(
        self, features: Sequence[torch.Tensor], class_index: Sequence[int], places: Sequence[int]
    ) -> torch.Tensor:
        """The distances to the own class alone, `[B]`, as `fitted` gives them."""
        rows = zip(self.patches(features), class_index, places, strict=True)
        return torch.stack([self._own_distance(*row) for row in rows])

    def _own_distance(self, patches: torch.Tensor, class_index: int, place: int) -> torch.Tensor:
        """What `OWN_SHARE` of an image stays below, held against its class without itself."""
        own = self.bank_class_index == class_index
        others = own & (self._bank_place != place)
        firsts = self.bank[others if others.any() else own][None, :ROUTE_PICKS]
        few = some(patches[None])[0]
        return _class_distances(few, firsts, firsts.square().sum(dim=2))[1][0]

    def _to_maps(
        self, distances: torch.Tensor, features: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """Smoothed maps of image size from `[B, P]`."""
        height, width = features[-2].shape[-2:]
        return apply_both_axes(distances.reshape(-1, height, width), self._to_image)

    def patches(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Embedded patches `[B, H * W, D]` float32 of levels `[B, C, H, W]`."""
        embedding = embed(features[-2].float(), features[-1].float())
        return embedding.permute(0, 2, 3, 1).flatten(1, 2)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Let the banks take the size they were saved with."""
        for name in ("bank", "bank_class_index"):
            saved = state_dict.get(prefix + name)
            if saved is not None:
                own = getattr(self, name)  # rows may be any number, their width is the encoder's
                setattr(self, name, own.new_empty(saved.shape[:1] + own.shape[1:]))
        self._bank_place = torch.full_like(self.bank_class_index, -1)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._arrange()
