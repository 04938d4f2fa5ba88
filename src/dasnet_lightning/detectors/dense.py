"""RetinaNet and FCOS: torchvision's models work on the given pyramid, only their `forward` is not used.

Their heads, anchors, matching, losses and selection of boxes are torchvision's own. The pyramid begins with ResNet's raw
level at stride 4, which is for the decoder. Box arithmetic stays in float32 under autocast.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead

from dasnet_lightning.detectors.fpn import FPN
from dasnet_lightning.detectors.layers import IMAGENET_MEAN, IMAGENET_STD
from dasnet_lightning.detectors.truth import has_area, inside_ignored, split_ignored
from dasnet_lightning.types import Detections, Images, Loss, Pyramid, Target

LOSSES = {"classification": "classification", "bbox_regression": "box", "bbox_ctrness": "centerness"}
CERTAIN = -1e4  # the logit of an answer that costs nothing at a background anchor


class IgnoringRetinaNetHead(RetinaNetHead):
    """A head for which anchors mostly inside an ignored object are not negatives."""

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        matched = [
            index.masked_fill((index < 0) & inside_ignored(boxes, target["ignored"]), Matcher.BETWEEN_THRESHOLDS)
            for index, boxes, target in zip(matched_idxs, anchors, targets, strict=True)
        ]
        return super().compute_loss(targets, head_outputs, anchors, matched)


class IgnoringFCOSHead(FCOSHead):
    """A head for which points mostly inside an ignored object are not negatives; torchvision's knows no third kind."""

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        ignored = torch.stack(
            [
                (index < 0) & inside_ignored(boxes, target["ignored"])
                for index, boxes, target in zip(matched_idxs, anchors, targets, strict=True)
            ]
        )
        logits = head_outputs["cls_logits"].masked_fill(ignored[..., None], CERTAIN)
        return super().compute_loss(targets, {**head_outputs, "cls_logits": logits}, anchors, matched_idxs)


class LevelRetinaNet(RetinaNet):
    """RetinaNet whose loss takes the same arguments as that of FCOS."""

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        num_anchors_per_level: list[int],
    ) -> dict[str, Tensor]:
        return super().compute_loss(targets, head_outputs, anchors)


class DenseDetector(nn.Module):
    """One-stage detector over a feature pyramid: the answers of torchvision's `model`, from a pyramid made before."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: LevelRetinaNet | FCOS,
        num_classes: int,
        image_size: tuple[int, int],
        detections_per_image: int,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.model = model
        self.num_classes = num_classes
        self.image_size = image_size
        self.detections_per_image = detections_per_image
        self.strides = self.backbone.strides
        self.out_channels = self.backbone.out_channels
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    @property
    def backbone(self) -> FPN:
        return self.model.backbone

    def features(self, images: Images) -> Pyramid:
        """Normalise the images (RGB, 0..1) and run the backbone once."""
        levels = self.backbone((images - self.mean) / self.std)
        return Pyramid(levels=levels, strides=self.strides, size=(images.shape[-2], images.shape[-1]))

    def predict(self, pyramid: Pyramid) -> tuple[dict[str, Tensor], list[Tensor], list[int]]:
        """(torchvision's head outputs in float32, the anchors of each image, how many anchors each level has)."""
        levels = list(pyramid.levels[self.backbone.raw_levels :])
        outputs = {key: value.float() for key, value in self.model.head(levels).items()}
        number = len(levels[0])
        images = ImageList(torch.empty(number, 3, *pyramid.size, device="meta"), [pyramid.size] * number)
        cells = [torch.empty(level.shape[-2:], device=level.device) for level in levels]
        per_cell = self.model.anchor_generator.num_anchors_per_location()
        counts = [cell.numel() * anchors for cell, anchors in zip(cells, per_cell, strict=True)]
        return outputs, self.model.anchor_generator(images, cells), counts

    @torch.no_grad()
    def detect(self, pyramid: Pyramid) -> tuple[Detections, ...]:
        """Boxes in input pixels, clipped to the image, after NMS, best first; one entry for each image."""
        outputs, anchors, counts = self.predict(pyramid)
        outputs["cls_logits"][..., 0] = -torch.inf  # torchvision gives the background a class that is never right
        answers = self.model.postprocess_detections(
            {key: list(value.split(counts, dim=1)) for key, value in outputs.items()},
            [list(boxes.split(counts)) for boxes in anchors],
            [pyramid.size] * len(anchors),
        )
        return tuple(self._limit(answer) for answer in answers)

    def _limit(self, answer: dict[str, Tensor]) -> Detections:
        """The best boxes of one image, without what is left of those outside it."""
        kept = has_area(answer["boxes"]).nonzero()[: self.detections_per_image, 0]
        return Detections(boxes=answer["boxes"][kept], labels=answer["labels"][kept], scores=answer["scores"][kept])

    def losses(self, pyramid: Pyramid, targets: Sequence[Target]) -> Mapping[str, Loss]:
        """Focal loss of the classes, GIoU loss of the boxes; of FCOS the centerness too."""
        outputs, anchors, counts = self.predict(pyramid)
        truth = [split_ignored(target) for target in targets]
        losses = self.model.compute_loss(truth, outputs, anchors, counts)
        return {LOSSES[key]: value for key, value in losses.items()}
