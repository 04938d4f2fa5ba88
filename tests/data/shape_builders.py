"""Helpers for the tests of the readers: pictures on disk, and what a reader made of an object."""

from pathlib import Path

import numpy as np
from data_builders import write_picture

from dasnet_lightning.data.records import ImageRecord, MaskState, Source
from dasnet_lightning.data.sources.shape_data import ShapeData, build_sources

ABSENT, PRESENT, INVALID = MaskState.ABSENT, MaskState.PRESENT, MaskState.INVALID
TRIANGLE = [[5.0, 4.0], [25.0, 6.0], [15.0, 24.0]]  # x, y in pixels of the usual picture of 30x40


def pictures(root: Path, *names: str, size: tuple[int, int] = (30, 40)) -> None:
    for seed, name in enumerate(names):
        write_picture(root / name, size, seed)


def source_of(data: ShapeData | None, **options: object) -> Source:
    """The only or the training source of a data set."""
    assert data is not None
    return build_sources(data, **options)[0]  # type: ignore[arg-type]


def states(source: Source) -> list[list[MaskState]]:
    return [[item.mask for item in record.objects] for record in source.records]


def messages(source: Source) -> list[str]:
    return [str(problem) for problem in source.problems]


def mask_of(source: Source, record: ImageRecord, index: int) -> np.ndarray:
    masks = source.load_masks(record, [index])
    assert masks.valid == (True,), masks.reasons
    return masks.masks[0]


def iou(first: np.ndarray, second: np.ndarray) -> float:
    return float((first & second).sum() / (first | second).sum())
