"""An object with a box alone gives no mask loss and no gradient of it, from whatever format it was read."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from data_builders import annotation, coco_content, make_coco, square_polygon
from mixed_formats import OPENERS, build_set, write_cvat

from dasnet_lightning.data.dataset import SegmentationDataset
from dasnet_lightning.data.loader import collate
from dasnet_lightning.data.sources.open import open_dataset
from dasnet_lightning.data.writers import WRITERS
from dasnet_lightning.data.writers.convert import convert_dataset
from dasnet_lightning.functional.losses import graph_zero
from dasnet_lightning.types import Batch
from task_builders import TASKS, build_task, gradients

MIXED, ALONE = 0, 1  # images: a mask beside two boxes alone, and two boxes alone


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SegmentationDataset]:
    root = tmp_path_factory.mktemp("formats")
    rows = [
        annotation(1, 1, 1, bbox=[20, 15, 10, 10], segmentation=square_polygon(20, 15)),
        annotation(2, 1, 1, bbox=[2, 2, 12, 14]),
        annotation(3, 1, 2, bbox=[16, 10, 12, 18], segmentation=[]),
        annotation(4, 2, 1, bbox=[3, 3, 20, 20]),
        annotation(5, 2, 2, bbox=[25, 4, 12, 21], segmentation=None),
    ]
    for split in ("train", "val"):
        content = coco_content(rows)
        for image in content["images"]:
            image["file_name"] = f"{split}_{image['file_name']}"
        make_coco(root / "in", content, f"annotations/instances_{split}.json", split)
    data = open_dataset(root / "in")
    for to in (to for to in WRITERS if to != "cvat"):  # masks as run lengths below
        convert_dataset(data, to, root / to)
    write_cvat(data, root / "cvat")
    return {name: build_set(open_dataset(root / name)) for name in OPENERS}


def mask_gradients(kind: str, batch: Batch, **options: float) -> tuple[float, dict[str, torch.Tensor]]:
    """The mask loss of a batch, and the gradients of it alone."""
    task = build_task(kind, **options)
    task.train()
    losses, _ = task.losses(batch)
    loss = losses["mask_loss"]
    (loss + graph_zero(task.parameters())).backward()
    return loss.item(), {name: value for name, value in gradients(task).items() if value is not None}


@pytest.mark.parametrize("soft_attention", [0.0, 0.5])
@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("name", OPENERS)
def test_boxes_alone_give_exactly_no_gradient(
    datasets: dict[str, SegmentationDataset], name: str, kind: str, soft_attention: float
) -> None:
    batch = collate([datasets[name][0, ALONE]])
    assert batch.targets[0].has_mask.tolist() == [False, False]
    loss, found = mask_gradients(kind, batch, soft_attention=soft_attention)
    assert loss == 0
    assert found
    assert not any(value.any() for value in found.values())


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("name", OPENERS)
def test_beside_a_mask_they_give_the_gradient_of_the_mask_alone(
    datasets: dict[str, SegmentationDataset], name: str, kind: str
) -> None:
    batch = collate([datasets[name][round_, MIXED] for round_ in range(8)])
    loss, found = mask_gradients(kind, batch)
    assert loss > 0
    assert any(value.any() for value in found.values())
    # whatever stands in the rows of the masks that are missing is not read
    generator = torch.Generator().manual_seed(0)
    noisy = []
    for target in batch.targets:
        assert target.has_mask.tolist() == [True, False, False]
        masks = target.masks.clone()
        masks[~target.has_mask] = torch.rand(masks[~target.has_mask].shape, generator=generator) < 0.5
        noisy.append(replace(target, masks=masks))
    other_loss, other = mask_gradients(kind, replace(batch, targets=tuple(noisy)))
    assert other_loss == loss
    assert all(torch.equal(found[key], other[key]) for key in found)


@pytest.mark.parametrize("kind", TASKS)
def test_the_loss_is_the_same_from_every_format(datasets: dict[str, SegmentationDataset], kind: str) -> None:
    losses = {
        name: mask_gradients(kind, collate([dataset[r, MIXED] for r in range(8)]))[0]
        for name, dataset in datasets.items()
    }
    assert np.ptp(list(losses.values())) == pytest.approx(0, abs=1e-7)
