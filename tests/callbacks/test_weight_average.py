"""The average of the weights is that of the formula, survives a continuation to the bit, and is what is kept."""

from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from dasnet_lightning.callbacks import AtomicCheckpointIO, Resumable, WeightAverage

STEPS, VALIDATE = 9, 3


class Line(L.LightningModule):
    """Two weights, one of them frozen, and a buffer that counts steps."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([1.0]))
        self.frozen = nn.Parameter(torch.tensor([0.1]), requires_grad=False)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.validated: list[float] = []

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        self.count += 1
        return (self.slope**2 * batch).sum()

    def validation_step(self, batch: torch.Tensor, index: int) -> None:
        self.validated.append(float(self.slope.detach()))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.slope], lr=0.1)


class Slopes(Callback):
    """Notes the weight after each step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index):
        self.seen.append(float(module.slope.detach()))


def fit(
    folder: Path, module: Line, callbacks: list[Callback], steps: int = STEPS, resume: Path | None = None
) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu", max_steps=steps, check_val_every_n_epoch=None, val_check_interval=VALIDATE, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        default_root_dir=folder, callbacks=callbacks, plugins=[AtomicCheckpointIO()],
    )  # fmt: skip
    data = torch.utils.data.DataLoader(torch.ones(100), batch_size=1)
    trainer.fit(module, data, torch.utils.data.DataLoader(torch.zeros(1)), ckpt_path=resume, weights_only=True)
    return trainer


def expected(slopes: list[float], decay: float) -> list[float]:
    """The average after each step; the first update takes the weights as they are."""
    average, averages = slopes[0], [slopes[0]]
    for step, slope in enumerate(slopes[1:], start=1):
        share = min(decay, (1 + step) / (10 + step))
        average = share * average + (1 - share) * slope
        averages.append(average)
    return averages


@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_validation_and_final_weights_are_the_average(decay: float, tmp_path: Path) -> None:
    module, slopes = Line(), Slopes()
    trainer = fit(tmp_path, module, [slopes, WeightAverage(decay)])
    averages = expected(slopes.seen, decay)
    assert module.validated == pytest.approx([averages[step - 1] for step in range(VALIDATE, STEPS + 1, VALIDATE)])
    assert float(module.slope.detach()) == pytest.approx(averages[-1])
    assert float(module.slope.detach()) != pytest.approx(slopes.seen[-1])
    assert torch.equal(module.frozen, torch.tensor([0.1])), "weights that do not change stay the same to the bit"
    assert int(module.count) == STEPS
    trainer.save_checkpoint(tmp_path / "final.ckpt")
    content = torch.load(tmp_path / "final.ckpt", weights_only=True)
    assert torch.equal(content["state_dict"]["slope"], module.slope)
    assert not {"current_model_state", "averaging_state"} & set(content)


@pytest.mark.filterwarnings(
    "ignore:You're resuming from a checkpoint that ended before the epoch"
)  # all batches are equal
@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_continued_training_ends_with_the_same_average(step: int, tmp_path: Path) -> None:
    whole = Line()
    fit(tmp_path, whole, [WeightAverage(0.9)])
    fit(tmp_path, Line(), [WeightAverage(0.9), Resumable(str(tmp_path), 1)], step)
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert "current_model_state" in content
    rest = Line()
    fit(tmp_path, rest, [WeightAverage(0.9)], resume=tmp_path / "last.ckpt")
    assert torch.equal(rest.slope, whole.slope)
    assert rest.validated == [value for number, value in enumerate(whole.validated, 1) if number * VALIDATE > step]
