"""Box arithmetic that torchvision.ops does not have: offsets relative to anchors, and how much of a box a region covers.

Boxes are xyxy in pixels. Offsets are SSD's: the centre's shift in anchor sizes and the log of the size ratio, each
divided by its variance so that all four have about unit spread.
"""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

VARIANCES = (0.1, 0.1, 0.2, 0.2)
MAX_LOG_RATIO = math.log(1000.0)  # an untrained network must not overflow exp()
SLACK = 0.01  # pixels
MIN_SIDE = 1e-3  # pixels; a box without area must not give an infinite log


def _centre_and_size(boxes: Float[Tensor, "n 4"]) -> tuple[Float[Tensor, "n 2"], Float[Tensor, "n 2"]]:
    low, high = boxes[:, :2], boxes[:, 2:]
    return (low + high) / 2, high - low


def encode_boxes(
    boxes: Float[Tensor, "n 4"],
    anchors: Float[Tensor, "n 4"],
    variances: tuple[float, float, float, float] = VARIANCES,
) -> Float[Tensor, "n 4"]:
    """Offsets (x, y, log w, log h) that turn each anchor into the box of the same row (paper.md section 6)."""
    centre, size = _centre_and_size(boxes)
    anchor_centre, anchor_size = _centre_and_size(anchors)
    shift = (centre - anchor_centre) / anchor_size
    ratio = torch.log(size.clamp(min=MIN_SIDE) / anchor_size)
    return torch.cat([shift, ratio], dim=1) / boxes.new_tensor(variances)


def decode_boxes(
    offsets: Float[Tensor, "n 4"],
    anchors: Float[Tensor, "n 4"],
    variances: tuple[float, float, float, float] = VARIANCES,
) -> Float[Tensor, "n 4"]:
    """The boxes that the offsets make of the anchors: the inverse of `encode_boxes`, not clipped to the image."""
    offsets = offsets * offsets.new_tensor(variances)
    anchor_centre, anchor_size = _centre_and_size(anchors)
    centre = anchor_centre + offsets[:, :2] * anchor_size
    size = anchor_size * offsets[:, 2:].clamp(max=MAX_LOG_RATIO).exp()
    return torch.cat([centre - size / 2, centre + size / 2], dim=1)


def clip_boxes(boxes: Float[Tensor, "n 4"], size: tuple[int, int]) -> Float[Tensor, "n 4"]:
    """The boxes cut off at the border of an image of `size` = (H, W); one that lies outside keeps no area."""
    return clip_boxes_to_image(boxes, size)


def scale_boxes(boxes: Float[Tensor, "n 4"], size: tuple[int, int], new_size: tuple[int, int]) -> Float[Tensor, "n 4"]:
    """The same boxes after an image of `size` = (H, W) was resized to `new_size`."""
    vertical, horizontal = new_size[0] / size[0], new_size[1] / size[1]
    return boxes * boxes.new_tensor([horizontal, vertical, horizontal, vertical])


def restore_boxes(
    boxes: Float[Tensor, "n 4"], size: tuple[int, int], new_size: tuple[int, int]
) -> Float[Tensor, "n 4"]:
    """`scale_boxes` back to the pixels that an image had at first: an edge that rounding moved off a whole pixel returns.

    Without that, a box that went to the network's input and back would touch one row or column of pixels more.
    """
    scaled = scale_boxes(boxes, size, new_size)
    whole = scaled.round()
    return torch.where((scaled - whole).abs() < SLACK, whole, scaled)


def covered_fraction(boxes: Float[Tensor, "n 4"], regions: Float[Tensor, "m 4"]) -> Float[Tensor, "m n"]:
    """How much of each box's own area lies inside each region, 0..1; 0 for a box without area."""
    low = torch.maximum(boxes[None, :, :2], regions[:, None, :2])
    high = torch.minimum(boxes[None, :, 2:], regions[:, None, 2:])
    area = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)
    return (high - low).clamp(min=0).prod(dim=2) / area.clamp(min=MIN_SIDE**2)


def pixel_windows(boxes: Float[Tensor, "n 4"], size: tuple[int, int]) -> Int64[Tensor, "n 4"]:
    """The pixels that each box touches in an image of `size` = (H, W): x0, y0, x1, y1 with x1 and y1 exclusive."""
    limit = torch.tensor([size[1], size[0], size[1], size[0]], device=boxes.device)
    windows = torch.cat([boxes[:, :2].floor(), boxes[:, 2:].ceil()], dim=1).long()
    return torch.minimum(windows.clamp(min=0), limit)
