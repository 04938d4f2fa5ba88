"""Stage two, semantic: with the detector frozen, one class-agnostic decoder learns shapes from the few masks."""

import warnings
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import lightning as L
from torch import Tensor

from dasnet_lightning.detectors.frozen import FrozenDetector
from dasnet_lightning.functional.attention import Rounding
from dasnet_lightning.functional.regions import draw_class_regions, ground_truth_detections, region_labels
from dasnet_lightning.functional.semantic import graph_zero, semantic_loss
from dasnet_lightning.metrics.semantic import SemanticIoU
from dasnet_lightning.models.dasnet import build_dasnet
from dasnet_lightning.models.semantic import SemanticOptions, segment_semantic
from dasnet_lightning.tasks.checkpoints import load_detector
from dasnet_lightning.tasks.optimization import OptimizerConfig, build_optimizers
from dasnet_lightning.types import Batch


class SemanticTask(L.LightningModule):
    """Trains the decoder on masks (paper section 4) and measures mIoU with ground-truth and with detected boxes.

    num_classes counts the background; `class_names` (background first) and the data set's own `category_ids` (by label)
    travel inside the checkpoint.
    detector_checkpoint: stage one's checkpoint, read when training starts; the task's own checkpoints hold the whole
    model. subset: a region draws a random non-empty subset of its class's boxes, else all of them.
    """

    def __init__(
        self,
        num_classes: int = 21,
        class_names: Sequence[str] = (),
        category_ids: Sequence[int | str] = (),
        detector: str = "ssd320_vgg16",
        detector_options: dict[str, Any] | None = None,
        detector_checkpoint: str | None = None,
        decoder: str = "light",
        decoder_options: dict[str, Any] | None = None,
        rounding: Rounding = "cover",
        subset: bool = True,
        optimizer: OptimizerConfig | None = None,
        inference: SemanticOptions | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["optimizer", "inference"])
        self.model = build_dasnet(num_classes, detector, detector_options, decoder, decoder_options, rounding)
        self.num_classes = num_classes
        self.class_names = tuple(class_names)
        self.detector_checkpoint = detector_checkpoint
        self.subset = subset
        self.optimizer_config = optimizer or OptimizerConfig(lr=0.01)
        self.inference = inference or SemanticOptions()
        self.save_hyperparameters({"inference": asdict(self.inference)})
        self.iou_ground_truth = SemanticIoU(num_classes)
        self.iou_detected = SemanticIoU(num_classes)

    def setup(self, stage: str) -> None:
        # lightning warns of every module in evaluation mode; the frozen detector is so on purpose
        warnings.filterwarnings("ignore", ".*module.s. in eval mode at the start of training.*")
        if stage == "fit" and self.detector_checkpoint is not None:
            assert isinstance(self.model.detector, FrozenDetector)
            load_detector(self.model.detector, self.detector_checkpoint)

    def on_fit_start(self) -> None:
        self.train()

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        pyramid = self.model.detector.features(batch.images)
        regions = draw_class_regions(batch.targets, batch.seeds, self.subset)
        loss = graph_zero(self.parameters())
        if len(regions):
            labels = region_labels(batch.targets, regions, pyramid.size)
            loss = loss + semantic_loss(self.model.decode(pyramid, regions), labels)
        self.log("train/loss", loss.detach(), batch_size=len(batch))
        self.log("train/regions", float(len(regions)), batch_size=len(batch))
        return loss

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        batch = batch.select([index for index, target in enumerate(batch.targets) if target.truth is not None])
        if not len(batch):
            return
        pyramid = self.model.detector.features(batch.images)
        detected = self.model.detector.detect(pyramid)
        annotated = [ground_truth_detections(target) for target in batch.targets]
        truth = [target.truth.semantic for target in batch.targets if target.truth is not None]
        sizes = [(class_map.shape[0], class_map.shape[1]) for class_map in truth]
        for boxes, metric in ((annotated, self.iou_ground_truth), (detected, self.iou_detected)):
            maps = segment_semantic(self.model, pyramid, boxes, sizes, self.inference)
            for class_map, true_map in zip(maps, truth, strict=True):
                metric.update(class_map, true_map)

    def on_validation_epoch_end(self) -> None:
        names = self.class_names or [str(label) for label in range(self.num_classes)]
        for kind, metric in (("ground_truth_boxes", self.iou_ground_truth), ("detected_boxes", self.iou_detected)):
            per_class = {f"val/iou_{kind}/{name}": value for name, value in metric.per_class(names).items()}
            self.log_dict({f"val/miou_{kind}": float(metric.compute())} | per_class)
            metric.reset()

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def configure_optimizers(self) -> Any:
        return build_optimizers(self.optimizer_config, self.model, self.trainer.max_steps)
