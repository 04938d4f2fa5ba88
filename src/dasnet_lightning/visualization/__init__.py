"""Pictures of detections, masks and class maps."""

from dasnet_lightning.visualization.colors import instance_palette, voc_palette
from dasnet_lightning.visualization.drawing import (
    draw_boxes,
    draw_masks,
    draw_segmentation,
    draw_semantic,
    enlarge,
    readable_scale,
)
from dasnet_lightning.visualization.text import side_by_side

__all__ = [
    "draw_boxes",
    "draw_masks",
    "draw_segmentation",
    "draw_semantic",
    "enlarge",
    "instance_palette",
    "readable_scale",
    "side_by_side",
    "voc_palette",
]
