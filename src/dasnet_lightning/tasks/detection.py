"""Stage one: train a detector on boxes, which every image has."""

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from dasnet_lightning.detectors import build_detector, portable_options
from dasnet_lightning.distributed import broadcast_buffers
from dasnet_lightning.metrics.box import BoxAP
from dasnet_lightning.metrics.coco_evaluators import Evaluator
from dasnet_lightning.tasks.checkpoint_info import CheckpointInfo, describe
from dasnet_lightning.tasks.checkpoints import check_loaded, write_info
from dasnet_lightning.tasks.optimization import OptimizerConfig, build_optimizers
from dasnet_lightning.tasks.prediction import ImagePrediction, collect_predictions
from dasnet_lightning.tasks.step_helpers import (
    average_values,
    seed_global_draws,
    select_logged,
    silence_warnings,
)
from dasnet_lightning.types import Batch


class DetectionTask(L.LightningModule):
    """Trains a detector on boxes (paper section 6) and measures its box AP.

    With several ranks, the losses of this library's SSD are means over the anchors of all ranks. Those of other libraries
    are means over each rank's own, which DDP averages.

    Args:
        num_classes: number of classes, background included.
        class_names: background first; kept in checkpoints.
        category_ids: the data set's own id of each label; kept in checkpoints.
        detector: registered name of the detector.
        detector_options: options of the detector's builder.
        optimizer: optimizer and schedule; default: the paper's SGD with lr 0.001, divided by 10 at steps 80,000 and
            100,000.
        coco_evaluator: program that computes COCO's AP; all give the same values (see metrics.coco_evaluators). It is a
            property of the machine, not a hyper-parameter.
        image_range: values (low, high) that became 0 and 255 in the data set's images of more than 8 bits; kept in
            checkpoints. None if there are none.
    """

    def __init__(
        self,
        num_classes: int = 21,
        class_names: Sequence[str] = (),
        category_ids: Sequence[int | str] = (),
        detector: str = "ssd320_vgg16",
        detector_options: dict[str, Any] | None = None,
        optimizer: OptimizerConfig | None = None,
        coco_evaluator: Evaluator = "built-in",
        image_range: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["optimizer", "coco_evaluator"])
        self.detector = build_detector(detector, num_classes, class_names=class_names, **(detector_options or {}))
        self.save_hyperparameters({"detector_options": portable_options(self.detector, detector_options)})
        self.to(memory_format=torch.channels_last)
        self.optimizer_config = optimizer or OptimizerConfig(lr=1e-3, steps=(80_000, 100_000))
        self.class_names = tuple(class_names)
        self.box_ap = BoxAP(coco_evaluator)
        self.metrics: dict[str, float] = {}  # all values of the last validation; the log holds some of them

    def setup(self, stage: str) -> None:
        """Silence a warning of Lightning that does not apply."""
        silence_warnings()

    def on_fit_start(self) -> None:
        """Put the task into training mode, whatever mode it was left in."""
        if self.trainer.ckpt_path is None:
            rank_zero_info(self.detector.weights_note)
        self.train()

    def on_train_end(self) -> None:
        """Give all ranks the buffers of rank 0."""
        broadcast_buffers(self)

    def losses(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return the losses of a batch by name."""
        seed_global_draws(batch)
        return self.detector.losses(self.detector.features(batch.images), batch.targets)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Return the sum of the losses; log all of them, averaged over the ranks."""
        losses = self.losses(batch)
        loss = torch.stack(list(losses.values())).sum()
        logged = average_values({f"train/{name}": value for name, value in losses.items()} | {"train/loss": loss})
        self.log_dict(logged, batch_size=len(batch))
        return loss

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Update the box AP."""
        detections = self.detector.detect(self.detector.features(batch.images))
        self.box_ap.update(batch.image_ids, detections, batch.targets)

    def on_validation_epoch_end(self) -> None:
        """Compute all metrics into `metrics`, log some of them, and reset."""
        self.metrics = {f"val/box_{name}": value for name, value in self.box_ap.compute(self.class_names).items()}
        self.log_dict(select_logged(self.metrics))
        self.box_ap.reset()

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def predict_step(self, batch: Batch, batch_index: int) -> list[ImagePrediction]:
        """Return the detections of each image in its own pixels."""
        return collect_predictions(
            batch, self.detector.detect(self.detector.features(batch.images)), None, self.class_names
        )

    def checkpoint_info(self) -> CheckpointInfo:
        """Return the description that the task's checkpoints carry."""
        return describe(self.hparams, self.detector.image_size)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write the description of the task into the checkpoint."""
        write_info(self.checkpoint_info(), checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint fits, before Lightning loads it."""
        check_loaded(self, self.checkpoint_info(), checkpoint)

    def configure_optimizers(self) -> Any:
        """Build optimizer and schedule."""
        return build_optimizers(self.optimizer_config, self, self.trainer.max_steps)
