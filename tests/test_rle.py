import numpy as np
import torch

from dasnet_lightning.rle import areas, decode, encode


def test_run_lengths_there_and_back() -> None:
    masks = np.random.default_rng(0).random((4, 7, 9)) < 0.5
    masks[0], masks[1] = False, True
    for given in (masks, torch.from_numpy(masks), torch.from_numpy(masks.transpose(0, 2, 1).copy()).transpose(1, 2)):
        np.testing.assert_array_equal(decode(encode(given), (7, 9)), masks)
    assert encode(masks[:0]) == []
    for odd in (masks[:, ::-1], masks[:, :, ::2], masks.transpose(0, 2, 1), masks[:, :1], masks[:, :, :1]):
        np.testing.assert_array_equal(decode(encode(odd), odd.shape[1:]), odd)
    assert decode([], (7, 9)).shape == (0, 7, 9)


def test_areas_of_more_masks_than_a_byte_counts() -> None:
    masks = np.random.default_rng(0).random((300, 5, 6)) < 0.5
    assert areas(encode(masks), (5, 6)).tolist() == masks.sum(axis=(1, 2)).tolist()
    assert areas([], (5, 6)).dtype == np.int64
