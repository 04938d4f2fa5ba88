"""The protocol that every detector answers, and the one place that builds them by name.

A detector turns images into a Pyramid once; detections and losses are both computed from it, so the attention and the
decoder of stage two share the detector's single backbone pass.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from dasnet_lightning.detectors.plugins import Builder, Plugins
from dasnet_lightning.registry import Registry
from dasnet_lightning.types import Detections, Images, Loss, Pyramid, Target


@runtime_checkable
class Detector(Protocol):
    """What stage one trains and stage two freezes. An implementation is an `nn.Module`.

    num_classes: with background. image_size: the (H, W) that the detector is made for. strides, out_channels: of the
    pyramid's levels, finest first; all levels are offered to the decoder, also those that the boxes do not need. A
    detector whose pyramid holds switches has `pool_shapes` too (functional.pooling.PoolShape, finest first), from which
    decoders that unpool are built. One that is made from files of another library has `portable_options`, which replace
    the options that name them. One that boxes teach nothing has `learns_boxes = False`.
    """

    num_classes: int
    image_size: tuple[int, int]
    strides: tuple[int, ...]
    out_channels: tuple[int, ...]

    def features(self, images: Images) -> Pyramid:
        """Normalise the images (RGB, 0..1) and run the backbone once."""
        ...

    def detect(self, pyramid: Pyramid) -> tuple[Detections, ...]:
        """Boxes in input pixels, clipped to the image, after NMS, best first; one entry for each image."""
        ...

    def losses(self, pyramid: Pyramid, targets: Sequence[Target]) -> Mapping[str, Loss]:
        """Scalar losses by name; their sum is minimised. Graph-connected also where no image holds an object."""
        ...


DETECTORS: Registry[Builder] = Registry("detector", find_more=Plugins("dasnet_lightning.detectors"))


def build_detector(name: str, num_classes: int, **options: Any) -> Detector:
    """Build a detector by its registered name.

    num_classes counts the background. Options go to the builder, `backbone_weights` (None, torchvision's name, or the
    path of a local file) among them. Other installed packages may bring builders (detectors.plugins). Raises
    UnknownNameError for a name that nobody registered, ConfigError for one whose package cannot be loaded.
    """
    return DETECTORS.get(name)(num_classes=num_classes, **options)


def portable_options(detector: Any, options: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The options that a checkpoint keeps: from them the detector is built again without the files that it came from."""
    portable = getattr(detector, "portable_options", None)
    return options if portable is None else {**(options or {}), **portable}


def learns_boxes(detector: Any) -> bool:
    """Whether there is a stage one for this detector: false where it takes its boxes from elsewhere."""
    return bool(getattr(detector, "learns_boxes", True))
