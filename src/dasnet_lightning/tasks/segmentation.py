"""Stage two: with the detector frozen, one class-agnostic decoder learns shapes from the few masks.

Everything that semantic and instance segmentation share; they differ in the regions that they draw, the head, the loss,
and how scores are assembled into an answer.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from dasnet_lightning.detectors import portable_options
from dasnet_lightning.distributed import broadcast_buffers, world_size
from dasnet_lightning.errors import ConfigError
from dasnet_lightning.feature_cache.cache import open_feature_cache
from dasnet_lightning.functional.attention import Rounding
from dasnet_lightning.functional.losses import LossSum, graph_zero, mean_over_ranks
from dasnet_lightning.functional.regions import ground_truth_detections
from dasnet_lightning.metrics.box import BoxAP
from dasnet_lightning.metrics.coco_evaluators import Evaluator
from dasnet_lightning.metrics.instance import InstanceAP
from dasnet_lightning.metrics.semantic import SemanticIoU
from dasnet_lightning.models.dasnet import build_dasnet
from dasnet_lightning.nn.heads import Head
from dasnet_lightning.tasks.checkpoint_info import CheckpointInfo, check_fits, describe
from dasnet_lightning.tasks.checkpoints import (
    check_loaded,
    load_detector,
    load_network,
    read_checkpoint,
    sub_state,
    without_weights,
    write_info,
)
from dasnet_lightning.tasks.optimization import OptimizerConfig, build_optimizers
from dasnet_lightning.tasks.step_helpers import (
    average_values,
    has_active_sync_batchnorm,
    seed_global_draws,
    select_logged,
    silence_sync_dist_warning,
)
from dasnet_lightning.types import Batch, Detections, Images, Loss, Prediction, Pyramid, Regions

OF_A_MACHINE = ("feature_cache", "feature_cache_gb", "coco_evaluator")  # arguments that are no hyper-parameters
BOX_KINDS = ("ground_truth_boxes", "detected_boxes")


class SegmentationTask(L.LightningModule, ABC):
    """Trains decoder and head on masks; measures mIoU and mask AP with ground-truth and with detected boxes.

    num_classes counts the background; `class_names` (background first) and the data set's own `category_ids` (by label)
    travel inside the checkpoint.
    detector_checkpoint: stage one's checkpoint, read when training starts; the task's own checkpoints hold the whole
    model. initial_checkpoint: a checkpoint of the same task to start from. joint: the detector learns too, from its own
    losses (times `box_loss_weight`) and from what comes back through the attention, at `optimizer.detector_rate` times
    the rate; its box AP is then measured as well (paper section 1: possible, and no gain for the authors).
    soft_attention: see DASNet; both decodes are trained. feature_cache: a folder that keeps the frozen detector's features
    of the images that are validated, whose views are fixed, of at most feature_cache_gb * 1e9 bytes. coco_evaluator: the
    program that computes COCO's AP, the same from each (metrics.coco_evaluators). Both are a machine's own, so no
    hyper-parameters. head: makes the head for the decoder's channels; the final class chooses it.
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
        soft_attention: float = 0.0,
        initial_checkpoint: str | None = None,
        joint: bool = False,
        box_loss_weight: float = 1.0,
        optimizer: OptimizerConfig | None = None,
        feature_cache: str | None = None,
        feature_cache_gb: float = 10.0,
        coco_evaluator: Evaluator = "built-in",
        *,
        head: Callable[[int], Head],
    ) -> None:
        super().__init__()
        # called here, lightning also collects the arguments of the final class
        self.save_hyperparameters(ignore=["optimizer", "inference", "head", *OF_A_MACHINE])
        if joint and feature_cache is not None:
            raise ConfigError("feature_cache is for a frozen detector, joint training moves it: leave one of them out")
        self.feature_cache = open_feature_cache(feature_cache, feature_cache_gb)
        options = detector_options if detector_checkpoint is None else without_weights(detector_options)
        self.model = build_dasnet(
            num_classes, detector, options, decoder, decoder_options, rounding, head, not joint, soft_attention
        )
        self.save_hyperparameters({"detector_options": portable_options(self.model.detector, detector_options)})
        self.num_classes = num_classes
        self.class_names = tuple(class_names)
        self.detector_checkpoint = detector_checkpoint
        self.initial_checkpoint = initial_checkpoint
        self.joint = joint
        self.box_loss_weight = box_loss_weight
        self.optimizer_config = optimizer or OptimizerConfig(lr=0.01)
        self.iou = nn.ModuleDict({kind: SemanticIoU(num_classes) for kind in BOX_KINDS})
        self.mask_ap = {kind: InstanceAP(coco_evaluator) for kind in BOX_KINDS}
        self.box_ap = BoxAP(coco_evaluator)
        self.metrics: dict[str, float] = {}  # all of the last validation

    @abstractmethod
    def mask_losses(self, pyramid: Pyramid, batch: Batch) -> tuple[Mapping[str, LossSum], int]:
        """What the decoder pays for the regions that it draws from a batch, by name, and how many regions that are.

        The names are always the same, also where no region can be drawn (`learn_nothing`): other processes may have some.
        The loss of an object without a mask must not depend on what a mask would say.
        """

    @abstractmethod
    def answer(
        self, pyramid: Pyramid, detections: Sequence[Detections], sizes: Sequence[tuple[int, int]], given: bool = False
    ) -> tuple[Prediction, ...]:
        """Masks and class map of each image at its size, for boxes in input pixels; all boxes count if `given`."""

    def setup(self, stage: str) -> None:
        # lightning warns of every module in evaluation mode; the frozen detector is so on purpose
        warnings.filterwarnings("ignore", ".*module.s. in eval mode at the start of training.*")
        silence_sync_dist_warning()
        if stage != "fit":
            return
        if self.detector_checkpoint is not None:
            load_detector(self.model.detector, self.detector_checkpoint, self.class_names)
        if self.initial_checkpoint is not None:
            content = read_checkpoint(self.initial_checkpoint)
            check_fits(content, self.checkpoint_info(), self.initial_checkpoint, whole=False)
            load_network(self.model, sub_state(content["state_dict"], "model."), self.initial_checkpoint, content)

    def on_fit_start(self) -> None:
        self.train()

    def on_train_end(self) -> None:
        broadcast_buffers(self)

    def learn_nothing(self, pyramid: Pyramid, regions: Regions) -> LossSum:
        """The loss of a batch without regions. Under SyncBatchNorm the decoder runs on nothing: the others wait for it."""
        total = torch.zeros((), device=regions.boxes.device)
        decoder = self.model.decoder
        if has_active_sync_batchnorm(decoder):
            total = torch.stack([logits.sum() for logits in self.model.passes(pyramid, regions)]).sum()
        return LossSum(total, torch.zeros_like(total, dtype=torch.int64))

    def losses(self, batch: Batch) -> tuple[Mapping[str, Loss], int]:
        """What is paid for a batch, by name, and how many regions were drawn from it."""
        seed_global_draws(batch)
        pyramid = self.model.detector.features(batch.images)
        sums, regions = self.mask_losses(pyramid, batch)
        losses = {f"{name}_loss": loss for name, loss in mean_over_ranks(sums).items()}
        if self.joint:
            boxes = self.model.detector.losses(pyramid, batch.targets)
            losses |= {f"box_{name}_loss": self.box_loss_weight * loss for name, loss in boxes.items()}
        return losses, regions

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        losses, regions = self.losses(batch)
        loss = torch.stack([graph_zero(self.parameters()), *losses.values()]).sum()
        drawn = torch.full_like(loss, float(regions * world_size()))  # those of all processes, once averaged
        named = {f"train/{name}": value for name, value in losses.items()}
        self.log_dict(average_values({**named, "train/loss": loss, "train/regions": drawn}), batch_size=len(batch))
        return loss

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        if self.joint:
            found = self.model.detector.detect(self.model.detector.features(batch.images))
            self.box_ap.update(batch.image_ids, found, batch.targets)
        batch = batch.select([index for index, target in enumerate(batch.targets) if target.truth is not None])
        if not len(batch):
            return
        pyramid = self._features_of_fixed(batch.images)
        annotated = tuple(ground_truth_detections(target) for target in batch.targets)
        truth = [target.truth.semantic for target in batch.targets if target.truth is not None]
        sizes = [(class_map.shape[0], class_map.shape[1]) for class_map in truth]
        for kind, boxes in zip(BOX_KINDS, (annotated, self.model.detector.detect(pyramid)), strict=True):
            predictions = self.answer(pyramid, boxes, sizes, given=kind == "ground_truth_boxes")
            self.mask_ap[kind].update(batch.image_ids, predictions, batch.targets, pyramid.size)
            for prediction, true_map in zip(predictions, truth, strict=True):
                self._iou(kind).update(prediction.semantic, true_map)

    def _features_of_fixed(self, images: Images) -> Pyramid:
        """The pyramid of images that come again as they are."""
        if self.feature_cache is None:
            return self.model.detector.features(images)
        return self.feature_cache.features(self.model.detector, images)

    def on_validation_epoch_end(self) -> None:
        names = self.class_names or tuple(str(label) for label in range(self.num_classes))
        self.metrics = {}
        for kind in BOX_KINDS:
            iou, mask_ap = self._iou(kind), self.mask_ap[kind]
            figures = dict(iou.by_class(names)) | dict(mask_ap.compute(names))
            self.metrics |= {_name(key, kind): value for key, value in figures.items()}
            iou.reset()
            mask_ap.reset()
        if self.joint:
            self.metrics |= {f"val/box_{name}": value for name, value in self.box_ap.compute(names).items()}
            self.box_ap.reset()
        self.log_dict(select_logged(self.metrics))

    def _iou(self, kind: str) -> SemanticIoU:
        metric = self.iou[kind]
        assert isinstance(metric, SemanticIoU)
        return metric

    def test_step(self, batch: Batch, batch_index: int) -> None:
        self.validation_step(batch, batch_index)

    def on_test_epoch_end(self) -> None:
        self.on_validation_epoch_end()

    def checkpoint_info(self) -> CheckpointInfo:
        return describe(self.hparams, self.model.detector.image_size)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        write_info(self.checkpoint_info(), checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_loaded(self, self.checkpoint_info(), checkpoint)

    def configure_optimizers(self) -> Any:
        return build_optimizers(self.optimizer_config, self.model, self.trainer.max_steps, slow=self.model.detector)


def _name(figure: str, kind: str) -> str:
    """val/FIGURE_KIND, or val/FIGURE_KIND/CLASS."""
    figure, slash, class_name = figure.partition("/")
    return f"val/{figure}_{kind}{slash}{class_name}"
