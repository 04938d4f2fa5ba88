"""A training resumes only with the masks that it started with."""

import lightning as L
import pytest
import torch

from dasnet_lightning.callbacks import AtomicCheckpointIO
from dasnet_lightning.data.datamodule import MixedSupervisionDataModule
from dasnet_lightning.data.splits import check_same_split, split_state
from dasnet_lightning.data.synthetic.dataset import write_synthetic
from dasnet_lightning.errors import ConfigError


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return write_synthetic(tmp_path_factory.mktemp("shapes"), num_train=8, num_val=2, size=64)


class Mean(L.LightningModule):
    """Module that consumes batches and trains one parameter."""

    def __init__(self):
        super().__init__()
        self.number = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_index):
        return (batch.images.mean() - self.number).square()

    def validation_step(self, batch, batch_index):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def data(shapes, **options):
    common = {"image_size": 32, "batch_size": 2, "supervision": "masks", "mask_budget": 4, "augmentation": "none"}
    return MixedSupervisionDataModule(str(shapes), **common | options)


def trainer(folder, steps):
    return L.Trainer(accelerator="cpu", max_steps=steps, plugins=[AtomicCheckpointIO()], logger=False,
                     enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
                     num_sanity_val_steps=0, default_root_dir=folder)  # fmt: skip


@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_the_split_travels_in_the_checkpoint_and_is_compared(shapes, tmp_path):
    module = data(shapes)
    first = trainer(tmp_path, 2)  # an epoch
    first.fit(Mean(), module)
    path = tmp_path / "last.ckpt"
    first.save_checkpoint(path)
    saved = torch.load(path, weights_only=True)["MixedSupervisionDataModule"]["split"]
    assert saved == {"image_ids": module.split.image_ids, "budget": "4", "seed": 0}

    trainer(tmp_path, 4).fit(Mean(), data(shapes), ckpt_path=path)
    sentence = (
        r"last\.ckpt: was trained on the masks of 4 images \(budget '4', split_seed 0\), this training has the masks of 5 "
        r"images \(budget '5', split_seed 0\); 1 images differ, the first is '.+'; resume with the same"
    )
    with pytest.raises(ConfigError, match=sentence):
        trainer(tmp_path, 4).fit(Mean(), data(shapes, mask_budget=5), ckpt_path=path)
    with pytest.raises(ConfigError, match="split_seed 3"):
        trainer(tmp_path, 4).fit(Mean(), data(shapes, split_seed=3), ckpt_path=path)
    with pytest.raises(ConfigError, match="this training has no masks"):
        trainer(tmp_path, 4).fit(Mean(), data(shapes, supervision="boxes"), ckpt_path=path)
    trainer(tmp_path, 2).validate(
        Mean(), data(shapes, mask_budget=5), ckpt_path=path, verbose=False
    )  # looks at no split


def test_the_same_images_under_another_name_are_the_same(shapes):
    everything, eight = data(shapes, mask_budget="all").split, data(shapes, mask_budget=8, split_seed=5).split
    check_same_split(everything, split_state(eight), "x.ckpt")
    check_same_split(None, split_state(None), "x.ckpt")
    assert split_state(None) is None
