"""Callbacks and plug-ins of the trainer, of our own."""

from dasnet_lightning.callbacks.box_ap_guard import BoxAPGuard
from dasnet_lightning.callbacks.checkpoint_io import AtomicCheckpointIO
from dasnet_lightning.callbacks.progress import ProgressLines, Throughput
from dasnet_lightning.callbacks.validation_time import ValidationTime

__all__ = ["AtomicCheckpointIO", "BoxAPGuard", "ProgressLines", "Throughput", "ValidationTime"]
