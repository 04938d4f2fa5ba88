import torch
from torch import nn

from dasnet_lightning.detectors.frozen import Frozen


def test_stays_in_evaluation_whatever_the_outer_module_does():
    outer = nn.Sequential(Frozen(nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5))), nn.Linear(3, 1))
    outer.train()
    assert not any(module.training for module in outer[0].modules())
    assert outer[1].training
    before = {key: value.clone() for key, value in outer.state_dict().items()}
    inputs = torch.randn(8, 3)
    assert torch.equal(outer[0].module(inputs), outer[0].module(inputs))
    assert all(torch.equal(before[key], value) for key, value in outer.state_dict().items())
    assert [parameter.requires_grad for parameter in outer.parameters()] == [False, False, True, True]
