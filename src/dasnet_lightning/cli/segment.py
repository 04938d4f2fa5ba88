"""`dasnet segment`: COCO JSON, pictures and VOC result files for images, folders and glob patterns.

An unreadable image is reported and skipped.
"""

import argparse
import glob
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dasnet_lightning.cli.json_output import add_json_argument, json_document
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
        "--draw", action=argparse.BooleanOptionalAction, default=False, help="also draw each image with its objects"
    )
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
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Segment all images; return 2 if some could not be read."""
    with json_document(args.json) as document:
        return _run(args, document)


def _run(args: argparse.Namespace, document: dict[str, Any]) -> int:
    from dasnet_lightning import console

    paths = find_images(args.images, args.out)
    voc = None if args.voc_results is None else _voc_results(args.voc_results, paths)
    changes = dict(parse_options(args.inference_option, "--inference-option"))
    changes |= {} if args.score_threshold is None else {"score_threshold": args.score_threshold}
    segmenter = _load(args, changes)
    args.out.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"images": [], "categories": [], "annotations": []}
    failures: dict[str, str] = {}
    predictions = args.out / "predictions.json"
    document |= {"out": args.out, "predictions": predictions, "images": content["images"], "failures": failures}
    try:
        _segment_all(segmenter, paths, args.out if args.draw else None, content, voc, failures)
    finally:  # keep the results before Ctrl-C too
        if voc is not None:
            voc.write()
        _write_predictions(predictions, content, args.checkpoint)
        document["objects"] = len(content["annotations"])
    done = len(paths) - len(failures)
    console.out(f"{done:,} of {len(paths):,} images segmented, {len(content['annotations']):,} objects: {args.out}")
    if segmenter.feature_cache is not None:
        console.out(f"features of {segmenter.feature_cache.hits:,} images taken from {args.feature_cache}")
    if failures:
        console.error(f"dasnet: {len(failures):,} of {len(paths):,} images could not be segmented, see above")
    return 2 if failures else 0


def find_images(given: Sequence[str], out: Path) -> list[Path]:
    """Return the image files of the arguments, each once, in order.

    Args:
        given: files, folders (searched recursively) and glob patterns.
        out: output folder, skipped inside the folders.

    Raises:
        DataError: an argument matches no image.
    """
    from dasnet_lightning.data.images import IMAGE_SUFFIXES
    from dasnet_lightning.errors import DataError

    found: dict[Path, Path] = {}
    for argument in given:
        paths = _expand(argument, out)
        if not paths:
            suffixes = ", ".join(IMAGE_SUFFIXES)
            raise DataError(
                f"{argument}: no image found, expected a file, a folder or a pattern of images ({suffixes})"
            )
        for path in paths:
            found.setdefault(path.resolve(), path)
    return list(found.values())


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
    from dasnet_lightning.data.images import IMAGE_SUFFIXES

    path = Path(argument).expanduser()
    if path.is_file():
        return [path]
    entries = path.rglob("*") if path.is_dir() else map(Path, glob.glob(str(path), recursive=True))  # noqa: PTH207
    images = sorted(entry for entry in entries if entry.suffix.lower() in IMAGE_SUFFIXES and entry.is_file())
    written = out.resolve()
    if not path.is_dir() or path.resolve() not in written.parents:
        return images
    return [image for image in images if not image.resolve().is_relative_to(written)]


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
    out: Path | None,
    content: dict[str, Any],
    voc: "VocResults | None",
    failures: dict[str, str],
) -> None:
    """Add the predictions of each image, and the errors of unreadable images to `failures`; draw if `out` is given."""
    from dasnet_lightning import console
    from dasnet_lightning.console import progress
    from dasnet_lightning.errors import DataError

    pictures = [None] * len(paths) if out is None else name_pictures(paths, out)
    pairs = list(zip(paths, pictures, strict=True))
    for image_id, (path, picture) in enumerate(progress(pairs, "segment"), start=1):
        try:
            segmentation = segmenter.segment(path)
        except DataError as error:
            failures[str(path)] = str(error)
            console.error(f"dasnet: {error}")
            continue
        if picture is not None:
            segmentation.save(picture)
        if voc is not None:
            voc.add(path.stem, segmentation)
        _add(content, segmentation, image_id, path)


def _add(content: dict[str, Any], segmentation: "Segmentation", image_id: int, path: Path) -> None:
    """Add an image and its objects to the predictions; `annotations` is also a valid list of COCO results."""
    height, width = segmentation.image.shape[:2]
    content["images"].append({"id": image_id, "file_name": path.as_posix(), "width": width, "height": height})
    ids = segmentation.category_ids or tuple(range(len(segmentation.class_names)))
    content["categories"] = [
        {"id": key, "name": name} for key, name in list(zip(ids, segmentation.class_names, strict=True))[1:]
    ]
    areas = segmentation.windows.areas()
    for result, area in zip(segmentation.to_coco(image_id), areas, strict=True):
        number = len(content["annotations"]) + 1
        content["annotations"].append({"id": number, "iscrowd": 0, "area": area, **result})


def _write_predictions(path: Path, content: dict[str, Any], checkpoint: Path) -> None:
    from dasnet_lightning import __version__
    from dasnet_lightning.storage.atomic import write_text

    info = {"description": f"predictions of dasnet_lightning {__version__} with {checkpoint.name}"}
    write_text(path, json.dumps({"info": info, **content}, ensure_ascii=False) + "\n")


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value
