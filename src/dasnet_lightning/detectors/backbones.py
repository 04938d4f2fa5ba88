"""Backbones by name, for the detectors that take any: torchvision's families that work in stages, and timm's models.

`resnet18` is torchvision's, `timm:convnext_tiny` is timm's. Their levels are the last feature maps at each stride of 4
and more, which is where a stage ends.
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

from dasnet_lightning.detectors.layers import IMAGENET_MEAN, IMAGENET_STD
from dasnet_lightning.detectors.optional import import_extra
from dasnet_lightning.detectors.weights import FILE_SUFFIXES, fill, load_state, load_state_file
from dasnet_lightning.errors import ConfigError

TIMM = "timm:"
FAMILIES = ("resnet", "resnext", "wide_resnet", "mobilenet", "efficientnet", "convnext", "regnet", "mnasnet", "vgg")
FINEST = 4
PROBE = 64  # pixels; stride 32 leaves two cells
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)  # timm's BatchNorm with an activation is a BatchNorm2d


class MultiScaleBackbone(nn.Module):
    """Normalised images -> (levels finest first, None).

    body: returns its feature maps, finest first. taken: which of them are levels. mean, std: of its pixels, RGB in 0..1.
    channels_last: the maps have their channels last, as Swin's in timm. freeze_norm: BatchNorm is held, for good.
    """

    def __init__(
        self,
        body: nn.Module,
        taken: Sequence[int],
        strides: tuple[int, ...],
        out_channels: tuple[int, ...],
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        channels_last: bool = False,
        freeze_norm: bool = False,
    ) -> None:
        super().__init__()
        self.body = body
        self.taken = tuple(taken)
        self.strides = strides
        self.out_channels = out_channels
        self.mean = mean
        self.std = std
        self.channels_last = channels_last
        self.held = [module for module in body.modules() if freeze_norm and isinstance(module, NORMS)]
        for module in self.held:
            module.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "MultiScaleBackbone":
        super().train(mode)
        for module in self.held:
            module.eval()
        return self

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> tuple[tuple[Float[Tensor, "b _ _ _"], ...], None]:
        maps = self.body(images)
        levels = [maps[index] for index in self.taken]
        return tuple(level.permute(0, 3, 1, 2) if self.channels_last else level for level in levels), None


class Stages(nn.Module):
    """Runs blocks one after the other and returns what comes out of the last of each stage."""

    def __init__(self, blocks: Mapping[str, nn.Module], ends: Sequence[int]) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict(dict(list(blocks.items())[: ends[-1] + 1]))
        self.ends = tuple(ends)

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> tuple[Float[Tensor, "b _ _ _"], ...]:
        x, maps = images, []
        for number, block in enumerate(self.blocks.values()):
            x = block(x)
            if number in self.ends:
                maps.append(x)
        return tuple(maps)


def build_staged(
    name: str, weights: str | None, image_size: tuple[int, int], freeze_norm: bool | None = None
) -> MultiScaleBackbone:
    """A backbone by name, `timm:` in front of those of timm.

    weights: a local file, a name of torchvision's, or a tag of timm's ("a1_in1k"); None leaves it untrained. freeze_norm:
    hold BatchNorm; None means where weights are given. Raises ConfigError for a name that nobody has, CheckpointError for
    weights that do not fit.
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
            fill(model, {**_classifier(model), **state}, weights, f"{expected}, its classifier may be absent")
    blocks = _blocks(model)
    ends, strides, channels = _find_stages(blocks)
    return MultiScaleBackbone(Stages(blocks, ends), range(len(ends)), strides, channels, freeze_norm=freeze_norm)


def _classifier(model: nn.Module) -> dict[str, Tensor]:
    kept = model.state_dict()
    return {key: kept[key] for key in kept if key.startswith(("classifier.", "fc."))}


def _blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The parts of a network for classification that run one after the other, before it pools."""
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
    """(the last block at each stride from 4 on, these strides, their channels), found without computing anything."""
    x = torch.empty(1, 3, PROBE, PROBE, device="meta")
    ends: dict[int, tuple[int, int]] = {}
    for number, block in enumerate(blocks.values()):
        x = copy.deepcopy(block).to("meta").eval()(x)
        ends[PROBE // x.shape[-1]] = (number, x.shape[1])
    found = {stride: end for stride, end in ends.items() if stride >= FINEST}
    return [number for number, _ in found.values()], tuple(found), tuple(channels for _, channels in found.values())


def _build_timm(name: str, weights: str | None, image_size: tuple[int, int], freeze_norm: bool) -> MultiScaleBackbone:
    timm = import_extra("timm", "timm")
    if not timm.is_model(name):
        near = ", ".join(get_close_matches(name, timm.list_models(), n=5)) or "see timm.list_models()"
        raise ConfigError(f"timm {timm.__version__} has no model '{name}', names like it: {near}")
    options: dict[str, Any] = {"features_only": True}
    if timm.get_pretrained_cfg(name).fixed_input_size:
        options["img_size"] = image_size
    if weights is not None and (Path(weights).suffix in FILE_SUFFIXES or Path(weights).exists()):
        options |= {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": _load_timm(timm, name, weights)}}
    elif weights is not None:
        name = f"{name}.{weights}"
        options |= {"pretrained": True}
    try:
        body = timm.create_model(name, **options)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"timm cannot build '{name}' with features_only: {reason}") from error
    reductions, channels = body.feature_info.reduction(), body.feature_info.channels()
    last = {stride: index for index, stride in enumerate(reductions) if stride >= FINEST}
    if not last:
        raise ConfigError(f"timm's '{name}' has feature maps at strides {reductions}, none is {FINEST} or more")
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


def _load_timm(timm: Any, name: str, weights: str) -> dict[str, Tensor]:
    """The state dict of a whole network of timm's, from a file and checked: with features_only timm takes what fits.

    The file's classifier may be absent or for other classes. Raises CheckpointError where anything else differs.
    """
    network = timm.create_model(name)
    names = timm.get_pretrained_cfg(name).classifier or ()
    classifiers = tuple(f"{each}." for each in ((names,) if isinstance(names, str) else names))
    own = {key: value for key, value in network.state_dict().items() if key.startswith(classifiers)}
    state = {key: value for key, value in load_state_file(Path(weights)).items() if not key.startswith(classifiers)}
    fill(network, {**state, **own}, weights, f"the state dict of timm's {name}")
    return dict(network.state_dict())
