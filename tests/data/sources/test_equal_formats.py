"""The same objects give the same boxes, labels, mask states and masks from every format."""

import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import shape_writers as writers
from hypothesis import given, settings
from hypothesis import strategies as st
from shape_builders import ABSENT, PRESENT, iou, source_of
from shape_writers import SIZE, Item, Scene

from dasnet_lightning.data.records import Source
from dasnet_lightning.data.sources.coco import COCOSource
from dasnet_lightning.data.sources.cvat_xml import find_cvat
from dasnet_lightning.data.sources.label_studio import find_label_studio
from dasnet_lightning.data.sources.labelme import find_labelme
from dasnet_lightning.data.sources.voc_flat import find_flat_voc
from dasnet_lightning.data.sources.yolo import find_yolo

FORMATS: dict[str, tuple[Callable[[Path, Scene], None], Callable[[Path], Source]]] = {
    "coco": (writers.write_coco, lambda root: COCOSource(root / "all.json", root / "images")),
    "yolo": (writers.write_yolo, lambda root: source_of(find_yolo(root))),
    "labelme": (writers.write_labelme, lambda root: source_of(find_labelme(root))),
    "cvat": (writers.write_cvat, lambda root: source_of(find_cvat(root))),
    "label_studio": (writers.write_label_studio, lambda root: source_of(find_label_studio(root))),
}


@st.composite
def items(draw: st.DrawFn) -> Item:
    """A box within the picture or a star-shaped polygon around its center."""
    height, width = SIZE
    number = st.floats(0, 1, allow_nan=False)
    x0, y0 = round(draw(number) * (width - 9), 2), round(draw(number) * (height - 9), 2)
    x1, y1 = round(x0 + 8 + draw(number) * (width - 9 - x0), 2), round(y0 + 8 + draw(number) * (height - 9 - y0), 2)
    label = draw(st.integers(1, 2))
    if draw(st.booleans()):
        return Item(label, (x0, y0, x1, y1))
    count = draw(st.integers(5, 9))
    radii = [0.7 + 0.3 * draw(number) for _ in range(count)]
    points = tuple(
        (round((x0 + x1) / 2 + radius * (x1 - x0) / 2 * math.cos(2 * math.pi * place / count), 2),
         round((y0 + y1) / 2 + radius * (y1 - y0) / 2 * math.sin(2 * math.pi * place / count), 2))
        for place, radius in enumerate(radii)
    )  # fmt: skip
    xs, ys = zip(*points, strict=True)
    return Item(label, (min(xs), min(ys), max(xs), max(ys)), points)


# both classes occur in every scene, because some formats name only the classes that do
BOTH = [Item(1, (1.0, 2.0, 20.0, 21.0)), Item(2, (3.0, 4.0, 30.0, 29.0))]
SCENES = st.lists(st.lists(items(), max_size=4), min_size=1, max_size=2).map(lambda images: [*images, BOTH])


def read(name: str, scene: Scene, root: Path) -> Source:
    write, open_source = FORMATS[name]
    (root / name).mkdir()
    write(root / name, scene)
    return open_source(root / name)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(SCENES)
def test_every_format_gives_the_same_targets(scene: Scene) -> None:
    with tempfile.TemporaryDirectory() as folder:
        reference = read("coco", scene, Path(folder))
        for name in FORMATS.keys() - {"coco"}:
            source = read(name, scene, Path(folder))
            assert source.class_names == reference.class_names
            for record, expected, written in zip(source.records, reference.records, scene, strict=True):
                assert record.size == expected.size == SIZE
                assert [item.label for item in record.objects] == [item.label for item in written]
                assert [item.mask for item in record.objects] == [
                    PRESENT if item.polygon else ABSENT for item in written
                ]
                for item, other, truth in zip(record.objects, expected.objects, written, strict=True):
                    assert item.box == pytest.approx(other.box, abs=1e-6)
                    assert item.box == pytest.approx(truth.box, abs=1e-6)
                drawn = [place for place, item in enumerate(written) if item.polygon]
                masks, others = source.load_masks(record, drawn), reference.load_masks(expected, drawn)
                assert masks.valid == others.valid == (True,) * len(drawn)
                # exact, because the readers take the rounding errors out of the coordinates
                assert all(iou(mask, other) == 1 for mask, other in zip(masks.masks, others.masks, strict=True))


@settings(max_examples=10, deadline=None, derandomize=True)
@given(SCENES)
def test_flat_voc_gives_the_same_boxes(scene: Scene) -> None:
    with tempfile.TemporaryDirectory() as folder:
        writers.write_voc(Path(folder), scene)
        source = source_of(find_flat_voc(Path(folder)))
        assert source.class_names == ("background", *writers.NAMES)
        for record, written in zip(source.records, scene, strict=True):
            assert [item.label for item in record.objects] == [item.label for item in written]
            assert all(item.mask is ABSENT for item in record.objects)
            for item, truth in zip(record.objects, written, strict=True):
                assert item.box == pytest.approx(truth.box, abs=1e-6)
