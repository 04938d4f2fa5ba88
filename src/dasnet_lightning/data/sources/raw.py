"""Convert raw objects of annotation files into records and problems, in the same way for every format."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dasnet_lightning.data.records import ImageRecord, MaskState, ObjectRecord, Problem
from dasnet_lightning.data.sources.checks import Box, Fix, ObjectNoun, RecordsError, check_box, describe_object

ADVICE = "Correct the file, or drop them (--fix drop)."


@dataclass(frozen=True, eq=False)
class RawObject:
    """One object as its annotation file describes it.

    Attributes:
        object_id: unique in its source.
        label: class index.
        box: xyxy edges in pixels; None if it cannot be read.
        shown: the box as written in the file, for messages.
        mask: state of the mask.
        ignore: True for crowd and difficult objects.
        reason: why the mask is invalid or, if the box is derived from the mask, why the box is missing.
        by_model: whether a model made the mask.
    """

    object_id: str
    label: int
    box: Box | None
    shown: str
    mask: MaskState
    ignore: bool
    reason: str = ""
    by_model: bool = False


@dataclass(frozen=True, eq=False)
class RawImage:
    """One image as its annotation file describes it.

    Attributes:
        image_id: unique in its source.
        name: name of the image in the annotation file.
        path: the image file; None if it is missing.
        size: annotated (height, width).
        file: the annotation file.
        objects: all annotated objects.
    """

    image_id: str
    name: str
    path: Path | None
    size: tuple[int, int]
    file: Path
    objects: tuple[RawObject, ...]


def read_images(
    images: Sequence[RawImage], class_names: Sequence[str], noun: ObjectNoun, fix: Fix
) -> tuple[list[ImageRecord], list[Problem]]:
    """Check all objects; each ends up in a record or in a problem with the action "refused".

    Args:
        images: the images; one whose path is None gives no record.
        class_names: names by label, for messages.
        noun: what the format calls an object.
        fix: "error" or "drop".

    Raises:
        RecordsError: an object cannot be used and `fix` is "error".
    """
    records: list[ImageRecord] = []
    problems: list[Problem] = []
    of_missing_images: list[Problem] = []
    for image in images:
        checked = [(item, *_check_object(image, item, class_names, noun)) for item in image.objects]
        if image.path is None:
            of_missing_images += [
                _object_problem(image, item, class_names, noun, "its image is missing") for item in image.objects
            ]
            continue
        kept = tuple(record for _, record, _ in checked if record is not None)
        records.append(ImageRecord(image.image_id, image.path, image.size, kept))
        problems += [problem for _, _, object_problems in checked for problem in object_problems]
    refused = [problem for problem in problems if problem.action == "refused"]
    if refused and fix == "error":
        raise RecordsError(refused, f"{len(refused)} objects cannot be used. {ADVICE}")
    return records, problems + of_missing_images


def _check_object(
    image: RawImage, item: RawObject, class_names: Sequence[str], noun: ObjectNoun
) -> tuple[ObjectRecord | None, list[Problem]]:
    if item.box is None:
        message = item.reason or f"box {item.shown} is not a list of four numbers"
        return None, [_object_problem(image, item, class_names, noun, message)]
    checked = check_box(item.box, image.size, item.shown)
    if checked.box is None:
        return None, [_object_problem(image, item, class_names, noun, checked.message)]
    problems = []
    if checked.action:
        problems.append(_object_problem(image, item, class_names, noun, checked.message, checked.action))
    if item.mask is MaskState.INVALID:
        problems.append(
            _object_problem(image, item, class_names, noun, f"{item.reason}; its box is used", "mask_invalid")
        )
    by_model = item.by_model and item.mask is MaskState.PRESENT
    record = ObjectRecord(item.object_id, checked.box, item.label, item.mask, item.ignore, item.reason, by_model)
    return record, problems


def _object_problem(
    image: RawImage,
    item: RawObject,
    class_names: Sequence[str],
    noun: ObjectNoun,
    message: str,
    action: str = "refused",
) -> Problem:
    return Problem(
        image.file, describe_object(noun, item.object_id, image.name, class_names[item.label]), message, action
    )
