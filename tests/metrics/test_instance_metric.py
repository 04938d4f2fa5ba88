import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from metric_scenes import (
    INPUT_SIZE,
    NAMES,
    SIZE,
    Dense,
    make_image,
    make_prediction,
    prediction_of,
    random_image,
    rectangle,
    target_of,
)

from dasnet_lightning.metrics.instance import InstanceAP, fill_box
from dasnet_lightning.metrics.voc_ap import area_ap, eleven_point_ap
from dasnet_lightning.rle import decode, encode
from dasnet_lightning.types import Target

ONE, TWO, FAR = rectangle(2, 4, 12, 14), rectangle(15, 4, 25, 14), rectangle(2, 16, 12, 22)


def evaluate(images: dict[str, Dense]) -> dict[str, float]:
    metric = InstanceAP()
    for image_id, image in images.items():
        metric.update([image_id], [prediction_of(image)], [target_of(image)], INPUT_SIZE)
    return dict(metric.compute(NAMES))


def figures(values: dict[str, float], *names: str) -> list[float]:
    return [values[name] for name in names]


def slow_hits(images: dict[str, Dense], label: int, threshold: float) -> tuple[list[bool], int]:
    """The protocol written out: which counted detections of a class are right, best first, and the number of objects."""
    found, taken, objects = [], set(), 0
    for image_id in sorted(images):
        image = images[image_id]
        objects += sum(
            1 for k in range(len(image.labels)) if image.labels[k] == label and image.has_mask[k] and not image.crowd[k]
        )
        for k in range(len(image.detected_labels)):
            mask = image.detected_masks[k]
            mostly_void = (mask & image.void).sum() * 2 > mask.sum()
            if image.detected_labels[k] == label and not mostly_void:
                found.append((image.detected_scores[k], image_id, mask & ~image.void))
    hits = []
    for _, image_id, mask in sorted(found, key=lambda item: -item[0]):
        image = images[image_id]
        best, best_iou, excused = None, -1.0, False
        for k in range(len(image.labels)):
            if image.labels[k] != label:
                continue
            if image.crowd[k] or not image.has_mask[k]:
                region = image.masks[k] if image.has_mask[k] else rectangle(*image.boxes[k])
                excused = excused or (mask.any() and (mask & region).sum() * 2 >= mask.sum())
            else:
                iou = (mask & image.masks[k]).sum() / (mask | image.masks[k]).sum()
                if iou > best_iou:
                    best, best_iou = k, iou
        right = best is not None and best_iou >= threshold and (image_id, best) not in taken
        if right:
            taken.add((image_id, best))
        if right or not excused:
            hits.append(bool(right))
    return hits, objects


def slow_ap(hits: list[bool], objects: int, interpolation: str) -> float:
    points = []  # (recall, precision)
    for k in range(len(hits)):
        right = sum(hits[: k + 1])
        points.append((Fraction(right, objects), Fraction(right, k + 1)))
    if interpolation == "11point":
        levels = [Fraction(k, 10) for k in range(11)]
        return float(sum(max([p for r, p in points if r >= level], default=Fraction(0)) for level in levels) / 11)
    total, before = Fraction(0), Fraction(0)
    for recall, _ in points:
        total += (recall - before) * max(p for r, p in points if r >= recall)
        before = recall
    return float(total)


def test_equals_the_protocol_written_out() -> None:
    rng = np.random.default_rng(0)
    seen = []
    for _ in range(25):
        images = {f"image{number}": random_image(rng) for number in rng.permutation(6)}
        values = evaluate(images)
        for name, threshold in (("apr50", 0.5), ("apr70", 0.7), ("apr75", 0.75)):
            judged = {label: slow_hits(images, label, threshold) for label in (1, 2, 3)}
            judged = {label: item for label, item in judged.items() if item[1]}
            for interpolation in ("area", "11point"):
                by_class = {label: slow_ap(*item, interpolation) for label, item in judged.items()}
                assert values[f"{name}_{interpolation}"] == pytest.approx(np.mean(list(by_class.values())), abs=1e-12)
                if name != "apr70" and interpolation == "area":
                    for label, value in by_class.items():
                        assert values[f"{name}_area/{NAMES[label]}"] == pytest.approx(value, abs=1e-12)
            seen += [values[f"{name}_area"]]
        assert "apr50_area/never" not in values
    assert 0.1 < np.mean(seen) < 0.9  # the scenes are neither trivial nor hopeless


def test_both_interpolations_by_hand() -> None:
    hits = np.array([True, False, True])  # precision 1, 1/2, 2/3; recall 1/3, 1/3, 2/3
    assert area_ap(hits, 3) == pytest.approx((1 + 2 / 3) / 3)
    assert eleven_point_ap(hits, 3) == pytest.approx((4 * 1 + 3 * 2 / 3) / 11)
    hits = np.array([False, True, True])  # precision 0, 1/2, 2/3: the better one later counts at both recalls
    assert area_ap(hits, 2) == pytest.approx(2 / 3)
    assert eleven_point_ap(hits, 2) == pytest.approx(2 / 3)
    three = np.ones(3, dtype=bool)
    assert area_ap(three, 10) == pytest.approx(0.3)
    assert eleven_point_ap(three, 10) == pytest.approx(4 / 11)  # a recall of exactly 0.3 counts
    nothing = np.zeros(0, dtype=bool)
    assert area_ap(nothing, 4) == eleven_point_ap(nothing, 4) == 0.0


def test_a_duplicate_is_wrong() -> None:
    values = evaluate({"x": make_image([(1, ONE), (1, TWO)], [(1, 0.9, ONE), (1, 0.8, ONE), (1, 0.7, TWO)])})
    assert values["apr50_area"] == pytest.approx((1 + 2 / 3) / 2)
    assert values["apr50_area/a"] == values["apr75_area/a"] == values["apr50_area"]
    assert values["coco_ap50"] == pytest.approx((51 * 1 + 50 * 2 / 3) / 101)


def test_only_the_best_object_is_tried_where_coco_takes_another() -> None:
    """Two nearly equal objects, found twice at the place of the first: the second detection overlaps both."""
    left, right = rectangle(2, 4, 12, 14), rectangle(3, 4, 13, 14)
    values = evaluate({"x": make_image([(1, left), (1, right)], [(1, 0.9, left), (1, 0.8, left)])})
    assert values["apr50_area"] == pytest.approx(0.5)
    assert values["coco_ap50"] == pytest.approx(1.0)


def test_the_best_score_of_the_set_comes_first() -> None:
    images = {
        "x": make_image([(1, ONE)], [(1, 0.5, ONE)]),
        "y": make_image([(1, ONE)], [(1, 0.9, FAR), (1, 0.4, ONE)]),
    }
    assert evaluate(images)["apr50_area"] == pytest.approx(2 / 3)  # wrong, right, right


def test_void_pixels_are_taken_out_of_predictions() -> None:
    void = rectangle(2, 14, 12, 24)
    tall = rectangle(2, 4, 12, 24)  # the object and as many void pixels: it counts, and fits exactly
    image = make_image([(1, ONE)], [(1, 0.9, tall)], void=void)
    assert figures(evaluate({"x": image}), "apr75_area", "coco_ap") == pytest.approx([1.0, 1.0])
    mostly = rectangle(2, 5, 12, 24)  # 9 rows known, 10 void: it would match but is not counted
    values = evaluate({"x": make_image([(1, ONE)], [(1, 0.9, mostly)], void=void)})
    assert values["apr50_area"] == values["coco_ap50"] == 0.0
    within = evaluate({"x": make_image([(1, ONE)], [(1, 0.9, void), (1, 0.8, ONE)], void=void)})
    assert figures(within, "apr50_area", "coco_ap50") == pytest.approx([1.0, 1.0])


def test_an_object_without_a_mask_neither_counts_nor_is_matched() -> None:
    box_like = [(1, 0.9, TWO), (1, 0.8, ONE)]
    values = evaluate({"x": make_image([(1, ONE), (1, TWO), (2, FAR)], box_like, missing=[1, 2])})
    assert figures(values, "apr50_area", "coco_ap50") == pytest.approx([1.0, 1.0])
    assert "apr50_area/b" not in values  # all its objects lack masks: it enters no mean
    assert "coco_ap50/b" not in values
    other_class = [(2, 0.9, TWO), (2, 0.8, ONE)]  # the box says what is there, and it is not b
    values = evaluate({"x": make_image([(2, ONE), (1, TWO)], other_class, missing=[1])})
    assert values["apr50_area"] == pytest.approx(0.5)
    assert values["coco_ap50"] == pytest.approx(0.5)


def test_a_crowd_neither_counts_nor_harms() -> None:
    inside, beside = rectangle(16, 5, 20, 9), rectangle(22, 4, 30, 14)  # 3 of 8 columns of `beside` are in the crowd
    objects = [(1, ONE), (1, TWO)]
    values = evaluate({"x": make_image(objects, [(1, 0.9, inside), (1, 0.8, ONE)], crowd=[1])})
    assert figures(values, "apr50_area", "coco_ap50") == pytest.approx([1.0, 1.0])
    values = evaluate({"x": make_image(objects, [(1, 0.9, beside), (1, 0.8, ONE)], crowd=[1])})
    assert figures(values, "apr50_area", "coco_ap50") == pytest.approx([0.5, 0.5])
    duplicate = rectangle(8, 4, 20, 14)  # not right, and 5 of its 12 columns in the crowd: counted
    values = evaluate({"x": make_image(objects, [(1, 0.9, duplicate), (1, 0.8, ONE)], crowd=[1])})
    assert values["apr50_area"] == pytest.approx(0.5)


def test_an_empty_prediction_is_wrong() -> None:
    empty = np.zeros(SIZE, dtype=bool)
    for crowd in ([], [1]):
        image = make_image([(1, ONE), (2, TWO), (1, FAR)], [(1, 0.9, empty), (1, 0.8, ONE), (1, 0.7, FAR)], crowd=crowd)
        values = evaluate({"x": image})
        assert values["apr50_area/a"] == values["apr75_area/a"] == pytest.approx(2 / 3)
        assert values["coco_ap50/a"] == pytest.approx(2 / 3)


def test_nothing_found_and_nothing_there() -> None:
    assert set(evaluate({"x": make_image([(1, ONE)], [])}).values()) == {0.0}
    for image in (make_image([], []), make_image([], [(1, 0.9, ONE)]), make_image([(1, ONE)], [], missing=[0])):
        values = evaluate({"x": image})
        assert set(values.values()) == {-1.0}
        assert {"apr50_area", "apr70_11point", "apr75_11point", "coco_ap", "coco_ap75"} <= set(values)
    assert set(InstanceAP().compute(NAMES).values()) == {-1.0}
    harmed = evaluate({"x": make_image([(1, ONE)], [(1, 0.8, ONE)]), "y": make_image([], [(1, 0.9, ONE)])})
    assert harmed["apr50_area"] == pytest.approx(0.5)  # an image without objects counts as such


def test_an_unknown_image_is_skipped_and_a_repeated_one_counts_once() -> None:
    good, bad = make_image([(1, ONE)], [(1, 0.8, ONE)]), make_image([(1, ONE)], [(1, 0.9, FAR)])
    known = target_of(bad)
    unknown = Target(known.boxes, known.labels, torch.tensor([False]), known.ignore)
    metric = InstanceAP()
    for _ in range(2):
        ids, predictions = ["good", "unknown"], [prediction_of(good), prediction_of(bad)]
        metric.update(ids, predictions, [target_of(good), unknown], INPUT_SIZE)
    assert figures(dict(metric.compute()), "apr75_area", "coco_ap") == pytest.approx([1.0, 1.0])
    metric.update(["bad"], [prediction_of(bad)], [target_of(bad)], INPUT_SIZE)
    assert metric.compute()["apr50_area"] == pytest.approx(0.25)  # wrong, right of two
    metric.reset()
    assert metric.compute()["apr50_area"] == -1.0


def test_masks_of_another_size_are_refused() -> None:
    small = make_prediction(torch.tensor([1]), torch.tensor([0.9]), torch.ones(1, 5, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"masks have size \(5, 5\), expected the size of the image, \(24, 36\)"):
        InstanceAP().update(["x"], [small], [target_of(make_image([(1, ONE)], []))], INPUT_SIZE)


def test_only_run_lengths_are_kept() -> None:
    size, count = (320, 320), 10
    y, x = np.mgrid[: size[0], : size[1]]
    masks = np.stack([(x - 100 - 10 * k) ** 2 + (y - 150) ** 2 < 60**2 for k in range(count)])
    labels, known = torch.ones(count, dtype=torch.int64), torch.ones(count, dtype=torch.bool)
    image = target_of(make_image([], []))
    truth = type(image.truth)(torch.zeros(size, dtype=torch.uint8), tuple(encode(masks)))
    target = Target(torch.zeros(count, 4), labels, known, ~known, truth=truth)
    prediction = make_prediction(labels, torch.rand(count), torch.from_numpy(masks))
    metric = InstanceAP()
    for number in range(3):
        metric.update([str(number)], [prediction], [target], size)
    per_image = len(pickle.dumps(metric)) / 3
    assert per_image < 10_000 < masks.nbytes / 100


def test_a_box_covers_every_pixel_that_it_touches() -> None:
    box = torch.tensor([2.4, 3.0, 5.1, 6.0]) / 3 * 3.0001  # back from another size: not quite what it was
    np.testing.assert_array_equal(decode([fill_box(box, SIZE)], SIZE)[0], rectangle(2, 3, 6, 6))
    beyond = torch.tensor([-4.0, 20.0, 3.0, 99.0])
    np.testing.assert_array_equal(decode([fill_box(beyond, SIZE)], SIZE)[0], rectangle(0, 20, 3, 24))
