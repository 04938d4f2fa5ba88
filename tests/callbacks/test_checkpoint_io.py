"""Lightning's own callers write and read through it; the files are torch's."""

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from dasnet_lightning.callbacks import AtomicCheckpointIO
from dasnet_lightning.errors import CheckpointError
from dasnet_lightning.storage.checksum import Seal, check_seal
from dasnet_lightning.storage.reading import read_tensors


class Line(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_index):
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())


def fit(folder, steps, callbacks, **options):
    trainer = L.Trainer(accelerator="cpu", max_steps=steps, callbacks=callbacks, plugins=[AtomicCheckpointIO()],
                        logger=False, enable_progress_bar=False, enable_model_summary=False,
                        default_root_dir=folder, enable_checkpointing=bool(callbacks))  # fmt: skip
    trainer.fit(Line(), DataLoader(torch.ones(3, 1)), **options)
    return trainer


def steps_in(folder):
    return {path.name: read_tensors(path)["global_step"] for path in folder.glob("*.ckpt")}


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")  # a plain loader
def test_model_checkpoint_keeps_the_last_two_and_the_trainer_goes_on(tmp_path):
    def same_name():  # as `dasnet train` has it
        return ModelCheckpoint(tmp_path, "last", save_top_k=1, enable_version_counter=False)

    fit(tmp_path, 9, [same_name()])
    assert steps_in(tmp_path) == {"last.ckpt": 9, "last.previous.ckpt": 6}
    assert check_seal(tmp_path / "last.ckpt") is Seal.INTACT
    assert fit(tmp_path, 12, [same_name()], ckpt_path=tmp_path / "last.ckpt").global_step == 12
    assert steps_in(tmp_path)["last.ckpt"] == 12 > steps_in(tmp_path)["last.previous.ckpt"] >= 9
    (tmp_path / "last.ckpt").unlink()
    assert fit(tmp_path, 13, [same_name()], ckpt_path="last").global_step == 13  # Lightning's word finds the one before


def test_model_checkpoint_may_choose_the_names(tmp_path):
    fit(tmp_path, 9, [ModelCheckpoint(tmp_path, save_top_k=1, save_last=True)])
    assert steps_in(tmp_path) == {"epoch=2-step=9.ckpt": 9, "last.ckpt": 9, "last.previous.ckpt": 6}


def test_a_checkpoint_is_read_as_data_whatever_lightning_asks(tmp_path):
    io, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    torch.save({"state_dict": {}, "code": torch.nn.ReLU()}, path)
    with pytest.raises(CheckpointError, match="refused: reading it would run code"):
        io.load_checkpoint(path, weights_only=False)
    with pytest.raises(CheckpointError, match="refused: reading it would run code"):
        fit(tmp_path, 3, [], ckpt_path=path)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        fit(tmp_path, 3, [], ckpt_path=tmp_path / "none.ckpt")
    torch.save({"state_dict": {}}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint of a training, it holds 'state_dict'"):
        fit(tmp_path, 3, [], ckpt_path=path)


@pytest.mark.parametrize("damage", ["flipped", "cut", "foreign"])
def test_a_damaged_file_does_not_push_the_good_one_out(tmp_path, damage):
    """The last one was found damaged, the training went on from the one before; the next save must not lose that."""
    io, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    for number in range(2):
        io.save_checkpoint({"number": number}, path)
    whole = path.read_bytes()
    path.write_bytes({"flipped": whole[:300] + b"?" + whole[301:], "cut": whole[:300], "foreign": b"GIF8"}[damage])
    AtomicCheckpointIO().save_checkpoint({"number": 2}, path)  # by another process
    numbers = {file.name: read_tensors(file)["number"] for file in tmp_path.iterdir()}
    assert numbers == {"last.ckpt": 2, "last.previous.ckpt": 0}


def test_the_content_is_not_changed_and_both_files_are_removed(tmp_path):
    io, path, content = AtomicCheckpointIO(), tmp_path / "a.ckpt", {"number": 1}
    io.save_checkpoint(content, path)
    io.save_checkpoint(content, path)
    assert content == {"number": 1}
    io.remove_checkpoint(str(path))
    io.remove_checkpoint(str(path))
    assert not list(tmp_path.iterdir())


def test_the_seal_may_not_get_lost(tmp_path):
    """A file that somebody wrote anew with `torch.save`, or whose end was damaged, still says that it had a checksum."""
    io, path = AtomicCheckpointIO(), tmp_path / "a.ckpt"
    io.save_checkpoint({"number": 1}, path)
    torch.save(torch.load(path, weights_only=True), path)
    with pytest.raises(CheckpointError, match="it was written with a checksum, which is gone"):
        io.load_checkpoint(path)
