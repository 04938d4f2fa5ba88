"""Assembly of the annotated data set from the journal: image by image, through the writers of the formats."""

import csv
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dasnet_lightning.annotation.agreement import Agreement
from dasnet_lightning.annotation.jobs import list_compared, list_wanted
from dasnet_lightning.annotation.journal import ImageMasks
from dasnet_lightning.annotation.options import AnnotateOptions
from dasnet_lightning.data.records import ImageRecord, Source
from dasnet_lightning.data.writers import WRITERS
from dasnet_lightning.data.writers.base import ImageLabels, Writer, read_labels
from dasnet_lightning.data.writers.convert import RENAMED, name_images, transfer_image
from dasnet_lightning.rle import areas

QUALITY_FILE = "quality.csv"
COLUMNS = ("split", "image", "object", "class", "quality", "kept as")
MASK, DOUBTFUL, HUMAN, CROWD = "mask", "box: doubtful", "human mask", "box: crowd or difficult"
EMPTY, FAILED = "box: the mask is empty", "box: the image cannot be read"


def assemble(
    splits: Mapping[str, Source],
    class_names: tuple[str, ...],
    masks: Iterator[ImageMasks],
    out: Path,
    options: AnnotateOptions,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write the data set, `quality.csv` and, if asked for, the agreement with the masks of people.

    The masks are in the order of the splits. The folder is empty.
    `progress` is called with (images done, images).
    """
    writer = WRITERS[options.format](out, class_names)
    names, renamed = name_images(splits, writer.flat_names)
    kept: Counter[str] = Counter()
    agreement = Agreement()
    images, total, failures = 0, sum(len(source.records) for source in splits.values()), list[str]()
    with (out / QUALITY_FILE).open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for split, source in splits.items():
            writer.begin(split, source)
            for record, name in zip(source.records, names[split], strict=True):
                found = next(masks)
                failures += [found.fault] if found.fault else []
                labels = _read(source, record, name, writer, options.compare)
                if options.compare:
                    agreement.add(split, source, record, labels, found)
                merged, uses = _merge(labels, record, found, options)
                writer.add(split, _relabel(merged, source.class_names, class_names))
                transfer_image(record.path, writer.image_folder(split) / name, options.images)
                table.writerows((split, *row) for row in _describe(record, source.class_names, uses))
                kept.update(use for use, _ in uses)
                images += 1
                if progress:
                    progress(images, total)
    writer.finish()
    if options.compare:
        agreement.write(out)
    counts = {"images": images, "objects": kept.total(), "kept_as": dict(sorted(kept.items())), "failures": failures}
    return {
        **counts,
        "losses": _list_losses(writer, renamed),
        "agreement": agreement.by_class() if options.compare else [],
    }


def _list_losses(writer: Writer, renamed: int) -> dict[str, int]:
    """Return what the format cannot hold, as a sentence with a count."""
    losses = writer.losses + Counter({RENAMED: renamed})
    return {text: int(count) for text, count in losses.items() if count}


def _describe(
    record: ImageRecord, class_names: tuple[str, ...], uses: list[tuple[str, float | None]]
) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of an image in `quality.csv`, without the split."""
    for item, (use, quality) in zip(record.objects, uses, strict=True):
        yield record.image_id, item.object_id, class_names[item.label], "" if quality is None else quality, use


def _read(source: Source, record: ImageRecord, name: str, writer: Writer, compare: bool) -> ImageLabels:
    """Return the labels of an image with the masks of people, which are opened only if somebody reads them."""
    open_masks = compare or not writer.keeps_masks(source)
    return read_labels(source, record, name, open_masks)[0]


def _merge(
    labels: ImageLabels, record: ImageRecord, found: ImageMasks, options: AnnotateOptions
) -> tuple[ImageLabels, list[tuple[str, float | None]]]:
    """Return the labels with the new masks, and for each object what it is kept as and the quality of its new mask."""
    masks = {place: (counts.encode("ascii"), quality) for place, counts, quality in found.objects}
    wanted, human = set(list_wanted(record)), set(list_compared(record))
    objects, uses = list(labels.objects), list[tuple[str, float | None]]()
    for place, item in enumerate(labels.objects):
        if place in human or place not in wanted:
            uses.append((HUMAN if place in human else CROWD, None))
            continue
        counts, quality = masks.get(place, (None, None))
        if counts is None or quality is None:
            use = FAILED
        elif not areas([counts], labels.size)[0]:
            use = EMPTY
        else:
            use = DOUBTFUL if quality < options.min_quality else MASK
        uses.append((use, quality))
        by_model = record.objects[place].by_model
        if use == MASK:
            objects[place] = replace(
                item,
                mask=counts,
                polygons=(),
                changed=True,
                by_model=True,
                quality=quality,
                tolerance=options.polygon_tolerance,
            )
        elif by_model:  # the mask of an earlier annotation does not stay
            objects[place] = replace(item, mask=None, polygons=(), changed=True, by_model=False)
    return replace(labels, objects=tuple(objects)), uses


def _relabel(labels: ImageLabels, old: tuple[str, ...], new: tuple[str, ...]) -> ImageLabels:
    """Return the labels as indices into the class names of all splits."""
    if old == new[: len(old)]:
        return labels
    objects = tuple(replace(item, label=new.index(old[item.label])) for item in labels.objects)
    return replace(labels, objects=objects)
