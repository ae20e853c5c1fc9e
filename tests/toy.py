"""Draws the smallest data set that has everything: two classes, six training, four test images."""

from pathlib import Path

from PIL import Image, ImageDraw

SIZE = 32
CLASSES = ("disc", "plate")


def draw_object(class_name: str, index: int, defective: bool = False) -> Image.Image:
    """One RGB picture of `SIZE` px: an object on a plain ground, shifted a little by `index`."""
    ground = {"disc": (40, 60, 90), "plate": (200, 190, 170)}[class_name]
    picture = Image.new("RGB", (SIZE, SIZE), ground)
    draw = ImageDraw.Draw(picture)
    left, top = 8 + index % 3, 8 + index % 2
    if class_name == "disc":
        draw.ellipse((left, top, left + 14, top + 14), fill=(220, 120, 30 + 5 * index))
    else:
        draw.rectangle((left, top, left + 15, top + 12), fill=(60, 120, 60 + 5 * index))
    if defective:
        draw.rectangle(defect_box(index), fill=(255, 255, 255))
    return picture


def defect_box(index: int) -> tuple[int, int, int, int]:
    """Where the defect of picture `index` lies: left, top, right, bottom in pixels."""
    return (12 + index % 3, 12, 16 + index % 3, 16)


def write_toy(folder: Path, classes: tuple[str, ...] = CLASSES) -> Path:
    """Write it in MVTec layout: 6 normal images to train on, 2 good and 2 defective to test."""
    for class_name in classes:
        root = folder / class_name
        for part in ("train/good", "test/good", "test/spot", "ground_truth/spot"):
            (root / part).mkdir(parents=True)
        for index in range(6):
            draw_object(class_name, index).save(root / "train/good" / f"{index:03}.png")
        for index in range(2):
            draw_object(class_name, index + 1).save(root / "test/good" / f"{index:03}.png")
            spot = draw_object(class_name, index, defective=True)
            spot.save(root / "test/spot" / f"{index:03}.png")
            mask = Image.new("L", (SIZE, SIZE), 0)
            ImageDraw.Draw(mask).rectangle(defect_box(index), fill=255)
            mask.save(root / "ground_truth/spot" / f"{index:03}_mask.png")
    return folder
