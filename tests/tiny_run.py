"""Options of `train` and `sweep` for a run of seconds on synthetic images of 64 pixels."""

from typing import Any

TINY: dict[str, Any] = {
    "image_size": 64,
    "decoder": "zoom",
    "steps": 3,
    "batch_size": 4,
    "num_workers": 0,
    "accelerator": "cpu",
    "precision": "32-true",
}
TINY_DETECTOR: dict[str, Any] = {"detector": "ssd_tiny", "detector_steps": 4, "detector_batch_size": 4}
