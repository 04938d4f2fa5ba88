"""VOC XML files without VOC's folders: beside their images, or in a folder of their own. They hold boxes and no masks."""

from pathlib import Path

from dasnet_lightning.data.images import upright_size
from dasnet_lightning.data.sources.drawing import DrawnImage, DrawnObject
from dasnet_lightning.data.sources.image_index import ImageIndex, index_images, list_files
from dasnet_lightning.data.sources.shape_data import ShapeData, SplitContent, report_unused, split_name
from dasnet_lightning.data.sources.voc_xml import read_xml

HEAD_BYTES = 2048


def find_flat_voc(root: Path) -> ShapeData | None:
    """Read the VOC XML files below `root`; None if there are none. Folders that are named like splits are splits."""
    files = list_files(root, (".xml",)) if root.is_dir() else []
    return read_flat_voc(root, files) if files and _is_voc(files[0]) else None


def read_flat_voc(root: Path, files: list[Path]) -> ShapeData:
    """Read VOC XML files below a folder, each once.

    Raises:
        DataError: a file is damaged or not a VOC annotation.
    """
    index = index_images(root)
    splits: dict[str, SplitContent] = {}
    used: set[Path] = set()
    for file in files:
        folders = [split_name(part) for part in file.relative_to(root).parts[:-1]]
        name = next((part for part in folders if part in ("train", "val", "test")), "all")
        _read_file(root, file, index, splits.setdefault(name, SplitContent()), used)
    images = [image for content in splits.values() for image in content.images]
    names = {item.class_name for image in images for item in image.objects if item.class_name}
    problems = report_unused(root, index, splits, "have no XML file")
    return ShapeData("voc", root, root, tuple(sorted(names)), splits, problems)


def _is_voc(file: Path) -> bool:
    """Whether a file begins as a VOC annotation and not as CVAT's <annotations>."""
    with file.open("rb") as stream:
        head = stream.read(HEAD_BYTES).replace(b"\0", b"")
    return b"<annotation>" in head or b"<annotation " in head


def _read_file(root: Path, file: Path, index: ImageIndex, content: SplitContent, used: set[Path]) -> None:
    image_id = file.relative_to(root).with_suffix("").as_posix()
    xml = read_xml(file)
    path = index.find_stem(file.stem, file.parent)
    reason = f"the image file does not exist, no image below {root} is called '{file.stem}'"
    if not content.take(file, f"image '{path.name if path else file.stem}'", path, reason, used):
        return
    name = path.relative_to(root).as_posix() if path else file.stem
    size = xml.size or (upright_size(path) if path else (1, 1))
    objects = tuple(
        DrawnObject(
            f"{image_id}/{number}",
            item.name,
            item.box,
            item.shown,
            ignore=item.difficult,
            fault="" if item.box else f"box {item.shown} is not four numbers",
        )
        for number, item in enumerate(xml.objects, start=1)
    )
    content.images.append(DrawnImage(image_id, name, path, size, file, objects))
