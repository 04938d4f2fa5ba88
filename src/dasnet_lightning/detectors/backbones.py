"""Backbones by name, for detectors that work with any backbone: torchvision's classification networks and timm's models.

`resnet18` is torchvision's, `timm:convnext_tiny` is timm's. The levels are the last feature maps of each stride from 4 on,
where a stage ends.
"""

import copy
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
import torchvision
from jaxtyping import Float
from torch import Tensor, nn

from dasnet_lightning.detectors.downloads import check_timm_weights
from dasnet_lightning.detectors.layers import IMAGENET_MEAN, IMAGENET_STD
from dasnet_lightning.detectors.optional import import_extra
from dasnet_lightning.detectors.weights import FILE_SUFFIXES, fill, load_state, load_state_file
from dasnet_lightning.errors import CheckpointError, ConfigError

TIMM = "timm:"
FAMILIES = ("resnet", "resnext", "wide_resnet", "mobilenet", "efficientnet", "convnext", "regnet", "mnasnet", "vgg")
FINEST_STRIDE = 4
PROBE_SIDE = 64  # pixels; two cells at stride 32
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)  # timm's BatchNorm with an activation is a BatchNorm2d


class MultiScaleBackbone(nn.Module):
    """Backbone that returns several levels of a network.

    Args:
        body: returns its feature maps, finest first.
        map_index: which of the maps are levels.
        strides: stride of each level.
        out_channels: channels of each level.
        mean: mean of the pixels, RGB in 0..1.
        std: standard deviation of the pixels.
        channels_last: whether the maps of `body` are [b h w c], as those of timm's Swin.
        freeze_norm: keep BatchNorm in evaluation mode and untrained.
    """

    def __init__(
        self,
        body: nn.Module,
        map_index: Sequence[int],
        strides: tuple[int, ...],
        out_channels: tuple[int, ...],
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        channels_last: bool = False,
        freeze_norm: bool = False,
    ) -> None:
        super().__init__()
        self.body = body
        self.map_index = tuple(map_index)
        self.strides = strides
        self.out_channels = out_channels
        self.mean = mean
        self.std = std
        self.channels_last = channels_last
        self.frozen_norms = [module for module in body.modules() if freeze_norm and isinstance(module, NORMS)]
        for module in self.frozen_norms:
            module.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "MultiScaleBackbone":
        """Set the mode of all modules but frozen BatchNorms."""
        super().train(mode)
        for module in self.frozen_norms:
            module.eval()
        return self

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> tuple[tuple[Float[Tensor, "b _ _ _"], ...], None]:
        """Return the levels of normalized images, finest first, and None for the switches."""
        maps = self.body(images)
        levels = [maps[index] for index in self.map_index]
        return tuple(level.permute(0, 3, 1, 2) if self.channels_last else level for level in levels), None


class Stages(nn.Module):
    """Runs blocks in sequence and returns the output of the last block of each stage.

    Args:
        blocks: the blocks by name; those after the last stage are dropped.
        ends: index of the last block of each stage.
    """

    def __init__(self, blocks: Mapping[str, nn.Module], ends: Sequence[int]) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict(dict(list(blocks.items())[: ends[-1] + 1]))
        self.ends = tuple(ends)

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> tuple[Float[Tensor, "b _ _ _"], ...]:
        """Return the output of each stage."""
        x, maps = images, []
        for number, block in enumerate(self.blocks.values()):
            x = block(x)
            if number in self.ends:
                maps.append(x)
        return tuple(maps)


def build_backbone(
    name: str, weights: str | None, image_size: tuple[int, int], freeze_norm: bool | None = None
) -> MultiScaleBackbone:
    """Build a backbone by name.

    Args:
        name: torchvision's name, or "timm:" and timm's name.
        weights: path of a local file, torchvision's name of weights, or timm's tag ("a1_in1k"); None for no weights.
        image_size: (H, W) of the images, for models of timm with a fixed input size.
        freeze_norm: freeze BatchNorm; None freezes it if weights are given.

    Raises:
        ConfigError: the backbone is unknown or has no feature maps.
        CheckpointError: the weights do not fit.
    """
    freeze = weights is not None if freeze_norm is None else freeze_norm
    if name.startswith(TIMM):
        return _build_timm(name.removeprefix(TIMM), weights, image_size, freeze)
    return _build_torchvision(name, weights, freeze)


def _build_torchvision(name: str, weights: str | None, freeze_norm: bool) -> MultiScaleBackbone:
    known = [model for model in torchvision.models.list_models(torchvision.models) if model.startswith(FAMILIES)]
    if name not in known:
        raise ConfigError(
            f"backbone is '{name}', expected one of torchvision's {', '.join(known)}, or {TIMM}NAME for one of timm's"
        )
    model = torchvision.models.get_model(name, weights=None)
    if weights is not None:
        state = load_state(weights, name)
        expected = f"the state dict of torchvision's {name}"
        if any(key.startswith(("classifier.", "fc.")) for key in state):
            fill(model, state, weights, expected)
        else:
            fill(model, {**_classifier_state(model), **state}, weights, f"{expected}, its classifier may be absent")
    blocks = _blocks(model)
    ends, strides, channels = _find_stages(blocks)
    return MultiScaleBackbone(Stages(blocks, ends), range(len(ends)), strides, channels, freeze_norm=freeze_norm)


def _classifier_state(model: nn.Module) -> dict[str, Tensor]:
    return {key: value for key, value in model.state_dict().items() if key.startswith(("classifier.", "fc."))}


def _blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Return the blocks of a classification network before its global pooling, in sequence."""
    if isinstance(getattr(model, "features", None), nn.Sequential):
        return dict(model.features.named_children())  # type: ignore[union-attr]
    blocks: dict[str, nn.Module] = {}
    for name, part in model.named_children():
        if name in ("avgpool", "fc", "classifier"):
            break
        inner = part.named_children() if name in ("trunk_output", "layers") else [("", part)]
        blocks |= {f"{name}_{child}".rstrip("_"): module for child, module in inner}
    return blocks


def _find_stages(blocks: Mapping[str, nn.Module]) -> tuple[list[int], tuple[int, ...], tuple[int, ...]]:
    """Run the blocks on the meta device and return the last block of each stride from 4 on, its stride and channels."""
    x = torch.empty(1, 3, PROBE_SIDE, PROBE_SIDE, device="meta")
    ends: dict[int, tuple[int, int]] = {}
    for number, block in enumerate(blocks.values()):
        x = copy.deepcopy(block).to("meta").eval()(x)
        ends[PROBE_SIDE // x.shape[-1]] = (number, x.shape[1])
    ends = {stride: end for stride, end in ends.items() if stride >= FINEST_STRIDE}
    return [number for number, _ in ends.values()], tuple(ends), tuple(channels for _, channels in ends.values())


def _build_timm(name: str, weights: str | None, image_size: tuple[int, int], freeze_norm: bool) -> MultiScaleBackbone:
    timm = import_extra("timm", "timm")
    if not timm.is_model(name):
        similar = ", ".join(get_close_matches(name, timm.list_models(), n=5)) or "see timm.list_models()"
        raise ConfigError(f"timm {timm.__version__} has no model '{name}', similar names: {similar}")
    options: dict[str, Any] = {"features_only": True}
    if timm.get_pretrained_cfg(name).fixed_input_size:
        options["img_size"] = image_size
    if weights is not None and (Path(weights).suffix in FILE_SUFFIXES or Path(weights).exists()):
        state = _load_timm_state(timm, name, weights)
        options |= {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": state}}
    elif weights is not None:
        name = f"{name.partition('.')[0]}.{weights}"
        options |= {"pretrained": True}
    try:
        if "pretrained_cfg_overlay" not in options and weights is not None:
            check_timm_weights(timm, name)
        body = timm.create_model(name, **options)
    except OSError as error:
        raise CheckpointError(
            f"timm cannot download the weights of {name} ({str(error).strip().splitlines()[0][:200]}); give a local file as "
            "weights, or start from random weights with --weights none"
        ) from error
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"timm cannot build '{name}' with features_only: {reason}") from error
    reductions, channels = body.feature_info.reduction(), body.feature_info.channels()
    last = {stride: index for index, stride in enumerate(reductions) if stride >= FINEST_STRIDE}
    if not last:
        raise ConfigError(
            f"timm's '{name}' has feature maps at strides {reductions}, expected one of stride {FINEST_STRIDE} or more"
        )
    cfg = timm.get_pretrained_cfg(name)
    return MultiScaleBackbone(
        body,
        list(last.values()),
        tuple(last),
        tuple(channels[index] for index in last.values()),
        tuple(cfg.mean),
        tuple(cfg.std),
        getattr(body, "output_fmt", "NCHW") == "NHWC",  # not all of timm's wrappers have it
        freeze_norm,
    )


def _load_timm_state(timm: Any, name: str, weights: str) -> dict[str, Tensor]:
    """Read the state dict of a whole timm network from a file and check it; with features_only timm does not check.

    The classifier may be absent or for other classes.

    Raises:
        CheckpointError: anything else differs.
    """
    network = timm.create_model(name)
    names = timm.get_pretrained_cfg(name).classifier or ()
    classifiers = tuple(f"{layer}." for layer in ((names,) if isinstance(names, str) else names))
    own = {key: value for key, value in network.state_dict().items() if key.startswith(classifiers)}
    state = {key: value for key, value in load_state_file(Path(weights)).items() if not key.startswith(classifiers)}
    fill(network, {**state, **own}, weights, f"the state dict of timm's {name}")
    return dict(network.state_dict())
