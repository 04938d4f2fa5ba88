"""The first page of a run, `dataset.html`: augmented training images as the network gets them, and all labels in counts."""

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from dasnet_lightning.data.augmentation.transforms import build_transform
from dasnet_lightning.data.dataset import SegmentationDataset
from dasnet_lightning.data.label_counts import LabelCounts
from dasnet_lightning.data.obstacles import training_obstacle, validation_obstacle
from dasnet_lightning.data.records import ImageRecord, Problem
from dasnet_lightning.data.sources.open import DataSet
from dasnet_lightning.data.unused_files import list_problems
from dasnet_lightning.errors import DataError
from dasnet_lightning.report import KeyFigure, Picture, Report, Table, Value, write_report
from dasnet_lightning.training.config import STAGE_TWO_AUGMENTATION, RunConfig
from dasnet_lightning.training.data_check import CheckedData, draw_budget
from dasnet_lightning.training.data_tables import classes_table, splits_table
from dasnet_lightning.visualization import draw_boxes, draw_masks, instance_palette, readable_scale

PAGE = "dataset.html"
LONGEST_SIDE = 320  # pixels of a picture; the page holds all of them
PICTURES = 6  # of each stage
SHOWN = 20  # problems in the table
ACTIONS = ("refused", "mask_invalid", "unused", "warning", "clipped")


def draw_samples(dataset: SegmentationDataset, caption: str, count: int = PICTURES) -> list[Picture]:
    """Draw augmented images, spread over a training set, with the boxes and masks that the network gets.

    An image that cannot be read is left out, so that the page shows the others.
    """
    pictures = []
    for index in np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int).tolist():
        try:
            sample = dataset[(0, index)]
        except DataError:
            continue
        target, image = sample.target, np.ascontiguousarray(sample.image.permute(1, 2, 0).numpy())
        scale, masks = readable_scale(image, LONGEST_SIDE), np.zeros((0, *image.shape[:2]), bool)
        if target.masks is not None:
            masks = target.masks[target.has_mask].numpy()
        colors = instance_palette(len(target.boxes))[target.has_mask.numpy()]
        tinted = draw_masks(image, masks, colors[: len(masks)], scale=scale)
        class_names = dataset.source.class_names
        names = [*class_names, *(f"{name} (ignored)" for name in class_names)]
        labels = target.labels + target.ignore * len(class_names)
        shown = f"{caption}; {len(target.boxes)} boxes, {len(masks)} masks"
        drawn = draw_boxes(tinted, target.boxes.numpy() * scale, labels, None, names)
        pictures.append(Picture(dataset.records[index].path.name, drawn, shown))
    return pictures


def draw_masked_samples(data: DataSet, image_size: tuple[int, int]) -> list[Picture]:
    """Draw training images with all their boxes and masks and the augmentation of stage two."""
    records = [record for record in data.train.records if record.has_masks] or data.train.records
    return draw_samples(_training_set(data, records, STAGE_TWO_AUGMENTATION, image_size, 0), "training", 2 * PICTURES)


class RunPage:
    """The page of a run, which is written before the masks are decoded and again after it.

    Args:
        config: the options of the run.
        dataset: the data set.
        image_size: (H, W) of the network input.
        draw: the mask budget of the pictures of stage two, and its split seed.

    Attributes:
        problems: all problems of the data set.
    """

    def __init__(self, config: RunConfig, dataset: DataSet, image_size: tuple[int, int], draw: tuple[str, int]) -> None:
        self.path = config.folder / PAGE
        self.image_size = image_size
        self.problems = list_problems(dataset)
        budget, seed = draw
        drawn = frozenset(draw_budget(dataset.train, budget, seed).image_ids)
        masked = [record for record in dataset.train.records if record.image_id in drawn]
        augmentation = config.detector_augmentation
        boxes = _training_set(dataset, dataset.train.records, augmentation, image_size, config.seed, masks=False)
        masks = _training_set(dataset, masked, STAGE_TWO_AUGMENTATION, image_size, config.seed)
        self.pictures = [*draw_samples(boxes, "stage one"), *draw_samples(masks, f"stage two, {budget} masks")]

    def write(self, data: CheckedData) -> None:
        """Write the page with the counts of the labels as far as they are known."""
        problems = [*data.checked.problems(data.dataset), *self.problems]
        write_dataset_page(self.path, data.dataset, data.counts, problems, self.pictures, self.image_size)


def write_dataset_page(
    path: Path,
    data: DataSet,
    counts: LabelCounts,
    problems: Sequence[Problem],
    pictures: Sequence[Picture],
    image_size: tuple[int, int],
    arguments: Sequence[str] = (),
) -> Path:
    """Write the page of a data set.

    Args:
        path: the HTML file.
        data: the data set, with masks that cannot be used marked INVALID.
        counts: counts of its labels.
        problems: all its problems.
        pictures: drawn training images.
        image_size: (H, W) of the network input.
        arguments: arguments of `dasnet` that wrote the page.
    """
    total = counts.splits["all"]
    notes = [note for note in (training_obstacle(data), validation_obstacle(data.val)) if note]
    unopened = f" {total['not opened']:,} masks were not opened." if total["not opened"] else ""
    report = Report(
        title=f"Data set {data.root.resolve().name}",
        summary=f"{data.format.upper()}, {len(data.train.class_names) - 1} classes.{unopened}"
        + "".join(f" Note: {note}." for note in notes),
        key_figures=[
            KeyFigure("images", total["images"], f"{total['with masks']:,} with masks"),
            KeyFigure("boxes", total["boxes"], "all labels in the files"),
            KeyFigure("masks", total["masks"], "decoded"),
            KeyFigure("invalid masks", total["invalid mask"], "their boxes are used"),
        ],
        tables=[splits_table(counts), classes_table(counts), sizes_table(data, image_size)],
        pictures=pictures,
        accounting=_problems_table(problems),
        command=shlex.join(["dasnet", *arguments]) if arguments else "",
        tables_title="Labels",
        accounting_title="Problems",
    )
    return write_report(path, report)


def sizes_table(data: DataSet, image_size: tuple[int, int]) -> Table:
    """Return the smallest, median and largest size of images and objects."""
    records = [record for source in (data.train, data.val) for record in source.records]
    objects = [(item.box, record.size) for record in records for item in record.objects]
    height, width = image_size
    rows = [
        _spread_row("image width", [record.size[1] for record in records]),
        _spread_row("image height", [record.size[0] for record in records]),
        _spread_row("objects in an image", [len(record.objects) for record in records]),
        _spread_row("box width", [box[2] - box[0] for box, _ in objects]),
        _spread_row("box height", [box[3] - box[1] for box, _ in objects]),
        _spread_row("box width in the network", [(box[2] - box[0]) * width / size[1] for box, size in objects]),
        _spread_row("box height in the network", [(box[3] - box[1]) * height / size[0] for box, size in objects]),
    ]
    return Table("Sizes", ["in pixels", "smallest", "median", "largest"], rows)


def _training_set(
    data: DataSet,
    records: Sequence[ImageRecord],
    augmentation: str,
    image_size: tuple[int, int],
    seed: int,
    masks: bool = True,
) -> SegmentationDataset:
    """Return training images, with all masks of these images or without any."""
    mask_ids = frozenset(record.image_id for record in records) if masks else frozenset[str]()
    transform = build_transform(augmentation, image_size)
    return SegmentationDataset(data.train, records, mask_ids, transform, seed, image_range=data.image_range)


def _spread_row(name: str, values: Iterable[float]) -> list[Value]:
    array = np.array(list(values), float)
    if not len(array):
        return [name, None, None, None]
    return [name, *(round(float(value)) for value in (array.min(), np.median(array), array.max()))]


def _problems_table(problems: Sequence[Problem]) -> Table:
    """Return the first problems, those that lose labels before the others."""
    ranked = sorted(problems, key=lambda item: ACTIONS.index(item.action) if item.action in ACTIONS else len(ACTIONS))
    rows = [[item.action.replace("_", " "), str(item)] for item in ranked[:SHOWN]]
    note = "`dasnet data` lists all labels that are not used."
    return Table(f"Problems and notes ({len(ranked):,})", ["kind", "what"], rows or [["-", "none"]], note)
