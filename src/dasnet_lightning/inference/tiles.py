"""Large images in overlapping tiles: each tile is segmented as an image of its own, and the objects are joined."""

from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from numpy.typing import ArrayLike
from torch import Tensor

from dasnet_lightning.data.images import read_image
from dasnet_lightning.data.pixels import convert_to_rgb
from dasnet_lightning.data.resize import resize_image
from dasnet_lightning.errors import DataError
from dasnet_lightning.functional.boxes import covered_fraction
from dasnet_lightning.inference.prepare import ImageLike, check_boxes
from dasnet_lightning.inference.segmentation import Segmentation
from dasnet_lightning.inference.stream import Outcome, SegmentationStream
from dasnet_lightning.inference.tile_joining import Tile, join_tiles, move_masks, place_tiles
from dasnet_lightning.mask_windows import MaskWindows

if TYPE_CHECKING:
    from dasnet_lightning.inference.segmenter import Segmenter


def segment_tiled(
    segmenter: "Segmenter",
    image: ImageLike,
    boxes: ArrayLike | None = None,
    labels: Sequence[int | str] | None = None,
    *,
    tile: int = 640,
    overlap: float = 0.2,
    batch_size: int = 8,
) -> Segmentation:
    """Segment a large image in tiles, so that small objects keep their pixels.

    Args:
        segmenter: the network.
        image: as for `Segmenter.segment`.
        boxes: given boxes; each is segmented in the tile that contains it best. A box that no tile contains gets a window
            of its own.
        labels: their labels.
        tile: side of a tile in pixels of the image.
        overlap: lowest share of a tile that its neighbor also sees; objects up to this size are whole in one of them.
        batch_size: tiles in one pass of the network.

    Raises:
        ConfigError: tile, overlap, boxes or labels are invalid.
        DataError: the file is not a readable image.
    """
    if isinstance(image, str | Path):
        pixels = read_image(Path(image), image_range=segmenter.image_range)
    else:
        pixels = convert_to_rgb(image, segmenter.image_range)
    size = (pixels.shape[0], pixels.shape[1])
    tiles = place_tiles(size, tile, overlap)
    if boxes is None:
        results = list(segmenter.segment_many((_cut(pixels, item) for item in tiles), batch_size=batch_size, workers=0))
        return join_tiles(pixels, results, tiles)
    given = check_boxes(boxes, labels, size, segmenter.class_names)
    tiles, chosen = _choose_tiles(given.boxes, tiles)
    members = [(chosen == number).nonzero()[:, 0] for number in range(len(tiles))]
    offsets = [torch.tensor([item.window[0], item.window[1]] * 2, dtype=torch.float32) for item in tiles]
    results = list(
        segmenter.segment_many(
            (_cut(pixels, item) for item in tiles),
            [(given.boxes[index] - offset).numpy() for index, offset in zip(members, offsets, strict=True)],
            [given.labels[index].tolist() for index in members],
            batch_size=batch_size,
            workers=0,
        )
    )
    return _collect_given(pixels, results, tiles, members, given.boxes)


def stream_tiled(
    segmenter: "Segmenter", images: Iterable[ImageLike], *, tile: int = 640, overlap: float = 0.2, batch_size: int = 8
) -> SegmentationStream:
    """Segment many large images in tiles, one image after the other; see `segment_tiled` and `Segmenter.segment_many`."""

    def outcomes() -> Generator[Outcome]:
        for image in images:
            try:
                outcome: Outcome = segment_tiled(segmenter, image, tile=tile, overlap=overlap, batch_size=batch_size)
            except DataError as error:
                outcome = error
            yield outcome

    return SegmentationStream(outcomes())


def _cut(pixels: UInt8[np.ndarray, "H W 3"], tile: Tile) -> UInt8[np.ndarray, "h w 3"]:
    x0, y0, x1, y1 = tile.window
    return resize_image(pixels, (y1 - y0, x1 - x0), tile.window)


def _choose_tiles(boxes: Tensor, tiles: Sequence[Tile]) -> tuple[list[Tile], Int64[Tensor, " n"]]:
    """Return the tiles, with one more for each box that none contains, and the number of the tile of each box."""
    windows = torch.tensor([item.window for item in tiles], dtype=torch.float32)
    covered = covered_fraction(boxes, windows)
    centers, middles = (boxes[:, :2] + boxes[:, 2:]) / 2, (windows[:, :2] + windows[:, 2:]) / 2
    distance = (centers[None] - middles[:, None]).abs().amax(dim=2)
    chosen = (covered - 1e-6 * distance).argmax(dim=0) if len(boxes) else torch.zeros(0, dtype=torch.int64)
    extended = list(tiles)
    for number, box in enumerate(boxes.tolist()):
        if covered[chosen[number], number] < 1 - 1e-3:
            half = int(np.ceil(0.6 * max(box[2] - box[0], box[3] - box[1])))
            x, y = round((box[0] + box[2]) / 2), round((box[1] + box[3]) / 2)
            chosen[number] = len(extended)
            extended.append(Tile((x - half, y - half, x + half, y + half), (0, 0, 0, 0)))
    return extended, chosen


def _collect_given(
    pixels: UInt8[np.ndarray, "H W 3"],
    results: Sequence[Segmentation],
    tiles: Sequence[Tile],
    members: Sequence[Int64[Tensor, " m"]],
    boxes: Tensor,
) -> Segmentation:
    """Return the given boxes in their order, with the masks of their tiles; later boxes lie on top in the class map."""
    size = (pixels.shape[0], pixels.shape[1])
    masks, semantic = MaskWindows(size, len(boxes)), torch.zeros(size, dtype=torch.int64)
    labels, scores, quality = (
        torch.zeros(len(boxes), dtype=torch.int64),
        torch.ones(len(boxes)),
        torch.zeros(len(boxes)),
    )
    for result, item, index in zip(results, tiles, members, strict=True):
        moved = move_masks(result.windows, item.window, size)
        for number, place in enumerate(index.tolist()):
            masks.put(place, moved.window(number), moved.crop(number))
            labels[place], scores[place] = result.labels[number], result.scores[number]
            quality[place] = 0.0 if result.quality is None else result.quality[number]
    for place, label in enumerate(labels.tolist()):
        x0, y0, x1, y1 = masks.window(place)
        semantic[y0:y1, x0:x1][torch.from_numpy(masks.crop(place))] = label
    first = results[0]
    return Segmentation(pixels, boxes, labels, scores, semantic, first.class_names, masks, first.category_ids, quality)
