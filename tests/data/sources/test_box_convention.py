"""Files whose boxes mean something else than their format says, judged by the share of boxes that fit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_builders import VocObject, annotation, coco_content, make_coco, make_voc

from dasnet_lightning.data.sources.box_convention import (
    CENTER,
    NORMALIZED,
    PERCENT,
    XYWH,
    XYXY,
    find_other_convention,
    to_pixels,
    written_boxes,
)
from dasnet_lightning.data.sources.coco import COCOSource
from dasnet_lightning.data.sources.voc import VOCSource
from dasnet_lightning.errors import DataError

SIZE = (300, 400)
NAN = float("nan")


def true_boxes(count: int = 40, seed: int = 0) -> np.ndarray:
    """Boxes in xyxy pixels all over an image."""
    rng = np.random.default_rng(seed)
    sides = rng.uniform(40, 130, (count, 2))
    corners = rng.uniform(0, 1, (count, 2)) * (np.array(SIZE[::-1]) - sides)
    return np.concatenate([corners, corners + sides], axis=1)


def written_as(boxes: np.ndarray, name: str) -> np.ndarray:
    """Write xyxy pixels in a convention."""
    x0, y0, x1, y1 = boxes.T
    columns = {
        XYWH: (x0, y0, x1 - x0, y1 - y0),
        XYXY: (x0, y0, x1, y1),
        CENTER: ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0),
    }
    unit = next((unit for unit in (NORMALIZED, PERCENT) if name.startswith(unit)), "")
    factor = {"": 1.0, NORMALIZED: 1.0, PERCENT: 100.0}[unit]
    scale = np.array([SIZE[1], SIZE[0]] * 2) if unit else 1.0
    return np.stack(columns[name.removeprefix(unit)], axis=1) / scale * factor


def judge(boxes: np.ndarray, expected: str = XYWH, **evidence: Any) -> str:
    rows = [tuple(row) for row in boxes.tolist()]
    return find_other_convention(written_boxes(rows, [SIZE] * len(rows), **evidence), expected)


ALL = [unit + form for unit in ("", NORMALIZED, PERCENT) for form in (XYWH, XYXY, CENTER)]


@pytest.mark.parametrize("name", ALL)
def test_every_convention_is_converted_to_pixels(name: str) -> None:
    boxes = true_boxes()
    np.testing.assert_allclose(to_pixels(written_as(boxes, name), np.array([SIZE] * len(boxes)), name), boxes)


@pytest.mark.parametrize("slips", [0, 1, 6])
@pytest.mark.parametrize("name", ALL)
def test_masks_show_the_convention_in_spite_of_slips(name: str, slips: int) -> None:
    boxes = true_boxes()
    outlines = [tuple(row) for row in boxes.tolist()]
    written = written_as(boxes, name)
    written[:slips] = [40, 20, 0, 40]
    sentence = judge(written, outlines=outlines)
    if name == XYWH:
        assert sentence == ""
    else:
        assert f"{len(boxes) - slips} of 40 boxes fit their masks as {name}, and 0 as {XYWH}" in sentence


@pytest.mark.parametrize("name", [name for name in ALL if not name.endswith(CENTER) and name != XYWH])
def test_areas_show_the_convention(name: str) -> None:
    boxes = true_boxes()
    areas = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).tolist()
    written = written_as(boxes, name)
    written[3] = [40, 20, 0, 40]
    assert f"39 of 40 boxes fit their areas as {name}" in judge(written, areas=areas)
    assert judge(written_as(boxes, XYWH), areas=[area * 0.7 for area in areas]) == ""


@pytest.mark.parametrize("name", [XYXY, CENTER, NORMALIZED + XYWH, NORMALIZED + XYXY, PERCENT + XYWH])
def test_images_show_the_convention_without_masks_and_areas(name: str) -> None:
    written = written_as(true_boxes(), name)
    assert f"as {name}" in judge(written)
    written[7] = [40, 20, 40, 0]
    if not name.startswith((PERCENT, CENTER)):
        assert f"as {name}" in judge(written)


@pytest.mark.parametrize("seed", range(20))
def test_right_boxes_are_left_alone(seed: int) -> None:
    rng = np.random.default_rng(seed)
    boxes = true_boxes(int(rng.integers(1, 60)), seed)
    written = written_as(boxes, XYWH)
    assert judge(written) == ""
    assert judge(written, outlines=[tuple(row) for row in (boxes + rng.uniform(-1, 1, boxes.shape)).tolist()]) == ""
    assert judge(written_as(boxes, XYXY), XYXY) == ""
    large = np.array([[0.0, 0, 400, 300]] * 5 + [[3, 4, 390, 290]])
    assert judge(large) == ""


def test_one_slip_in_a_small_file_is_a_slip() -> None:
    assert judge(np.array([[5.0, 5, 100, 100], [50, 50, 90, 200], [200, 200, 350, 280]])) == ""
    assert judge(np.zeros((0, 4))) == ""
    assert judge(np.array([[NAN, 0, 1, 1]])) == ""


def test_one_normalized_box_among_others_changes_nothing() -> None:
    written = written_as(true_boxes(), XYWH)
    written[0] = [0.1, 0.1, 0.5, 0.5]
    assert judge(written) == ""


def test_a_coco_file_with_one_slip_is_refused_whatever_the_fix(tmp_path: Path) -> None:
    boxes = [[3, 4, 39, 29], [10, 12, 38, 28], [1, 1, 5, 5], [20, 10, 35, 20], [5, 20, 5, 25]]
    file = make_coco(tmp_path, coco_content([annotation(n, bbox=box) for n, box in enumerate(boxes)]))
    for fix in ("error", "drop"):
        with pytest.raises(DataError, match=r"4 of 5 boxes lie in their images as \[x0, y0, x1, y1\], and 1 as"):
            COCOSource(file, tmp_path / "train", fix=fix)  # type: ignore[arg-type]


def test_masks_that_fit_confirm_the_boxes(tmp_path: Path) -> None:
    """A few boxes reach far beyond the image, which would look like corners without the masks."""
    rows = [
        annotation(n, bbox=[x, 5, 30, 20], segmentation=[[x, 5, x + 30, 5, x + 30, 25, x + 9, 25, x, 22]])
        for n, x in enumerate((15, 16, 17, 18))
    ]
    file = make_coco(tmp_path, coco_content(rows))
    assert len(COCOSource(file, tmp_path / "train").records[0].objects) == 4
    for row in rows:
        x = row["bbox"][0]
        row["bbox"] = [x, 5, x + 30, 25]
    file.write_text(json.dumps(coco_content(rows)))
    with pytest.raises(DataError, match=r"4 of 4 boxes fit their masks as \[x0, y0, x1, y1\]"):
        COCOSource(file, tmp_path / "train")


def test_voc_files_with_sizes_or_normalized_numbers_are_refused(tmp_path: Path) -> None:
    sizes = [VocObject("cat", box) for box in ((20, 5, 10, 9), (25, 10, 10, 15), (30, 15, 9, 9), (2, 2, 30, 20))]
    make_voc(tmp_path / "sizes", {"a": sizes})
    with pytest.raises(DataError, match=r"4 of 4 boxes lie in their images as \[x, y, width, height\], and 1 as"):
        VOCSource(tmp_path / "sizes", "train", fix="drop")
    normal = [VocObject("cat", box) for box in ((0.1, 0.2, 0.5, 0.6), (0.2, 0.2, 1, 1), (0.3, 0.4, 0.5, 0.6))]
    make_voc(tmp_path / "normalized", {"a": [*normal, VocObject("cat", (5, 5, 20, 20))]})
    with pytest.raises(DataError, match=r"3 of 4 boxes lie within 0\.\.1 and are written as normalized"):
        VOCSource(tmp_path / "normalized", "train", fix="drop")
