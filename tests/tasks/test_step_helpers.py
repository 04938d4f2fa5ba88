"""Helpers of the steps, as far as one process can show; tests/ddp has the others."""

import pytest
import torch
from torch import nn

from dasnet_lightning.functional.regions import object_regions
from dasnet_lightning.tasks.step_helpers import average_values, has_active_sync_batchnorm
from task_builders import TARGETS, build_task
from toy import make_batch


@pytest.mark.parametrize("soft_attention", [0.0, 0.5])
@pytest.mark.parametrize("decoder", ["light", "paper"])
@pytest.mark.parametrize("kind", ["semantic", "instance"])
def test_under_sync_batchnorm_a_batch_without_regions_runs_the_decoder_on_nothing(
    kind, decoder, soft_attention, monkeypatch
):
    task = build_task(kind, decoder=decoder, soft_attention=soft_attention)
    task.eval()  # torch's SyncBatchNorm takes an empty batch in training, BatchNorm does not
    ran = []
    for part in task.model.decoder.modules():
        part.register_forward_hook(lambda part, given, output: ran.append(part))
    monkeypatch.setattr("dasnet_lightning.tasks.segmentation.has_active_sync_batchnorm", lambda module: True)
    batch = make_batch([TARGETS["no object"]] * 2)
    pyramid = task.model.detector.features(batch.images)
    nothing = task.zero_mask_loss(pyramid, object_regions(batch.targets, [target.labels for target in batch.targets]))
    assert (nothing.total, nothing.count) == (0, 0)
    nothing.total.backward()
    used = [p for part in (task.model.decoder, task.model.head) for p in part.parameters()]
    assert all(p.grad is not None and not p.grad.any() for p in used)
    norms = [part for part in task.model.decoder.modules() if isinstance(part, nn.BatchNorm2d)]
    assert all(ran.count(norm) == (2 if soft_attention else 1) for norm in norms)


def test_without_other_processes_nothing_waits_and_values_stay():
    assert not has_active_sync_batchnorm(nn.SyncBatchNorm(3))
    assert average_values({"a": torch.tensor(2.0, requires_grad=True), "b": torch.tensor(3)}) == {"a": 2, "b": 3}
