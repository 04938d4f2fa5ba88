"""One detector at the input sizes of `--image-size`: a training step of both stages, and inference."""

import numpy as np
import pytest
import torch

from dasnet_lightning.inference.segmenter import Segmenter
from dasnet_lightning.models.instance import InstanceOptions
from dasnet_lightning.tasks.config import NetworkConfig
from dasnet_lightning.tasks.detection import DetectionTask
from dasnet_lightning.tasks.instance import InstanceTask
from dasnet_lightning.types import Batch, Target

NAMES = ("background", "a", "b")


@pytest.mark.parametrize("size", [320, 512, 640])
def test_both_stages_and_inference_at_a_size(size: int) -> None:
    torch.manual_seed(0)
    masks = torch.zeros(1, size, size, dtype=torch.bool)
    masks[0, size // 4 : size // 2, size // 4 : size // 2] = True
    quarter = torch.tensor([[size / 4, size / 4, size / 2, size / 2]])
    yes = torch.tensor([True])
    target = Target(quarter, torch.tensor([2]), yes, ~yes, masks, torch.zeros(size, size, dtype=torch.bool))
    batch = Batch(("x",), torch.rand(1, 3, size, size), (target,), (1,))
    detection = DetectionTask(len(NAMES), NAMES, detector="ssd_tiny", detector_options={"image_size": size})
    assert all(torch.isfinite(loss) for loss in detection.losses(batch).values())
    task = InstanceTask(len(NAMES), NAMES, network=NetworkConfig("ssd_tiny", {"image_size": size}, "zoom"))
    losses, regions = task.losses(batch)
    assert regions == 1
    torch.stack(list(losses.values())).sum().backward()
    segmenter = Segmenter(task.model, NAMES, InstanceOptions())
    assert segmenter.image_size == (size, size)
    image = np.random.default_rng(0).integers(0, 256, (300, 500, 3), dtype=np.uint8)
    found = segmenter.segment(image, [[10.0, 20, 210, 120]], ["b"])
    assert found.masks.shape == (1, 300, 500)
