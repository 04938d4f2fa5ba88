"""The cost of a validation is logged, and BatchNorm layers that see one rank's images are found."""

import csv
import re
from types import SimpleNamespace

import lightning as L
import pytest
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from dasnet_lightning.callbacks import ValidationTime
from dasnet_lightning.callbacks import progress as module
from dasnet_lightning.callbacks.progress import takes_own_statistics
from task_builders import TARGETS, build_task, loader
from toy import make_batch


def test_the_time_of_a_validation_is_logged_beside_that_of_an_epoch(tmp_path, monkeypatch, capsys):
    clock = iter([10.0, 12.0, 14.0, 20.0, 26.0, 40.0, 42.0, 50.0, 53.0])  # 3 batches, 6 s; 2 more, 3 s
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    batches = [make_batch([TARGETS["all masks"]], seed=seed) for seed in range(5)]
    task, logger = build_task("semantic"), CSVLogger(tmp_path, name="log")
    fitter = L.Trainer(
        accelerator="cpu",
        max_steps=5,
        check_val_every_n_epoch=None,
        val_check_interval=3,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        logger=logger,
        callbacks=[ValidationTime()],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    fitter.fit(task, loader(batches), loader(batches[:1]))
    # the second validation is called by hand: its times are the last of the clock
    (callback,) = (item for item in fitter.callbacks if isinstance(item, ValidationTime))
    callback.on_validation_start(fitter, task)
    callback.on_validation_end(fitter, task)
    logger.save()
    with (tmp_path / "log" / "version_0" / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["val/seconds"]]
    assert [float(row["val/seconds"]) for row in rows] == [6.0, 3.0]
    # two intervals between batches, 2 s each, before the first; one of 2 s more before the second
    assert [float(row["val/share_of_epoch"]) for row in rows] == pytest.approx([6 / 200, 3 / 200])
    assert [int(row["step"]) for row in rows] == [3, 5]
    assert re.search(r"validation: 6\.0 s, 3% of the time of 100 training batches", capsys.readouterr().err)


def test_only_batchnorm_that_trains_takes_statistics_of_its_own():
    assert takes_own_statistics(nn.Sequential(nn.BatchNorm2d(3)))
    assert not takes_own_statistics(nn.Sequential(nn.BatchNorm2d(3)).eval())
    assert not takes_own_statistics(nn.SyncBatchNorm(3))
    assert not takes_own_statistics(build_task("semantic"))
    assert takes_own_statistics(build_task("semantic", joint=True))
