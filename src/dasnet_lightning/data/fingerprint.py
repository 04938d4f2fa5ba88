"""Fingerprint of a data set, so that a run notices when its labels or images change, and can say what changed.

The fingerprint holds one short entry for each image. It consists of the number and a digest of its boxes with their classes,
the same of its masks, and the size of its file. Masks are hashed as they are stored, without being decoded.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from dasnet_lightning.data.hashing import hash_file, hash_parts
from dasnet_lightning.data.records import ImageRecord, MaskState, Source
from dasnet_lightning.data.sources.checks import join_names
from dasnet_lightning.data.sources.open import DataSet

VERSION = 1
SHOWN = 3  # images in one sentence
SPLITS = {"train": "training", "val": "validation"}

Fingerprint = dict[str, Any]  # plain values, as JSON holds them


class _Entry(NamedTuple):
    """Fingerprint of one image, written as text with spaces."""

    boxes: str
    box_digest: str
    masks: str
    mask_digest: str
    file_size: str


def fingerprint(data: DataSet) -> Fingerprint:
    """Return the fingerprint of an opened data set."""
    splits = {"train": data.train, "val": data.val}
    return {
        "version": VERSION,
        "class_names": list(data.train.class_names),
        "files": {split: _hash_files(source) for split, source in splits.items()},
        **{
            split: {record.image_id: " ".join(_fingerprint_image(source, record)) for record in source.records}
            for split, source in splits.items()
        },
    }


def describe_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return what differs between two fingerprints, one phrase for each kind of change; empty if nothing does."""
    if before.get("version") != after.get("version"):
        return []  # written by another version, which hashed other things
    changes = describe_class_changes(before, after)
    for split, name in SPLITS.items():
        changes += [f"{text} in {name}" for text in _describe_split(before[split], after[split])]
        changes += [
            f"{file} has other contents"
            for file, digest in after["files"][split].items()
            if before["files"][split].get(file, digest) != digest
        ]
    return list(dict.fromkeys(changes))


def describe_class_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return which classes were renamed, added or removed."""
    old, new = before["class_names"][1:], after["class_names"][1:]
    if len(old) == len(new):
        return [f"class '{a}' became '{b}'" for a, b in zip(old, new, strict=True) if a != b]
    added, removed = [name for name in new if name not in old], [name for name in old if name not in new]
    changes = [f"new classes: {join_names(added)}"] if added else []
    return [*changes, *([f"classes removed: {join_names(removed)}"] if removed else [])]


def _hash_files(source: Source) -> dict[str, str]:
    """Return digests of the label files whose masks cannot be hashed image by image."""
    if all(source.mask_digest(record) is not None for record in source.records):
        return {}
    return {path.name: hash_file(path) for path in source.files}


def _fingerprint_image(source: Source, record: ImageRecord) -> _Entry:
    boxes = [f"{item.label} {item.ignore:d} {' '.join(f'{side:.2f}' for side in item.box)}" for item in record.objects]
    masks = sum(item.mask is MaskState.PRESENT for item in record.objects)
    content = [str(record.size), *sorted(boxes)]
    return _Entry(
        boxes=str(len(boxes)),
        box_digest=hash_parts(text.encode() for text in content),
        masks=str(masks),
        mask_digest=(source.mask_digest(record) if masks else "") or "-",
        file_size=str(record.path.stat().st_size),
    )


def _describe_split(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    added, removed = [key for key in after if key not in before], [key for key in before if key not in after]
    pairs = {key: (_Entry(*before[key].split(" ")), _Entry(*after[key].split(" "))) for key in after if key in before}
    boxes = [key for key, (old, new) in pairs.items() if old.box_digest != new.box_digest]
    masks = [key for key, (old, new) in pairs.items() if (old.masks, old.mask_digest) != (new.masks, new.mask_digest)]
    files = [key for key, (old, new) in pairs.items() if old.file_size != new.file_size]
    box_change = sum(int(pairs[key][1].boxes) - int(pairs[key][0].boxes) for key in boxes)
    mask_change = sum(int(pairs[key][1].masks) - int(pairs[key][0].masks) for key in masks)
    return [
        text
        for text in (
            _count(added, "images more"),
            _count(removed, "images fewer"),
            _count(boxes, f"images with other boxes, classes or sizes{_difference(box_change, 'boxes')}"),
            _count(masks, f"images with other masks{_difference(mask_change, 'masks')}"),
            _count(files, "image files of another size"),
        )
        if text
    ]


def _count(image_ids: list[str], text: str) -> str:
    return f"{len(image_ids)} {text} ({join_names(image_ids, SHOWN)})" if image_ids else ""


def _difference(change: int, noun: str) -> str:
    return f", {abs(change)} {noun} {'more' if change > 0 else 'fewer'}" if change else ""
