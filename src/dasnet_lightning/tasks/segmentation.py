"""Base class of the stage-two tasks: a class-agnostic decoder learns shapes from few masks.

Semantic and instance segmentation share detector, decoder, training loop and validation. They differ in the regions that
they decode, the head, the loss, and in how predictions are assembled.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import lightning as L
import torch
from torch import Tensor

from dasnet_lightning.detectors import portable_options
from dasnet_lightning.distributed import broadcast_buffers, world_size
from dasnet_lightning.errors import ConfigError
from dasnet_lightning.feature_cache.cache import open_feature_cache
from dasnet_lightning.functional.losses import LossSum, graph_zero, mean_over_ranks
from dasnet_lightning.functional.regions import ground_truth_detections
from dasnet_lightning.metrics.box import BoxAP
from dasnet_lightning.models.box_scores import NO_REFINEMENT, Refinement
from dasnet_lightning.models.dasnet import build_dasnet
from dasnet_lightning.models.instance import InstanceOptions
from dasnet_lightning.models.semantic import SemanticOptions
from dasnet_lightning.nn.heads import MapHead
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
from dasnet_lightning.tasks.config import EvaluationConfig, NetworkConfig, RecipeConfig, restore_options
from dasnet_lightning.tasks.evaluation import ValidationMetrics
from dasnet_lightning.tasks.optimization import OptimizerConfig, build_optimizers
from dasnet_lightning.tasks.prediction import predict_images
from dasnet_lightning.tasks.step_helpers import (
    average_values,
    build_refinement,
    has_active_sync_batchnorm,
    seed_global_draws,
    select_logged,
    silence_warnings,
)
from dasnet_lightning.types import Batch, Detections, Images, Loss, Prediction, Pyramid, Regions


class SegmentationTask(L.LightningModule, ABC):
    """Trains decoder and head on masks; measures mIoU and mask AP with ground-truth and with detected boxes.

    The detector is frozen unless `recipe.joint` is set. Checkpoints hold the whole model, so that a trained stage two
    needs no other file. Each subclass sets `inference`.

    Args:
        num_classes: number of classes, background included.
        class_names: background first; kept in checkpoints.
        category_ids: the data set's own id of each label; kept in checkpoints.
        network: detector, decoder and attention. A mapping is accepted, here and in the next two.
        recipe: starting weights, and whether the detector trains too.
        evaluation: evaluator and feature cache of this machine; not kept in checkpoints.
        optimizer: optimizer and schedule; default: the paper's SGD with lr 0.01. Not kept as a hyper-parameter.
        head: builds the head for the decoder's number of channels. Each task passes its own.
    """

    inference: SemanticOptions | InstanceOptions

    def __init__(
        self,
        num_classes: int = 21,
        class_names: Sequence[str] = (),
        category_ids: Sequence[int | str] = (),
        network: NetworkConfig | None = None,
        recipe: RecipeConfig | None = None,
        evaluation: EvaluationConfig | None = None,
        optimizer: OptimizerConfig | None = None,
        *,
        head: Callable[[int], MapHead],
    ) -> None:
        super().__init__()
        # collects the arguments of the subclass too
        self.save_hyperparameters(ignore=["optimizer", "inference", "head", "evaluation"])
        network, recipe = restore_options(NetworkConfig, network), restore_options(RecipeConfig, recipe)
        evaluation = restore_options(EvaluationConfig, evaluation)
        if recipe.joint and evaluation.feature_cache is not None:
            raise ConfigError("feature_cache needs a frozen detector, but joint training changes it: drop one of them")
        self.feature_cache = open_feature_cache(evaluation.feature_cache, evaluation.feature_cache_gb)
        options = network.detector_options
        if recipe.detector_checkpoint is not None:
            options = without_weights(options)
        self.model = build_dasnet(
            num_classes, **vars(replace(network, detector_options=options)), head=head, frozen=not recipe.joint
        )
        portable = portable_options(self.model.detector, network.detector_options)
        self.save_hyperparameters(
            {"network": {**vars(network), "detector_options": portable}, "recipe": dict(vars(recipe))}
        )
        self.num_classes, self.class_names = num_classes, tuple(class_names)
        self.recipe = recipe
        self.optimizer_config = optimizer or OptimizerConfig(lr=0.01)
        self.measured = ValidationMetrics(num_classes, evaluation.coco_evaluator)
        self.box_ap = BoxAP(evaluation.coco_evaluator)
        self.metrics: dict[str, float] = {}  # all values of the last validation; the log holds some of them
        self.measure_boxes = recipe.joint
        self.errors: dict[str, Any] = {}  # the sorted errors of the last validation, by kind of boxes

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, *args: Any, **kwargs: Any) -> Self:  # type: ignore[override]
        """Build the task of a checkpoint of any format, see `LightningModule.load_from_checkpoint`.

        Lightning passes on only the arguments of today; formats 0 and 1 held those of `network` and `recipe` flat.
        """
        saved = read_checkpoint(checkpoint_path)["hyper_parameters"]
        upgraded = {group: saved[group] for group in ("network", "recipe") if group in saved}
        kwargs.pop("weights_only", None)  # a checkpoint is never read in any other way
        return super().load_from_checkpoint(checkpoint_path, *args, weights_only=True, **upgraded | kwargs)  # type: ignore[misc]

    @abstractmethod
    def mask_losses(self, pyramid: Pyramid, batch: Batch) -> tuple[Mapping[str, LossSum], int]:
        """Draw regions from a batch, decode them, and compute the losses of decoder and head.

        The loss of an object without a mask must not depend on what its mask would be.

        Returns:
            The losses by name, and the number of regions. The names are the same for every batch, because other ranks may
            have regions: a batch without any returns `zero_mask_loss` under each name.
        """

    @abstractmethod
    def predict(
        self,
        pyramid: Pyramid,
        detections: Sequence[Detections],
        sizes: Sequence[tuple[int, int]],
        given: bool = False,
        refinement: Refinement = NO_REFINEMENT,
    ) -> tuple[Prediction, ...]:
        """Predict masks and class map of each image.

        Args:
            pyramid: features of the images.
            detections: boxes of each image, in input pixels.
            sizes: the (H, W) of each image, the size of its masks and class map.
            given: the boxes are given: all of them count.
            refinement: mirrored features and image pixels, if the options of inference ask for them.
        """

    @abstractmethod
    def select_detections(self, detections: Detections) -> Detections:
        """Return the detections of an image that `predict` segments, in the order of its prediction."""

    @property
    @abstractmethod
    def score_threshold(self) -> float:
        """Lowest detector score of the detections in the class map."""

    def setup(self, stage: str) -> None:
        """Load the weights that the recipe names, when a training starts."""
        self.measured.forget_floors()
        silence_warnings()
        if stage != "fit":
            return
        if self.recipe.detector_checkpoint is not None:
            load_detector(self.model.detector, self.recipe.detector_checkpoint, self.class_names)
        if (initial := self.recipe.initial_checkpoint) is not None:
            content = read_checkpoint(initial)
            check_fits(content, self.checkpoint_info(), initial, whole=False)
            load_network(self.model, sub_state(content["state_dict"], "model."), initial, content)

    def on_fit_start(self) -> None:
        """Put the task into training mode; a frozen detector stays in evaluation mode."""
        self.train()

    def on_train_end(self) -> None:
        """Give all ranks the buffers of rank 0."""
        broadcast_buffers(self)

    def zero_mask_loss(self, pyramid: Pyramid, regions: Regions) -> LossSum:
        """Return the zero loss of a batch without regions.

        Under SyncBatchNorm the decoder still runs, on an empty batch, because the other ranks wait for its statistics.
        """
        total = torch.zeros((), device=regions.boxes.device)
        if has_active_sync_batchnorm(self.model.decoder):
            total = torch.stack([logits.sum() for logits in self.model.passes(pyramid, regions)]).sum()
        return LossSum(total, torch.zeros_like(total, dtype=torch.int64))

    def losses(self, batch: Batch) -> tuple[Mapping[str, Loss], int]:
        """Return the losses of a batch by name, and the number of regions that were drawn from it."""
        seed_global_draws(batch)
        pyramid = self.model.detector.features(batch.images)
        sums, num_regions = self.mask_losses(pyramid, batch)
        losses = {f"{name}_loss": loss for name, loss in mean_over_ranks(sums).items()}
        if self.recipe.joint:
            box_losses = self.model.detector.losses(pyramid, batch.targets)
            losses |= {f"box_{name}_loss": self.recipe.box_loss_weight * loss for name, loss in box_losses.items()}
        return losses, num_regions

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Return the sum of the losses; every trainable parameter gets a gradient, if only zero, as DDP needs."""
        losses, num_regions = self.losses(batch)
        loss = torch.stack([graph_zero(self.parameters()), *losses.values()]).sum()
        regions_of_all_ranks = torch.full_like(loss, float(num_regions * world_size()))  # averaged below
        logged = {f"train/{name}": value for name, value in losses.items()}
        logged |= {"train/loss": loss, "train/regions": regions_of_all_ranks}
        self.log_dict(average_values(logged), batch_size=len(batch))
        return loss

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Update the metrics with the images that have a ground truth; in joint training also the box AP."""
        if self.measure_boxes:
            detections = self.model.detector.detect(self.model.detector.features(batch.images))
            self.box_ap.update(batch.image_ids, detections, batch.targets)
        batch = batch.select([index for index, target in enumerate(batch.targets) if target.truth is not None])
        if not len(batch):
            return
        pyramid = self._validation_features(batch.images)
        annotated = tuple(ground_truth_detections(target) for target in batch.targets)
        true_maps = [target.truth.semantic for target in batch.targets if target.truth is not None]
        sizes = [(true_map.shape[0], true_map.shape[1]) for true_map in true_maps]
        refinement = build_refinement(self.inference, self._validation_features, batch.images, sizes)
        sources = (annotated, self.model.detector.detect(pyramid))
        for metrics, boxes in zip(self.measured, sources, strict=True):
            given = boxes is annotated
            predictions = self.predict(pyramid, boxes, sizes, given, refinement)
            selected = boxes if given else [self.select_detections(item) for item in boxes]
            metrics.update(batch, selected, predictions, pyramid.size, 0.0 if given else self.score_threshold)

    def _validation_features(self, images: Images) -> Pyramid:
        """Return features of images that every validation sees unchanged, so that they can be cached."""
        if self.feature_cache is None:
            return self.model.detector.features(images)
        return self.feature_cache.features(self.model.detector, images)

    def on_validation_epoch_end(self) -> None:
        """Compute all metrics into `metrics`, log some of them, and reset."""
        names = self.class_names or tuple(str(label) for label in range(self.num_classes))
        self.metrics, floors = {}, dict[str, float]()
        for metrics in self.measured:
            self.metrics |= metrics.compute(names)
            floors |= metrics.compute_floors(names)
            self.errors[metrics.source] = metrics.compute_errors()
            metrics.reset()
        trainer = self._trainer  # None without Lightning, as in a benchmark
        if self.recipe.joint or (trainer and trainer.sanity_checking):
            self.measured.forget_floors()
        if self.measure_boxes:
            self.metrics |= {f"val/box_{name}": value for name, value in self.box_ap.compute(names).items()}
            self.box_ap.reset()
        fits = trainer and trainer.state.fn == "fit"  # then the floors do not change and are not logged
        self.log_dict(select_logged(self.metrics if fits else self.metrics | floors))
        self.metrics |= floors

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end
    predict_step = predict_images

    def checkpoint_info(self) -> CheckpointInfo:
        """Return the description that the task's checkpoints carry."""
        return describe(self.hparams, self.model.detector.image_size)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write the description of the task into the checkpoint."""
        write_info(self.checkpoint_info(), checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint fits, before Lightning loads it."""
        check_loaded(self, self.checkpoint_info(), checkpoint)

    def configure_optimizers(self) -> Any:
        """Build optimizer and schedule; the detector, if it trains, learns at `optimizer.detector_rate`."""
        return build_optimizers(self.optimizer_config, self.model, self.trainer.max_steps, slow=self.model.detector)
