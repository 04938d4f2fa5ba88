"""The rivals on the same frozen backbone: crops that are encoded again, Mask R-CNN's mask head, semantic heads."""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign, roi_align

from dasnet_lightning.data.dataset import paint_semantic
from dasnet_lightning.detectors.layers import IMAGENET_MEAN
from dasnet_lightning.functional.box_grids import box_windows_of, prior_channels
from dasnet_lightning.functional.boxes import pixel_windows
from dasnet_lightning.functional.losses import boundary_loss
from dasnet_lightning.functional.shape_targets import ShapeSamples, draw_shapes, shape_labels
from dasnet_lightning.nn.decoder.zoom import ZoomDecoder
from dasnet_lightning.nn.heads import ShapeHead
from dasnet_lightning.tasks.config import RecipeConfig
from dasnet_lightning.types import VOID, Batch, Detections, Prediction, Pyramid, Target

from .budgets import MaskedObjects
from .data import Draw, Photographs, Study
from .learner import PLAIN, Extras, GridLearner, Learner, empty_prediction, select_detections

CROP = 128  # pixels of a side
CROPS_AT_ONCE = 32
ROI = 14  # cells of a side, as torchvision
LEVELS = 4  # strides 4 to 32
FINEST = 4  # pixels of a crop for each cell of the grid
REDUCED = 64  # channels of each level before a semantic head
LABEL_STRIDE = 4
ATROUS_RATES = (3, 6, 9)  # torchvision's 12, 24 and 36 are for maps three times as large


def mean_loss(
    logits: Tensor, samples: ShapeSamples, batch: Batch, size: tuple[int, int], margin: float, weight: float
) -> Tensor:
    """Return the mean cross-entropy of the cells of the grids; void pixels are unknown."""
    labels, known = shape_labels(batch.targets, samples, size, logits.shape[-1], margin)
    summed = boundary_loss(logits, labels, known, weight)
    return summed.total / summed.count.clamp(min=1)


class CropNet(GridLearner):
    """Cuts each box with its margin out of the photograph, encodes it at 128 pixels, and decodes it as `zoom` does.

    Crops of exact boxes are encoded before the training starts, as the images are for the other methods. Jittered boxes
    are new in every step and are encoded in it.
    """

    margin = 0.1

    def __init__(self, study: Study, jitter: float = 0.0, boundary: float = 0.0) -> None:
        super().__init__(study)
        self.jitter, self.boundary = jitter, boundary
        self.decoder = ZoomDecoder(study.detector.out_channels, study.detector.strides, CROP // FINEST)
        self.head = ShapeHead(self.decoder.out_channels)
        self.to(memory_format=torch.channels_last)
        self._kept: dict[tuple[int, int, bool], tuple[Tensor, ...]] = {}

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Return the logits [n, g, g] of crops."""
        features = self.decoder.top(levels[-1])
        for block, level in zip(self.decoder.blocks, reversed(levels[:-1]), strict=True):
            features = block(features, level, prior_channels(level.shape[2], self.margin))
        return self.head(features)[:, 0]

    def encode(self, photographs: Photographs, index: int, boxes: Tensor, mirrored: bool) -> tuple[Tensor, ...]:
        """Encode the crops of boxes; those of a mirrored image are given in its pixels."""
        if mirrored:
            width, (x0, y0, x1, y1) = photographs.input_size[1], boxes.unbind(dim=1)
            boxes = torch.stack([width - x1, y0, width - x0, y1], dim=1)
        windows = box_windows_of(photographs.own_boxes(boxes, index), self.margin)
        crops = cut(photographs.pixels(index), windows)
        crops = crops.flip(3) if mirrored else crops
        levels = self.study.detector.features(crops.contiguous(memory_format=torch.channels_last)).levels
        return tuple(levels[level] for level in self.decoder.levels)

    def prepare(self, masked: MaskedObjects) -> None:
        """Encode the crops of the exact boxes."""
        train = self.study.train
        for index, objects in masked.objects.items():
            for mirrored, targets in enumerate((train.targets, train.mirrored_targets)):
                levels = self.encode(train, index, targets[index].boxes[list(objects)], bool(mirrored))
                for number, item in enumerate(objects):
                    self._kept[index, item, bool(mirrored)] = tuple(level[number].half() for level in levels)

    def loss(self, batch: Batch, draw: Draw) -> Tensor:
        """See `Learner.loss`."""
        size = self.study.train.input_size
        samples = draw_shapes(batch.targets, batch.generators(), size, self.jitter)
        levels = [self._encode_sample(batch, samples, draw, number) for number in range(len(samples.objects))]
        logits = self([torch.stack(level) for level in zip(*levels, strict=True)])
        return mean_loss(logits, samples, batch, size, self.margin, self.boundary)

    def _encode_sample(self, batch: Batch, samples: ShapeSamples, draw: Draw, number: int) -> tuple[Tensor, ...]:
        image, item = int(samples.regions.image_index[number]), int(samples.objects[number])
        index, mirrored, box = draw.indices[image], draw.mirrored[image], samples.regions.boxes[number]
        if torch.equal(box, batch.targets[image].boxes[item]):
            return tuple(level.float() for level in self._kept[index, item, mirrored])
        return tuple(level[0] for level in self.encode(self.study.train, index, box[None], mirrored))

    def logits(self, index: int, detections: Detections) -> Tensor:
        """See `GridLearner.logits`."""
        parts = detections.boxes.split(CROPS_AT_ONCE)
        return torch.cat([self(self.encode(self.study.val, index, boxes, False)) for boxes in parts])


def cut(pixels: np.ndarray, windows: Tensor) -> Tensor:
    """Cut windows out of a photograph and resize them with antialiasing; beyond the photograph lies ImageNet's mean."""
    x0, y0 = windows[:, :2].floor().clamp(min=0).min(dim=0).values.long().tolist()
    x1, y1 = windows[:, 2:].ceil().max(dim=0).values.long().tolist()
    mean = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1)
    image = torch.from_numpy(pixels[y0:y1, x0:x1]).permute(2, 0, 1)[None].float() / 255 - mean
    shifted = windows - windows.new_tensor([x0, y0, x0, y0])
    return roi_align(image, [shifted], CROP, 1.0, -1, aligned=True) + mean


class MaskRCNNHead(GridLearner):
    """Mask R-CNN's mask branch as torchvision builds it, with the BatchNorm of its v2, over a feature pyramid.

    Its pyramid, its four convolutions and its deconvolution learn; objects without a mask are not in the mask loss. Its
    boxes are jittered as ours, in place of the proposals around an object.
    """

    def __init__(self, study: Study, channels: int, class_specific: bool) -> None:
        super().__init__(study)
        self.class_specific = class_specific
        names = [str(level) for level in range(LEVELS)]
        in_channels = list(study.detector.out_channels[:LEVELS])
        self.fpn = FeaturePyramidNetwork(in_channels, channels, norm_layer=nn.BatchNorm2d)
        self.pool = MultiScaleRoIAlign(names, ROI, 2)
        self.head = MaskRCNNHeads(channels, (channels,) * 4, 1, norm_layer=nn.BatchNorm2d)
        self.predictor = MaskRCNNPredictor(channels, channels, len(study.class_names) if class_specific else 2)
        self.to(memory_format=torch.channels_last)

    def forward(self, pyramid: Pyramid, boxes: list[Tensor], labels: Tensor) -> Tensor:
        """Return the logits [n, g, g] of the boxes of each image, in their order."""
        levels = OrderedDict((str(level), maps) for level, maps in enumerate(pyramid.levels[:LEVELS]))
        pooled = self.pool(self.fpn(levels), boxes, [pyramid.size] * len(boxes))
        scores = self.predictor(self.head(pooled))
        return scores[torch.arange(len(scores)), labels if self.class_specific else torch.ones_like(labels)]

    def loss(self, batch: Batch, draw: Draw) -> Tensor:
        """See `Learner.loss`."""
        pyramid = self.study.train.features.pyramid(draw.indices, draw.mirrored)
        samples = draw_shapes(batch.targets, batch.generators(), pyramid.size, RecipeConfig.box_jitter)
        regions = samples.regions
        boxes = [regions.boxes[regions.image_index == image] for image in range(len(batch))]
        return mean_loss(self(pyramid, boxes, regions.labels), samples, batch, pyramid.size, self.margin, 0.0)

    def logits(self, index: int, detections: Detections) -> Tensor:
        """See `GridLearner.logits`."""
        pyramid = self.study.val.features.pyramid([index], [False])
        return self(pyramid, [detections.boxes], detections.labels)


class SemanticRival(Learner):
    """A semantic head that learns from the masked images; inside given boxes only their classes compete.

    Args:
        study: the data set.
        deeplab: torchvision's DeepLabV3 head at stride 16, else its FCN head at stride 8.
    """

    semantic_only = True

    def __init__(self, study: Study, deeplab: bool) -> None:
        super().__init__(study)
        self.level = 2 if deeplab else 1
        self.reduce = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, REDUCED, 1, bias=False), nn.BatchNorm2d(REDUCED), nn.ReLU())
            for channels in study.detector.out_channels[:LEVELS]
        )
        channels, classes = REDUCED * LEVELS, len(study.class_names)
        self.head = DeepLabHead(channels, classes, ATROUS_RATES) if deeplab else FCNHead(channels, classes)
        self.to(memory_format=torch.channels_last)

    def forward(self, pyramid: Pyramid) -> Tensor:
        """Return the logits of all classes."""
        size = pyramid.levels[self.level].shape[2:]
        reduced = [layer(level) for layer, level in zip(self.reduce, pyramid.levels[:LEVELS], strict=True)]
        resized = [F.interpolate(level, size=size, mode="bilinear", align_corners=False) for level in reduced]
        return self.head(torch.cat(resized, dim=1))

    def loss(self, batch: Batch, draw: Draw) -> Tensor:
        """See `Learner.loss`."""
        pyramid = self.study.train.features.pyramid(draw.indices, draw.mirrored)
        labels = torch.stack([paint_labels(target, pyramid.size) for target in batch.targets])
        logits = F.interpolate(self(pyramid), size=labels.shape[1:], mode="bilinear", align_corners=False)
        return F.cross_entropy(logits, labels, ignore_index=VOID)

    def predict(self, index: int, detections: Detections, given: bool, extras: Extras = PLAIN) -> Prediction:
        """See `Learner.predict`."""
        val, selected = self.study.val, select_detections(detections, given)
        nothing = empty_prediction(val, index, selected)
        size = val.records[index].size
        logits = self(val.features.pyramid([index], [False]))
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)[0]
        allowed = torch.zeros_like(logits, dtype=torch.bool)
        allowed[0] = True
        windows = pixel_windows(val.own_boxes(selected.boxes, index), size).tolist()
        for label, (x0, y0, x1, y1) in zip(selected.labels.tolist(), windows, strict=True):
            allowed[label, y0:y1, x0:x1] = True
        semantic = logits.masked_fill(~allowed, -torch.inf).argmax(dim=0)
        return Prediction(selected, nothing.masks, semantic)


def paint_labels(target: Target, size: tuple[int, int]) -> Tensor:
    """Paint the class map of a masked image at the stride of the labels; the box of an object without mask is unknown."""
    known = target.has_mask.tolist()
    assert target.masks is not None
    masks = [mask if has else None for mask, has in zip(target.masks.numpy(), known, strict=True)]
    painted = paint_semantic(
        size,
        target.boxes.double().numpy(),
        target.labels.tolist(),
        target.ignore.tolist(),
        masks,
        None if target.void is None else target.void.numpy(),
    )
    half = LABEL_STRIDE // 2
    return torch.from_numpy(painted[half::LABEL_STRIDE, half::LABEL_STRIDE].astype(np.int64))
