"""Folding keeps features and detections, removes layers, and leaves alone what must not be folded."""

import pytest
import torch
from torch import nn

from dasnet_lightning.detectors import build_detector
from dasnet_lightning.detectors.fold_batchnorm import fold_norms
from dasnet_lightning.detectors.frozen import FrozenDetector
from dasnet_lightning.detectors.layers import FrozenBatchNorm


def stir(module: nn.Module) -> None:
    """Give the norms random statistics and scales, as after training."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d | FrozenBatchNorm):
            with torch.no_grad():
                norm.running_mean.normal_(std=0.3)
                norm.running_var.uniform_(0.5, 2)
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.normal_(std=0.3)


@pytest.mark.parametrize("freeze_norm", [True, False])
def test_mobilenet_gives_the_same(freeze_norm):
    torch.manual_seed(0)
    options = {"image_size": 96, "freeze_norm": freeze_norm}
    detector = FrozenDetector(build_detector("ssd320_mobilenet_v2", 4, **options))
    stir(detector)
    images = torch.rand(2, 3, 96, 96)
    before, found = detector.features(images), detector.detect(detector.features(images))
    assert fold_norms(detector) == 52
    after, found_after = detector.features(images), detector.detect(detector.features(images))
    for old, new in zip(before.levels, after.levels, strict=True):
        assert (old - new).abs().max() <= 1e-5 * max(1.0, float(old.abs().max()))
    for old, new in zip(found, found_after, strict=True):
        assert torch.equal(old.labels, new.labels)
        torch.testing.assert_close(old.boxes, new.boxes, atol=1e-2, rtol=1e-4)
    assert not any(parameter.requires_grad for parameter in detector.parameters())
    assert fold_norms(detector) == 0


class Standardised(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight / self.weight.std(), self.bias)


def squared(convolution: nn.Conv2d) -> nn.Conv2d:
    convolution.register_forward_hook(lambda layer, inputs, output: output.square())
    return convolution


@pytest.mark.parametrize(
    "wrap",
    [nn.utils.spectral_norm, nn.utils.parametrizations.weight_norm, squared, lambda _: Standardised(3, 4, 1)],
    ids=["spectral_norm", "weight_norm", "hook", "subclass"],
)
def test_a_convolution_that_does_more_than_convolve_stays(wrap):
    torch.manual_seed(0)
    layers = nn.Sequential(wrap(nn.Conv2d(3, 4, 1)), nn.BatchNorm2d(4)).eval()
    stir(layers)
    images = torch.rand(1, 3, 5, 5)
    before = layers(images)
    assert fold_norms(layers) == 0
    torch.testing.assert_close(layers(images), before)


def test_what_is_shared_or_learning_or_no_plain_sequence_stays():
    class Between(nn.Sequential):
        def forward(self, x):
            return self[1](self[0](x).square())

    convolution = nn.Conv2d(3, 4, 1)
    shared = nn.ModuleList(nn.Sequential(convolution, nn.BatchNorm2d(4)) for _ in range(2)).eval()
    assert fold_norms(shared) == 0
    assert fold_norms(Between(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()) == 0
    assert fold_norms(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()) == 0
    assert fold_norms(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)).eval()) == 0
    assert fold_norms(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)).eval()) == 0
    assert fold_norms(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False)).eval()) == 1
