"""Files of a YOLO data set: classes and splits of its `data.yaml`, `obj.data` or `classes.txt`, and images to labels."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dasnet_lightning.data.images import IMAGE_SUFFIXES
from dasnet_lightning.data.records import Problem
from dasnet_lightning.data.sources.image_index import ImageIndex, index_images, list_files
from dasnet_lightning.data.sources.shape_data import split_name
from dasnet_lightning.errors import DataError

CONFIGS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
DARKNET = "obj.data"
NAME_FILES = ("classes.txt", "obj.names", "labels.txt", "_darknet.labels")
SPLIT_KEYS = ("train", "val", "valid", "validation", "test")
MAX_BYTES = 10_000_000  # of a configuration


@dataclass(eq=False)
class YoloFiles:
    """Classes and images of a YOLO data set.

    Attributes:
        config: the file that names classes and splits.
        base: folder that the images lie in.
        names: class names by index.
        splits: images by split.
        missing: a problem for each listed image that does not exist, by split.
        problems: notes about the configuration.
        keypoint_numbers: numbers of key points that follow the box in each row.
    """

    config: Path
    base: Path
    names: dict[int, str]
    splits: dict[str, list[Path]] = field(default_factory=dict)
    missing: dict[str, list[Problem]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    keypoint_numbers: int = 0


def find_yolo_config(root: Path) -> Path | None:
    """Return the file that describes a YOLO data set at `root` (a folder or that file); None if there is none."""
    if root.is_file():
        is_yaml = root.suffix.lower() in (".yaml", ".yml") and is_yolo_config(_read_config(root))
        return root if is_yaml or root.name == DARKNET else None
    for name in (*CONFIGS, DARKNET):
        if (root / name).is_file():
            return root / name
    others = [path for path in sorted(root.glob("*.y*ml")) if _describes_splits(path)]
    if others:
        return others[0]
    folders = [root / "labels", root / "train" / "labels", root / "obj_train_data"]
    if not any(folder.is_dir() and any(folder.rglob("*.txt")) for folder in folders):
        return None
    named = next((root / name for name in NAME_FILES if (root / name).is_file()), None)
    if named is None:
        raise DataError(f"{root}: a YOLO data set without class names, expected data.yaml or classes.txt in it")
    return named


def _describes_splits(file: Path) -> bool:
    try:
        content = _read_config(file)
    except DataError:  # not every YAML in the folder belongs to the data set
        return False
    return is_yolo_config(content) and "train" in content


def is_yolo_config(content: Any) -> bool:
    """Whether a parsed YAML describes a YOLO data set."""
    return isinstance(content, dict) and ("names" in content or "nc" in content)


def read_yolo_files(config: Path) -> YoloFiles:
    """Read the classes of a YOLO data set and list the images of its splits.

    Raises:
        DataError: the configuration is damaged, or the training images do not exist.
    """
    if config.suffix.lower() in (".yaml", ".yml"):
        return _read_yaml_data_set(config)
    if config.name == DARKNET:
        return _read_darknet(config)
    files = YoloFiles(config, config.parent, _read_name_file(config))
    split_folders = {split_name(path.parent.name): path for path in sorted(config.parent.glob("*/images"))}
    folders = {name: path for name, path in split_folders.items() if name in ("train", "val", "test")}
    for name, folder in (folders or {"all": config.parent}).items():
        files.splits[name] = list_files(folder, IMAGE_SUFFIXES)
    return files


class LabelFolders:
    """Label files of images: `images` in the path becomes `labels`, or the file lies beside the image."""

    def __init__(self) -> None:
        self._listings: dict[Path, set[str]] = {}
        self._used: set[Path] = set()

    def find(self, image: Path) -> Path | None:
        """Return the label file of an image, None if it has none."""
        for folder in self._folders(image):
            name = f"{image.stem}.txt"
            if name in self._list(folder):
                self._used.add(folder / name)
                return folder / name
        return None

    def unused(self) -> list[Path]:
        """Return the label files in the folders seen that belong to no image."""
        files = [folder / name for folder, names in self._listings.items() for name in names]
        known = {*NAME_FILES, "train.txt", "val.txt", "valid.txt", "test.txt"}
        return sorted(file for file in files if file not in self._used and file.name not in known)

    def _folders(self, image: Path) -> list[Path]:
        parts = list(image.parent.parts)
        folders = [image.parent, image.parent / "labels"]
        if "images" in parts:
            position = len(parts) - 1 - parts[::-1].index("images")
            folders.insert(0, Path(*parts[:position], "labels", *parts[position + 1 :]))
        return folders

    def _list(self, folder: Path) -> set[str]:
        if folder not in self._listings:
            paths = folder.iterdir() if folder.is_dir() else ()
            self._listings[folder] = {path.name for path in paths if path.suffix == ".txt"}
        return self._listings[folder]


def _read_yaml_data_set(config: Path) -> YoloFiles:
    content = _read_config(config)
    if not is_yolo_config(content):
        raise DataError(f"{config}: has no 'names', expected the class names of a YOLO data set")
    files = YoloFiles(config, config.parent, _read_names(config, content))
    shape = content.get("kpt_shape")
    if isinstance(shape, list) and len(shape) == 2:
        files.keypoint_numbers = int(shape[0]) * int(shape[1])
    base = config.parent / Path(str(content.get("path") or ".")).expanduser()
    files.base = base if base.is_dir() else config.parent
    index: list[ImageIndex] = []
    for key in SPLIT_KEYS:
        entries = content.get(key)
        for entry in entries if isinstance(entries, list) else [entries] if entries else []:
            _add_entry(files, key, str(entry), index)
    if not files.splits.get("train") and not files.missing.get("train"):
        raise DataError(f"{config}: has no 'train' with images, expected a folder of images or a list of them")
    files.base = _common_folder(files)
    return files


def _add_entry(files: YoloFiles, key: str, entry: str, index: list[ImageIndex]) -> None:
    """Add the images of one entry of a split: a folder or a list of images."""
    split = split_name(key)
    path = _resolve(entry, key, files.base, files.config.parent)
    if path is None:
        text = f"'{entry}' does not exist, looked in {files.base}"
        if split == "train":
            raise DataError(f"{files.config}: split 'train': {text}; correct 'path' or 'train'")
        files.problems.append(Problem(files.config, f"split '{key}'", text, "warning"))
    elif path.is_dir():
        files.splits.setdefault(split, []).extend(list_files(path, IMAGE_SUFFIXES))
    else:
        if not index:
            index.append(index_images(files.base))
        _add_list(files, split, path, index[0])


def _add_list(files: YoloFiles, split: str, file: Path, index: ImageIndex) -> None:
    images = files.splits.setdefault(split, [])
    for line in _read_lines(file):
        path, reason = index.find(line, file.parent if line.startswith("./") else files.base)
        if path is None:
            files.missing.setdefault(split, []).append(Problem(file, f"image '{line}'", reason, "refused"))
        else:
            images.append(path)


def _resolve(entry: str, key: str, base: Path, folder: Path) -> Path | None:
    """Return the existing path that an entry means; files move between machines, so its end counts too."""
    parts = [part for part in Path(entry).parts if part not in ("..", ".", "/")]
    tails = [Path(*parts[start:]) for start in range(len(parts)) if len(parts) - start > 1 or parts[start] == key]
    candidates = [start / path for path in (Path(entry), *tails) for start in (base, folder)]
    return next((Path(os.path.normpath(path)) for path in candidates if path.exists()), None)


def _common_folder(files: YoloFiles) -> Path:
    images = [image for paths in files.splits.values() for image in paths]
    if all(image.is_relative_to(files.base) for image in images):
        return files.base
    return Path(os.path.commonpath([image.parent for image in images]))


def _read_darknet(config: Path) -> YoloFiles:
    pairs = dict(line.split("=", 1) for line in _read_lines(config) if "=" in line)
    entries = {key.strip(): value.strip() for key, value in pairs.items()}
    names = _resolve(entries.get("names", "obj.names"), "obj.names", config.parent, config.parent)
    if names is None:
        raise DataError(f"{config}: 'names' does not exist, expected a file with one class name per line")
    files = YoloFiles(config, config.parent, _read_name_file(names))
    for key in SPLIT_KEYS:
        if key in entries:
            _add_entry(files, f"{key}.txt", entries[key], [])
    return files


def _read_names(config: Path, content: dict[str, Any]) -> dict[int, str]:
    names, count = content.get("names"), content.get("nc")
    if names is None:
        return {index: f"class_{index}" for index in range(int(count or 0))}
    try:
        table = dict(enumerate(names)) if isinstance(names, list) else {int(key): name for key, name in names.items()}
    except (AttributeError, ValueError, TypeError):
        raise DataError(f"{config}: 'names' is neither a list nor a table of index to name") from None
    if isinstance(count, int) and count != len(table):
        raise DataError(f"{config}: 'nc' is {count} but 'names' has {len(table)} names, correct one of them")
    return {index: str(name) for index, name in sorted(table.items())}


def _read_name_file(file: Path) -> dict[int, str]:
    return dict(enumerate(_read_lines(file)))


def _read_lines(file: Path) -> list[str]:
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as text ({error})") from error


def _read_config(file: Path) -> Any:
    try:
        if file.stat().st_size > MAX_BYTES:
            raise DataError(f"{file}: is larger than {MAX_BYTES} bytes, expected the short description of a data set")
        return yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise DataError(f"{file}: cannot be read as YAML ({' '.join(str(error).split())})") from error
