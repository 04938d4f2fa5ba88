"""Stage two, instances (paper section 5): position-sensitive score maps, read in boxes that match an object and in others."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Literal

from dasnet_lightning.functional.instance_targets import SamplingOptions, draw_samples
from dasnet_lightning.functional.losses import LossSum, instance_losses, mean_over_passes
from dasnet_lightning.functional.position_sensitive import read_boxes
from dasnet_lightning.functional.regions import draw_objects, object_regions
from dasnet_lightning.models.instance import InstanceOptions, segment_instances
from dasnet_lightning.nn.heads import PositionSensitiveHead
from dasnet_lightning.tasks.checkpoints import restore_options
from dasnet_lightning.tasks.segmentation import SegmentationTask
from dasnet_lightning.types import Batch, Detections, Prediction, Pyramid


class InstanceTask(SegmentationTask):
    """Trains the decoder for one mask per object; its checkpoints answer class maps too. `network` are the arguments of
    SegmentationTask.

    cells: k, of the k x k position-sensitive cells of a box. subset: a region draws a random non-empty subset of its
    class's boxes, else all of them (the paper). sampling: the boxes that it is trained on. task: tells its checkpoints
    from others; an argument, so that hyper-parameters are arguments and nothing else.
    """

    def __init__(
        self,
        num_classes: int = 21,
        class_names: Sequence[str] = (),
        category_ids: Sequence[int | str] = (),
        cells: int = 7,
        subset: bool = True,
        sampling: SamplingOptions | None = None,
        inference: InstanceOptions | None = None,
        task: Literal["instance"] = "instance",
        **network: Any,
    ) -> None:
        head = partial(PositionSensitiveHead, cells=cells)
        super().__init__(num_classes, class_names, category_ids, head=head, **network)
        self.cells = cells
        self.subset = subset
        self.sampling = restore_options(SamplingOptions, sampling)
        self.inference = restore_options(InstanceOptions, inference)
        self.save_hyperparameters({"sampling": asdict(self.sampling), "inference": asdict(self.inference)})

    def mask_losses(self, pyramid: Pyramid, batch: Batch) -> tuple[Mapping[str, LossSum], int]:
        generators = batch.generators()
        drawn = draw_objects(batch.targets, generators, self.subset, with_mask=False)
        regions = object_regions(batch.targets, drawn)
        if not len(regions):
            nothing = self.learn_nothing(pyramid, regions)
            return {"score": nothing, "mask": nothing}, 0
        samples = draw_samples(batch.targets, drawn, generators, pyramid.size, self.sampling)
        passes = [
            read_boxes(maps, samples.boxes, samples.region_index, samples.grid, pyramid.size, self.cells)
            for maps in self.model.passes(pyramid, regions)
        ]
        losses = [instance_losses(scores, samples) for scores in passes]
        return {name: mean_over_passes([each[name] for each in losses]) for name in losses[0]}, len(regions)

    def answer(
        self, pyramid: Pyramid, detections: Sequence[Detections], sizes: Sequence[tuple[int, int]], given: bool = False
    ) -> tuple[Prediction, ...]:
        return segment_instances(self.model, pyramid, detections, sizes, self.inference, given)
