import pytest
import torch

from dasnet_lightning.callbacks import NaNGuard
from dasnet_lightning.callbacks.nan_guard import describe_step, replay_step
from dasnet_lightning.errors import CheckpointError, TrainingError
from dasnet_lightning.tasks.config import NetworkConfig, RecipeConfig
from dasnet_lightning.tasks.detection import DetectionTask
from dasnet_lightning.tasks.instance import InstanceTask
from dasnet_lightning.tasks.semantic import SemanticTask
from toy import make_batch, make_target

TARGETS = [make_target([[2.0, 2, 14, 14], [16, 16, 30, 28]], [1, 2]), make_target([], [])]


class Poisoned(torch.utils.data.Dataset):
    """The third batch holds a pixel that is no number."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        batch = make_batch(TARGETS, seed=10 * index)
        if index == 2:
            batch.images[1, 0, 3, 3] = torch.nan
        return batch


def test_it_stops_before_the_weights_are_touched_and_keeps_the_step(tmp_path, make_trainer):
    task = DetectionTask(3, detector="toy")
    loader = torch.utils.data.DataLoader(Poisoned(), batch_size=None)
    with pytest.raises(
        TrainingError, match=r"loss of step 2 is nan, for the images 'image0', 'image1'; .*nan-step-2-rank-0\.pt"
    ):
        make_trainer(callbacks=[NaNGuard(str(tmp_path))]).fit(task, loader, loader)
    assert all(parameter.isfinite().all() for parameter in task.parameters())
    again, batch, losses = replay_step(tmp_path / "nan-step-2-rank-0.pt")
    assert batch.image_ids == ("image0", "image1")
    assert torch.equal(batch.images.isnan(), Poisoned()[2].images.isnan())
    assert not losses["count"].isfinite()
    for name, value in task.named_parameters():
        assert torch.equal(again.get_parameter(name), value), name


def test_numbers_pass(tmp_path, make_trainer):
    loader = torch.utils.data.DataLoader([make_batch(TARGETS)], batch_size=None)
    make_trainer(callbacks=[NaNGuard(str(tmp_path))]).fit(DetectionTask(3, detector="toy"), loader, loader)
    assert not list(tmp_path.glob("nan-*"))


@pytest.mark.parametrize("task_class", [SemanticTask, InstanceTask])
@pytest.mark.parametrize("joint", [False, True])
def test_the_same_losses_come_out_again(task_class, joint, tmp_path):
    task = task_class(3, ("background", "a", "b"), network=NetworkConfig("toy"), recipe=RecipeConfig(joint=joint))
    batch = make_batch(TARGETS, seed=4)
    torch.manual_seed(99)
    losses, _ = task.train().losses(batch)
    step = describe_step(task, batch)
    step["hyper_parameters"]["_class_path"] = "LightningCLI adds such keys"
    torch.save(step, tmp_path / "step.pt")
    torch.manual_seed(1)  # the toy's dropout draws from the global generator
    _, _, again = replay_step(tmp_path / "step.pt")
    assert losses.keys() == again.keys()
    assert all(torch.equal(losses[name], again[name]) for name in losses)


def test_a_checkpoint_is_no_step(tmp_path):
    task = DetectionTask(3, detector="toy")
    torch.save({"state_dict": task.state_dict(), "hyper_parameters": dict(task.hparams)}, tmp_path / "task.ckpt")
    with pytest.raises(CheckpointError, match=r"task\.ckpt: not a step"):
        replay_step(tmp_path / "task.ckpt")
