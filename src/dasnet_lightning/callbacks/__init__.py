"""Callbacks and plugins for Lightning's Trainer."""

from dasnet_lightning.callbacks.box_ap_guard import BoxAPGuard
from dasnet_lightning.callbacks.checkpoint_io import AtomicCheckpointIO
from dasnet_lightning.callbacks.nan_guard import NaNGuard
from dasnet_lightning.callbacks.progress import ProgressLines, StepSize, Throughput, ValidationTime
from dasnet_lightning.callbacks.resumable import Resumable

__all__ = [
    "AtomicCheckpointIO",
    "BoxAPGuard",
    "NaNGuard",
    "ProgressLines",
    "Resumable",
    "StepSize",
    "Throughput",
    "ValidationTime",
]
