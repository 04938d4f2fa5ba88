"""Small untrained networks that answer every image with several objects, deterministically."""

from collections.abc import Callable
from functools import partial

import pytest
import torch

from dasnet_lightning.inference.segmenter import Segmenter
from dasnet_lightning.models.dasnet import build_dasnet
from dasnet_lightning.models.instance import InstanceOptions
from dasnet_lightning.models.semantic import SemanticOptions
from dasnet_lightning.nn.heads import PositionSensitiveHead, SemanticHead

NAMES = ("background", "circle", "square", "star")
MakeSegmenter = Callable[..., Segmenter]


@pytest.fixture
def make_segmenter() -> MakeSegmenter:
    """Build a segmenter: make_segmenter("instance" or "semantic", decoder, **options of inference)."""

    def make(task: str = "instance", decoder: str = "zoom", **options: object) -> Segmenter:
        torch.manual_seed(3)
        instances = task == "instance"
        head = partial(PositionSensitiveHead, cells=3) if instances else SemanticHead
        model = build_dasnet(len(NAMES), detector="ssd_tiny", decoder=decoder, head=head).eval()
        limit = {"max_detections": 4} if instances else {"max_classes": 2}
        chosen = {"score_threshold": 0.26} | limit | options
        return Segmenter(model, NAMES, InstanceOptions(**chosen) if instances else SemanticOptions(**chosen))

    return make
