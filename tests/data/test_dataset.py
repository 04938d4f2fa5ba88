from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_fakes import FakeSource, make_source
from torch.utils.data import DataLoader

from dasnet_lightning.data.augmentation.transforms import build_transform
from dasnet_lightning.data.dataset import SegmentationDataset, paint_semantic
from dasnet_lightning.data.loader import Sample, collate
from dasnet_lightning.data.records import MaskState
from dasnet_lightning.data.sampler import EpochSampler, sample_seed
from dasnet_lightning.errors import DataError
from dasnet_lightning.rle import decode
from dasnet_lightning.types import VOID

P, A, I = MaskState.PRESENT, MaskState.ABSENT, MaskState.INVALID  # noqa: E741
SIZE = (48, 64)


def build(source: FakeSource, *mask_ids: str, name: str = "none", truth: bool = False) -> SegmentationDataset:
    return SegmentationDataset(
        source, source.records, frozenset(mask_ids), build_transform(name, SIZE), seed=5, with_truth=truth
    )


def assert_same(first: Sample, second: Sample) -> None:
    assert (first.image_id, first.seed) == (second.image_id, second.seed)
    assert torch.equal(first.image, second.image)
    assert torch.equal(first.target.boxes, second.target.boxes)
    assert torch.equal(first.target.masks, second.target.masks)


def test_masks_are_opened_only_inside_the_budget(tmp_path: Path) -> None:
    source = make_source(tmp_path, [[P, P], [P], [A, I], []])
    dataset = build(source, "img1", "img2", "img3")
    samples = [dataset[0, index] for index in range(4)]
    assert source.opened == ["img1"]  # outside the budget, no present mask, no object: nothing is opened
    assert [sample.target.masks is None for sample in samples] == [True, False, True, True]
    assert [sample.target.void is None for sample in samples] == [True, False, True, True]
    assert [sample.target.has_mask.tolist() for sample in samples] == [[False] * 2, [True], [False] * 2, []]


def test_has_mask_is_per_object(tmp_path: Path) -> None:
    source = make_source(tmp_path, [[P, A, P, I, P]])
    source.invalid = frozenset({"0-2"})  # looked fine in the records, damaged when opened
    target = build(source, "img0")[0, 0].target
    assert target.masks is not None
    assert target.has_mask.tolist() == [True, False, False, False, True]
    assert target.masks.any(dim=(1, 2)).tolist() == [True, False, False, False, True]
    assert len(target.boxes) == 5
    assert target.labels.tolist() == [1, 2, 1, 2, 1]
    for number in (0, 4):
        rows, columns = torch.nonzero(target.masks[number], as_tuple=True)
        extent = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        torch.testing.assert_close(torch.stack(extent).float(), target.boxes[number], atol=1.0, rtol=0)


def test_has_mask_follows_objects_through_augmentation(tmp_path: Path) -> None:
    source = make_source(tmp_path, [[P, A, P, A]], size=(90, 120))
    record = source.records[0]
    objects = tuple(replace(item, label=number + 1) for number, item in enumerate(record.objects))
    source.records = (replace(record, objects=objects),)
    dataset = build(source, "img0", name="ssd")
    dropped = 0
    for epoch in range(60):
        target = dataset[epoch, 0].target
        assert target.masks is not None
        assert target.has_mask.tolist() == [label in (1, 3) for label in target.labels.tolist()]
        assert target.masks.any(dim=(1, 2)).tolist() == target.has_mask.tolist()
        dropped += 4 - len(target.labels)
    assert dropped > 10


def test_types_of_a_batch(tmp_path: Path) -> None:
    source = make_source(tmp_path, [[P, A], []])
    source.void = np.zeros((60, 80), bool)
    source.void[:30] = True
    dataset = build(source, "img0", "img1", truth=True)
    batch = collate([dataset[3, 0], dataset[3, 1]])
    assert batch.image_ids == ("img0", "img1")
    assert batch.seeds == (sample_seed(5, 3, 0), sample_seed(5, 3, 1))
    assert batch.images.shape == (2, 3, *SIZE)
    assert batch.images.dtype == torch.float32
    assert 0.5 < batch.images.max() <= 1
    full, empty = batch.targets
    dtypes = (full.boxes.dtype, full.labels.dtype, full.has_mask.dtype, full.ignore.dtype)
    assert dtypes == (torch.float32, torch.int64, torch.bool, torch.bool)
    assert full.masks is not None
    assert full.masks.dtype == torch.bool
    assert full.masks.shape == (2, *SIZE)
    assert full.void is not None
    assert full.void.dtype == torch.bool
    assert full.void[: SIZE[0] // 2].all()
    assert not full.void[SIZE[0] // 2 :].any()
    assert full.truth is not None
    assert full.truth.semantic.dtype == torch.int16
    assert full.truth.semantic.shape == (60, 80)
    assert (empty.boxes.shape, empty.labels.shape, empty.labels.dtype) == ((0, 4), (0,), torch.int64)
    assert empty.has_mask.dtype == empty.ignore.dtype == torch.bool
    assert empty.truth is not None
    assert not empty.truth.semantic.any()
    moved = batch.to("cpu")
    assert torch.equal(moved.images, batch.images)
    assert moved.targets[0].truth is not None
    assert moved.targets[0].truth.masks == full.truth.masks


def test_colors_and_places_survive(tmp_path: Path) -> None:
    source = make_source(tmp_path, [[P]])
    sample = build(source, "img0")[0, 0]
    assert sample.target.masks is not None
    inside = sample.image.float()[:, sample.target.masks[0]].mean(dim=1)
    assert (inside - torch.tensor([250.0, 40, 250])).abs().max() < 30  # RGB, not BGR


def test_ignored_objects_travel(tmp_path: Path) -> None:
    source = make_source(tmp_path, [[P, P]])
    record = source.records[0]
    source.records = (replace(record, objects=(record.objects[0], replace(record.objects[1], ignore=True))),)
    target = build(source, "img0", truth=True)[0, 0].target
    assert target.ignore.tolist() == [False, True]
    assert target.truth is not None
    assert {1, VOID} <= set(target.truth.semantic.unique().tolist()) <= {0, 1, VOID}


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_and_epochs(tmp_path: Path, workers: int) -> None:
    source = make_source(tmp_path, [[P, P]] * 5)
    dataset = build(source, *(record.image_id for record in source.records), name="ssd")
    sampler = EpochSampler(5, seed=0, shuffle=True)
    loader = DataLoader(
        dataset, 2, sampler=sampler, num_workers=workers, collate_fn=list, persistent_workers=workers > 0
    )
    images = {}
    for epoch in range(2):
        sampler.set_epoch(epoch)
        samples = [sample for samples in loader for sample in samples]
        for sample, key in zip(samples, list(sampler), strict=True):
            assert_same(sample, dataset[key])  # what a worker of that epoch made is what this process makes
            images[epoch, sample.image_id] = sample.image
    for record in source.records:
        assert not torch.equal(images[0, record.image_id], images[1, record.image_id])


def test_unusable_files_and_boxes_are_named(tmp_path: Path) -> None:
    source = make_source(tmp_path, [[P], [P]])
    source.records[0].path.write_bytes(source.records[0].path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"img0\.png"):
        build(source)[0, 0]
    record = source.records[1]
    outside = replace(record.objects[0], box=(500.0, 0.0, 510.0, 5.0))
    source.records = (replace(record, objects=(outside,)),)
    with pytest.raises(DataError, match=r"img1\.png: object 0: box .* no area"):
        build(source)[0, 0]


def test_semantic_map() -> None:
    def rectangle(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        mask = np.zeros((10, 12), bool)
        mask[y0:y1, x0:x1] = True
        return mask

    large, small, crowd = rectangle(0, 0, 8, 8), rectangle(2, 2, 4, 4), rectangle(7, 7, 12, 10)
    void = rectangle(0, 0, 1, 10)
    boxes = np.array([[0, 0, 8, 8], [2, 2, 4, 4], [7, 7, 12, 10], [6.5, 0.2, 10.5, 2.5]])
    semantic = paint_semantic(
        (10, 12), boxes, [3, 5, 3, 7], [False, False, True, False], [large, small, crowd, None], void
    )
    expected = np.zeros((10, 12), np.int16)
    expected[0:3, 6:11] = VOID  # the box without a mask, every pixel it touches ...
    expected[0:8, 0:8] = 3  # ... except under a known mask
    expected[7:10, 7:12] = VOID  # the crowd is smaller than what it overlaps
    expected[2:4, 2:4] = 5
    expected[:, 0] = VOID
    np.testing.assert_array_equal(semantic, expected)
    swapped = paint_semantic((10, 12), boxes[[1, 0]], [5, 3], [False, False], [small, large])
    assert swapped[3, 3] == 5  # the order of the objects does not matter
    assert not paint_semantic((4, 4), np.zeros((0, 4)), [], [], []).any()


def test_class_maps_hold_more_classes_than_a_byte() -> None:
    mask = np.ones((2, 3), bool)
    mask[0, 0] = False
    for label in (255, 256, 300):
        semantic = paint_semantic((2, 3), np.array([[0, 0, 3, 2]]), [label], [False], [mask])
        assert sorted(np.unique(semantic).tolist()) == [0, label]


def test_objects_without_any_mask_are_no_background(tmp_path: Path) -> None:
    """An image whose objects have no masks cannot be measured; an image without objects can: all background."""
    source = make_source(tmp_path, [[A], []])
    dataset = build(source, "img0", "img1", truth=True)
    unknown, empty = dataset[0, 0], dataset[0, 1]
    assert unknown.target.truth is None
    assert empty.target.truth is not None


def test_the_truth_holds_every_mask_in_original_pixels(tmp_path: Path) -> None:
    source = make_source(tmp_path, [[P, A, P, I, P]])
    source.invalid = frozenset({"0-2"})
    source.void = np.zeros((60, 80), bool)
    source.void[50:] = True
    dataset = build(source, "img0", truth=True)
    loader = DataLoader(dataset, None, sampler=[(0, 0)], num_workers=1)  # through a process, as bytes
    for sample in (dataset[0, 0], next(iter(loader))):
        truth = sample.target.truth
        assert truth is not None
        assert [counts is not None for counts in truth.masks] == sample.target.has_mask.tolist()
        assert truth.void is not None
        for counts, expected in ((truth.masks[0], source.masks["img0"][0]), (truth.void, source.void)):
            np.testing.assert_array_equal(decode([counts], (60, 80))[0], expected)
    source.void = None
    assert build(source, "img0", truth=True)[0, 0].target.truth.void is None


def test_training_does_not_encode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(mask: np.ndarray) -> bytes:
        raise AssertionError("a mask was encoded")

    monkeypatch.setattr("dasnet_lightning.data.dataset.encode_mask", refuse)
    source = make_source(tmp_path, [[P, P], [P]])
    assert build(source, "img0")[0, 0].target.truth is None
    with pytest.raises(AssertionError, match="encoded"):
        build(source, "img0", truth=True)[0, 0]
    assert build(source, "img0", truth=True)[0, 1].target.truth is None  # outside the budget
    assert source.opened == ["img0", "img0"]
