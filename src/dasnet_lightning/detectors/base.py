"""The base class of all detectors, and the registry that builds them by name.

A detector turns images into a `Pyramid` once. Detections and losses are both computed from it, so attention and decoder of
stage two share the detector's single backbone pass.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

from torch import nn

from dasnet_lightning.detectors.plugins import Builder, Plugins
from dasnet_lightning.detectors.pretrained import describe_weights, resolve_weights
from dasnet_lightning.errors import ConfigError
from dasnet_lightning.functional.pooling import PoolShape
from dasnet_lightning.registry import Registry
from dasnet_lightning.types import Detections, Images, Loss, Pyramid, Target


class Detector(nn.Module, ABC):
    """Computes features of images and detects boxes in them; stage one trains it, stage two freezes it.

    Attributes:
        num_classes: number of classes, background included.
        image_size: the (H, W) that the detector is made for.
        strides: stride of each level of the pyramid, finest first.
        out_channels: channels of each level. The decoder gets all levels, also those that do not predict boxes.
        pool_shapes: the max-poolings whose switches the pyramid holds, finest first; None if it holds none.
        learns_boxes: False if the boxes come from elsewhere, so that stage one is skipped.
        portable_options: builder options that rebuild the detector without the files that it was made from.
        weights_note: with which weights the detector starts. A builder may set what follows on "starts from FILE and".
    """

    num_classes: int
    image_size: tuple[int, int]
    strides: tuple[int, ...]
    out_channels: tuple[int, ...]
    pool_shapes: tuple[PoolShape, ...] | None = None
    learns_boxes: bool = True
    portable_options: Mapping[str, Any] | None = None
    weights_note: str = ""

    @abstractmethod
    def features(self, images: Images) -> Pyramid:
        """Normalize the images (RGB, 0..1) and run the backbone once."""

    @abstractmethod
    def detect(self, pyramid: Pyramid) -> tuple[Detections, ...]:
        """Return the detections of each image: boxes in input pixels, clipped to the image, after NMS, best first."""

    @abstractmethod
    def losses(self, pyramid: Pyramid, targets: Sequence[Target]) -> Mapping[str, Loss]:
        """Return scalar losses by name, connected to the graph even if no image has an object.

        Training minimizes their sum.
        """


DETECTORS: Registry[Builder] = Registry("detector", find_more=Plugins("dasnet_lightning.detectors"))


def build_detector(
    name: str, num_classes: int, *, class_names: Sequence[str] = (), weights: str | None = None, **options: Any
) -> Detector:
    """Build a detector by its registered name.

    Args:
        name: a name in `DETECTORS`. Other installed packages may bring builders (detectors.plugins).
        num_classes: number of classes, background included.
        class_names: their names, background first. If the weights are those of a COCO-trained detector, its rows go to
            the classes of the same name.
        weights: "auto" for COCO's weights if they are published, else ImageNet's, else none; "coco", "imagenet" or
            "none"; torchvision's name of weights, or the path of a file. None leaves the choice to `backbone_weights`.
        options: go to the builder. `backbone_weights` is None, torchvision's name, or the path of a local file.

    Raises:
        UnknownNameError: the name is not registered.
        ConfigError: the package of the builder cannot be loaded, the builder does not return a Detector, or the detector
            does not have such weights.
        CheckpointError: the weights cannot be downloaded, cannot be read, or do not fit.
    """
    builder = DETECTORS.get(name)
    if weights is not None:
        if options.get("backbone_weights") is not None:
            raise ConfigError(f"weights is '{weights}' and backbone_weights is given too, expected one of them")
        options["backbone_weights"] = resolve_weights(name, builder, weights, options)
    if class_names and "class_names" in signature(builder).parameters:
        options["class_names"] = tuple(class_names)
    detector = builder(num_classes=num_classes, **options)
    if not isinstance(detector, Detector):
        raise ConfigError(f"detector '{name}': its builder returned {type(detector).__name__}, expected a Detector")
    chosen = options.get("backbone_weights")
    detector.weights_note = describe_weights(name, weights or "none", chosen, detector.weights_note)
    return detector


def portable_options(detector: Detector, options: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return the options that a checkpoint keeps, which rebuild the detector without the files that it was made from."""
    return options if detector.portable_options is None else {**(options or {}), **detector.portable_options}
