"""The results of many images as one iterator, which survives the errors of single images."""

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing

from dasnet_lightning.inference.prepare import PreparedImage
from dasnet_lightning.inference.segmentation import Segmentation

Outcome = Segmentation | BaseException


class SegmentationStream(Iterator[Segmentation]):
    """Results of many images in their order; may be asked for the next one after an image's error.

    Args:
        outcomes: the result or the error of each image.
    """

    def __init__(self, outcomes: Generator[Outcome]) -> None:
        self._outcomes = outcomes

    def __next__(self) -> Segmentation:
        outcome = next(self._outcomes)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def close(self) -> None:
        """End the threads; what was not asked for is dropped."""
        self._outcomes.close()


def run_batches(
    prepared: Generator["Future[PreparedImage]"],
    segment: Callable[[Sequence[PreparedImage]], Sequence[Segmentation]],
    batch_size: int,
    max_pixels: int,
) -> Generator[Outcome]:
    """Yield the result or the error of each image.

    Args:
        prepared: the images in their order; closed at the end.
        segment: segments a batch.
        batch_size: largest number of images in a batch.
        max_pixels: largest number of pixels of the images of a batch; one image may exceed it.
    """
    slots: list[PreparedImage | BaseException] = []
    held = 0
    with closing(prepared):
        for future in prepared:
            error = future.exception()
            slot = future.result() if error is None else error
            pixels = slot.size[0] * slot.size[1] if isinstance(slot, PreparedImage) else 0
            if len(slots) == batch_size or (slots and held + pixels > max_pixels):
                yield from _fill(slots, segment)
                slots, held = [], 0
            slots.append(slot)
            held += pixels
        yield from _fill(slots, segment)


def _fill(
    slots: Sequence[PreparedImage | BaseException], segment: Callable[[Sequence[PreparedImage]], Sequence[Segmentation]]
) -> Iterator[Outcome]:
    """Yield the results of a batch with the errors in their places."""
    results = iter(segment([slot for slot in slots if isinstance(slot, PreparedImage)]))
    for slot in slots:
        yield next(results) if isinstance(slot, PreparedImage) else slot
