"""The loader of images and the processes that it starts."""

import signal
from typing import Any

import cv2
from torch.utils.data import DataLoader

from dasnet_lightning.data.collate import Sample
from dasnet_lightning.distributed import STOP_SIGNALS


class ResumableLoader(DataLoader[Sample]):
    """A DataLoader that Lightning takes for resumable, which it is without a state: its sampler asks where to go on."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


def start_worker(worker: int) -> None:
    """Prepare a loader process."""
    cv2.setNumThreads(0)  # every worker has one core
    # sent to whole process groups: the training process saves first, then ends its workers
    for stop in STOP_SIGNALS:
        signal.signal(stop, signal.SIG_IGN)
