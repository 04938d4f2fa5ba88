"""Stage two, instances (paper section 5): position-sensitive score maps, read inside boxes."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Literal

from dasnet_lightning.functional.instance_targets import SamplingOptions, draw_samples
from dasnet_lightning.functional.losses import LossSum, instance_losses, mean_over_passes
from dasnet_lightning.functional.position_sensitive import read_boxes
from dasnet_lightning.functional.regions import best_detections, draw_objects, object_regions
from dasnet_lightning.models.box_decoding import decodes_boxes
from dasnet_lightning.models.box_scores import NO_REFINEMENT, Refinement
from dasnet_lightning.models.instance import InstanceOptions, segment_instances
from dasnet_lightning.nn.heads import PositionSensitiveHead
from dasnet_lightning.tasks.config import EvaluationConfig, NetworkConfig, RecipeConfig, restore_options
from dasnet_lightning.tasks.optimization import OptimizerConfig
from dasnet_lightning.tasks.segmentation import SegmentationTask
from dasnet_lightning.tasks.shape_losses import shape_losses
from dasnet_lightning.types import Batch, Detections, Prediction, Pyramid


class InstanceTask(SegmentationTask):
    """Trains the decoder for one mask per object; its predictions include a class map.

    The head makes 2 score maps, inside and outside, for each of the k x k cells of a box. A pixel of a box reads the two
    maps of the cell that it lies in, so that overlapping boxes read different maps at the same place. Training samples
    boxes around each object. Those that match it are positives with its mask; the others are negatives, which teach a low
    instance score.

    A decoder of boxes has no position-sensitive maps: it learns the mask of each object on the grid of its box, and ignores
    `cells`, `subset` and `sampling`.

    Args:
        num_classes: number of classes, background included.
        class_names: background first; kept in checkpoints.
        category_ids: the data set's own id of each label; kept in checkpoints.
        network: detector, decoder and attention.
        recipe: starting weights, and whether the detector trains too.
        evaluation: evaluator and feature cache of this machine; not kept in checkpoints.
        optimizer: optimizer and schedule; default: the paper's SGD with lr 0.01.
        cells: k, cells along each side of a box.
        subset: True draws a random non-empty subset of the class's boxes, False takes all of them, as the paper.
        sampling: how many boxes are sampled around each object, and how they are read.
        inference: thresholds of validation and of `load`.
        task: tells the checkpoints of this task from others. It is an argument because Lightning expects every
            hyper-parameter to be one.
        image_range: values (low, high) that became 0 and 255 in the data set's images of more than 8 bits; kept in
            checkpoints. None if there are none.
    """

    inference: InstanceOptions

    def __init__(
        self,
        num_classes: int = 21,
        class_names: Sequence[str] = (),
        category_ids: Sequence[int | str] = (),
        network: NetworkConfig | None = None,
        recipe: RecipeConfig | None = None,
        evaluation: EvaluationConfig | None = None,
        optimizer: OptimizerConfig | None = None,
        cells: int = 7,
        subset: bool = True,
        sampling: SamplingOptions | None = None,
        inference: InstanceOptions | None = None,
        task: Literal["instance"] = "instance",
        image_range: tuple[float, float] | None = None,
    ) -> None:
        head = partial(PositionSensitiveHead, cells=cells)
        super().__init__(num_classes, class_names, category_ids, network, recipe, evaluation, optimizer, head=head)
        self.cells = cells
        self.subset = subset
        self.sampling = restore_options(SamplingOptions, sampling)
        self.inference = restore_options(InstanceOptions, inference)
        self.save_hyperparameters({"sampling": asdict(self.sampling), "inference": asdict(self.inference)})

    def mask_losses(self, pyramid: Pyramid, batch: Batch) -> tuple[Mapping[str, LossSum], int]:
        """Compute score loss and mask loss of sampled boxes, see `SegmentationTask.mask_losses`.

        Objects without a mask contribute to the score loss alone. A decoder of boxes has only the mask loss.
        """
        if decodes_boxes(self.model):
            return shape_losses(self.model, pyramid, batch, self.recipe, self.zero_mask_loss)
        generators = batch.generators()
        objects = draw_objects(batch.targets, generators, self.subset, with_mask=False)
        regions = object_regions(batch.targets, objects)
        if not len(regions):
            zero = self.zero_mask_loss(pyramid, regions)
            return {"score": zero, "mask": zero}, 0
        samples = draw_samples(batch.targets, objects, generators, pyramid.size, self.sampling)
        scores_by_pass = [
            read_boxes(maps, samples.boxes, samples.region_index, samples.grid, pyramid.size, self.cells)
            for maps in self.model.passes(pyramid, regions)
        ]
        losses = [instance_losses(scores, samples) for scores in scores_by_pass]
        return {name: mean_over_passes([item[name] for item in losses]) for name in losses[0]}, len(regions)

    def select_detections(self, detections: Detections) -> Detections:
        """See `SegmentationTask.select_detections`."""
        return best_detections(detections, self.inference.lowest_score, self.inference.max_detections)

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
        """Predict one mask for each detection, see `SegmentationTask.predict`."""
        return segment_instances(self.model, pyramid, detections, sizes, self.inference, given, refinement)
