import pytest

from dasnet_lightning.detectors import DETECTORS
from toy import ToyDetector


@pytest.fixture(autouse=True)
def _toy(monkeypatch):
    def build(num_classes: int, backbone_weights: None = None) -> ToyDetector:
        return ToyDetector(num_classes)

    monkeypatch.setitem(DETECTORS._entries, "toy", build)
