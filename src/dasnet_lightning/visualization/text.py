"""Text in pictures: labels at boxes, legends, and titles of pictures that stand side by side."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from dasnet_lightning.visualization.colors import INK, PAPER, Color, contrast

Picture = UInt8[np.ndarray, "H W 3"]
PixelBox = tuple[float, float, float, float]

LABEL, TITLE = 24, 14  # a picture is as wide as so many letters are high


def side_by_side(images: Sequence[Picture], titles: Sequence[str] | None = None) -> Picture:
    """Set pictures in one row on white, tops aligned, each with its title above.

    Raises:
        ValueError: there is not one title for each picture.
    """
    if titles is not None and len(titles) != len(images):
        raise ValueError(f"{len(images)} pictures but {len(titles)} titles: give one title for each picture")
    tallest = max(image.shape[0] for image in images)
    font = _font(min(image.shape[1] for image in images), TITLE)
    gap, band = max(4, int(font.size) // 2), 0 if titles is None else round(1.9 * font.size)
    width = sum(image.shape[1] for image in images) + gap * (len(images) - 1)
    sheet = Image.new("RGB", (width, tallest + band), PAPER)
    left, pen = 0, ImageDraw.Draw(sheet)
    for index, image in enumerate(images):
        sheet.paste(Image.fromarray(image), (left, band))
        if titles is not None:
            title = _shorten(titles[index], font, image.shape[1] - gap)
            pen.text((left + gap / 2, band / 2), title, fill=INK, font=font, anchor="lm")
        left += image.shape[1] + gap
    return np.array(sheet)


def draw_labels(
    picture: Image.Image, windows: Sequence[PixelBox], names: Sequence[str], colors: Sequence[Color]
) -> None:
    """Write a label at each box, in the free place that overlaps the earlier labels least."""
    font, pen, taken = _font(max(picture.size), LABEL), ImageDraw.Draw(picture), list[PixelBox]()
    pad = max(2, int(font.size) // 5)
    height = sum(font.getmetrics()) + pad // 2
    for window, name, color in zip(windows, names, colors, strict=True):
        text = _shorten(name, font, picture.width - 2 * pad)
        place = _free_place(window, font.getlength(text) + 2 * pad, height, picture.size, taken)
        taken.append(place)
        pen.rounded_rectangle(place, radius=pad, fill=color)
        pen.text((place[0] + pad, (place[1] + place[3]) / 2), text, fill=contrast(color), font=font, anchor="lm")


def _free_place(
    box: PixelBox, width: float, height: float, size: tuple[int, int], taken: Sequence[PixelBox]
) -> PixelBox:
    """Return the place for a label above, inside or below a box that overlaps `taken` least."""
    x0, y0, x1, y1 = box
    tops = (y0 - height, y0, y1, y1 - height, (y0 + y1 - height) / 2)
    places = []
    for top in tops:
        for left in (x0, x1 - width):
            clipped_left = min(max(left, 0), max(0, size[0] - 1 - width))
            clipped_top = min(max(top, 0), max(0, size[1] - 1 - height))
            places.append((clipped_left, clipped_top, clipped_left + width, clipped_top + height))
    return min(places, key=lambda place: sum(_overlap(place, other) for other in taken))


def _overlap(one: PixelBox, other: PixelBox) -> float:
    return max(0.0, min(one[2], other[2]) - max(one[0], other[0])) * max(
        0.0, min(one[3], other[3]) - max(one[1], other[1])
    )


def add_legend(picture: Picture, entries: Sequence[tuple[str, Color]]) -> Picture:
    """Add a strip of color swatches with names below a picture."""
    font = _font(max(picture.shape[:2]), LABEL)
    swatch, line = int(font.size), round(1.7 * font.size)
    places, left, row = [], swatch // 2, 0
    for name, _ in entries:
        text = _shorten(name, font, picture.shape[1] - 3 * swatch)
        width = 1.5 * swatch + font.getlength(text) + swatch
        if left + width > picture.shape[1] and left > swatch // 2:
            left, row = swatch // 2, row + 1
        places.append((left, row * line + line // 2, text))
        left += round(width)
    sheet = Image.new("RGB", (picture.shape[1], picture.shape[0] + (row + 1) * line), PAPER)
    sheet.paste(Image.fromarray(picture), (0, 0))
    pen = ImageDraw.Draw(sheet)
    for (x, y, text), (_, color) in zip(places, entries, strict=True):
        middle = picture.shape[0] + y
        pen.rounded_rectangle((x, middle - swatch / 2, x + swatch, middle + swatch / 2), swatch // 5, fill=color)
        pen.text((x + 1.5 * swatch, middle), text, fill=INK, font=font, anchor="lm")
    return np.array(sheet)


def _font(side: int, lines: int) -> ImageFont.FreeTypeFont:
    """Return a font of which `lines` letters fit on the side of a picture, never below 11 pixels."""
    font = ImageFont.load_default(max(11, round(side / lines)))
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType, so text cannot be drawn: install a wheel from PyPI")
    return font


def _shorten(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Return the text, cut with three dots if it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    kept = text
    while kept and font.getlength(kept + "...") > width:
        kept = kept[:-1]
    return kept + "..."


def class_name(class_names: Sequence[str], label: int) -> str:
    """Return the name of a label, also of one that the names do not cover."""
    return class_names[label] if 0 <= label < len(class_names) else f"class {label}"
