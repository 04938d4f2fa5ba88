"""Masks kept in their windows: exact, small, and drawn as dense ones are."""

import numpy as np
import torch

from dasnet_lightning.mask_windows import MaskWindows


def random_masks(seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    masks = generator.random((4, 30, 41)) > 0.6
    masks[1] = False
    masks[2, :, 10:] = False
    return masks


def test_dense_masks_come_back_exactly() -> None:
    masks = random_masks()
    windows = MaskWindows.of(masks)
    assert (windows.shape, len(windows)) == (masks.shape, 4)
    assert torch.equal(windows.dense(), torch.from_numpy(masks))
    assert np.array_equal(np.stack(list(windows)), masks)
    assert windows.areas() == masks.sum(axis=(1, 2)).tolist()
    assert torch.equal(MaskWindows.of(torch.from_numpy(masks)).dense(), windows.dense())


def test_masks_are_selected_in_the_given_order() -> None:
    masks = random_masks()
    assert torch.equal(MaskWindows.of(masks).select([3, 0]).dense(), torch.from_numpy(masks[[3, 0]]))
    assert MaskWindows.of(masks).select([]).shape == (0, 30, 41)


def test_memory_follows_the_windows() -> None:
    windows = MaskWindows((4000, 6000), 2)
    windows.put(0, (5, 6, 15, 26), np.ones((20, 10), bool))
    assert sum(bits.nbytes for bits in windows._bits) == 25
    assert windows.areas() == [200, 0]
    assert windows.window(0) == (5, 6, 15, 26)
