"""The one rule by which an image becomes an input of the network, in training, evaluation and inference."""

import numpy as np
from jaxtyping import UInt8

from dasnet_lightning.data.augmentation.ssd_crop import CropWindow, view_image, view_mask

MEAN_COLOR = (124, 116, 104)  # ImageNet's mean in RGB, fills the area around an image


def input_window(size: tuple[int, int]) -> CropWindow:
    """Return the window of an image of `size` (height, width) that becomes the input: the whole image."""
    return 0, 0, size[1], size[0]


def resize_image(
    image: UInt8[np.ndarray, "H0 W0 3"], image_size: tuple[int, int], window: CropWindow | None = None
) -> UInt8[np.ndarray, "H W 3"]:
    """Resize an image, or a window of it, to the input of the network, averaging where it shrinks.

    Args:
        image: RGB pixels.
        image_size: (height, width) of the input.
        window: x0, y0, x1, y1 in whole pixels of the image. It may extend beyond the image; that area gets the mean color.
            Default: the whole image.
    """
    height, width = image.shape[:2]
    window = input_window((height, width)) if window is None else window
    pixels = view_image(image, window, image_size)
    if window[0] < 0 or window[1] < 0 or window[2] > width or window[3] > height:
        outside = view_mask(np.zeros((height, width), np.uint8), window, image_size, fill=1)
        pixels = np.where(outside[..., None] > 0, np.array(MEAN_COLOR, np.uint8), pixels)
    return pixels
