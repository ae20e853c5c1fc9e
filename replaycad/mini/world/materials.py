"""What things are made of: colours with names, gloss, grain and relief, drawn once per class."""

from typing import NamedTuple

from replaycad.mini.world.fields import Dice

Colour = tuple[float, float, float]

COLOURS: dict[str, Colour] = {
    "black": (0.07, 0.07, 0.08),
    "white": (0.9, 0.9, 0.88),
    "grey": (0.48, 0.48, 0.48),
    "red": (0.72, 0.13, 0.1),
    "orange": (0.88, 0.45, 0.1),
    "yellow": (0.88, 0.76, 0.2),
    "green": (0.14, 0.5, 0.22),
    "olive": (0.4, 0.42, 0.16),
    "cyan": (0.2, 0.62, 0.66),
    "blue": (0.12, 0.26, 0.66),
    "purple": (0.4, 0.2, 0.52),
    "pink": (0.88, 0.52, 0.58),
    "brown": (0.38, 0.22, 0.12),
    "beige": (0.8, 0.7, 0.54),
}
METAL_COLOURS: dict[str, Colour] = {
    "silver": (0.72, 0.73, 0.75),
    "steel": (0.5, 0.51, 0.53),
    "gold": (0.83, 0.66, 0.32),
    "copper": (0.76, 0.44, 0.28),
    "bronze": (0.5, 0.37, 0.23),
    "dark": (0.24, 0.24, 0.26),
}
# name: gloss, metal, grain, grain cells, rough, rough cells (low, high pairs)
KINDS: dict[str, tuple[tuple[float, float], ...]] = {
    "metal": ((0.2, 0.7), (0.45, 0.95), (0.01, 0.08), (10, 110), (0.0, 0.004), (20, 100)),
    "plastic": ((0.08, 0.6), (0.0, 0.06), (0.0, 0.03), (10, 100), (0.0, 0.003), (30, 110)),
    "rubber": ((0.0, 0.12), (0.0, 0.0), (0.02, 0.1), (40, 110), (0.001, 0.008), (40, 120)),
    "ceramic": ((0.2, 0.7), (0.0, 0.05), (0.01, 0.05), (8, 60), (0.0, 0.003), (6, 40)),
    "wood": ((0.0, 0.15), (0.0, 0.0), (0.05, 0.16), (20, 90), (0.0, 0.005), (30, 100)),
    "glass": ((0.4, 1.0), (0.15, 0.5), (0.0, 0.02), (6, 30), (0.0, 0.002), (6, 30)),
    "food": ((0.0, 0.2), (0.0, 0.0), (0.05, 0.2), (8, 70), (0.002, 0.014), (14, 70)),
    "paper": ((0.0, 0.04), (0.0, 0.0), (0.01, 0.05), (30, 120), (0.0, 0.004), (40, 120)),
    "stone": ((0.0, 0.2), (0.0, 0.0), (0.06, 0.2), (20, 120), (0.001, 0.008), (30, 120)),
    "cloth": ((0.0, 0.05), (0.0, 0.0), (0.04, 0.14), (40, 120), (0.002, 0.01), (50, 120)),
}


class Material(NamedTuple):
    """How a stuff looks: base colour, share of gloss and mirror, grain and relief noise."""

    kind: str
    word: str
    colour: Colour
    gloss: float
    metal: float
    grain: float
    grain_cells: float
    rough: float
    rough_cells: float
    aspect: float

    def tinted(self, factor: float) -> "Material":
        """Return the same stuff, lighter or darker."""
        red, green, blue = (min(max(part * factor, 0.01), 1.0) for part in self.colour)
        return self._replace(colour=(red, green, blue))


def draw_colour(dice: Dice, table: dict[str, Colour]) -> tuple[str, Colour]:
    """Return a colour word and a colour near it."""
    word = dice.pick(tuple(table))
    brightness = dice.between(0.7, 1.2)
    red, green, blue = (
        min(max(part * brightness + dice.between(-0.06, 0.06), 0.02), 0.97) for part in table[word]
    )
    return word, (red, green, blue)


def draw_material(dice: Dice, kinds: tuple[str, ...], words: tuple[str, ...] = ()) -> Material:
    """Return a random stuff of one of the kinds, of one of the colours if any are given."""
    kind = dice.pick(kinds)
    table = METAL_COLOURS if kind == "metal" and not dice.chance(0.1) else COLOURS
    if words:
        table = {word: {**COLOURS, **METAL_COLOURS}[word] for word in words}
    word, colour = draw_colour(dice, table)
    gloss, metal, grain, grain_cells, rough, rough_cells = (
        dice.between(low, high) for low, high in KINDS[kind]
    )
    aspect = dice.pick((1.0, 1.0, 1.0, 0.15, 0.4, 3.0))
    return Material(
        kind, word, colour, gloss, metal, grain, grain_cells, rough, rough_cells, aspect
    )
