"""Stage two, semantic (paper section 4): one region for each class, two channels, cross-entropy of each pixel."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

from dasnet_lightning.functional.losses import LossSum, mean_over_passes, semantic_loss
from dasnet_lightning.functional.regions import draw_objects, object_regions, region_labels
from dasnet_lightning.models.dasnet import to_pixels
from dasnet_lightning.models.local_decoding import decodes_locally
from dasnet_lightning.models.semantic import SemanticOptions, segment_semantic, window_loss
from dasnet_lightning.nn.heads import SemanticHead
from dasnet_lightning.tasks.checkpoints import restore_options
from dasnet_lightning.tasks.segmentation import SegmentationTask
from dasnet_lightning.types import Batch, Detections, Prediction, Pyramid


class SemanticTask(SegmentationTask):
    """Trains the decoder on masks for a class map of each image. `network` are the arguments of SegmentationTask.

    subset: a region draws a random non-empty subset of its class's boxes, else all of them. task: tells its checkpoints
    from others; an argument, so that hyper-parameters are arguments and nothing else.
    """

    def __init__(
        self,
        num_classes: int = 21,
        class_names: Sequence[str] = (),
        category_ids: Sequence[int | str] = (),
        subset: bool = True,
        inference: SemanticOptions | None = None,
        task: Literal["semantic"] = "semantic",
        **network: Any,
    ) -> None:
        super().__init__(num_classes, class_names, category_ids, head=SemanticHead, **network)
        self.subset = subset
        self.inference = restore_options(SemanticOptions, inference)
        self.save_hyperparameters({"inference": asdict(self.inference)})

    def mask_losses(self, pyramid: Pyramid, batch: Batch) -> tuple[Mapping[str, LossSum], int]:
        drawn = draw_objects(batch.targets, batch.generators(), self.subset)
        regions = object_regions(batch.targets, drawn)
        if not len(regions):
            return {"mask": self.learn_nothing(pyramid, regions)}, 0
        labels = region_labels(batch.targets, regions, pyramid.size)
        if decodes_locally(self.model):
            return {"mask": window_loss(self.model, pyramid, regions, labels)}, len(regions)
        passes = [to_pixels(logits, pyramid.size) for logits in self.model.passes(pyramid, regions)]
        return {"mask": mean_over_passes([semantic_loss(logits, labels) for logits in passes])}, len(regions)

    def answer(
        self, pyramid: Pyramid, detections: Sequence[Detections], sizes: Sequence[tuple[int, int]], given: bool = False
    ) -> tuple[Prediction, ...]:
        return segment_semantic(self.model, pyramid, detections, sizes, self.inference, given)
