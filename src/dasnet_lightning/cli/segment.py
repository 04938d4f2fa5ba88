"""`dasnet segment`: pictures, COCO JSON and VOC result files for images, folders and glob patterns.

An unreadable image is reported and skipped. The predictions name images relative to the folder that holds all of them, as
pycocotools and other readers of COCO files expect; `info.image_folder` says where that is.
"""

import argparse
import glob
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dasnet_lightning.cli.options import add_feature_cache_arguments, parse_options
from dasnet_lightning.options import replace_options

if TYPE_CHECKING:
    from dasnet_lightning.inference.segmentation import Segmentation
    from dasnet_lightning.inference.segmenter import Segmenter
    from dasnet_lightning.inference.voc_results import VocResults


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "images", metavar="IMAGES", nargs="+", help="files, folders (searched recursively) or glob patterns"
    )
    parser.add_argument("--checkpoint", metavar="FILE", type=Path, required=True, help="a checkpoint of stage two")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("segmented"), help="default: %(default)s")
    parser.add_argument(
        "--score-threshold",
        metavar="S",
        type=_fraction,
        help="drop detections below it, 0 to 1 (default: the checkpoint's)",
    )
    parser.add_argument(
        "--inference-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="override a field of the checkpoint's SemanticOptions or InstanceOptions, such as "
        "foreground_threshold=0.4; repeatable",
    )
    parser.add_argument(
        "--voc-results",
        metavar="DIR",
        type=Path,
        help="also write VOC result files (comp6, comp4) to DIR/results; use a low --score-threshold for detections",
    )
    add_feature_cache_arguments(parser, "of the images, to segment them again with other decoders or options,")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")


def run(args: argparse.Namespace) -> int:
    """Segment all images; return 2 if some could not be read."""
    from dasnet_lightning import console

    paths, skipped = find_images(args.images, args.out)
    if skipped:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(skipped.items()))
        console.info(f"skipped {skipped.total():,} files: {kinds}")
    for option, folder in (("--out", args.out), ("--voc-results", args.voc_results)):
        _make_folder(option, folder)
    voc = None if args.voc_results is None else _voc_results(args.voc_results, paths)
    changes = dict(parse_options(args.inference_option, "--inference-option"))
    changes |= {} if args.score_threshold is None else {"score_threshold": args.score_threshold}
    segmenter = _load(args, changes)
    root = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    content: dict[str, Any] = {"images": [], "categories": [], "annotations": []}
    try:
        failures = _segment_all(segmenter, paths, root, args.out, content, voc)
    finally:  # keep the results before Ctrl-C too
        if voc is not None:
            voc.write()
        _write_predictions(args.out / "predictions.json", content, root, args.checkpoint)
    done = len(paths) - failures
    console.out(f"{done:,} of {len(paths):,} images segmented, {len(content['annotations']):,} objects: {args.out}")
    if segmenter.feature_cache is not None:
        console.out(f"features of {segmenter.feature_cache.hits:,} images taken from {args.feature_cache}")
    if failures:
        console.error(f"dasnet: {failures:,} of {len(paths):,} images could not be segmented, see above")
    return 2 if failures else 0


def find_images(given: Sequence[str], out: Path) -> tuple[list[Path], Counter[str]]:
    """Find the images among the arguments.

    Args:
        given: files, folders (searched recursively) and glob patterns.
        out: output folder, left out inside the folders.

    Returns:
        The image files, each once, in order, and the number of files that were skipped, by kind. A file that is given
        by its name is never skipped.

    Raises:
        DataError: an argument matches no image.
    """
    from dasnet_lightning.data.images import IMAGE_SUFFIXES
    from dasnet_lightning.errors import DataError

    found: dict[Path, Path] = {}
    skipped: dict[Path, str] = {}
    for argument in given:
        paths = _expand(argument, out)
        kinds = {path: "" if path == Path(argument).expanduser() else _skipped_kind(path) for path in paths}
        skipped |= {path.resolve(): kind for path, kind in kinds.items() if kind}
        images = [path for path in paths if not kinds[path]]
        if not images:
            counts = Counter(kind for kind in kinds.values() if kind)
            instead = "".join(f", {count:,} {kind}" for kind, count in sorted(counts.items()))
            suffixes = ", ".join(IMAGE_SUFFIXES)
            raise DataError(
                f"{argument}: no image found{instead}; expected a file, a folder or a pattern of images ({suffixes})"
            )
        for path in images:
            found.setdefault(path.resolve(), path)
    return list(found.values()), Counter(kind for path, kind in skipped.items() if path not in found)


def _skipped_kind(path: Path) -> str:
    """Return the kind of a file that is not read as an image, "" for an image."""
    from dasnet_lightning.data.images import IMAGE_SUFFIXES

    if path.name.startswith("._"):
        return "._* (macOS resource forks)"
    suffix = path.suffix.lower()
    return "" if suffix in IMAGE_SUFFIXES else suffix or "without a suffix"


def name_pictures(paths: Iterable[Path], out: Path) -> list[Path]:
    """Return the picture file of each image: its stem, numbered if that would overwrite a picture or an image."""
    images = list(paths)
    taken = {str(path.resolve()).casefold() for path in images}  # some file systems ignore case
    pictures = []
    for image in images:
        picture, number = out / f"{image.stem}.png", 1
        while str(picture.resolve()).casefold() in taken:
            number += 1
            picture = out / f"{image.stem}_{number}.png"
        taken.add(str(picture.resolve()).casefold())
        pictures.append(picture)
    return pictures


def _expand(argument: str, out: Path) -> list[Path]:
    """Return the files that an argument names, in order, without those in the output folder below it."""
    path = Path(argument).expanduser()
    if path.is_file():
        return [path]
    entries = path.rglob("*") if path.is_dir() else map(Path, glob.glob(str(path), recursive=True))  # noqa: PTH207
    files = sorted(entry for entry in entries if entry.is_file())
    written = out.resolve()
    if not path.is_dir() or path.resolve() not in written.parents:
        return files
    return [file for file in files if not file.resolve().is_relative_to(written)]


def _make_folder(option: str, folder: Path | None) -> None:
    """Make a folder for results. Raises ConfigError if that is not possible."""
    from dasnet_lightning.errors import ConfigError

    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise ConfigError(f"{option} {folder}: is a file, expected a folder") from error
    except OSError as error:
        raise ConfigError(f"{option} {folder}: cannot be made ({error.strerror or error})") from error


def _load(args: argparse.Namespace, changes: Mapping[str, Any]) -> "Segmenter":
    """Load the checkpoint and override its options."""
    from dasnet_lightning.inference import segmenter as inference

    segmenter = inference.load(
        args.checkpoint,
        device=_device(args.device),
        feature_cache=args.feature_cache,
        feature_cache_gb=args.feature_cache_gb,
    )
    if changes:
        segmenter.options = replace_options(segmenter.options, changes, "--inference-option")
    return segmenter


def _device(name: str) -> str:
    """Return the device to use. Raises ConfigError if it does not exist."""
    import torch

    from dasnet_lightning.errors import ConfigError

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device {name}: cannot be used ({reason}); try --device cpu") from error
    return name


def _voc_results(root: Path, paths: Sequence[Path]) -> "VocResults":
    """Open VOC result files, whose image ids are file stems. Raises ConfigError if two images have the same stem."""
    from dasnet_lightning.data.sources.voc_xml import VOC_CLASSES
    from dasnet_lightning.errors import ConfigError
    from dasnet_lightning.inference.voc_results import VocResults

    names: dict[str, Path] = {}
    for path in paths:
        other = names.setdefault(path.stem, path)
        if other is not path:
            raise ConfigError(
                f"--voc-results: {other} and {path} would both be image '{path.stem}': segment them separately"
            )
    return VocResults(root, VOC_CLASSES)


def _segment_all(
    segmenter: "Segmenter",
    paths: Sequence[Path],
    root: Path,
    out: Path,
    content: dict[str, Any],
    voc: "VocResults | None",
) -> int:
    """Write a picture and the predictions of each image; return how many images could not be read."""
    from dasnet_lightning import console
    from dasnet_lightning.console import progress
    from dasnet_lightning.errors import DataError

    failures = 0
    pairs = list(zip(paths, name_pictures(paths, out), strict=True))
    for image_id, (path, picture) in enumerate(progress(pairs, "segment"), start=1):
        try:
            segmentation = segmenter.segment(path)
        except DataError as error:
            failures += 1
            console.error(f"dasnet: {error}")
            continue
        segmentation.save(picture)
        if voc is not None:
            voc.add(path.stem, segmentation)
        _add(content, segmentation, image_id, path.absolute().relative_to(root).as_posix())
    return failures


def _add(content: dict[str, Any], segmentation: "Segmentation", image_id: int, name: str) -> None:
    """Add an image and its objects to the predictions; `annotations` is also a valid list of COCO results."""
    height, width = segmentation.image.shape[:2]
    content["images"].append({"id": image_id, "file_name": name, "width": width, "height": height})
    ids = segmentation.category_ids or tuple(range(len(segmentation.class_names)))
    content["categories"] = [
        {"id": key, "name": name} for key, name in list(zip(ids, segmentation.class_names, strict=True))[1:]
    ]
    areas = segmentation.masks.flatten(1).sum(dim=1).tolist()
    for result, area in zip(segmentation.to_coco(image_id), areas, strict=True):
        number = len(content["annotations"]) + 1
        content["annotations"].append({"id": number, "iscrowd": 0, "area": area, **result})


def _write_predictions(path: Path, content: dict[str, Any], root: Path, checkpoint: Path) -> None:
    """Write the predictions; their file names are relative to `root`, which is told relative to the file."""
    from dasnet_lightning import __version__
    from dasnet_lightning.storage.atomic import write_text

    info = {
        "description": f"predictions of dasnet_lightning {__version__} with {checkpoint.name}",
        "image_folder": Path(os.path.relpath(root, path.parent.absolute())).as_posix(),
    }
    write_text(path, json.dumps({"info": info, **content}, ensure_ascii=False) + "\n")


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value
