"""Usual folder layouts of COCO data sets, and a description of a folder that has none of them."""

from dataclasses import dataclass
from pathlib import Path

from dasnet_lightning.data.images import IMAGE_SUFFIXES
from dasnet_lightning.data.sources.checks import join_names
from dasnet_lightning.data.sources.coco_json import is_instances, read_json
from dasnet_lightning.errors import DataError

ROBOFLOW = "_annotations.coco.json"  # in the folder of each split
TRAIN_PATTERNS = ("annotations/instances_train*.json", "annotations/train*.json", "instances_train*.json",
                  "train*.json", f"train*/{ROBOFLOW}")  # fmt: skip
VAL_PATTERNS = ("annotations/instances_val*.json", "annotations/val*.json", "instances_val*.json", "val*.json",
                f"val*/{ROBOFLOW}")  # fmt: skip


@dataclass(frozen=True)
class CocoLayout:
    """Annotation files of a COCO data set; `val` is None if there is only one."""

    train: Path
    val: Path | None


def find_coco(root: Path) -> CocoLayout | None:
    """Find the annotation files at or below `root`; None if there are none. Raises DataError if several could be meant."""
    if root.is_file():
        return CocoLayout(root, None) if root.suffix == ".json" else None
    train, val = _first_match(root, TRAIN_PATTERNS), _first_match(root, VAL_PATTERNS)
    if train is not None:
        return CocoLayout(train, val)
    files = [file for folder in (root, root / "annotations") for file in sorted(folder.glob("*.json"))]
    instances = [file for file in files if is_instances(read_json(file))]
    if len(instances) > 1:
        raise DataError(
            f"{root}: contains {join_names(_short_names(instances))}; rename them to train.json and val.json, or pass one file"
        )
    return CocoLayout(instances[0], None) if instances else None


def find_coco_split(root: Path, split: str) -> Path | None:
    """Find the annotation file of a split such as "train2017"; None if there is none."""
    names = [f"{folder}{prefix}{split}.json" for folder in ("annotations/", "") for prefix in ("instances_", "")]
    return next((root / name for name in (*names, f"{split}/{ROBOFLOW}") if (root / name).is_file()), None)


def image_folders(file: Path, root: Path) -> list[Path]:
    """Return the folders that may hold the images of an annotation file, the most likely first."""
    above = [file.parent.parent] if file.parent.name == "annotations" else []
    bases = list(dict.fromkeys((root if root.is_dir() else file.parent, file.parent, *above)))
    split = file.stem.removeprefix("instances_")
    names = (split, split.rstrip("0123456789"))
    of_split = [folder for name in names for folder in (name, f"images/{name}", f"{name}/images")]
    folders = [base / folder for base in bases for folder in (*of_split, "images", "JPEGImages", "data", ".")]
    return [file.parent, *folders] if file.name == ROBOFLOW else folders


def describe_folder(root: Path) -> str:
    """Return the message for a path that cannot be opened: what it is, what it contains, and what is missing."""
    expected = (
        "expected VOC (Annotations, JPEGImages, ImageSets), SBD (img, inst, train.txt, val.txt) or COCO "
        "(annotations/instances_train*.json and instances_val*.json, train.json and val.json, or "
        "train/_annotations.coco.json)"
    )
    if root.is_file():
        return f"{root}: not a data set, {expected}, one COCO .json file, or a YAML list of parts"
    entries = sorted(root.iterdir())
    images = sum(path.suffix.lower() in IMAGE_SUFFIXES for path in entries)
    named = [
        f"{path.name}/" if path.is_dir() else path.name for path in entries if path.suffix.lower() not in IMAGE_SUFFIXES
    ]
    contents = [*named[:12], *([f"{len(named) - 12} more"] if len(named) > 12 else [])]
    contents += [f"{images} images"] if images else []
    voc_folders = [name for name in ("Annotations", "JPEGImages", "VOCdevkit") if (root / name).is_dir()]
    missing = [name for name in ("Annotations", "JPEGImages") if name not in voc_folders]
    if voc_folders and "VOCdevkit" not in voc_folders:
        return f"{root}: looks like VOC but has no folder {' and '.join(missing)}, restore it"
    return f"{root}: no data set was found; the folder contains {', '.join(contents) or 'nothing'}; {expected}"


def _first_match(root: Path, patterns: tuple[str, ...]) -> Path | None:
    """Return the file of the first pattern that matches. Raises DataError if it matches several files."""
    for pattern in patterns:
        files = sorted(root.glob(pattern))
        if len(files) > 1:
            raise DataError(f"{root}: contains {join_names(_short_names(files))}; keep one of them, or pass one file")
        if files:
            return files[0]
    return None


def _short_names(files: list[Path]) -> list[str]:
    return [file.name if file.name != ROBOFLOW else f"{file.parent.name}/{file.name}" for file in files]
