"""Annotation of a data set: boxes in, the same data set with masks and their quality out."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dasnet_lightning.annotation.assemble import assemble
from dasnet_lightning.annotation.jobs import check_places, describe_unknown, iterate_jobs, join_class_names, list_splits
from dasnet_lightning.annotation.journal import ImageMasks, Journal
from dasnet_lightning.annotation.options import FREE_TO_CHANGE, AnnotateOptions
from dasnet_lightning.annotation.workers import Part, WorkerSettings, map_labels, segment_parts
from dasnet_lightning.data.fingerprint import fingerprint
from dasnet_lightning.data.hashing import hash_file, hash_parts
from dasnet_lightning.data.sources.open import DataSet, open_dataset
from dasnet_lightning.data.writers import WRITERS
from dasnet_lightning.errors import DataError
from dasnet_lightning.inference.device import choose_device
from dasnet_lightning.inference.segmenter import load
from dasnet_lightning.options import replace_options

BATCHES_IN_PART = 2

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Annotation:
    """Result of an annotation.

    Attributes:
        out: the folder of the new data set.
        format: its format.
        images: number of images.
        objects: number of objects.
        kept_as: number of objects by what they are kept as: "mask", "human mask", "box: doubtful", ...
        losses: what the format cannot hold, as a sentence with a count.
        failures: why images could not be segmented, one sentence each; their objects stay as they were.
        agreement: class, number of objects, mean IoU with the masks of people, share with an IoU of at least 0.75. The
            worst class comes first; empty unless asked for.
        notes: sentences about the data set and the checkpoint.
        seconds: duration of the segmentation in this call.
        segmented: images that were segmented in this call.
    """

    out: Path
    format: str
    images: int
    objects: int
    kept_as: Mapping[str, int]
    losses: Mapping[str, int]
    failures: tuple[str, ...]
    agreement: tuple[tuple[Any, ...], ...]
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    segmented: int = 0


def annotate(
    data: str | Path, checkpoint: str | Path, out: str | Path, *, progress: Progress | None = None, **options: Any
) -> Annotation:
    """Segment the boxes of a data set and write the same data set with masks.

    Masks that people drew stay as they are. Masks by a model are marked as such, also those of an earlier annotation, which
    are made anew. An interrupted annotation continues if it is called again, and ends with the same files.

    Args:
        data: a folder, one label file, or a YAML list of parts.
        checkpoint: a checkpoint of stage two.
        out: folder of the new data set: new, empty, or with an annotation to continue.
        progress: called with the step ("segment" or "write"), and the number of images that are done and of all.
        options: fields of `AnnotateOptions`.

    Returns:
        Counts of what was written.

    Raises:
        ConfigError: an option is invalid, or `out` holds something else.
        DataError: the data set cannot be used, or `out` lies in it.
        CheckpointError: the checkpoint cannot be used.
    """
    settings = replace_options(AnnotateOptions(), options, "annotate")
    opened = open_dataset(Path(data).expanduser(), settings.allow_missing, settings.fix)
    folder = Path(out).expanduser()
    check_places(opened, folder)
    settings = replace(settings, format=settings.format or (opened.format if opened.format in WRITERS else "coco"))
    splits = list_splits(opened)
    class_names = join_class_names(splits)
    labels = map_labels(class_names, load(checkpoint).class_names)
    note = describe_unknown(iterate_jobs(splits, settings.compare), labels)
    journal = Journal(folder, _identify(opened, Path(checkpoint), settings))
    worker = WorkerSettings(Path(checkpoint), choose_device(settings.device), labels, settings.batch_size)
    segmented, seconds = 0, 0.0
    try:
        if journal.stage == "segment":
            start = time.monotonic()
            segmented = _segment(journal, splits, worker, settings, progress)
            seconds = time.monotonic() - start
            masks = _read_masks(journal, _count_images(splits), settings)
            move = None if progress is None else lambda done, total: progress("write", done, total)
            result = assemble(splits, class_names, masks, journal.begin_assembly(), settings, move)
            journal.assembled(result)
        if journal.stage == "move":
            journal.move()
    except OSError as error:
        text = f"cannot be written ({error.strerror or error}); run the command again to continue"
        raise DataError(f"{error.filename or folder}: {text}") from error
    return _describe(folder, settings, journal.result, [note] if note else [], seconds, segmented)


def _describe(
    out: Path, settings: AnnotateOptions, result: dict[str, Any], notes: list[str], seconds: float, segmented: int
) -> Annotation:
    values = dict(result)
    failures, agreement = tuple(values.pop("failures")), tuple(map(tuple, values.pop("agreement")))
    return Annotation(
        out,
        settings.format,
        failures=failures,
        agreement=agreement,
        notes=tuple(notes),
        seconds=seconds,
        segmented=segmented,
        **values,
    )


def _identify(data: DataSet, checkpoint: Path, settings: AnnotateOptions) -> dict[str, Any]:
    """Return what the result depends on."""
    kept = {f"option {name}": value for name, value in asdict(settings).items() if name not in FREE_TO_CHANGE}
    text = repr(fingerprint(data))
    test = [] if data.test is None else [(record.image_id, record.objects) for record in data.test.records]
    return {
        "checkpoint": hash_file(checkpoint),
        "data set": hash_parts([text.encode("utf-8", "surrogatepass"), repr(test).encode("utf-8", "surrogatepass")]),
        **kept,
    }


def _count_images(splits: Mapping[str, Any]) -> int:
    return sum(len(source.records) for source in splits.values())


def _segment(
    journal: Journal,
    splits: Mapping[str, Any],
    worker: WorkerSettings,
    settings: AnnotateOptions,
    progress: Progress | None,
) -> int:
    """Segment the parts that are not finished; return the number of images in them."""
    total = _count_images(splits)
    size = BATCHES_IN_PART * settings.batch_size
    finished = [number for number in range(-(-total // size)) if journal.has_part(number)]
    skipped = frozenset(finished)
    before = sum(min(size, total - number * size) for number in finished)
    done = before

    def note(number: int, masks: list[ImageMasks]) -> None:
        nonlocal done
        journal.write_part(number, masks)
        done += len(masks)
        if progress is not None:
            progress("segment", done, total)

    if done < total:
        parts = (part for part in _cut(splits, settings.compare, size) if part[0] not in skipped)
        segment_parts(worker, parts, settings.devices, note)
    return done - before


def _cut(splits: Mapping[str, Any], compare: bool, size: int) -> Iterator[Part]:
    """Yield the jobs in parts of `size` images."""
    jobs = iterate_jobs(splits, compare)
    number, part = 0, []
    for job in jobs:
        part.append(job)
        if len(part) == size:
            yield number, part
            number, part = number + 1, []
    if part:
        yield number, part


def _read_masks(journal: Journal, total: int, settings: AnnotateOptions) -> Iterator[ImageMasks]:
    """Yield the masks of all images, in their order."""
    for number in range(-(-total // (BATCHES_IN_PART * settings.batch_size))):
        yield from journal.read_part(number)
