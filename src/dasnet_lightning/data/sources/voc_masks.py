"""Files of VOC's masks, as tools spell them: in subfolders, with `.PNG`, in VOC's colors instead of with a palette."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dasnet_lightning.data.augmentation.ssd_crop import pixel_window
from dasnet_lightning.data.sources.checks import Box
from dasnet_lightning.data.sources.image_index import list_files
from dasnet_lightning.data.sources.masks import VOID_INDEX
from dasnet_lightning.data.sources.voc_colors import find_colors
from dasnet_lightning.visualization import voc_palette

FOLDER = "SegmentationObject"
MODES = ("P", "L", "RGB", "RGBA")


def find_mask_files(root: Path) -> dict[str, Path]:
    """Return the file in SegmentationObject of each image id that has one; the files are not opened."""
    folder = root / FOLDER
    files = list_files(folder, (".png",)) if folder.is_dir() else []
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in files}


def clear_void(index_map: UInt8[np.ndarray, "H W"], boxes: Sequence[Box]) -> UInt8[np.ndarray, "H W"]:
    """Return an index map without the void that stands for missing masks.

    The writer of VOC files fills the box of an object without a mask with void, except for the masks of others. Other
    readers then do not take the box for background. A box with background inside was not filled, and its void stays.

    Args:
        index_map: object indices; 255 is void.
        boxes: xyxy boxes of the objects without a mask.
    """
    windows = [index_map[pixel_window(box, index_map.shape)] for box in boxes]
    if not any(window.all() for window in windows):
        return index_map
    cleared = index_map.copy()
    for box, window in zip(boxes, windows, strict=True):
        if window.all():
            cleared[pixel_window(box, index_map.shape)][window == VOID_INDEX] = 0
    return cleared


def to_index_map(picture: Image.Image, name: str) -> tuple[UInt8[np.ndarray, "H W"] | None, str]:
    """Return the object indices of an opened mask file; None and the reason if its pixels are not indices or VOC's colors."""
    if picture.mode not in MODES:
        return None, f"{name} has mode {picture.mode}, expected a palette picture of object indices"
    if picture.mode in ("P", "L"):
        return np.asarray(picture), ""
    try:
        return find_colors(np.asarray(picture.convert("RGB")), voc_palette()).astype(np.uint8), ""
    except ValueError as error:
        return None, f"{name} is not a palette picture of object indices and not in VOC's colors: {error}"
