"""Mask losses of a decoder of boxes, the same for both tasks: the shape of each object on the grid of its box.

Losses of objects without a mask belong here too: they need samples of their own, and a name of their own.
"""

from collections.abc import Callable, Mapping

from dasnet_lightning.functional.losses import LossSum, boundary_loss
from dasnet_lightning.functional.shape_targets import draw_shapes, shape_labels
from dasnet_lightning.models.dasnet import DASNet
from dasnet_lightning.nn.decoder import BoxDecoder
from dasnet_lightning.tasks.config import RecipeConfig
from dasnet_lightning.types import Batch, Pyramid, Regions


def shape_losses(
    model: DASNet,
    pyramid: Pyramid,
    batch: Batch,
    recipe: RecipeConfig,
    zero_loss: Callable[[Pyramid, Regions], LossSum],
) -> tuple[Mapping[str, LossSum], int]:
    """Compute the mask loss of the objects with a mask, see `SegmentationTask.mask_losses`.

    Args:
        model: a network with a decoder of boxes.
        pyramid: features of the batch.
        batch: the images with their targets.
        recipe: jitter of the boxes and weight of the boundary.
        zero_loss: the loss of a batch without objects, `SegmentationTask.zero_mask_loss`.
    """
    assert isinstance(model.decoder, BoxDecoder)
    samples = draw_shapes(batch.targets, batch.generators(), pyramid.size, recipe.box_jitter)
    if not len(samples.regions):
        return {"mask": zero_loss(pyramid, samples.regions)}, 0
    logits = model.score(pyramid, samples.regions)[:, 0].float()
    labels, known = shape_labels(batch.targets, samples, pyramid.size, logits.shape[-1], model.decoder.margin)
    return {"mask": boundary_loss(logits, labels, known, recipe.boundary_weight)}, len(samples.regions)
