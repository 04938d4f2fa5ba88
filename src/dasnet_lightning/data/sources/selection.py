"""Sources that show another source's images in part or with other flags."""

from collections.abc import Sequence
from dataclasses import replace

from dasnet_lightning.data.records import ImageRecord, Masks, Problem, Source


class Selection(Source):
    """Source with only some images of another source.

    Args:
        source: opens the masks.
        records: the selected images.
        problems: problems to report with them.
    """

    def __init__(self, source: Source, records: Sequence[ImageRecord], problems: Sequence[Problem]) -> None:
        self.source = source
        self.class_names = source.class_names
        self.category_ids = source.category_ids
        self.records = tuple(records)
        self.problems = tuple(problems)
        self.root = source.root
        self.files = source.files

    def load_masks(self, record: ImageRecord, indices: Sequence[int]) -> Masks:
        """Open masks through the original source."""
        return self.source.load_masks(record, indices)

    def mask_digest(self, record: ImageRecord) -> str | None:
        """Return the digest of the original source."""
        return self.source.mask_digest(record)


def count_crowd(source: Source) -> Source:
    """Return the source with crowd and difficult objects as ordinary objects."""
    records = [
        replace(record, objects=tuple(replace(item, ignore=False) for item in record.objects))
        for record in source.records
    ]
    return Selection(source, records, source.problems)
