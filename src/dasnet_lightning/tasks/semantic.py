"""Stage two, semantic (paper section 4): one region for each class, two channels, cross-entropy of each pixel."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Literal

from dasnet_lightning.functional.losses import LossSum, mean_over_passes, semantic_loss
from dasnet_lightning.functional.regions import confident_detections, draw_objects, object_regions, region_labels
from dasnet_lightning.models.box_decoding import decodes_boxes
from dasnet_lightning.models.box_scores import NO_REFINEMENT, Refinement
from dasnet_lightning.models.dasnet import to_pixels
from dasnet_lightning.models.local_decoding import decodes_locally
from dasnet_lightning.models.semantic import SemanticOptions, segment_semantic, window_loss
from dasnet_lightning.nn.heads import SemanticHead
from dasnet_lightning.tasks.config import EvaluationConfig, NetworkConfig, RecipeConfig, restore_options
from dasnet_lightning.tasks.optimization import OptimizerConfig
from dasnet_lightning.tasks.segmentation import SegmentationTask
from dasnet_lightning.tasks.shape_losses import shape_losses
from dasnet_lightning.types import Batch, Detections, Prediction, Pyramid


class SemanticTask(SegmentationTask):
    """Trains the decoder to separate a class from everything else inside the boxes of that class.

    A training step draws one class of each image that has masks. The boxes of that class form one region: features
    outside them are set to zero (attention), and the decoder labels each pixel as the class or as background. The decoder
    never sees which class it is, so that masks of one class also teach the others. Inference decodes one region for each
    detected class and merges them into a class map. A decoder of boxes learns the mask of each object alone, and a region is
    the best of its boxes; it ignores `subset`.

    Args:
        num_classes: number of classes, background included.
        class_names: background first; kept in checkpoints.
        category_ids: the data set's own id of each label; kept in checkpoints.
        network: detector, decoder and attention.
        recipe: starting weights, and whether the detector trains too.
        evaluation: evaluator and feature cache of this machine; not kept in checkpoints.
        optimizer: optimizer and schedule; default: the paper's SGD with lr 0.01.
        subset: True draws a random non-empty subset of the class's boxes, False takes all of them.
        inference: thresholds of validation and of `load`.
        task: tells the checkpoints of this task from others. It is an argument because Lightning expects every
            hyper-parameter to be one.
        image_range: values (low, high) that became 0 and 255 in the data set's images of more than 8 bits; kept in
            checkpoints. None if there are none.
    """

    inference: SemanticOptions

    def __init__(
        self,
        num_classes: int = 21,
        class_names: Sequence[str] = (),
        category_ids: Sequence[int | str] = (),
        network: NetworkConfig | None = None,
        recipe: RecipeConfig | None = None,
        evaluation: EvaluationConfig | None = None,
        optimizer: OptimizerConfig | None = None,
        subset: bool = True,
        inference: SemanticOptions | None = None,
        task: Literal["semantic"] = "semantic",
        image_range: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(
            num_classes, class_names, category_ids, network, recipe, evaluation, optimizer, head=SemanticHead
        )
        self.subset = subset
        self.inference = restore_options(SemanticOptions, inference)
        self.save_hyperparameters({"inference": asdict(self.inference)})

    def mask_losses(self, pyramid: Pyramid, batch: Batch) -> tuple[Mapping[str, LossSum], int]:
        """Compute the cross-entropy over the pixels of one class per image, see `SegmentationTask.mask_losses`."""
        if decodes_boxes(self.model):
            return shape_losses(self.model, pyramid, batch, self.recipe, self.zero_mask_loss)
        objects = draw_objects(batch.targets, batch.generators(), self.subset)
        regions = object_regions(batch.targets, objects)
        if not len(regions):
            return {"mask": self.zero_mask_loss(pyramid, regions)}, 0
        labels = region_labels(batch.targets, regions, pyramid.size)
        if decodes_locally(self.model):  # the same loss, decoded only around the boxes
            return {"mask": window_loss(self.model, pyramid, regions, labels)}, len(regions)
        logits_by_pass = [to_pixels(logits, pyramid.size) for logits in self.model.passes(pyramid, regions)]
        return {"mask": mean_over_passes([semantic_loss(logits, labels) for logits in logits_by_pass])}, len(regions)

    def select_detections(self, detections: Detections) -> Detections:
        """See `SegmentationTask.select_detections`."""
        return confident_detections(detections, self.inference.score_threshold, self.inference.max_classes)

    @property
    def score_threshold(self) -> float:
        """See `SegmentationTask.score_threshold`."""
        return self.inference.score_threshold

    def predict(
        self,
        pyramid: Pyramid,
        detections: Sequence[Detections],
        sizes: Sequence[tuple[int, int]],
        given: bool = False,
        refinement: Refinement = NO_REFINEMENT,
    ) -> tuple[Prediction, ...]:
        """Predict with one region for each class, see `SegmentationTask.predict`."""
        return segment_semantic(self.model, pyramid, detections, sizes, self.inference, given, refinement)
