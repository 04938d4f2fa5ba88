"""Box arithmetic that torchvision.ops does not have: anchor offsets, rescaling, coverage and pixel windows.

Boxes are xyxy in pixels. Offsets are SSD's (paper.md section 6): the shift of the center in anchor sizes and the log of the
size ratio. Each is divided by its variance, so that all four have about unit spread.
"""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

VARIANCES = (0.1, 0.1, 0.2, 0.2)
MAX_LOG_RATIO = math.log(1000.0)  # keeps exp() finite in an untrained network
SNAP_DISTANCE = 0.01  # pixels
MIN_SIDE = 1e-3  # pixels; keeps the log finite for a box without area


def encode_boxes(
    boxes: Float[Tensor, "n 4"],
    anchors: Float[Tensor, "n 4"],
    variances: tuple[float, float, float, float] = VARIANCES,
) -> Float[Tensor, "n 4"]:
    """Compute the offsets (x, y, log w, log h) that turn each anchor into the box of the same row."""
    center, size = _center_and_size(boxes)
    anchor_center, anchor_size = _center_and_size(anchors)
    shift = (center - anchor_center) / anchor_size
    ratio = torch.log(size.clamp(min=MIN_SIDE) / anchor_size)
    return torch.cat([shift, ratio], dim=1) / boxes.new_tensor(variances)


def decode_boxes(
    offsets: Float[Tensor, "n 4"],
    anchors: Float[Tensor, "n 4"],
    variances: tuple[float, float, float, float] = VARIANCES,
) -> Float[Tensor, "n 4"]:
    """Apply the offsets to the anchors: the inverse of `encode_boxes`, not clipped to the image."""
    offsets = offsets * offsets.new_tensor(variances)
    anchor_center, anchor_size = _center_and_size(anchors)
    center = anchor_center + offsets[:, :2] * anchor_size
    size = anchor_size * offsets[:, 2:].clamp(max=MAX_LOG_RATIO).exp()
    return torch.cat([center - size / 2, center + size / 2], dim=1)


def _center_and_size(boxes: Float[Tensor, "n 4"]) -> tuple[Float[Tensor, "n 2"], Float[Tensor, "n 2"]]:
    low, high = boxes[:, :2], boxes[:, 2:]
    return (low + high) / 2, high - low


def clip_boxes(boxes: Float[Tensor, "n 4"], size: tuple[int, int]) -> Float[Tensor, "n 4"]:
    """Clip the boxes to an image of `size` = (H, W); a box outside of it keeps no area."""
    return clip_boxes_to_image(boxes, size)


def scale_boxes(boxes: Float[Tensor, "n 4"], size: tuple[int, int], new_size: tuple[int, int]) -> Float[Tensor, "n 4"]:
    """Scale boxes as an image is resized from `size` to `new_size`, both (H, W)."""
    vertical, horizontal = new_size[0] / size[0], new_size[1] / size[1]
    return boxes * boxes.new_tensor([horizontal, vertical, horizontal, vertical])


def restore_boxes(
    boxes: Float[Tensor, "n 4"], size: tuple[int, int], new_size: tuple[int, int]
) -> Float[Tensor, "n 4"]:
    """Scale boxes back to the original image and snap edges to the whole pixels that rounding moved them off.

    Without snapping, a box that was scaled to the network's input and back could touch one more row or column of pixels.
    """
    scaled = scale_boxes(boxes, size, new_size)
    whole = scaled.round()
    return torch.where((scaled - whole).abs() < SNAP_DISTANCE, whole, scaled)


def covered_fraction(boxes: Float[Tensor, "n 4"], regions: Float[Tensor, "m 4"]) -> Float[Tensor, "m n"]:
    """Compute the fraction of each box's own area that lies inside each region, 0..1; 0 for a box without area."""
    low = torch.maximum(boxes[None, :, :2], regions[:, None, :2])
    high = torch.minimum(boxes[None, :, 2:], regions[:, None, 2:])
    area = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)
    return (high - low).clamp(min=0).prod(dim=2) / area.clamp(min=MIN_SIDE**2)


def pixel_windows(boxes: Float[Tensor, "n 4"], size: tuple[int, int]) -> Int64[Tensor, "n 4"]:
    """Return the pixels that each box touches in an image of `size` = (H, W): x0, y0, x1, y1, the last two exclusive."""
    limit = torch.tensor([size[1], size[0], size[1], size[0]], device=boxes.device)
    windows = torch.cat([boxes[:, :2].floor(), boxes[:, 2:].ceil()], dim=1).long()
    return torch.minimum(windows.clamp(min=0), limit)
