"""The library's own decoders, trained with the loss of `InstanceTask` on kept features."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dasnet_lightning.functional.attention import Rounding
from dasnet_lightning.functional.box_grids import box_windows_of, prior_channels, sample_attended
from dasnet_lightning.functional.losses import mean_over_ranks
from dasnet_lightning.models.box_scores import Refinement
from dasnet_lightning.nn.decoder.zoom import ZoomDecoder
from dasnet_lightning.tasks.config import NetworkConfig, RecipeConfig
from dasnet_lightning.tasks.instance import InstanceTask
from dasnet_lightning.types import Batch, Detections, Prediction, Pyramid, Regions

from .data import Draw, Study
from .learner import OPTIONS, PLAIN, Extras, Learner


@dataclass(frozen=True)
class OurRecipe:
    """What a row of ours is trained with.

    Attributes:
        decoder: registered name of the decoder.
        attention: whether the features outside of the box are zero; only `zoom` can do without.
        priors: whether the grid knows where its box is; only `zoom` can do without.
        jitter: see `RecipeConfig.box_jitter`.
        boundary: see `RecipeConfig.boundary_weight`.
    """

    decoder: str = "zoom"
    attention: bool = True
    priors: bool = True
    jitter: float = RecipeConfig.box_jitter
    boundary: float = RecipeConfig.boundary_weight


class AblatedZoom(ZoomDecoder):
    """The zoom decoder without attention, without priors, or without both."""

    attention = priors = True

    def forward(self, pyramid: Pyramid, regions: Regions, rounding: Rounding) -> Tensor:
        """See `BoxDecoder.forward`."""
        margin = self.margin
        if not self.attention:  # the window itself is attended to
            regions, margin = replace(regions, boxes=box_windows_of(regions.boxes, margin)), 0.0
        sampled = [
            sample_attended(pyramid.levels[level], regions, pyramid.size, cells, margin, rounding)
            for level, cells in zip(self.levels, self.cells, strict=True)
        ]
        features = self.top(sampled[-1])
        for block, level in zip(self.blocks, reversed(sampled[:-1]), strict=True):
            priors = prior_channels(level.shape[2], self.margin, level.device)
            features = block(features, level, priors if self.priors else torch.zeros_like(priors))
        return features


class Ours(Learner):
    """`InstanceTask` with the frozen detector of the study."""

    def __init__(self, study: Study, recipe: OurRecipe) -> None:
        super().__init__(study)
        options = {key: value for key, value in study.choice.options.items() if key != "backbone_weights"}
        self.task = InstanceTask(
            num_classes=len(study.class_names),
            class_names=study.class_names,
            network=NetworkConfig(study.choice.name, options, recipe.decoder),
            recipe=RecipeConfig(box_jitter=recipe.jitter, boundary_weight=recipe.boundary),
            inference=OPTIONS,
        )
        model = self.task.model
        model.detector = study.detector
        if not (recipe.attention and recipe.priors):
            model.decoder = AblatedZoom(study.detector.out_channels, study.detector.strides)
            model.decoder.attention, model.decoder.priors = recipe.attention, recipe.priors
            model.decoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(self, batch: Batch, draw: Draw) -> Tensor:
        """See `Learner.loss`."""
        pyramid = self.study.train.features.pyramid(draw.indices, draw.mirrored)
        sums, _ = self.task.mask_losses(pyramid, batch)
        return torch.stack(list(mean_over_ranks(sums).values())).sum()

    def predict(self, index: int, detections: Detections, given: bool, extras: Extras = PLAIN) -> Prediction:
        """See `Learner.predict`."""
        val = self.study.val
        pyramid = val.features.pyramid([index], [False])
        refinement = Refinement(
            val.features.pyramid([index], [True]) if extras.flip else None,
            [torch.from_numpy(val.pixels(index))] if extras.guided_filter else None,
        )
        (prediction,) = self.task.predict(pyramid, [detections], [val.records[index].size], given, refinement)
        return prediction
