"""Where COCO data sets keep their files: the usual arrangements, and a description of a folder that fits none."""

from dataclasses import dataclass
from pathlib import Path

from dasnet_lightning.data.sources.coco_json import is_instances, read_json
from dasnet_lightning.errors import DataError

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
ROBOFLOW = "_annotations.coco.json"
TRAIN = ("annotations/instances_train*.json", "annotations/train*.json", "instances_train*.json", "train*.json",
         f"train*/{ROBOFLOW}")  # fmt: skip
VAL = ("annotations/instances_val*.json", "annotations/val*.json", "instances_val*.json", "val*.json",
       f"val*/{ROBOFLOW}")  # fmt: skip


@dataclass(frozen=True)
class CocoLayout:
    """The annotation files of a COCO data set; `val` is None where there is only one."""

    train: Path
    val: Path | None


def find_coco(root: Path) -> CocoLayout | None:
    """The annotation files at or below `root`, None where there are none. Raises DataError where several could be meant."""
    if root.is_file():
        return CocoLayout(root, None) if root.suffix == ".json" else None
    train, val = _first(root, TRAIN), _first(root, VAL)
    if train is not None:
        return CocoLayout(train, val)
    files = [file for folder in (root, root / "annotations") for file in sorted(folder.glob("*.json"))]
    instances = [file for file in files if is_instances(read_json(file))]
    if len(instances) > 1:
        raise DataError(
            f"{root}: holds {', '.join(_names(instances))}, name them train.json and val.json or give one file"
        )
    return CocoLayout(instances[0], None) if instances else None


def find_coco_split(root: Path, split: str) -> Path | None:
    """The annotation file of a split by its name, such as train2017; None where there is none."""
    names = [f"{folder}{prefix}{split}.json" for folder in ("annotations/", "") for prefix in ("instances_", "")]
    return next((root / name for name in (*names, f"{split}/{ROBOFLOW}") if (root / name).is_file()), None)


def image_folders(file: Path, root: Path) -> list[Path]:
    """Where the images of an annotation file may lie, most likely first."""
    top = root if root.is_dir() else file.parent
    tops = list(dict.fromkeys((top, file.parent, *([file.parent.parent] if file.parent.name == "annotations" else []))))
    split = file.stem.removeprefix("instances_")
    names = (split, split.rstrip("0123456789"))
    inside = [place for name in names for place in (name, f"images/{name}", f"{name}/images")]
    folders = [folder / place for folder in tops for place in (*inside, "images", "JPEGImages", "data", ".")]
    return [file.parent, *folders] if file.name == ROBOFLOW else folders


def describe_folder(root: Path) -> str:
    """Say why a path is no data set that can be opened: what it is, what was found, what is missing."""
    expected = (
        "expected VOC (Annotations, JPEGImages, ImageSets), SBD (img, inst, train.txt, val.txt) or COCO "
        "(annotations/instances_train*.json and instances_val*.json, train.json and val.json, or "
        "train/_annotations.coco.json)"
    )
    if root.is_file():
        return f"{root}: is no data set, {expected}, one COCO .json file, or a YAML list of parts"
    if _is_yolo(root):
        return f"{root}: a YOLO data set, not supported yet, convert it to COCO"
    entries = sorted(root.iterdir())
    images = sum(path.suffix.lower() in IMAGES for path in entries)
    named = [f"{path.name}/" if path.is_dir() else path.name for path in entries if path.suffix.lower() not in IMAGES]
    found = [*named[:12], *([f"{len(named) - 12} more"] if len(named) > 12 else [])]
    found += [f"{images} images"] if images else []
    lone = [name for name in ("Annotations", "JPEGImages", "VOCdevkit") if (root / name).is_dir()]
    missing = [name for name in ("Annotations", "JPEGImages") if name not in lone]
    if lone and "VOCdevkit" not in lone:
        return f"{root}: looks like VOC but has no folder {' and '.join(missing)}"
    return f"{root}: no data set was found; it holds {', '.join(found) or 'nothing'}; {expected}"


def _first(root: Path, patterns: tuple[str, ...]) -> Path | None:
    """The file of the first pattern that matches. Raises DataError where it matches several."""
    for pattern in patterns:
        files = sorted(root.glob(pattern))
        if len(files) > 1:
            raise DataError(f"{root}: holds {', '.join(_names(files))}, keep one, or give one file")
        if files:
            return files[0]
    return None


def _names(files: list[Path]) -> list[str]:
    return [file.name if file.name != ROBOFLOW else f"{file.parent.name}/{file.name}" for file in files]


def _is_yolo(root: Path) -> bool:
    labels = [root / "labels", root / "train" / "labels"]
    return any((root / name).is_file() for name in ("data.yaml", "data.yml", "dataset.yaml")) or any(
        folder.is_dir() and any(folder.rglob("*.txt")) for folder in labels
    )
