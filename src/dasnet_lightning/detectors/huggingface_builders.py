"""The detector `transformers` by name: which model of transformers it is, its options say (extra `transformers`)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dasnet_lightning.detectors.base import DETECTORS
from dasnet_lightning.detectors.huggingface import (
    TransformersDetector,
    fuse_norms,
    open_stages,
    plain_config,
    take_backbone,
)
from dasnet_lightning.detectors.layers import IMAGENET_MEAN, IMAGENET_STD, parse_size
from dasnet_lightning.detectors.optional import import_extra
from dasnet_lightning.detectors.weights import fill, load_state
from dasnet_lightning.errors import CheckpointError, ConfigError

RAW_PIXELS = ("rt_detr", "rt_detr_v2", "d_fine")  # trained on pixels in 0..1 as they are
FIXED_SIZE = ("anchor_image_size", "eval_size")  # would tie a model to the size that it was published with


@DETECTORS.register("transformers")
def build_transformers(
    num_classes: int,
    model: str | Mapping[str, Any] | None = None,
    backbone_weights: str | None = None,
    image_size: int | Sequence[int] = 640,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    score_threshold: float = 0.01,
    detections_per_image: int = 100,
) -> TransformersDetector:
    """An object-detection model of Hugging Face transformers: DETR, Conditional and Deformable DETR, RT-DETR, D-FINE, ...

    model: the folder of a pretrained model; or its name on the hub, which transformers then downloads; or the
    configuration of an untrained one, a mapping with `model_type` ("rt_detr_v2", "d_fine", "detr", ...) and whatever
    differs from the defaults. A class predictor for another number of classes starts untrained. backbone_weights: a file
    with the state dict of the backbone alone, in transformers' keys. mean, std: of the pixels; None means ImageNet's,
    and pixels as they are for RT-DETR and D-FINE.
    """
    transformers = import_extra("transformers", "transformers")
    network = _build_network(transformers, model, num_classes - 1)
    backbone, replay = take_backbone(network, transformers.modeling_outputs.BackboneOutput)
    fuse_norms(backbone)
    if backbone_weights is not None:
        fill(backbone, load_state(backbone_weights), backbone_weights, f"the state dict of a {type(backbone).__name__}")
    raw = network.config.model_type in RAW_PIXELS
    portable = {"model": plain_config(network.config)}  # as it is before its backbone opens more stages
    return TransformersDetector(
        network,
        backbone,
        replay,
        open_stages(backbone),
        num_classes,
        parse_size(image_size),
        mean or ((0.0, 0.0, 0.0) if raw else IMAGENET_MEAN),
        std or ((1.0, 1.0, 1.0) if raw else IMAGENET_STD),
        score_threshold,
        detections_per_image,
        portable,
    )


def _build_network(transformers: Any, model: str | Mapping[str, Any] | None, num_labels: int) -> Any:
    """The model with as many labels, pretrained where `model` names a folder or a model of the hub."""
    if model is None:
        raise ConfigError(
            "detector 'transformers' needs the option model: a folder, a name on the hub, or a configuration with model_type"
        )
    try:
        if isinstance(model, str):
            return _load_network(transformers, model, num_labels)
        config = transformers.AutoConfig.for_model(**model)
        return transformers.AutoModelForObjectDetection.from_config(_adapt(config, num_labels), dtype=torch.float32)
    except OSError as error:
        raise CheckpointError(f"{model}: cannot be loaded by transformers: {str(error).splitlines()[0]}") from error
    except (ValueError, TypeError) as error:
        what = model if isinstance(model, str) else model.get("model_type", "a configuration without model_type")
        reason = str(error).splitlines()[0][:300]
        raise ConfigError(f"transformers cannot build an object-detection model of {what}: {reason}") from error


def _load_network(transformers: Any, name: str, num_labels: int) -> Any:
    local = Path(name).is_dir()
    config = _adapt(transformers.AutoConfig.from_pretrained(name, local_files_only=local), num_labels)
    return transformers.AutoModelForObjectDetection.from_pretrained(
        name, config=config, dtype=torch.float32, ignore_mismatched_sizes=True, local_files_only=local
    )


def _adapt(config: Any, num_labels: int) -> Any:
    """The configuration for our classes and for images of any size."""
    config.num_labels = num_labels
    for name in FIXED_SIZE:
        if getattr(config, name, None) is not None:
            setattr(config, name, None)
    return config
