import torch

from dasnet_lightning.functional.regions import (
    best_detections,
    confident_detections,
    draw_objects,
    ground_truth_detections,
    object_regions,
    region_labels,
    regions_by_class,
    regions_by_instance,
)
from dasnet_lightning.types import Detections
from toy import make_target

BOXES = [[0.0, 0, 8, 8], [8, 8, 16, 16], [16, 16, 24, 24], [4, 4, 12, 12]]


def detections(labels, scores=None):
    count = len(labels)
    return Detections(
        torch.tensor(BOXES[:count]).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(scores if scores is not None else [1.0] * count),
    )


def test_regions_by_class_groups_all_boxes_of_a_class_of_an_image():
    regions = regions_by_class([detections([2, 1, 2]), detections([]), detections([2])])
    assert regions.image_index.tolist() == [0, 0, 2]
    assert regions.labels.tolist() == [1, 2, 2]
    assert regions.region_index.tolist() == [1, 0, 1, 2]
    second = regions.select(1, 3)
    assert second.region_index.tolist() == [0, 0, 1]
    assert second.boxes.tolist() == [BOXES[0], BOXES[2], BOXES[0]]


def test_regions_by_instance_is_one_region_for_each_box():
    regions = regions_by_instance([detections([2, 2]), detections([1])])
    assert regions.image_index.tolist() == [0, 0, 1]
    assert regions.region_index.tolist() == [0, 1, 2]


def test_no_detection_is_no_region():
    assert len(regions_by_class([detections([])])) == 0
    assert len(regions_by_instance([detections([])])) == 0


def test_confident_detections_keeps_the_best_classes():
    kept = confident_detections(detections([3, 1, 2, 1], [0.6, 0.9, 0.7, 0.4]), 0.5, max_classes=2)
    assert sorted(kept.labels.tolist()) == [1, 2]
    assert kept.scores.min() >= 0.5


def test_best_detections_come_best_first():
    found = detections([3, 1, 2, 1], [0.6, 0.9, 0.2, 0.7])
    assert best_detections(found, 0.5, 10).labels.tolist() == [1, 1, 3]
    assert best_detections(found, 0.0, 2).labels.tolist() == [1, 1]
    assert len(best_detections(detections([]), 0.0, 2).labels) == 0


def draw(targets, seeds, **options):
    return draw_objects(targets, [torch.Generator().manual_seed(seed) for seed in seeds], **options)


def test_drawn_objects_are_of_one_class_with_masks_and_follow_the_seed():
    target = make_target(BOXES, [1, 1, 2, 3], has_mask=[True, True, True, False])
    drawn = [draw([target], [seed])[0].tolist() for seed in range(60)]
    assert drawn == [draw([target], [seed])[0].tolist() for seed in range(60)]
    assert {tuple(one) for one in drawn} == {(0,), (1,), (0, 1), (2,)}  # class 3 has no mask
    whole = {tuple(draw([target], [seed], subset=False)[0].tolist()) for seed in range(60)}
    assert whole == {(0, 1), (2,)}
    boxes_do = {tuple(draw([target], [seed], subset=False, with_mask=False)[0].tolist()) for seed in range(60)}
    assert boxes_do == {(0, 1), (2,), (3,)}


def test_regions_of_drawn_objects_skip_images_without_any():
    targets = [make_target(BOXES, [1] * 4, has_mask=[False] * 4), make_target([], []), make_target(BOXES[:1], [4])]
    regions = object_regions(targets, draw(targets, [1, 2, 3]))
    assert regions.image_index.tolist() == [2]
    assert regions.labels.tolist() == [4]
    assert regions.boxes.tolist() == BOXES[:1]


def test_region_labels_know_what_they_do_not_know():
    # two objects of class 1 (the second without a mask), one of class 2
    target = make_target([[0, 0, 8, 8], [4, 4, 12, 12], [0, 0, 4, 4]], [1, 1, 2], has_mask=[True, False, True])
    regions = regions_by_class([Detections(torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([1]), torch.ones(1))])
    labels = region_labels([target], regions, (32, 32))[0]
    assert (labels[0:8, 0:8] == 1).all()  # the known mask, also where the unknown object's box lies over it
    assert (labels[8:10, 4:10] == 255).all()  # in the box of the object without a mask: unknown
    assert (labels[8:10, 0:4] == 0).all()  # in the region, of no object: background
    assert (labels[10:, :] == 255).all()  # outside the region
    assert (labels[:, 10:] == 255).all()


def test_crowd_and_void_are_ignored():
    target = make_target([[0, 0, 8, 8], [8, 0, 16, 8]], [1, 1])
    void = torch.zeros(32, 32, dtype=torch.bool)
    void[0, :] = True
    fields = {name: getattr(target, name) for name in target.__dataclass_fields__}
    target = type(target)(**fields | {"void": void, "ignore": torch.tensor([False, True])})
    regions = regions_by_class([Detections(torch.tensor([[0.0, 0, 16, 8]]), torch.tensor([1]), torch.ones(1))])
    labels = region_labels([target], regions, (32, 32))[0]
    assert (labels[0] == 255).all()
    assert (labels[1:8, :8] == 1).all()
    assert (labels[1:8, 8:16] == 255).all()
    assert len(ground_truth_detections(target).labels) == 1
