"""A signal to one process or to all: every process saves and leaves at the same step, and both go on to the same bits."""

from pathlib import Path

import pytest
import torch
from forks import run
from stops import STEPS, VALIDATE, train, train_on_no_number

from dasnet_lightning.data.synthetic.dataset import write_synthetic


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("shapes"), num_train=9, num_val=9, size=64)


@pytest.fixture(scope="module")
def whole(shapes, tmp_path_factory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("whole")
    first, second = run(2, train, shapes, folder, [])
    assert (first["step"], second["step"]) == (STEPS, STEPS)
    return first["weights"]


@pytest.mark.parametrize("told", [[0], [1], [0, 1]], ids=["first", "second", "both"])
@pytest.mark.parametrize("in_validation", [False, True], ids=["training", "validation"])
def test_all_leave_together_and_continue(told, in_validation, shapes, whole, tmp_path):
    step = VALIDATE if in_validation else 1
    for answer in run(2, train, shapes, tmp_path, told, step, in_validation, limit=20):
        at = VALIDATE if in_validation else 2  # the step that was running is finished
        assert answer["said"].startswith(f"stopped by SIGTERM at step {at}; ")
    for answer in run(2, train, shapes, tmp_path, []):
        assert answer["step"] == STEPS
        assert [name for name, value in whole.items() if not torch.equal(value, answer["weights"][name])] == []


def test_a_loss_that_is_no_number_in_one_process_ends_both(shapes, tmp_path):
    first, second = run(2, train_on_no_number, shapes, tmp_path, limit=30)
    assert first == "the loss of step 0 is NaN or infinite on another rank, whose message names the images"
    assert second.startswith("the loss of step 0 is nan, for the images '")
    assert [path.name for path in tmp_path.glob("nan-*")] == ["nan-step-0-rank-1.pt"]
