"""Small trained-looking checkpoints of real detectors, and pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dasnet_lightning.models.instance import InstanceOptions
from dasnet_lightning.models.semantic import SemanticOptions
from dasnet_lightning.storage.writing import write_tensors
from dasnet_lightning.tasks.checkpoints import write_info
from task_builders import build_task

OPTIONS: dict[str, Any] = {
    "instance": InstanceOptions(score_threshold=0.3, max_detections=20, regions_at_once=4),
    "semantic": SemanticOptions(score_threshold=0.3, regions_at_once=4),
}
# factors of the last layer's weights: masks of an untrained network need boundaries, and must not be certain everywhere
SPREAD = {"zoom": 40.0, "light": 4.0, "paper": 40.0}


def write_checkpoint(
    path: Path,
    kind: str = "instance",
    decoder: str = "zoom",
    detector: str = "ssd_tiny",
    spread: float = 5.0,
    **more: Any,
) -> Path:
    """Write a checkpoint of an untrained network; the scores of its detector are spread by this factor."""
    task = build_task(kind, detector=detector, decoder=decoder, inference=OPTIONS[kind], **more)
    with torch.no_grad():
        for norm in () if spread == 1 else (layer for layer in task.modules() if isinstance(layer, nn.BatchNorm2d)):
            norm.running_mean.uniform_(-0.1, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
        task.model.head.score.weight.mul_(SPREAD[decoder])
        for head in getattr(task.model.detector.detector, "heads", ()):
            for layer in (each for each in head.modules() if isinstance(each, nn.Conv2d)):
                layer.weight.mul_(spread)
    content = {"state_dict": task.state_dict(), "hyper_parameters": dict(task.hparams)}
    write_info(task.checkpoint_info(), content)
    task.on_save_checkpoint(content)
    write_tensors(content, path)
    return path


def make_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A picture of colored blocks with noise."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (6, 7, 3))
    rows, columns = np.arange(height) * 6 // height, np.arange(width) * 7 // width
    noise = random.integers(-20, 21, (height, width, 3))
    return np.clip(blocks[rows][:, columns] + noise, 0, 255).astype(np.uint8)
