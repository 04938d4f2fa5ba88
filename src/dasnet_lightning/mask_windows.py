"""Masks of one image as bits of the windows that they lie in, so that many objects of a large picture fit into memory."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

Window = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels, the last two exclusive


class MaskWindows:
    """A stack of masks [n, H, W], an eighth of a byte for each pixel inside of their windows.

    Args:
        size: (height, width) of the image.
        count: number of masks; all are empty at first.
    """

    def __init__(self, size: tuple[int, int], count: int) -> None:
        self.size = size
        self._windows: list[Window] = [(0, 0, 0, 0)] * count
        self._bits: list[np.ndarray] = [np.zeros(0, np.uint8)] * count

    @classmethod
    def of(cls, masks: Bool[Tensor, "n H W"] | Bool[np.ndarray, "n H W"]) -> "MaskWindows":
        """Return the windows of dense masks."""
        stack = cls((masks.shape[1], masks.shape[2]), len(masks))
        for number, mask in enumerate(masks):
            pixels = mask.cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
            rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
            if len(rows):
                window = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
                stack.put(number, window, pixels[window[1] : window[3], window[0] : window[2]])
        return stack

    def __len__(self) -> int:
        return len(self._windows)

    def __iter__(self) -> Iterator[Bool[np.ndarray, "H W"]]:
        """Yield the masks one at a time as whole arrays."""
        for number in range(len(self)):
            mask = np.zeros(self.size, bool)
            x0, y0, x1, y1 = self._windows[number]
            mask[y0:y1, x0:x1] = self.crop(number)
            yield mask

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape (n, H, W) of the dense masks."""
        return len(self), *self.size

    def put(self, number: int, window: Window, mask: Bool[np.ndarray, "h w"]) -> None:
        """Replace a mask by its pixels inside a window of the image."""
        self._windows[number] = window
        self._bits[number] = np.packbits(mask)

    def window(self, number: int) -> Window:
        """Return the window of a mask; outside of it the mask is empty."""
        return self._windows[number]

    def crop(self, number: int) -> Bool[np.ndarray, "h w"]:
        """Return the pixels of a mask inside its window."""
        x0, y0, x1, y1 = self._windows[number]
        height, width = max(0, y1 - y0), max(0, x1 - x0)
        return np.unpackbits(self._bits[number], count=height * width).view(bool).reshape(height, width)

    def areas(self) -> list[int]:
        """Return the number of pixels of each mask."""
        return [int(np.count_nonzero(self.crop(number))) for number in range(len(self))]

    def select(self, order: Sequence[int]) -> "MaskWindows":
        """Return the masks of these numbers, in this order."""
        selected = MaskWindows(self.size, len(order))
        selected._windows = [self._windows[number] for number in order]
        selected._bits = [self._bits[number] for number in order]
        return selected

    def dense(self) -> Bool[Tensor, "n H W"]:
        """Return all masks as one tensor of n x H x W bytes."""
        masks = torch.zeros(self.shape, dtype=torch.bool)
        for number, (x0, y0, x1, y1) in enumerate(self._windows):
            masks[number, y0:y1, x0:x1] = torch.from_numpy(self.crop(number))
        return masks
