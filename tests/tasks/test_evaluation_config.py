"""The evaluation of a machine changes no metric, and checkpoints do not hold it."""

import pytest

from dasnet_lightning.errors import ConfigError
from dasnet_lightning.tasks.detection import DetectionTask
from task_builders import TARGETS, TASKS, build_task, loader, trainer
from toy import make_batch


@pytest.mark.parametrize("kind", [*TASKS, "detection"])
def test_another_evaluator_gives_the_same_figures_and_stays_out_of_the_checkpoint(kind, tmp_path):
    batch, figures = make_batch([TARGETS["all masks"], TARGETS["one mask"]]), []
    for evaluator in ("built-in", "pycocotools"):
        options = {"coco_evaluator": evaluator}
        task = DetectionTask(3, detector="toy", **options) if kind == "detection" else build_task(kind, **options)
        assert not {"coco_evaluator", "evaluation"} & set(task.hparams)
        trainer(tmp_path, 1).validate(task, loader([batch]), verbose=False)
        figures.append(task.metrics)
    assert figures[0] == pytest.approx(figures[1], abs=1e-12, nan_ok=True)
    assert any("coco_ap" in name or "box_ap" in name for name in figures[0])
    with pytest.raises(ConfigError, match="no evaluator 'mine'"):
        DetectionTask(3, detector="toy", coco_evaluator="mine")
