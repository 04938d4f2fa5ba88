"""Kinds of label files, told from their contents, for files that no split uses."""

from pathlib import Path

from dasnet_lightning.data.sources.coco_json import is_instances, read_json
from dasnet_lightning.errors import DataError

HEAD_BYTES = 2048
MAX_BYTES = 100_000_000  # larger files are not parsed
COCO = b'"annotations"'


def describe_json(path: Path) -> tuple[str, str]:
    """Return the kind of a JSON label file, and what it contains if it describes several images.

    A file that is not a label file, or cannot be read, gives ("", ""). The second text is "" for one image.
    """
    if path.stat().st_size > MAX_BYTES:
        return ("COCO file", "a large JSON file with annotations") if COCO in path.read_bytes() else ("", "")
    try:
        content = read_json(path)
    except DataError:
        return "", ""
    if is_instances(content):
        return "COCO file", f"{len(content['images'])} images with {len(content['annotations'])} labels"
    if isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content:
        return "labelme files", ""
    if isinstance(content, list) and content and isinstance(content[0], dict):
        if {"annotations", "completions"} & content[0].keys() and "data" in content[0]:
            return "Label Studio file", f"{len(content)} tasks of Label Studio"
        if {"image_id", "category_id", "score"} <= content[0].keys():
            return "COCO results", f"{len(content)} predictions"
    return "", ""


def describe_xml(path: Path) -> tuple[str, str]:
    """Return the kind of an XML label file, and what it contains if it describes several images, as `describe_json`."""
    with path.open("rb") as stream:
        head = stream.read(HEAD_BYTES).replace(b"\0", b"")
    if b"<annotations" in head:
        count = path.read_bytes().count(b"<image ")
        return "CVAT file", f"{count} images of CVAT"
    return ("VOC annotation files" if b"<annotation" in head else ""), ""
