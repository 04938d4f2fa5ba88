"""From what a file says about an object to a record or a problem: the step that every source takes in the same way."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dasnet_lightning.data.records import ImageRecord, MaskState, ObjectRecord, Problem
from dasnet_lightning.data.sources.checks import Box, Fix, RecordsError, check_box, describe_object

DROP = "Fix the file, or drop them (--fix drop)."


@dataclass(frozen=True, eq=False)
class RawObject:
    """One object as a file says it: `box` as edges, None where it is unreadable; `shown` is the box as it is written.

    `reason` says why the mask is invalid or, where the box comes from the mask, why there is no box.
    """

    object_id: str
    label: int
    box: Box | None
    shown: str
    mask: MaskState
    ignore: bool
    reason: str = ""


@dataclass(frozen=True, eq=False)
class RawImage:
    """One image as a file says it: `file` is the annotation file, `name` the image's name in it, `path` None if missing."""

    image_id: str
    name: str
    path: Path | None
    size: tuple[int, int]
    file: Path
    objects: tuple[RawObject, ...]


def read_images(
    images: Sequence[RawImage], class_names: Sequence[str], kind: Literal["annotation", "object"], fix: Fix
) -> tuple[list[ImageRecord], list[Problem]]:
    """Check all objects of all images; every object is in a record or in a problem with the action "refused".

    Images whose path is None give no record. Raises RecordsError where objects cannot be used and `fix` is "error".
    """
    records: list[ImageRecord] = []
    problems: list[Problem] = []
    lost: list[Problem] = []
    for image in images:
        checked = [(item, *_check(image, item, class_names, kind)) for item in image.objects]
        if image.path is None:
            lost += [_problem(image, item, class_names, kind, "its image is missing") for item in image.objects]
            continue
        kept = tuple(record for _, record, _ in checked if record is not None)
        records.append(ImageRecord(image.image_id, image.path, image.size, kept))
        problems += [problem for _, _, found in checked for problem in found]
    refused = [problem for problem in problems if problem.action == "refused"]
    if refused and fix == "error":
        raise RecordsError(refused, f"{len(refused)} objects cannot be used. {DROP}")
    return records, problems + lost


def _check(
    image: RawImage, item: RawObject, class_names: Sequence[str], kind: Literal["annotation", "object"]
) -> tuple[ObjectRecord | None, list[Problem]]:
    if item.box is None:
        message = item.reason or f"box {item.shown} is not four numbers"
        return None, [_problem(image, item, class_names, kind, message)]
    checked = check_box(item.box, image.size, item.shown)
    if checked.box is None:
        return None, [_problem(image, item, class_names, kind, checked.message)]
    found = []
    if checked.action:
        found.append(_problem(image, item, class_names, kind, checked.message, checked.action))
    if item.mask is MaskState.INVALID:
        found.append(_problem(image, item, class_names, kind, f"{item.reason}; its box is used", "mask_invalid"))
    return ObjectRecord(item.object_id, checked.box, item.label, item.mask, item.ignore, item.reason), found


def _problem(
    image: RawImage,
    item: RawObject,
    class_names: Sequence[str],
    kind: Literal["annotation", "object"],
    message: str,
    action: str = "refused",
) -> Problem:
    return Problem(
        image.file, describe_object(kind, item.object_id, image.name, class_names[item.label]), message, action
    )
