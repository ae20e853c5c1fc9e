"""Small bitmaps of letters and marks to be printed on parts."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from replaycad.mini.world.fields import Dice, Field

LETTERS = "ABCDEFGHKLMNPRSTUVXYZ0123456789"
WIDTH, HEIGHT = 64, 28


def draw_lettering(dice: Dice, lines: int) -> Field:
    """Return an ink bitmap `[28, 64]` in 0 to 1 with a few letters or a drawn mark."""
    image = Image.new("L", (WIDTH, HEIGHT), 0)
    pen = ImageDraw.Draw(image)
    style = dice.integer(0, 4)
    if style == 0:
        pen.ellipse((20, 2, 44, 26), outline=255, width=3)
        pen.line((20, dice.integer(4, 24), 44, dice.integer(4, 24)), fill=255, width=3)
    elif style == 1:
        points = [(dice.integer(6, 58), dice.integer(2, 26)) for _ in range(dice.integer(3, 5))]
        pen.line(points, fill=255, width=4)
    else:
        size = 24 if lines == 1 else 13
        font = ImageFont.load_default(size)
        count = dice.integer(2, 4) if lines == 1 else dice.integer(4, 7)
        for line in range(lines):
            text = "".join(dice.pick(LETTERS) for _ in range(count))
            middle = HEIGHT * (line + 0.5) / lines
            pen.text((WIDTH / 2, middle), text, fill=255, font=font, anchor="mm")
    return np.asarray(image, dtype=np.float32) / 255
