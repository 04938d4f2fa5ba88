"""Augmentations by name, built from albumentations steps; the only module that imports albumentations.

Two properties of albumentations 2.0.8 are worked around. `Compose.set_random_seed` gives every step the same random stream,
so that a flip with p=0.5 happens exactly when an expand with p=0.5 does; here all steps share one generator, created from
`seed` in every call. And Compose checks and converts all inputs and outputs, which costs as much as warping the masks;
here it only sets up the steps, and `Transform` runs them.

Steps get boxes in 0..1 of the image, in single precision, each with its index. Masks are packed as bits: "mask" is the
first plane, with the void map and the filled area, "masks" are the others. Photometric distortion works per pixel, so it
runs last, on the small image. The filled area is then painted with the plain mean, as if the distortion had come first.
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

from dasnet_lightning.data.augmentation.objects import Augmented, Warped, restore_vanished_masks, select_survivors
from dasnet_lightning.data.augmentation.photometric import Distortion, distort, draw_distortion
from dasnet_lightning.data.augmentation.ssd_crop import (
    CropWindow,
    draw_window,
    mark_cut,
    move_boxes,
    view_image,
    view_mask,
)
from dasnet_lightning.data.augmentation.unit_boxes import clip_boxes, from_unit, to_unit
from dasnet_lightning.data.packed_masks import FILLED_BIT, PackedMasks
from dasnet_lightning.data.resize import MEAN_COLOR
from dasnet_lightning.errors import ConfigError
from dasnet_lightning.registry import Registry

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # otherwise it queries its newest version over the network


def refuse_albumentationsx(installed: Sequence[str]) -> None:
    """Raise ConfigError if the distribution `albumentationsx` is installed, which takes the same import name."""
    if "albumentationsx" in installed:
        raise ConfigError(
            "albumentationsx is installed and overwrites albumentations, which this library needs (>=2.0.8,<2.1): "
            "run `pip uninstall albumentationsx` and then `pip install --force-reinstall 'albumentations<2.1'`"
        )


def _installed(name: str) -> tuple[str, ...]:
    return tuple(package.metadata["Name"].lower() for package in metadata.distributions(name=name))


refuse_albumentationsx(_installed("albumentationsx"))


class SSDWindow(A.DualTransform):
    """SSD's expand, its min-IoU crop and the resize (section 6) in one step, because all three only choose a window.

    The area around an expanded image is marked FILLED_BIT in the first plane. The crop keeps objects whose center lies
    inside. An object that is cut away but still partly visible keeps its box with the index -1 - i.

    Args:
        image_size: (height, width) of the output.
        expand: probability of an expand.
        max_ratio: largest side of the expanded canvas, in image sides.
        scale: range of the crop's side, relative to the canvas; None draws no crop.
    """

    _targets = (Targets.IMAGE, Targets.MASK, Targets.BBOXES)

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
        return view_mask(mask, window, self.image_size, FILLED_BIT)

    def apply_to_masks(self, masks: np.ndarray, *, window: CropWindow, **params: Any) -> np.ndarray:
        return np.stack([view_mask(mask, window, self.image_size, 0) for mask in masks])

    def apply_to_bboxes(
        self, bboxes: np.ndarray, *, window: CropWindow, shape: tuple[int, ...], **params: Any
    ) -> np.ndarray:
        moved = move_boxes(bboxes, shape, window)
        return mark_cut(moved) if len(moved) else moved


class PhotometricDistortion(A.ImageOnlyTransform):
    """SSD's photometric distortion; `strength` 1 is the paper's, 0 leaves the image unchanged."""

    def __init__(self, strength: float = 1.0, p: float = 1.0) -> None:
        super().__init__(p=p)
        self.strength = strength

    def get_params(self) -> dict[str, Any]:
        s = self.strength
        return {"distortion": draw_distortion(self.py_random, 32 * s, 0.5 * s, 0.5 * s, 18 * s)}

    def apply(self, img: np.ndarray, *, distortion: Distortion, **params: Any) -> np.ndarray:
        return distort(img, distortion)


class Transform:
    """Albumentations steps as a pure function of an image, its objects and a seed.

    Args:
        steps: run in order; the last geometric one must output images of one fixed size.
        keep_all: keep every object, for evaluation with steps that neither crop nor flip. Otherwise an object is removed
            with box and mask if it was cut away, is less than one pixel wide or high, or lost its whole mask.
    """

    def __init__(self, steps: Sequence[A.BasicTransform], keep_all: bool = False) -> None:
        self.keep_all = keep_all
        boxes = A.BboxParams("albumentations", check_each_transform=False)
        self._steps = A.Compose(list(steps), bbox_params=boxes, seed=0)

    def __call__(
        self,
        image: UInt8[np.ndarray, "H0 W0 3"],
        boxes: Float[np.ndarray, "n 4"],
        packed: PackedMasks,
        mask_index: Int64[np.ndarray, " m"],
        seed: int,
        labels: Int64[np.ndarray, " n"] | None = None,
    ) -> Augmented:
        """Augment one image; the same arguments give the same result in any process.

        Raises DataError if a box has no area inside the image.

        Args:
            image: RGB pixels.
            boxes: xyxy in pixels of the image.
            packed: masks of some objects.
            mask_index: mask j belongs to object `mask_index[j]`.
            seed: seed of all random draws.
            labels: used to void the visible rest of a removed object inside boxes of its class; None treats all objects
                as one class.
        """
        boxes = clip_boxes(boxes, image.shape[:2])
        # one stream for all steps, see the module docstring
        self._steps.set_random_state(np.random.default_rng(seed), Random(seed))
        self._steps.py_random.random()  # Compose itself draws once: keeps the result of each seed
        data = {
            "image": image,
            "bboxes": to_unit(boxes, image.shape),
            "mask": packed.planes[0],
            "masks": packed.planes[1:] if len(packed.planes) > 1 else [],  # an empty array raises
        }
        for step in self._steps.transforms:
            data = step(**data)
        warped = _read_output(data, packed, mask_index)
        if self.keep_all:
            restore_vanished_masks(warped.packed, packed)
        return select_survivors(warped, np.zeros(len(boxes), np.int64) if labels is None else labels, self.keep_all)


TRANSFORMS: Registry[Callable[[tuple[int, int]], Transform]] = Registry("augmentation")


def build_transform(name: str, image_size: tuple[int, int]) -> Transform:
    """Build an augmentation with outputs of `image_size` (height, width). Raises UnknownNameError for an unknown name.

    Names are "ssd" (section 6), "segment" (milder, for stage two), "flip", "d4" (flips and quarter turns, for images without
    an upward direction), "none" and all others that were registered.
    """
    return TRANSFORMS.get(name)(image_size)


def checked_step(step: Callable[..., A.BasicTransform], **options: Any) -> A.BasicTransform:
    """Build an albumentations step; an unknown argument raises ConfigError instead of its warning."""
    try:
        return step(**options, strict=True)
    except ValueError as error:
        raise ConfigError(f"{getattr(step, '__name__', step)}: {error}") from error


def resize_step(image_size: tuple[int, int]) -> A.BasicTransform:
    """Build a resize to (height, width).

    A.Resize is not used. Its nearest-neighbor sampling shifts masks by up to half a pixel against their boxes. Its
    averaging shifts the image if one side shrinks and the other grows.
    """
    return SSDWindow(image_size, expand=0.0, scale=None)


@TRANSFORMS.register("ssd")
def _ssd(image_size: tuple[int, int]) -> Transform:
    return Transform([SSDWindow(image_size), checked_step(A.HorizontalFlip, p=0.5), PhotometricDistortion()])


@TRANSFORMS.register("segment")
def _segment(image_size: tuple[int, int]) -> Transform:
    window = SSDWindow(image_size, expand=0.3, max_ratio=2.0, scale=(0.4, 1.0))
    return Transform([window, checked_step(A.HorizontalFlip, p=0.5), PhotometricDistortion()])


@TRANSFORMS.register("flip")
def _flip(image_size: tuple[int, int]) -> Transform:
    return Transform([resize_step(image_size), checked_step(A.HorizontalFlip, p=0.5)])


@TRANSFORMS.register("d4")
def _d4(image_size: tuple[int, int]) -> Transform:
    """Build the eight flips and turns of a square; without the turns if the output is not square."""
    flips = [checked_step(A.HorizontalFlip, p=0.5), checked_step(A.VerticalFlip, p=0.5)]
    turns = [checked_step(A.Transpose, p=0.5)] if image_size[0] == image_size[1] else []
    return Transform([resize_step(image_size), *flips, *turns])


@TRANSFORMS.register("none")
def _none(image_size: tuple[int, int]) -> Transform:
    return Transform([resize_step(image_size)], keep_all=True)


def _read_output(data: dict[str, Any], packed: PackedMasks, mask_index: Int64[np.ndarray, " m"]) -> Warped:
    image, first_plane = data["image"], data["mask"]
    filled = first_plane & np.uint8(FILLED_BIT)
    if filled.any():
        image = cv2.copyTo(_mean_image(image.shape), filled, image)  # 100 times as fast as image[filled] = MEAN_COLOR
    boxes = from_unit(data["bboxes"], image.shape)
    other_planes = [data["masks"]] if len(data["masks"]) else []
    return Warped(
        image=image,
        boxes=boxes[:, :4],
        index=np.rint(boxes[:, 4]).astype(np.int64),
        packed=replace(packed, planes=np.concatenate([first_plane[None], *other_planes])),
        mask_index=np.asarray(mask_index, np.int64).reshape(-1),
    )


@lru_cache(maxsize=4)
def _mean_image(shape: tuple[int, ...]) -> UInt8[np.ndarray, "H W 3"]:
    return np.full(shape, MEAN_COLOR, np.uint8)
