"""Feature pyramid networks on torchvision's backbones, for the two-stage and the dense detectors.

The decoder of stage two needs the finest levels even if a detector does not predict boxes there. So a pyramid can begin with
raw levels of the body, which do not enter the top-down path. The state dict has the keys of torchvision's BackboneWithFPN.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import mobilenet_v2, mobilenet_v3_large, resnet50
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, FeaturePyramidNetwork, LastLevelMaxPool

from dasnet_lightning.detectors.layers import FrozenBatchNorm
from dasnet_lightning.errors import ConfigError

Norm = Callable[..., nn.Module]

CHANNELS = 256
RESNET_LEVELS = {"layer1": 256, "layer2": 512, "layer3": 1024, "layer4": 2048}  # strides 4 to 32
RESNET_STAGES = ("layer4", "layer3", "layer2", "layer1", "conv1")  # in the order in which they become trainable
MOBILENET_V2_LEVELS = {"3": 24, "6": 32, "13": 96, "18": 1280}  # strides 4 to 32
MOBILENET_V3_LEVELS = {"3": 24, "6": 40, "12": 112, "13": 160, "16": 960}  # strides 4, 8, 16, 32 and 32


class FPN(nn.Module):
    """Feature pyramid: the finest `raw_levels` of the body unchanged, then the levels of the top-down path.

    Args:
        body: returns its levels by name, finest first.
        channels: channels of each level of the body.
        path: the top-down path over all levels but the raw ones.
        strides: stride of each output level, including those of the path's extra blocks.
        width: channels of the path's levels.
    """

    def __init__(
        self,
        body: nn.Module,
        channels: Sequence[int],
        path: FeaturePyramidNetwork,
        strides: tuple[int, ...],
        width: int,
    ) -> None:
        super().__init__()
        self.body = body
        self.fpn = path
        self.raw_levels = len(channels) - len(path.inner_blocks)
        self.strides = strides
        self.out_channels = (*channels[: self.raw_levels], *[width] * (len(strides) - self.raw_levels))

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> tuple[Float[Tensor, "b _ _ _"], ...]:
        """Return the levels of normalized images, finest first."""
        levels = list(self.body(images).items())
        path = self.fpn(OrderedDict(levels[self.raw_levels :]))
        return (*(level for _, level in levels[: self.raw_levels]), *path.values())


def build_fpn(
    body: nn.Module,
    levels: dict[str, int],
    strides: tuple[int, ...],
    raw_levels: int = 0,
    width: int = CHANNELS,
    extra: ExtraFPNBlock | None = None,
    norm_layer: Norm | None = None,
) -> FPN:
    """Build a feature pyramid over some modules of a body.

    Args:
        body: the backbone.
        levels: names of the modules of `body` that return the levels, finest first, with their channels.
        strides: stride of each output level.
        raw_levels: number of finest levels that do not enter the top-down path.
        width: channels of the path's levels.
        extra: computes levels above those of the body; None means one more level by subsampling.
        norm_layer: normalization of the top-down path; None for no normalization.
    """
    channels = list(levels.values())
    getter = IntermediateLayerGetter(body, {name: str(number) for number, name in enumerate(levels)})
    path = FeaturePyramidNetwork(channels[raw_levels:], width, extra or LastLevelMaxPool(), norm_layer)
    return FPN(getter, channels, path, strides, width)


def resnet50_fpn(
    pretrained: bool,
    freeze_norm: bool | None,
    trainable_layers: int | None,
    strides: tuple[int, ...],
    raw_levels: int = 0,
    extra: ExtraFPNBlock | None = None,
    norm_layer: Norm | None = None,
) -> FPN:
    """Build ResNet50 with a feature pyramid.

    Args:
        pretrained: whether weights will be loaded; determines the defaults below.
        freeze_norm: freeze BatchNorm; None freezes it if pretrained.
        trainable_layers: number of last stages that are trained, 0 to 5; None means three if pretrained, else all.
        strides: stride of each output level.
        raw_levels: number of finest levels that do not enter the top-down path.
        extra: computes levels above those of the body; None means one more level by subsampling.
        norm_layer: normalization of the top-down path; None for no normalization.

    Raises:
        ConfigError: `trainable_layers` is out of range.
    """
    if trainable_layers is None:
        trainable_layers = 3 if pretrained else len(RESNET_STAGES)
    if not 0 <= trainable_layers <= len(RESNET_STAGES):
        raise ConfigError(f"trainable_layers is {trainable_layers}, expected 0 to {len(RESNET_STAGES)}")
    body = resnet50(norm_layer=body_norm(pretrained if freeze_norm is None else freeze_norm))
    trainable = RESNET_STAGES[:trainable_layers]
    trainable += ("bn1",) if trainable_layers == len(RESNET_STAGES) else ()
    for name, parameter in body.named_parameters():
        parameter.requires_grad_(name.startswith(trainable))
    return build_fpn(body, RESNET_LEVELS, strides, raw_levels, CHANNELS, extra, norm_layer)


def mobilenet_v3_fpn(freeze_norm: bool, frozen_blocks: int) -> FPN:
    """Build torchvision's pyramid on MobileNetV3-Large, strides 32, 32 and 64, after raw levels at strides 4, 8 and 16."""
    body = mobilenet_v3_large(norm_layer=body_norm(freeze_norm)).features
    body[:frozen_blocks].requires_grad_(False)
    return build_fpn(body, MOBILENET_V3_LEVELS, (4, 8, 16, 32, 32, 64), raw_levels=3)


def mobilenet_v2_fpn(freeze_norm: bool, frozen_blocks: int, width: int) -> FPN:
    """Build a narrow pyramid on MobileNetV2 at strides 4 to 64."""
    body = mobilenet_v2(norm_layer=body_norm(freeze_norm)).features
    body[:frozen_blocks].requires_grad_(False)
    return build_fpn(body, MOBILENET_V2_LEVELS, (4, 8, 16, 32, 64), width=width)


def body_norm(freeze: bool) -> Norm:
    """Return the normalization layer of a body: a trainable or a frozen BatchNorm."""
    return FrozenBatchNorm if freeze else nn.BatchNorm2d


def check_sides(sides: Sequence[int], levels: int) -> None:
    """Check that `anchor_sides` has one side for each level that predicts boxes.

    Raises:
        ConfigError: it does not.
    """
    if len(sides) != levels or min(sides) < 1:
        raise ConfigError(
            f"anchor_sides is {list(sides)}, expected {levels} positive numbers of pixels, one for each level"
        )
