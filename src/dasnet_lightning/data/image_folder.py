"""The images that `Trainer.predict` sees: a split of the data set, or a folder of images without labels."""

from collections.abc import Sequence
from pathlib import Path

from dasnet_lightning.data.augmentation.transforms import Transform
from dasnet_lightning.data.dataset import SegmentationDataset
from dasnet_lightning.data.images import IMAGE_SUFFIXES, upright_size
from dasnet_lightning.data.records import ImageRecord, Source
from dasnet_lightning.data.sources.open import DataSet
from dasnet_lightning.errors import ConfigError, DataError


def prediction_set(data: DataSet, predict_on: str, transform: Transform) -> SegmentationDataset:
    """Return the images to predict, not augmented, without masks and ground truth.

    Args:
        data: the data set.
        predict_on: "val", "test" or a folder of images, searched recursively.
        transform: resizes the images to the network input.

    Raises:
        ConfigError: the data set has no test split.
        DataError: the folder has no image, or a file is not an image.
    """
    source: Source | None = data.val
    if predict_on == "test":
        source = data.test
    if source is None:
        raise ConfigError("the data set has no test split, use predict_on='val' or a folder of images")
    records = source.records if predict_on in ("val", "test") else folder_records(Path(predict_on).expanduser())
    return SegmentationDataset(source, records, frozenset(), transform, 0, image_range=data.image_range)


def folder_records(root: Path) -> Sequence[ImageRecord]:
    """Return a record without objects for each image below a folder; its id is the path relative to the folder."""
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise DataError(f"{root}: no image found, expected a folder of images ({', '.join(IMAGE_SUFFIXES)})")
    return [ImageRecord(path.relative_to(root).as_posix(), path, upright_size(path), ()) for path in paths]
