"""What the checkpoints of all tasks carry, and what is compared before Lightning fills a task from one."""

from typing import Any

import lightning as L

from dasnet_lightning.tasks.checkpoints import check_ours, check_state
from dasnet_lightning.tasks.identity import KEY, Identity, check_fits


def sign(identity: Identity, checkpoint: dict[str, Any]) -> None:
    """Write into a checkpoint whose it is."""
    checkpoint[KEY] = identity.plain()


def check_loaded(task: L.LightningModule, own: Identity, checkpoint: dict[str, Any]) -> None:
    """Raise CheckpointError, in a sentence and before anything is filled, where a trainer's checkpoint does not fit."""
    try:
        source = task.trainer.ckpt_path
    except RuntimeError:  # no trainer: `load_from_checkpoint` made the task of the checkpoint itself
        return
    check_ours(checkpoint, source)
    check_fits(checkpoint, own, source)
    check_state(task, checkpoint["state_dict"], str(source), checkpoint)
