"""Images and given boxes on their way to the network: decoded, resized, checked, each error with the name of its image."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from numpy.typing import ArrayLike
from PIL import Image
from torch import Tensor

from dasnet_lightning.data.images import image_size, read_image
from dasnet_lightning.data.pixels import ImageRange, convert_to_rgb
from dasnet_lightning.data.resize import resize_image
from dasnet_lightning.errors import ConfigError, DataError

ImageLike = str | Path | Image.Image | np.ndarray


@dataclass(frozen=True, eq=False)
class Request:
    """What is to be segmented.

    Attributes:
        image: a path, a PIL image or an array.
        name: names the image in error messages.
        boxes: given boxes, None to detect.
        labels: the label or class name of each given box.
    """

    image: ImageLike
    name: str
    boxes: ArrayLike | None = None
    labels: Sequence[int | str] | None = None

    def pixels(self) -> int:
        """Return the number of pixels of the image from its header, 0 if it cannot be read."""
        if isinstance(self.image, str | Path):
            try:
                height, width = image_size(Path(self.image))
            except DataError:  # the reader tells
                return 0
            return height * width
        if isinstance(self.image, Image.Image):
            return self.image.width * self.image.height
        return int(np.prod(np.shape(self.image)[:2]))


@dataclass(frozen=True, eq=False)
class GivenBoxes:
    """Boxes of an image to segment without detection.

    Attributes:
        boxes: xyxy in pixels of the image.
        labels: classes, 1..num_classes-1.
    """

    boxes: Float[Tensor, "n 4"]
    labels: Int64[Tensor, " n"]


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """An image that is ready for the network.

    Attributes:
        pixels: the RGB image.
        resized: the image at the size of the network input.
        given: given boxes, None to detect.
    """

    pixels: UInt8[np.ndarray, "H0 W0 3"]
    resized: UInt8[Tensor, "H W 3"]
    given: GivenBoxes | None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image."""
        return self.pixels.shape[0], self.pixels.shape[1]


def make_requests(
    images: Iterable[ImageLike],
    boxes: Iterable[ArrayLike] | None,
    labels: Iterable[Sequence[int | str]] | None,
) -> Iterator[Request]:
    """Pair images with their boxes and labels.

    Raises:
        ConfigError: there are not as many boxes or labels as images.
    """
    if boxes is None:
        if labels is not None:
            raise ConfigError("labels are given without boxes, expected both or neither")
        for number, image in enumerate(images):
            yield Request(image, _name(image, number))
        return
    missing = object()
    rest, rest_labels = iter(boxes), None if labels is None else iter(labels)
    number = 0
    for number, image in enumerate(images, start=1):
        of_image = next(rest, missing)
        labels_of_image = None if rest_labels is None else next(rest_labels, missing)
        name = _name(image, number - 1)
        if of_image is missing or labels_of_image is missing:
            what = "boxes" if of_image is missing else "labels"
            raise ConfigError(f"{name}: no {what} are left for this image, expected one entry of {what} for each image")
        yield Request(image, name, np.asarray(of_image), labels_of_image)  # type: ignore[arg-type]
    if next(rest, missing) is not missing or (rest_labels is not None and next(rest_labels, missing) is not missing):
        raise ConfigError(f"boxes or labels go on after the last of {number} images, expected one entry for each image")


def _name(image: ImageLike, number: int) -> str:
    return str(image) if isinstance(image, str | Path) else f"image {number}"


def prepare(
    request: Request, input_size: tuple[int, int], image_range: ImageRange | None, class_names: Sequence[str]
) -> PreparedImage:
    """Decode and resize an image, and check its boxes.

    Args:
        request: the image and its boxes.
        input_size: (height, width) of the network input.
        image_range: range of images of more than 8 bits; None for that of their type.
        class_names: background first.

    Raises:
        ConfigError: the boxes or labels are invalid.
        DataError: the image cannot be read.
    """
    image = request.image
    if isinstance(image, str | Path):
        pixels = read_image(Path(image), image_range=image_range)
    else:
        pixels = convert_to_rgb(image, image_range, request.name)
    given = None
    if request.boxes is not None:
        try:
            given = check_boxes(request.boxes, request.labels, pixels.shape[:2], class_names)
        except ConfigError as error:
            raise ConfigError(f"{request.name}: {error}") from error
    return PreparedImage(pixels, torch.from_numpy(resize_image(pixels, input_size)), given)


def check_boxes(
    boxes: ArrayLike, labels: Sequence[int | str] | None, size: tuple[int, ...], class_names: Sequence[str]
) -> GivenBoxes:
    """Check given boxes and labels of an image of `size` (height, width), and return them as tensors.

    Raises:
        ConfigError: there is not one label for each box, a label is unknown, or a box has no area inside the image.
    """
    try:
        values = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"boxes cannot be read as an array [n, 4] of numbers ({error})") from error
    if labels is None or len(labels) != len(values):
        given = "none" if labels is None else str(len(labels))
        raise ConfigError(f"{len(values)} boxes need {len(values)} labels, given: {given}")
    for index, (x0, y0, x1, y1) in enumerate(values.tolist()):
        if not (x1 > x0 and y1 > y0):
            raise ConfigError(f"box {index}: {[x0, y0, x1, y1]} is not x0 < x1, y0 < y1")
        if not (x0 < size[1] and y0 < size[0] and x1 > 0 and y1 > 0):
            raise ConfigError(
                f"box {index}: {[x0, y0, x1, y1]} lies outside the image of {size[1]}x{size[0]} pixels, "
                "expected xyxy in pixels of the image"
            )
    indices = [to_index(label, class_names) for label in labels]
    return GivenBoxes(torch.from_numpy(values.copy()), torch.tensor(indices, dtype=torch.int64))


def to_index(label: int | str, class_names: Sequence[str]) -> int:
    """Return the index of a label or class name; raise ConfigError for an unknown one and for the background."""
    names = class_names[1:]  # the background cannot be segmented
    index = 1 + list(names).index(label) if label in names else label  # type: ignore[arg-type]
    if isinstance(index, str) or not 0 < int(index) < len(class_names):
        raise ConfigError(f"no class {label!r}; known: {', '.join(names)}")
    return int(index)
