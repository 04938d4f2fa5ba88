"""VOC data sets (VOCdevkit layout): boxes from the XML files, masks from SegmentationObject if the file exists.

Reading the records lists the folder of masks but opens none. Object k of the XML (from 1) has index k in the index map.
An object with `<segmented>0</segmented>` has no mask, whatever the index map holds. The flag of the same name of a whole
image is not used, because tools write 0 beside masks; there the file decides.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

import numpy as np
from PIL import Image

from dasnet_lightning.data.hashing import hash_file
from dasnet_lightning.data.images import describe_file, image_size
from dasnet_lightning.data.packed_masks import empty_masks, pack_index_map
from dasnet_lightning.data.records import ImageRecord, Masks, MaskState, Problem, Source
from dasnet_lightning.data.sources.box_convention import XYXY, find_other_convention, written_boxes
from dasnet_lightning.data.sources.checks import (
    Fix,
    RecordsError,
    check_class_names,
    check_fix,
    join_names,
    locate_files,
)
from dasnet_lightning.data.sources.masks import VOID_INDEX, check_indices, collect_masks
from dasnet_lightning.data.sources.raw import RawImage, RawObject, read_images
from dasnet_lightning.data.sources.voc_lists import LISTS, check_lines, find_xml_files, list_all, read_split_list
from dasnet_lightning.data.sources.voc_masks import clear_void, find_mask_files, to_index_map
from dasnet_lightning.data.sources.voc_xml import (
    VOC_CLASSES,
    XmlImage,
    choose_classes,
    find_images,
    find_masks,
    find_voc_root,
    read_xml,
)
from dasnet_lightning.errors import DataError

TOO_MANY = f"an index map holds at most {VOID_INDEX - 1} objects"

__all__ = ["VOC_CLASSES", "VOCSource", "find_voc_root"]


class VOCSource(Source):
    """One split of a VOC data set.

    Args:
        root: the folder with Annotations, or one above it.
        split: name of a list file; None for all images with an annotation file.
        class_names: names by label, background first. None means VOC's 20 classes if the XML files name PASCAL VOC as
            their source, else the classes of a class file in the root and all that occur.
        allow_missing: leave out images without image or annotation file and report them as problems.
        fix: "drop" leaves out objects that cannot be used and reports them as problems.
        lists: folders of ImageSets to search for the list file, in this order.

    Raises:
        RecordsError: lists everything that cannot be used and that no option accepts.
    """

    def __init__(
        self,
        root: Path,
        split: str | None,
        *,
        class_names: Sequence[str] | None = None,
        allow_missing: bool = False,
        fix: Fix = "error",
        lists: Sequence[str] = LISTS,
    ) -> None:
        check_fix(fix)
        self.root = find_voc_root(Path(root))
        self.split = split
        list_file, image_ids = read_split_list(self.root, split, lists) if split else list_all(self.root)
        paths, missing = _locate_images(self.root, list_file, image_ids)
        if missing and not allow_missing:
            advice = f"{len(missing)} images cannot be used; restore them, or allow missing images."
            raise RecordsError(missing, advice)
        files = find_xml_files(self.root)
        xmls = {image_id: read_xml(files[image_id]) for image_id in image_ids if image_id in files}
        self.class_names, notes = choose_classes(self.root, class_names, list(xmls.values()))
        notes += check_lines(list_file, image_ids) if split else []
        notes += [*check_class_names(self.root, self.class_names[1:])]
        notes += _warn_of_polygons(self.root, list(xmls.values()))
        images = _build_raw_images(self.root, xmls, paths, self.class_names)
        _check_box_convention(list_file, images)
        records, problems = read_images(images, self.class_names, "object", fix)
        self.records = tuple(records)
        self.problems = (*notes, *missing, *problems)
        self._object_counts = {image.image_id: len(image.objects) for image in images}
        self._mask_files = find_mask_files(self.root)
        used = [self._mask_files[image_id] for image_id in image_ids if image_id in self._mask_files]
        self.files = (*((list_file,) if split else ()), *(files[image_id] for image_id in xmls), *used)

    def load_masks(self, record: ImageRecord, indices: Sequence[int]) -> Masks:
        """Open the index map of an image and cut out the requested objects, with the void pixels (255)."""
        boxes = [record.objects[index].box for index in indices]
        index_map, reason = _read_index_map(self._mask_files[record.image_id], record.size)
        if index_map is None:
            return collect_masks(empty_masks(record.size, len(indices)), boxes, [reason] * len(indices))
        # an object id ends in the object's number in the XML, which refused objects do not shift
        numbers = [int(record.objects[index].object_id.rsplit("/", 1)[1]) for index in indices]
        reason = check_indices(index_map, self._object_counts[record.image_id])
        reasons = [reason or ("" if number < VOID_INDEX else TOO_MANY) for number in numbers]
        shown = [number if number < VOID_INDEX else 0 for number in numbers]  # the void is not object 255
        index_map = clear_void(index_map, [item.box for item in record.objects if item.mask is MaskState.ABSENT])
        return collect_masks(pack_index_map(index_map, shown, VOID_INDEX), boxes, reasons)

    def mask_digest(self, record: ImageRecord) -> str:
        """Return a digest of the bytes of an image's mask file; "" if it has none."""
        file = self._mask_files.get(record.image_id)
        return "" if file is None else hash_file(file)


def _locate_images(root: Path, list_file: Path, image_ids: Sequence[str]) -> tuple[dict[str, Path], list[Problem]]:
    """Return the paths of the images that have both files, and a problem for each of the others."""
    names = find_images(root)
    id_of = {names.get(image_id, f"{image_id}.jpg"): image_id for image_id in image_ids}
    found, faults = locate_files(root / "JPEGImages", id_of)
    files, folder = find_xml_files(root), root / "Annotations"
    faults |= {
        name: f"the annotation file does not exist, expected {folder / id_of[name]}.xml"
        for name in found
        if id_of[name] not in files
    }
    paths = {id_of[name]: path for name, path in found.items() if name not in faults}
    return paths, [Problem(list_file, f"image '{name}'", reason, "refused") for name, reason in faults.items()]


def _build_raw_images(
    root: Path, xmls: Mapping[str, XmlImage], paths: Mapping[str, Path], class_names: Sequence[str]
) -> list[RawImage]:
    labels = {name: label for label, name in enumerate(class_names) if label > 0}
    masked_ids, files = find_masks(root), find_xml_files(root)
    images, unknown = [], []
    for image_id, xml in xmls.items():
        path, file = paths.get(image_id), files[image_id]
        size = xml.size or (image_size(path) if path is not None else (1, 1))
        objects = []
        for number, item in enumerate(xml.objects, start=1):
            if item.name not in labels:
                unknown.append(Problem(file, f"object {number}", _unknown_class(item.name, class_names), "refused"))
            label = labels.get(item.name, 0)
            state = MaskState.PRESENT if image_id in masked_ids and item.segmented else MaskState.ABSENT
            objects.append(
                RawObject(
                    f"{image_id}/{number}", label, item.box, item.shown, state, item.difficult, by_model=item.by_model
                )
            )
        images.append(RawImage(image_id, path.name if path else f"{image_id}.jpg", path, size, file, tuple(objects)))
    if unknown:
        raise RecordsError(unknown, f"{len(unknown)} objects have unknown classes; correct them, or name the classes.")
    return images


def _unknown_class(name: str, class_names: Sequence[str]) -> str:
    if not name:
        return f"has no class name, expected one of {join_names(class_names[1:])}"
    near = get_close_matches(name, class_names[1:], n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"expected one of {join_names(class_names[1:])}"
    return f"class '{name}' is unknown, {hint}"


def _warn_of_polygons(root: Path, images: Sequence[XmlImage]) -> list[Problem]:
    count = sum(image.polygons for image in images)
    text = f"{count:,} objects have a <polygon>, which is not read; masks come from SegmentationObject only"
    return [Problem(root / "Annotations", "polygons", text, "warning")] if count else []


def _check_box_convention(list_file: Path, images: Sequence[RawImage]) -> None:
    """Raise DataError if most boxes follow another convention."""
    boxes = [
        (item.box, image.size)
        for image in images
        if image.path is not None
        for item in image.objects
        if item.box is not None
    ]
    as_written = [(x0 + 1, y0 + 1, _last(x0, x1), _last(y0, y1)) for (x0, y0, x1, y1), _ in boxes]
    hint = find_other_convention(written_boxes(as_written, [size for _, size in boxes]), XYXY)
    if hint:
        raise DataError(f"{list_file}: {hint}; correct the XML files")


def _last(start: float, stop: float) -> float:
    """Return the number of the last pixel, but a higher one for a box of one pixel, whose two numbers are equal."""
    return stop + 0.5 if stop == start + 1 else stop


def _read_index_map(file: Path, size: tuple[int, int]) -> tuple[np.ndarray | None, str]:
    """Return the index map of the objects, or None and the reason."""
    try:
        with Image.open(file) as picture:
            if (picture.height, picture.width) != size:
                return None, f"{file.name} has {picture.width}x{picture.height} pixels, its image {size[1]}x{size[0]}"
            return to_index_map(picture, file.name)
    except (OSError, SyntaxError, ValueError) as error:
        return None, f"{file.name} cannot be read, {describe_file(file)} ({error})"
