"""Every figure of a validation is the same for one process, two and three: exactly, whatever the number of images."""

import json

import pytest
from forks import run
from trainings import calibrate, measure

from dasnet_lightning.data.synthetic.dataset import write_synthetic
from dasnet_lightning.metrics.threshold import HIGHEST, LOWEST

KINDS = ("detection", "semantic", "instance")


@pytest.mark.parametrize(("images", "counts"), [(7, (2, 3)), (2, (3,))], ids=["uneven", "a process without images"])
def test_figures_do_not_depend_on_the_number_of_processes(images, counts, tmp_path):
    root = write_synthetic(tmp_path / "shapes", num_train=3, num_val=images, size=64)
    (alone,) = run(1, measure, KINDS, root, 2)
    assert 0 < alone["semantic"]["val/miou_ground_truth_boxes"] < 1
    assert 0 < alone["instance"]["val/apr50_area_ground_truth_boxes"] < 1
    assert "val/iou_ground_truth_boxes/6" in alone["semantic"]
    assert 0 < alone["detection"]["val/box_ap50"] < 1
    for count in counts:
        for answer in run(count, measure, KINDS, root, 2):
            # as text: nan, of a class that no image shows, equals nothing
            assert {kind: str(figures) for kind, figures in answer.items()} == {k: str(v) for k, v in alone.items()}


def test_the_score_threshold_does_not_depend_on_the_number_of_processes(tmp_path):
    root = write_synthetic(tmp_path / "shapes", num_train=5, num_val=1, size=64)
    found = {count: run(count, calibrate, root, tmp_path) for count in (1, 2, 3)}
    assert len({threshold for answers in found.values() for threshold in answers}) == 1
    assert LOWEST < found[1][0] < HIGHEST
    for count in found:
        assert json.loads((tmp_path / f"{count}" / "threshold.json").read_text())["images"] == 5
