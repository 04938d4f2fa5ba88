"""Augmentation: the only file that knows albumentations.

Two habits of albumentations 2.0.8 are cured here. `Compose.set_random_seed` gives every step the same stream, so that a
flip with p=0.5 happens exactly when an expand with p=0.5 does; one generator is shared instead, made anew from `seed`
in every call. And it checks and converts all that goes in and out, which costs as much as it takes to warp the masks; it
only sets up the steps here, and `Transform` runs them.

Masks travel as bits, with the void map and the area that a step filled (data.planes): "mask" is the first plane, "masks"
are the others. Photometric distortion is per pixel, so it runs last, on the small picture; the filled area is painted with
the plain mean afterwards, as if the distortion had come first.

Boxes as the steps of albumentations take them: 0..1 of the picture, in single precision, each with its position.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib import metadata
from random import Random
from typing import Any

import albumentations as A
import cv2
import numpy as np
from albumentations.core.type_definitions import Targets
from jaxtyping import Float, Int64, UInt8

from dasnet_lightning.data.augmentation.objects import Augmented, Moved, collect, keep_a_pixel
from dasnet_lightning.data.augmentation.photometric import Distortion, distort, draw_distortion
from dasnet_lightning.data.augmentation.ssd_crop import (
    CropWindow,
    draw_window,
    mark_cut,
    move_boxes,
    view_image,
    view_mask,
)
from dasnet_lightning.data.packed_masks import FILLED, PackedMasks
from dasnet_lightning.errors import ConfigError, DataError
from dasnet_lightning.registry import Registry

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or it asks a host for its newest version at import


def refuse_albumentationsx(installed: Sequence[str]) -> None:
    """Raise ConfigError where the distribution `albumentationsx` is installed: it takes the same import name."""
    if "albumentationsx" in installed:
        raise ConfigError(
            "albumentationsx is installed and overwrites albumentations, which this library needs (>=2.0.8,<2.1): "
            "run `pip uninstall albumentationsx` and then `pip install --force-reinstall 'albumentations<2.1'`"
        )


def _installed(name: str) -> tuple[str, ...]:
    try:
        return (metadata.distribution(name).metadata["Name"].lower(),)
    except metadata.PackageNotFoundError:
        return ()


refuse_albumentationsx(_installed("albumentationsx"))


MEAN_COLOUR = (124, 116, 104)  # ImageNet's mean in RGB, what an expanded picture is filled with
GEOMETRIC = (Targets.IMAGE, Targets.MASK, Targets.BBOXES)


class SSDWindow(A.DualTransform):
    """SSD's expand, its crop with a minimal overlap, and the resize (section 6): all three only choose a window.

    image_size: (height, width) of what comes out. expand: how probable. max_ratio: of the canvas. scale: of the crop, None
    for no crop. The added area is FILLED in the first plane. The crop keeps the objects whose centre lies inside;
    one that is cut away but still partly visible travels on with the index -1 - i, so that the caller can tell.
    """

    _targets = GEOMETRIC

    def __init__(
        self,
        image_size: tuple[int, int],
        expand: float = 0.5,
        max_ratio: float = 4.0,
        scale: tuple[float, float] | None = (0.3, 1.0),
        p: float = 1.0,
    ) -> None:
        super().__init__(p=p)
        self.image_size = image_size
        self.expand = expand
        self.max_ratio = max_ratio
        self.scale = scale

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        height, width = params["shape"][:2]
        boxes = np.asarray(data["bboxes"], np.float64)[:, :4] * (width, height, width, height)
        random = self.random_generator
        return {"window": draw_window(boxes, (height, width), random, self.expand, self.max_ratio, self.scale)}

    def apply(self, img: np.ndarray, *, window: CropWindow, **params: Any) -> np.ndarray:
        return view_image(img, window, self.image_size)

    def apply_to_mask(self, mask: np.ndarray, *, window: CropWindow, **params: Any) -> np.ndarray:
        return view_mask(mask, window, self.image_size, FILLED)

    def apply_to_masks(self, masks: np.ndarray, *, window: CropWindow, **params: Any) -> np.ndarray:
        return np.stack([view_mask(mask, window, self.image_size, 0) for mask in masks])

    def apply_to_bboxes(
        self, bboxes: np.ndarray, *, window: CropWindow, shape: tuple[int, ...], **params: Any
    ) -> np.ndarray:
        moved = move_boxes(bboxes, shape, window)
        return mark_cut(moved) if len(moved) else moved


class PhotometricDistortion(A.ImageOnlyTransform):
    """SSD's photometric distortion in its order; `strength` 1 is the paper's, 0 nothing."""

    def __init__(self, strength: float = 1.0, p: float = 1.0) -> None:
        super().__init__(p=p)
        self.strength = strength

    def get_params(self) -> dict[str, Any]:
        s = self.strength
        return {"distortion": draw_distortion(self.py_random, 32 * s, 0.5 * s, 0.5 * s, 18 * s)}

    def apply(self, img: np.ndarray, *, distortion: Distortion, **params: Any) -> np.ndarray:
        return distort(img, distortion)


def checked_step(step: Callable[..., A.BasicTransform], **options: Any) -> A.BasicTransform:
    """Build a step of albumentations; an argument that it does not know is a ConfigError, not its mere warning."""
    try:
        return step(**options, strict=True)
    except ValueError as error:
        raise ConfigError(f"{getattr(step, '__name__', step)}: {error}") from error


class Transform:
    """Steps of albumentations as a pure function of the image, its objects and a seed.

    steps: run in order; the last geometric one must leave a picture of one fixed size. keep_all: no object is removed
    (evaluation; for steps that neither crop nor flip); else one that was cut away, is less than one pixel wide or high,
    or lost its whole mask is removed, box and mask together.
    """

    def __init__(self, steps: Sequence[A.BasicTransform], keep_all: bool = False) -> None:
        self.keep_all = keep_all
        boxes = A.BboxParams("albumentations", check_each_transform=False)
        self._steps = A.Compose(list(steps), bbox_params=boxes, seed=0)

    def __call__(
        self,
        image: UInt8[np.ndarray, "H0 W0 3"],
        boxes: Float[np.ndarray, "n 4"],
        planes: PackedMasks,
        mask_index: Int64[np.ndarray, " m"],
        seed: int,
        labels: Int64[np.ndarray, " n"] | None = None,
    ) -> Augmented:
        """Augment one image; the same arguments give the same result in any process.

        boxes: xyxy in the image's pixels. mask_index: the object that each mask of `planes` belongs to. labels: used only
        to void what a crop leaves of a removed object inside the boxes of its own class; None treats all as one class.
        Raises DataError for a box without area inside the image.
        """
        boxes = clip_boxes(boxes, image.shape[:2])
        # one stream for all steps: see the module's docstring
        self._steps.set_random_state(np.random.default_rng(seed), Random(seed))
        self._steps.py_random.random()  # Compose's own draw: a seed keeps the picture that it has always had
        data = {
            "image": image,
            "bboxes": to_unit(boxes, image.shape),
            "mask": planes.planes[0],
            "masks": planes.planes[1:] if len(planes.planes) > 1 else [],  # an array of no masks raises
        }
        for step in self._steps.transforms:
            data = step(**data)
        moved = _read(data, planes, mask_index)
        if self.keep_all:
            keep_a_pixel(moved.planes, planes)
        return collect(moved, np.zeros(len(boxes), np.int64) if labels is None else labels, self.keep_all)


def _read(out: dict[str, Any], planes: PackedMasks, mask_index: Int64[np.ndarray, " m"]) -> Moved:
    image, first = out["image"], out["mask"]
    filled = first & np.uint8(FILLED)
    if filled.any():  # 100 times as fast as image[filled] = MEAN_COLOUR
        image = cv2.copyTo(_plain(image.shape), filled, image)
    boxes = from_unit(out["bboxes"], image.shape)
    return Moved(
        image=image,
        boxes=boxes[:, :4],
        index=np.rint(boxes[:, 4]).astype(np.int64),
        planes=replace(planes, planes=np.concatenate([first[None], *([out["masks"]] if len(out["masks"]) else [])])),
        mask_index=np.asarray(mask_index, np.int64).reshape(-1),
    )


@lru_cache(maxsize=4)
def _plain(shape: tuple[int, ...]) -> UInt8[np.ndarray, "H W 3"]:
    """A picture of the mean colour, to be copied from."""
    return np.full(shape, MEAN_COLOUR, np.uint8)


TRANSFORMS: Registry[Callable[[tuple[int, int]], Transform]] = Registry("augmentation")


def build_transform(name: str, image_size: tuple[int, int]) -> Transform:
    """Build an augmentation by name: "ssd" (section 6), "segment" (milder, for stage two), "flip" or "none".

    image_size: (height, width) of what comes out. Raises UnknownNameError for a name that nobody registered.
    """
    return TRANSFORMS.get(name)(image_size)


def resize_step(image_size: tuple[int, int]) -> A.BasicTransform:
    """Resize to (height, width).

    Not A.Resize: its nearest neighbour shifts masks by up to half a pixel against their boxes, and its averaging shifts
    the image where one side shrinks and the other grows.
    """
    return SSDWindow(image_size, expand=0.0, scale=None)


@TRANSFORMS.register("ssd")
def _ssd(image_size: tuple[int, int]) -> Transform:
    flip = checked_step(A.HorizontalFlip, p=0.5)
    return Transform([SSDWindow(image_size), flip, PhotometricDistortion()])


@TRANSFORMS.register("segment")
def _segment(image_size: tuple[int, int]) -> Transform:
    window = SSDWindow(image_size, expand=0.3, max_ratio=2.0, scale=(0.4, 1.0))
    return Transform([window, checked_step(A.HorizontalFlip, p=0.5), PhotometricDistortion()])


@TRANSFORMS.register("flip")
def _flip(image_size: tuple[int, int]) -> Transform:
    return Transform([resize_step(image_size), checked_step(A.HorizontalFlip, p=0.5)])


@TRANSFORMS.register("none")
def _none(image_size: tuple[int, int]) -> Transform:
    return Transform([resize_step(image_size)], keep_all=True)


def clip_boxes(boxes: Float[np.ndarray, "n 4"], size: tuple[int, ...]) -> Float[np.ndarray, "n 4"]:
    """Clip boxes to an image of `size` (height, width). Raises DataError for one with no area inside."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    clipped = np.clip(boxes, 0, (size[1], size[0], size[1], size[0]))
    good = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)  # False for NaN too
    if not good.all():
        first = int((~good).argmax())
        raise DataError(
            f"object {first}: box {boxes[first].tolist()} has no area inside the image of {size[1]} x {size[0]} pixels; "
            f"expected x0 < x1 and y0 < y1, mend or remove the annotation"
        )
    return np.asarray(clipped)


def to_unit(boxes: Float[np.ndarray, "n 4"], size: tuple[int, ...]) -> Float[np.ndarray, "n 5"]:
    """Boxes as albumentations passes them on, 0..1 and in single precision, each with its position."""
    unit = boxes.astype(np.float32) / np.array((size[1], size[0], size[1], size[0]), float)
    return np.column_stack([unit, np.arange(len(boxes))]).astype(np.float32)


def from_unit(boxes: Float[np.ndarray, "v 5"], size: tuple[int, ...]) -> Float[np.ndarray, "v 5"]:
    """Boxes in pixels again, clipped; those that have no area are left out."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 5)
    sides = np.array((size[1], size[0], size[1], size[0]), float)
    pixels = boxes[:, :4] * sides
    large = (pixels[:, 2:] - pixels[:, :2]).prod(axis=1) >= 1e-7
    # there and back once more, as albumentations rounds
    clipped = np.clip(pixels, 0, sides) / sides * sides
    return np.column_stack([clipped, boxes[:, 4]])[large]
