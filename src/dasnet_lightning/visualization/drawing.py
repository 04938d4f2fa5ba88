"""Drawing of boxes, masks and class maps: every function takes a uint8 H x W x 3 picture and returns a new one.

Line widths and letters grow with the picture. `scale` enlarges a small picture by a whole number first; boxes and masks are
still given in the picture's own pixels. Boxes, labels, scores and masks may be numpy arrays, CPU tensors or lists.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFilter

from dasnet_lightning.visualization.colors import Color, as_rgb, instance_palette, voc_palette
from dasnet_lightning.visualization.text import Picture, add_legend, class_name, draw_labels

VOC_VOID = 255


def readable_scale(image: Picture, longest: int = 480) -> int:
    """Return the whole number that brings the longer side of a small picture near `longest` pixels; 1 for larger ones."""
    return max(1, round(longest / max(image.shape[:2])))


def enlarge(image: Picture, scale: int) -> Picture:
    """Return a copy that is `scale` times as large."""
    if scale == 1:
        return image.copy()
    height, width = image.shape[:2]
    return np.array(Image.fromarray(image).resize((width * scale, height * scale), Image.Resampling.BICUBIC))


def enlarge_mask(mask: Bool[np.ndarray, "h w"], scale: int) -> Bool[np.ndarray, "H W"]:
    """Return a mask that is `scale` times as large, with smooth edges in place of steps."""
    if scale == 1:
        return mask
    height, width = mask.shape
    soft = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.array(soft.resize((width * scale, height * scale), Image.Resampling.BICUBIC)) > 127


def draw_masks(
    image: Picture,
    masks: ArrayLike,
    colors: ArrayLike | None = None,
    alpha: float = 0.45,
    outline: bool = True,
    scale: int = 1,
) -> Picture:
    """Tint masks, largest first so that small ones stay visible, each with a solid outline.

    Args:
        image: the picture.
        masks: [n, H, W].
        colors: [n, 3]; the instance palette by default.
        alpha: 0 leaves the picture as it is, 1 hides it.
        outline: whether to draw the outlines.
        scale: enlarges the picture first.
    """
    stack = np.asarray(masks, dtype=bool).reshape(-1, *image.shape[:2])
    paint = instance_palette(len(stack)) if colors is None else np.asarray(colors, dtype=np.uint8)
    picture = Image.fromarray(enlarge(image, scale))
    for index in np.argsort(-stack.sum(axis=(1, 2)), kind="stable"):
        _tint(picture, enlarge_mask(stack[index], scale), as_rgb(paint[index]), alpha, outline)
    return np.array(picture)


def draw_boxes(
    image: Picture,
    boxes: ArrayLike,
    labels: ArrayLike,
    scores: ArrayLike | None,
    class_names: Sequence[str],
    colors: ArrayLike | None = None,
    scale: int = 1,
) -> Picture:
    """Draw boxes with "class score" labels that do not cover each other.

    Args:
        image: the picture.
        boxes: [n, 4], xyxy; clipped at the border.
        labels: [n].
        scores: [n]; None for labels without scores.
        class_names: background first.
        colors: [n, 3]; the instance palette by default.
        scale: enlarges the picture first.
    """
    picture = Image.fromarray(enlarge(image, scale))
    corners = np.asarray(boxes, dtype=float).reshape(-1, 4) * scale
    paint = instance_palette(len(corners)) if colors is None else np.asarray(colors, dtype=np.uint8)
    names = [class_name(class_names, int(label)) for label in np.asarray(labels).reshape(-1)]
    if scores is not None:
        names = [f"{name} {score:.2f}" for name, score in zip(names, np.asarray(scores, dtype=float), strict=True)]
    line, pen = _line_width(picture), ImageDraw.Draw(picture)
    limit = np.array([picture.width - 1, picture.height - 1] * 2)
    windows = [(row[0], row[1], row[2], row[3]) for row in np.clip(corners, 0, limit).tolist()]
    for index in np.argsort(-(corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1]), kind="stable"):
        x0, y0, x1, y1 = windows[index]
        pen.rectangle((x0, y0, max(x0, x1), max(y0, y1)), outline=as_rgb(paint[index]), width=line)
    draw_labels(picture, windows, names, [as_rgb(color) for color in paint])
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
    """Draw the box, label and mask of each object in its own color; without `masks`, only the boxes."""
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
    """Tint the classes of a map in their VOC colors; void is hatched gray, background stays as it is.

    Args:
        image: the picture.
        class_map: [H, W]. Void is negative; so is 255 if `class_names` has no class 255.
        class_names: background first.
        alpha: 0 leaves the picture as it is, 1 hides it.
        legend: add a strip below the picture that names the classes of the map; the result is then higher.
        scale: enlarges the picture first.
    """
    indices = np.asarray(class_map)
    unknown = (indices < 0) | ((indices == VOC_VOID) & (len(class_names) <= VOC_VOID))
    present = [int(index) for index in np.unique(indices[~unknown]) if index > 0]
    colors = voc_palette(1 + max(present, default=0))[present].reshape(-1, 3)
    masks = np.stack([indices == index for index in present]) if present else np.zeros((0, *indices.shape), dtype=bool)
    picture = draw_masks(image, masks, colors, alpha, scale=scale)
    void = unknown.repeat(scale, axis=0).repeat(scale, axis=1)
    rows, columns = np.nonzero(void)
    period = 3 * _line_width(Image.fromarray(picture))
    stripe = np.where((rows + columns) // period % 2 == 0, 215, 120)[:, None]
    picture[rows, columns] = (0.4 * picture[rows, columns] + 0.6 * stripe).astype(np.uint8)
    if not legend:
        return picture
    entries = [(class_name(class_names, index), as_rgb(color)) for index, color in zip(present, colors, strict=True)]
    return add_legend(picture, [*entries, *([("void", (168, 168, 168))] if len(rows) else [])])


def _tint(picture: Image.Image, mask: np.ndarray, color: Color, alpha: float, outline: bool) -> None:
    """Blend one mask into the picture, inside the mask's own window."""
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
    picture.paste(color, window, Image.fromarray((weight * 255).round().astype(np.uint8)))


def _line_width(picture: Image.Image) -> int:
    return max(1, round(max(picture.size) / 240))
