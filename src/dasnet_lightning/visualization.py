"""Pure drawing: every function takes a uint8 H x W x 3 picture and returns a new one.

Line widths and letters grow with the picture; `scale` enlarges small pictures by a whole number first, so that 64 pixel
images stay readable while boxes and masks are still given in the picture's own pixels. Boxes, labels, scores and masks
may be numpy arrays, CPU tensors or lists.
"""

import colorsys
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from dasnet_lightning.types import IGNORE_INDEX

Picture = UInt8[np.ndarray, "H W 3"]
Palette = UInt8[np.ndarray, "n 3"]
PixelBox = tuple[float, float, float, float]

_INSTANCE_COLOURS = (
    (238, 90, 54), (0, 158, 140), (74, 98, 224), (245, 166, 35), (155, 84, 200), (66, 184, 221),
    (226, 62, 130), (124, 179, 48), (252, 210, 68), (160, 104, 66), (28, 122, 190), (247, 140, 176),
)  # fmt: skip
_PAPER, _INK = (255, 255, 255), (30, 34, 42)


def voc_palette(count: int = 256) -> Palette:
    """The PASCAL VOC colour of every class index: bit k of the index goes to bit 7 - k // 3 of channel k % 3."""
    index = np.arange(count)
    palette = np.zeros((count, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= ((index >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return palette


def instance_palette(count: int) -> Palette:
    """Distinct colours for instances: twelve chosen ones, then hues spread by the golden ratio."""
    colours = list(_INSTANCE_COLOURS[:count])
    for index in range(len(colours), count):
        hue = colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.55 + 0.15 * (index % 3), 0.95 - 0.12 * (index % 2))
        colours.append((round(255 * hue[0]), round(255 * hue[1]), round(255 * hue[2])))
    return np.array(colours, dtype=np.uint8).reshape(-1, 3)


def readable_scale(image: Picture, longest: int = 480) -> int:
    """The whole number that brings the longer side of a small picture near `longest` pixels; 1 for larger ones."""
    return max(1, round(longest / max(image.shape[:2])))


def enlarge(image: Picture, scale: int) -> Picture:
    """A copy, `scale` times as large."""
    if scale == 1:
        return image.copy()
    height, width = image.shape[:2]
    return np.array(Image.fromarray(image).resize((width * scale, height * scale), Image.Resampling.BICUBIC))


def draw_masks(
    image: Picture,
    masks: ArrayLike,
    colours: ArrayLike | None = None,
    alpha: float = 0.45,
    outline: bool = True,
    scale: int = 1,
) -> Picture:
    """Tint the masks [n, H, W], largest first so that small ones stay visible, each with a solid, softened outline.

    colours [n, 3], the instance palette by default; alpha 0 leaves the picture, 1 hides it.
    """
    stack = np.asarray(masks, dtype=bool).reshape(-1, *image.shape[:2])
    paint = instance_palette(len(stack)) if colours is None else np.asarray(colours, dtype=np.uint8)
    picture = Image.fromarray(enlarge(image, scale))
    for index in np.argsort(-stack.sum(axis=(1, 2)), kind="stable"):
        _tint(picture, stack[index].repeat(scale, axis=0).repeat(scale, axis=1), _rgb(paint[index]), alpha, outline)
    return np.array(picture)


def draw_boxes(
    image: Picture,
    boxes: ArrayLike,
    labels: ArrayLike,
    scores: ArrayLike | None,
    class_names: Sequence[str],
    colours: ArrayLike | None = None,
    scale: int = 1,
) -> Picture:
    """Draw boxes [n, 4] (xyxy, clipped at the border) with "class score" labels that keep out of each other's way."""
    picture = Image.fromarray(enlarge(image, scale))
    corners = np.asarray(boxes, dtype=float).reshape(-1, 4) * scale
    paint = instance_palette(len(corners)) if colours is None else np.asarray(colours, dtype=np.uint8)
    names = [_name(class_names, int(label)) for label in np.asarray(labels).reshape(-1)]
    if scores is not None:
        names = [f"{name} {score:.2f}" for name, score in zip(names, np.asarray(scores, dtype=float), strict=True)]
    line, pen = _line_width(picture), ImageDraw.Draw(picture)
    limit = np.array([picture.width - 1, picture.height - 1] * 2)
    windows = [(row[0], row[1], row[2], row[3]) for row in np.clip(corners, 0, limit).tolist()]
    for index in np.argsort(-(corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1]), kind="stable"):
        x0, y0, x1, y1 = windows[index]
        pen.rectangle((x0, y0, max(x0, x1), max(y0, y1)), outline=_rgb(paint[index]), width=line)
    _draw_labels(picture, windows, names, [_rgb(colour) for colour in paint])
    return np.array(picture)


def draw_segmentation(
    image: Picture,
    boxes: ArrayLike,
    labels: ArrayLike,
    scores: ArrayLike | None,
    masks: ArrayLike | None,
    class_names: Sequence[str],
    scale: int = 1,
) -> Picture:
    """Draw each object's box, label and mask in one colour of its own; `masks` None draws boxes alone."""
    if masks is None:
        return draw_boxes(image, boxes, labels, scores, class_names, scale=scale)
    tinted = draw_masks(image, masks, scale=scale)
    return draw_boxes(tinted, np.asarray(boxes, dtype=float) * scale, labels, scores, class_names)


def draw_semantic(
    image: Picture,
    class_map: ArrayLike,
    class_names: Sequence[str],
    alpha: float = 0.6,
    legend: bool = True,
    scale: int = 1,
) -> Picture:
    """Tint the classes of a map [H, W] in their VOC colours; void (255) is hatched grey, background stays as it is.

    With `legend` a strip below the picture names the classes that occur, so the result is higher than the picture.
    """
    indices = np.asarray(class_map)
    present = [int(index) for index in np.unique(indices) if index not in (0, IGNORE_INDEX)]
    colours = voc_palette()[present].reshape(-1, 3)
    masks = np.stack([indices == index for index in present]) if present else np.zeros((0, *indices.shape), dtype=bool)
    picture = draw_masks(image, masks, colours, alpha, scale=scale)
    void = (indices == IGNORE_INDEX).repeat(scale, axis=0).repeat(scale, axis=1)
    rows, columns = np.nonzero(void)
    period = 3 * _line_width(Image.fromarray(picture))
    stripe = np.where((rows + columns) // period % 2 == 0, 215, 120)[:, None]
    picture[rows, columns] = (0.4 * picture[rows, columns] + 0.6 * stripe).astype(np.uint8)
    if not legend:
        return picture
    entries = [(_name(class_names, index), _rgb(colour)) for index, colour in zip(present, colours, strict=True)]
    return _with_legend(picture, [*entries, *([("void", (168, 168, 168))] if len(rows) else [])])


def side_by_side(images: Sequence[Picture], titles: Sequence[str] | None = None) -> Picture:
    """Set pictures in one row on white, tops aligned, each with its title above."""
    if titles is not None and len(titles) != len(images):
        raise ValueError(f"{len(images)} pictures but {len(titles)} titles: give one title for each picture")
    tallest = max(image.shape[0] for image in images)
    font = _font(min(image.shape[1] for image in images))
    gap, band = max(4, int(font.size) // 2), 0 if titles is None else round(1.9 * font.size)
    width = sum(image.shape[1] for image in images) + gap * (len(images) - 1)
    sheet = Image.new("RGB", (width, tallest + band), _PAPER)
    left, pen = 0, ImageDraw.Draw(sheet)
    for index, image in enumerate(images):
        sheet.paste(Image.fromarray(image), (left, band))
        if titles is not None:
            title = _shorten(titles[index], font, image.shape[1] - gap)
            pen.text((left + gap / 2, band / 2), title, fill=_INK, font=font, anchor="lm")
        left += image.shape[1] + gap
    return np.array(sheet)


def _tint(picture: Image.Image, mask: np.ndarray, colour: tuple[int, int, int], alpha: float, outline: bool) -> None:
    """Blend one mask into the picture, touching only the mask's own window."""
    if not mask.any():
        return
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    margin = 2 * _line_width(picture) + 1
    window = (
        max(0, int(columns[0]) - margin), max(0, int(rows[0]) - margin),
        min(mask.shape[1], int(columns[-1]) + margin + 1), min(mask.shape[0], int(rows[-1]) + margin + 1),
    )  # fmt: skip
    shape = Image.fromarray(mask[window[1] : window[3], window[0] : window[2]].astype(np.uint8) * 255)
    weight = np.array(shape, dtype=float) / 255 * alpha
    if outline:
        inner = np.array(shape.filter(ImageFilter.MinFilter(2 * _line_width(picture) + 1)))
        band = Image.fromarray(np.array(shape) - inner).filter(ImageFilter.GaussianBlur(0.6))
        weight = np.maximum(weight, np.array(band, dtype=float) / 255)
    picture.paste(colour, window, Image.fromarray((weight * 255).round().astype(np.uint8)))


def _draw_labels(
    picture: Image.Image, windows: Sequence[PixelBox], names: Sequence[str], colours: Sequence[tuple[int, int, int]]
) -> None:
    """Write the labels above all boxes, each where it covers the labels written before it least."""
    font, pen, taken = _font(max(picture.size)), ImageDraw.Draw(picture), list[PixelBox]()
    pad = max(2, int(font.size) // 5)
    height = sum(font.getmetrics()) + pad // 2
    for window, name, colour in zip(windows, names, colours, strict=True):
        text = _shorten(name, font, picture.width - 2 * pad)
        place = _free_place(window, font.getlength(text) + 2 * pad, height, picture.size, taken)
        taken.append(place)
        pen.rounded_rectangle(place, radius=pad, fill=colour)
        pen.text((place[0] + pad, (place[1] + place[3]) / 2), text, fill=_contrast(colour), font=font, anchor="lm")


def _free_place(
    box: PixelBox, width: float, height: float, size: tuple[int, int], taken: Sequence[PixelBox]
) -> PixelBox:
    """The place for a label at a box: above, inside, below, left or right, the first that overlaps `taken` least."""
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


def _with_legend(picture: Picture, entries: Sequence[tuple[str, tuple[int, int, int]]]) -> Picture:
    """Put a strip of colour swatches with names below the picture, in as many lines as they need."""
    font = _font(max(picture.shape[:2]))
    swatch, line = int(font.size), round(1.7 * font.size)
    places, left, row = [], swatch // 2, 0
    for name, _ in entries:
        text = _shorten(name, font, picture.shape[1] - 3 * swatch)
        width = 1.5 * swatch + font.getlength(text) + swatch
        if left + width > picture.shape[1] and left > swatch // 2:
            left, row = swatch // 2, row + 1
        places.append((left, row * line + line // 2, text))
        left += round(width)
    sheet = Image.new("RGB", (picture.shape[1], picture.shape[0] + (row + 1) * line), _PAPER)
    sheet.paste(Image.fromarray(picture), (0, 0))
    pen = ImageDraw.Draw(sheet)
    for (x, y, text), (_, colour) in zip(places, entries, strict=True):
        middle = picture.shape[0] + y
        pen.rounded_rectangle((x, middle - swatch / 2, x + swatch, middle + swatch / 2), swatch // 5, fill=colour)
        pen.text((x + 1.5 * swatch, middle), text, fill=_INK, font=font, anchor="lm")
    return np.array(sheet)


def _font(side: int) -> ImageFont.FreeTypeFont:
    """The font for a picture with a side of that many pixels, never below 11 pixels."""
    font = ImageFont.load_default(max(11, round(side / 34)))
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType, so text cannot be drawn: install a wheel from PyPI")
    return font


def _line_width(picture: Image.Image) -> int:
    return max(1, round(max(picture.size) / 240))


def _shorten(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The text, cut with three dots where it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    kept = text
    while kept and font.getlength(kept + "...") > width:
        kept = kept[:-1]
    return kept + "..."


def _name(class_names: Sequence[str], label: int) -> str:
    return class_names[label] if 0 <= label < len(class_names) else f"class {label}"


def _contrast(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black or white letters, whichever reads better on the colour."""
    return _INK if 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 150 else _PAPER


def _rgb(colour: ArrayLike) -> tuple[int, int, int]:
    red, green, blue = np.asarray(colour).tolist()
    return red, green, blue
