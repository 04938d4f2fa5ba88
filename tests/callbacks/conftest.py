from collections.abc import Callable
from typing import Any

import lightning as L
import pytest

from dasnet_lightning.detectors import DETECTORS
from toy import ToyDetector


@pytest.fixture(autouse=True)
def _toy(monkeypatch):
    def build(num_classes: int, backbone_weights: None = None) -> ToyDetector:
        return ToyDetector(num_classes)

    monkeypatch.setitem(DETECTORS._entries, "toy", build)


@pytest.fixture
def make_trainer(tmp_path) -> Callable[..., L.Trainer]:
    def make(steps: int = 4, **options: Any) -> L.Trainer:
        quietly = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        places = {"accelerator": "cpu", "logger": False, "default_root_dir": tmp_path}
        return L.Trainer(max_steps=steps, limit_val_batches=0, **places | quietly | options)

    return make
