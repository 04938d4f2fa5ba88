"""Segmentation of the jobs, in this process or in several."""

import multiprocessing as mp
import os
import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import tee
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dasnet_lightning.annotation.jobs import ImageJob
from dasnet_lightning.annotation.journal import ImageMasks
from dasnet_lightning.data.images import read_image
from dasnet_lightning.data.sources.class_mapping import match_labels
from dasnet_lightning.errors import DasnetError, DataError
from dasnet_lightning.inference.segmenter import Segmenter, load
from dasnet_lightning.models.instance import InstanceOptions
from dasnet_lightning.rle import encode_mask

DIGITS = 4  # of a quality
SECONDS = 2.0  # between looks at whether the other processes live

Part = tuple[int, list[ImageJob]]
OnPart = Callable[[int, list[ImageMasks]], None]


@dataclass(frozen=True)
class WorkerSettings:
    """What a process needs.

    Attributes:
        checkpoint: checkpoint of stage two.
        device: where the network runs; "cuda" gives each process its own GPU.
        labels: label of the checkpoint of each class name of the data set that it knows.
        batch_size: images in one pass of the network.
    """

    checkpoint: Path
    device: str
    labels: dict[str, int] = field(default_factory=dict)
    batch_size: int = 8


def map_labels(class_names: Sequence[str], known: Sequence[str]) -> dict[str, int]:
    """Return the checkpoint's label of each class name that it knows; case, spaces and hyphens may differ."""
    labels, _ = match_labels(class_names, known)
    return {class_names[label]: number for label, number in labels.items()}


def segment_parts(settings: WorkerSettings, parts: Iterable[Part], processes: int, on_part: OnPart) -> None:
    """Segment all parts and call `on_part` with the number and the masks of each, in any order.

    Raises:
        DataError: a process ended.
    """
    if processes == 1:
        segmenter = load(settings.checkpoint, device=settings.device)
        for number, jobs in parts:
            on_part(number, segment_jobs(segmenter, jobs, settings))
        return
    context = mp.get_context("spawn")
    tasks, results = context.Queue(2 * processes), context.Queue()
    workers = [
        context.Process(target=_work, args=(settings, rank, os.getpid(), tasks, results), daemon=True)
        for rank in range(processes)
    ]
    for worker in workers:
        worker.start()
    try:
        for number, masks in _exchange(parts, workers, tasks, results):
            on_part(number, masks)
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()


def segment_jobs(segmenter: Segmenter, jobs: Sequence[ImageJob], settings: WorkerSettings) -> list[ImageMasks]:
    """Segment the boxes of some images; an image that cannot be read has a fault."""
    found: list[list[tuple[int, str, float]]] = [[] for _ in jobs]
    faults = [""] * len(jobs)
    calls: deque[tuple[int, list[int]]] = deque()  # the job and the boxes of each call on its way

    def requests() -> Iterator[tuple[Any, ...]]:
        for number, job in enumerate(jobs):
            pixels, faults[number] = _read(segmenter, job) if job.places else (None, "")
            for indices, given in () if pixels is None else _group_calls(segmenter, job, settings.labels):
                calls.append((number, indices))
                yield pixels, np.array([job.boxes[index] for index in indices], np.float32), given

    images, boxes, labels = (map(itemgetter(part), copy) for part, copy in enumerate(tee(requests(), 3)))
    for segmentation in segmenter.segment_many(images, boxes, labels, batch_size=settings.batch_size, workers=0):
        number, indices = calls.popleft()
        assert segmentation.quality is not None  # the segmenter knows it
        for index, mask, quality in zip(indices, segmentation.windows, segmentation.quality.tolist(), strict=True):
            counts = encode_mask(mask).decode("ascii")
            found[number].append((jobs[number].places[index], counts, round(quality, DIGITS)))
    return [ImageMasks(sorted(masks), fault) for masks, fault in zip(found, faults, strict=True)]


def _read(segmenter: Segmenter, job: ImageJob) -> tuple[np.ndarray | None, str]:
    """Return the pixels of an image, or why it cannot be segmented."""
    try:
        pixels = read_image(job.path, job.size, image_range=segmenter.image_range)
    except DataError as error:
        return None, str(error)
    height, width = pixels.shape[:2]
    if (height, width) != job.size:
        return None, f"{job.path}: has {width}x{height} pixels, expected {job.size[1]}x{job.size[0]}"
    return pixels, ""


def _group_calls(segmenter: Segmenter, job: ImageJob, labels: dict[str, int]) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the boxes that are segmented together, with their labels.

    A decoder of single boxes does not read the class, so a class that it does not know gets any label. Other decoders join
    the boxes of a label, so there each unknown class is segmented alone.
    """
    options = segmenter.options
    class_agnostic = isinstance(options, InstanceOptions) and options.grouping == "instance"
    together = [index for index, name in enumerate(job.class_names) if class_agnostic or name in labels]
    if together:
        yield together, [labels.get(job.class_names[index], 1) for index in together]
    for unknown in dict.fromkeys(name for name in job.class_names if not class_agnostic and name not in labels):
        alone = [index for index, name in enumerate(job.class_names) if name == unknown]
        yield alone, [1] * len(alone)


def _exchange(
    parts: Iterable[Part], workers: Sequence[Any], tasks: Any, results: Any
) -> Iterator[tuple[int, list[ImageMasks]]]:
    """Hand out the parts, a few ahead, and yield the results."""
    waiting = 0
    remaining = iter(parts)
    exhausted = False
    while waiting or not exhausted:
        while not exhausted and waiting < 2 * len(workers):
            part = next(remaining, None)
            exhausted = part is None
            if part is not None:
                tasks.put(part)
                waiting += 1
        if not waiting:
            return
        try:
            number, masks, error = results.get(timeout=SECONDS)
        except queue.Empty:
            ended = [worker for worker in workers if not worker.is_alive()]
            if ended:
                raise DataError(
                    f"a process of --devices ended with exit code {ended[0].exitcode}; run the command again to continue"
                ) from None
            continue
        if error:
            raise DataError(error)
        waiting -= 1
        yield number, masks


def _work(settings: WorkerSettings, rank: int, parent: int, tasks: Any, results: Any) -> None:
    """Segment parts until the parent ends."""
    try:
        segmenter = load(settings.checkpoint, device=_device_of(settings.device, rank))
        while os.getppid() == parent:
            try:
                number, jobs = tasks.get(timeout=SECONDS)
            except queue.Empty:
                continue
            results.put((number, segment_jobs(segmenter, jobs, settings), ""))
    except DasnetError as error:
        results.put((0, [], str(error)))


def _device_of(device: str, rank: int) -> str:
    return f"cuda:{rank % torch.cuda.device_count()}" if device == "cuda" else device
