"""Inference of a decoder of boxes: the grid of each box, read in the pixels of its image."""

from collections.abc import Iterator, Sequence

from jaxtyping import Float
from torch import Tensor

from dasnet_lightning.functional.box_grids import box_windows_of, read_grid
from dasnet_lightning.functional.boxes import pixel_windows, restore_boxes
from dasnet_lightning.functional.mask_quality import estimate_iou
from dasnet_lightning.models.box_scores import BoxScores
from dasnet_lightning.models.dasnet import DASNet
from dasnet_lightning.nn.decoder import BoxDecoder
from dasnet_lightning.types import Pyramid, Regions

BOXES_FACTOR = 4  # a grid is smaller than a whole map, so this many times more regions are decoded at once


def decodes_boxes(model: DASNet) -> bool:
    """Whether the network decodes each box on a grid of its own."""
    return isinstance(model.decoder, BoxDecoder)


def decode_boxes(
    model: DASNet,
    pyramid: Pyramid,
    regions: Regions,
    sizes: Sequence[tuple[int, int]],
    regions_at_once: int,
    clip: bool,
) -> Iterator[tuple[int, BoxScores]]:
    """Yield the index and the scores of each box of the regions, in the pixels of its image.

    The score of a box is the IoU that its probabilities let expect (functional.mask_quality).

    Args:
        model: a network with a decoder of boxes.
        pyramid: features of the images.
        regions: the regions; each of their boxes is decoded alone.
        sizes: (height, width) of each image's masks.
        regions_at_once: limit on the regions that are held in memory together, as whole maps.
        clip: read the pixels of the box only; False reads those of its window.
    """
    assert isinstance(model.decoder, BoxDecoder)
    step = regions_at_once * BOXES_FACTOR
    for start in range(0, len(regions), step):
        selected = regions.select(start, start + step)
        chosen = (regions.region_index >= start) & (regions.region_index < start + step)
        logits = model.score(pyramid, selected)[:, 0].float()
        quality = estimate_iou(logits.sigmoid())
        images = selected.image_index[selected.region_index].tolist()
        for number, (index, image) in enumerate(zip(chosen.nonzero()[:, 0].tolist(), images, strict=True)):
            box = restore_boxes(selected.boxes[number : number + 1], pyramid.size, sizes[image])
            window, pixels = _read_window(box, model.decoder.margin, sizes[image], clip)
            inside = read_grid(logits[number], window, pixels).sigmoid()
            yield index, BoxScores(pixels, inside, quality[number])


def _read_window(
    box: Float[Tensor, "1 4"], margin: float, size: tuple[int, int], clip: bool
) -> tuple[Float[Tensor, "4"], tuple[int, int, int, int]]:
    """Return the window of a box and the pixels to read, none for a box outside of the image."""
    window = box_windows_of(box, margin)
    x0, y0, x1, y1 = pixel_windows(box if clip else window, size)[0].tolist()
    return window[0], (x0, y0, max(x0, x1), max(y0, y1))
