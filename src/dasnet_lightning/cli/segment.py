"""`dasnet segment`: COCO JSON, pictures and VOC result files for images, folders and glob patterns.

An unreadable image is reported and skipped. The predictions name images relative to the folder that holds all of them, as
pycocotools and other readers of COCO files expect; `info.image_folder` says where that is.
"""

import argparse
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dasnet_lightning.cli.image_files import find_images, make_folder, name_pictures
from dasnet_lightning.cli.json_output import add_json_argument, json_document
from dasnet_lightning.cli.options import add_feature_cache_arguments, parse_options
from dasnet_lightning.options import replace_options

if TYPE_CHECKING:
    from dasnet_lightning.inference.segmentation import Segmentation
    from dasnet_lightning.inference.segmenter import Segmenter
    from dasnet_lightning.inference.stream import SegmentationStream
    from dasnet_lightning.inference.voc_results import VocResults


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "images", metavar="IMAGES", nargs="+", help="files, folders (searched recursively) or glob patterns"
    )
    parser.add_argument(
        "--checkpoint", metavar="FILE", type=Path, required=True, help="a checkpoint of stage two, or a model folder"
    )
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
    parser.add_argument(
        "--batch-size", metavar="N", type=_positive, default=8, help="images in one pass of the network (default: 8)"
    )
    parser.add_argument(
        "--workers", metavar="N", type=int, default=2, help="threads that decode images ahead (default: 2)"
    )
    parser.add_argument(
        "--tile", metavar="PX", type=_positive, help="segment large images in tiles of this side, in their own pixels"
    )
    parser.add_argument("--overlap", metavar="S", type=_fraction, default=0.2, help="overlap of tiles (default: 0.2)")
    add_feature_cache_arguments(parser, "of the images, to segment them again with other decoders or options,")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Segment all images; return 2 if some could not be read."""
    with json_document(args.json) as document:
        return _run(args, document)


def _run(args: argparse.Namespace, document: dict[str, Any]) -> int:
    from dasnet_lightning import console

    paths, skipped = find_images(args.images, args.out)
    if skipped:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(skipped.items()))
        console.info(f"skipped {skipped.total():,} files: {kinds}")
    for option, folder in (("--out", args.out), ("--voc-results", args.voc_results)):
        make_folder(option, folder)
    voc = None if args.voc_results is None else _voc_results(args.voc_results, paths)
    changes = dict(parse_options(args.inference_option, "--inference-option"))
    changes |= {} if args.score_threshold is None else {"score_threshold": args.score_threshold}
    segmenter = _load(args, changes)
    if segmenter.image_range is not None:
        low, high = segmenter.image_range.low, segmenter.image_range.high
        console.info(f"images of more than 8 bits are scaled from {low:g}..{high:g} to 0..255, as in training")
    root = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    content: dict[str, Any] = {"images": [], "categories": [], "annotations": []}
    failures: dict[str, str] = {}
    predictions = args.out / "predictions.json"
    document |= {"out": args.out, "predictions": predictions, "images": content["images"], "failures": failures}
    document |= {"image_folder": root, "skipped": dict(skipped)}
    try:
        with closing(_open_stream(segmenter, paths, args)) as stream:
            _segment_all(stream, paths, root, args.out if args.draw else None, content, voc, failures)
    finally:  # keep the results before Ctrl-C too
        if voc is not None:
            voc.write()
        _write_predictions(predictions, content, root, args.checkpoint)
        document["objects"] = len(content["annotations"])
    done = len(paths) - len(failures)
    console.out(f"{done:,} of {len(paths):,} images segmented, {len(content['annotations']):,} objects: {args.out}")
    if segmenter.feature_cache is not None:
        console.out(f"features of {segmenter.feature_cache.hits:,} images taken from {args.feature_cache}")
    if failures:
        console.error(f"dasnet: {len(failures):,} of {len(paths):,} images could not be segmented, see above")
    return 2 if failures else 0


def _load(args: argparse.Namespace, changes: Mapping[str, Any]) -> "Segmenter":
    """Load the checkpoint and override its options."""
    from dasnet_lightning.inference import segmenter as inference
    from dasnet_lightning.inference.device import choose_device

    segmenter = inference.load(
        args.checkpoint,
        device=choose_device(args.device),
        feature_cache=args.feature_cache,
        feature_cache_gb=args.feature_cache_gb,
    )
    if changes:
        segmenter.options = replace_options(segmenter.options, changes, "--inference-option")
    return segmenter


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


def _open_stream(segmenter: "Segmenter", paths: Sequence[Path], args: argparse.Namespace) -> "SegmentationStream":
    """Return the results of all images, of whole images or of tiles."""
    if args.tile is None:
        return segmenter.segment_many(paths, batch_size=args.batch_size, workers=args.workers)
    from dasnet_lightning.inference.tiles import stream_tiled

    return stream_tiled(segmenter, paths, tile=args.tile, overlap=args.overlap, batch_size=args.batch_size)


def _segment_all(
    stream: Iterator["Segmentation"],
    paths: Sequence[Path],
    root: Path,
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
            segmentation = next(stream)
        except DataError as error:
            failures[str(path)] = str(error)
            console.error(f"dasnet: {error}")
            continue
        if picture is not None:
            segmentation.save(picture)
        if voc is not None:
            voc.add(path.stem, segmentation)
        _add(content, segmentation, image_id, path.absolute().relative_to(root).as_posix())


def _add(content: dict[str, Any], segmentation: "Segmentation", image_id: int, name: str) -> None:
    """Add an image and its objects to the predictions; `annotations` is also a valid list of COCO results."""
    height, width = segmentation.image.shape[:2]
    content["images"].append({"id": image_id, "file_name": name, "width": width, "height": height})
    ids = segmentation.category_ids or tuple(range(len(segmentation.class_names)))
    content["categories"] = [
        {"id": key, "name": name} for key, name in list(zip(ids, segmentation.class_names, strict=True))[1:]
    ]
    areas = segmentation.windows.areas()
    for result, area in zip(segmentation.to_coco(image_id), areas, strict=True):
        number = len(content["annotations"]) + 1
        content["annotations"].append({"id": number, "iscrowd": 0, "area": area, **result})


def _write_predictions(path: Path, content: dict[str, Any], root: Path, checkpoint: Path) -> None:
    """Write the predictions; file names are relative to `root`, and `info` holds `root` relative to the file."""
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


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return value
