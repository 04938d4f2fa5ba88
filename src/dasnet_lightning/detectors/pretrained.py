"""Which published weights each detector has, and what `weights` (auto, coco, imagenet, none or a file) means for it."""

from collections.abc import Mapping
from inspect import signature
from typing import Any, NamedTuple

import torchvision

from dasnet_lightning.detectors.backbones import TIMM
from dasnet_lightning.detectors.optional import import_extra
from dasnet_lightning.detectors.plugins import Builder
from dasnet_lightning.errors import ConfigError

CHOICES = ("auto", "coco", "imagenet", "none")


class Published(NamedTuple):
    """torchvision's names of the published weights of a detector; None if there are none.

    Attributes:
        coco: the weights of the whole detector.
        imagenet: the weights of its backbone.
    """

    coco: str | None
    imagenet: str | None


PUBLISHED: Mapping[str, Published] = {
    "faster_rcnn_mobilenet_v2_fpn": Published(None, "IMAGENET1K_V1"),
    "faster_rcnn_mobilenet_v3_large_320_fpn": Published("COCO_V1", "IMAGENET1K_V2"),
    "faster_rcnn_resnet50_fpn": Published("COCO_V1", "IMAGENET1K_V2"),
    "faster_rcnn_resnet50_fpn_v2": Published("COCO_V1", "IMAGENET1K_V2"),
    "fcos_resnet50_fpn": Published("COCO_V1", "IMAGENET1K_V2"),
    "retinanet_resnet50_fpn_v2": Published("COCO_V1", "IMAGENET1K_V2"),
    "ssd300_mobilenet_v2": Published(None, "IMAGENET1K_V1"),
    "ssd300_vgg16": Published("COCO_V1", "IMAGENET1K_FEATURES"),
    "ssd320_mobilenet_v2": Published(None, "IMAGENET1K_V1"),
    "ssd320_vgg16": Published(None, "IMAGENET1K_FEATURES"),
    "ssdlite320_mobilenet_v3_large": Published("COCO_V1", "IMAGENET1K_V2"),
}


def resolve_weights(name: str, builder: Builder, weights: str, options: Mapping[str, Any]) -> str | None:
    """Return the `backbone_weights` of a detector's builder; None for random weights.

    Args:
        name: name of the detector.
        builder: its builder.
        weights: "auto" for COCO's, else ImageNet's, else none; "coco", "imagenet" or "none"; torchvision's name of
            weights, or the path of a file.
        options: the options of the builder.

    Raises:
        ConfigError: the detector does not have such weights.
    """
    if weights not in CHOICES:
        return weights
    published = PUBLISHED.get(name) or _published_for_backbone(builder, options)
    if weights == "none":
        return None
    if weights == "auto":
        return published.coco or published.imagenet
    found = published.coco if weights == "coco" else published.imagenet
    if found is None:
        has = ", ".join(choice for choice, value in published._asdict().items() if value) or "none"
        raise ConfigError(
            f"detector '{name}' has no published {'COCO' if weights == 'coco' else 'ImageNet'} weights (it has: {has}); "
            "give the path of a file, or none"
        )
    return found


def _published_for_backbone(builder: Builder, options: Mapping[str, Any]) -> Published:
    """Return the ImageNet weights of the builder's option `backbone`; the detector itself is not published."""
    parameters = signature(builder).parameters
    backbone = options.get("backbone", parameters["backbone"].default) if "backbone" in parameters else None
    if not isinstance(backbone, str):
        return Published(None, None)
    if backbone.startswith(TIMM):
        timm = import_extra("timm", "timm")
        model = backbone.removeprefix(TIMM)
        config = timm.get_pretrained_cfg(model) if timm.is_model(model) else None
        return Published(None, (config.tag or None) if config and config.has_weights else None)
    if backbone not in torchvision.models.list_models(torchvision.models):
        return Published(None, None)
    return Published(None, next(iter(torchvision.models.get_model_weights(backbone))).name)


def describe_weights(name: str, weights: str, backbone_weights: str | None, note: str) -> str:
    """Say with which weights a detector starts.

    Args:
        name: name of the detector.
        weights: what was asked for.
        backbone_weights: what it means for the detector; None for random weights.
        note: on the class predictors, or on the weights of a model that loads them itself.
    """
    if backbone_weights is not None:
        return f"detector '{name}' starts from {backbone_weights}{f' and {note}' if note else ''}"
    if note:
        return f"detector '{name}' {note}"
    reason = "no weights are published for it" if weights == "auto" else f"weights is '{weights}'"
    return f"detector '{name}' starts from random weights: {reason}"
