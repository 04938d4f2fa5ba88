"""The builder of the detector `transformers`, for any object-detection model of that library (extra `transformers`)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dasnet_lightning.detectors.base import DETECTORS
from dasnet_lightning.detectors.huggingface import (
    TransformersDetector,
    plain_config,
    replace_frozen_norms,
    return_all_stages,
    take_backbone,
)
from dasnet_lightning.detectors.layers import IMAGENET_MEAN, IMAGENET_STD, parse_size
from dasnet_lightning.detectors.optional import import_extra
from dasnet_lightning.detectors.weights import fill, load_state
from dasnet_lightning.errors import CheckpointError, ConfigError

RAW_PIXELS = ("rt_detr", "rt_detr_v2", "d_fine")  # trained on pixels in 0..1 as they are
FIXED_SIZE = ("anchor_image_size", "eval_size")  # options that allow only the published image size


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
    """Build an object-detection model of Hugging Face transformers: DETR, Deformable DETR, RT-DETR, D-FINE and others.

    Args:
        num_classes: number of classes, background included. A class predictor for another number starts untrained.
        model: folder of a pretrained model, or its name on the hub. For an untrained model a configuration: a mapping
            with `model_type` ("rt_detr_v2", "d_fine", "detr", ...) and all options that differ from the defaults.
        backbone_weights: path of a file with the state dict of the backbone alone, with transformers' keys.
        image_size: side of square images or (H, W), in pixels.
        mean: mean of the pixels, RGB in 0..1; None means ImageNet's, or 0 for RT-DETR and D-FINE.
        std: standard deviation of the pixels; None means ImageNet's, or 1 for RT-DETR and D-FINE.
        score_threshold: lowest score of a detection.
        detections_per_image: number of detections of an image.

    Raises:
        ConfigError: transformers is not installed, or the model cannot be built.
        CheckpointError: the weights cannot be loaded.
    """
    transformers = import_extra("transformers", "transformers")
    network = _build_network(transformers, model, num_classes - 1)
    backbone, replay = take_backbone(network, transformers.modeling_outputs.BackboneOutput)
    replace_frozen_norms(backbone)
    if backbone_weights is not None:
        fill(backbone, load_state(backbone_weights), backbone_weights, f"the state dict of a {type(backbone).__name__}")
    raw = network.config.model_type in RAW_PIXELS
    portable_options = {"model": plain_config(network.config)}  # before return_all_stages changes the backbone
    detector = TransformersDetector(
        network,
        backbone,
        replay,
        return_all_stages(backbone),
        num_classes,
        parse_size(image_size),
        mean or ((0.0, 0.0, 0.0) if raw else IMAGENET_MEAN),
        std or ((1.0, 1.0, 1.0) if raw else IMAGENET_STD),
        score_threshold,
        detections_per_image,
        portable_options,
    )
    detector.weights_note = f"starts from the weights of {model}" if isinstance(model, str) else ""
    return detector


def _build_network(transformers: Any, model: str | Mapping[str, Any] | None, num_labels: int) -> Any:
    """Build the model for `num_labels` classes; it is pretrained if `model` is a folder or a name on the hub."""
    if model is None:
        raise ConfigError(
            "detector 'transformers' needs the option model: a folder, a name on the hub, or a configuration with model_type"
        )
    try:
        if isinstance(model, str):
            return _load_network(transformers, model, num_labels)
        config = transformers.AutoConfig.for_model(**model)
        config = _set_labels_and_size(config, num_labels)
        return transformers.AutoModelForObjectDetection.from_config(config, dtype=torch.float32)
    except OSError as error:
        raise CheckpointError(f"{model}: transformers cannot load it: {str(error).splitlines()[0]}") from error
    except (ValueError, TypeError) as error:
        name = model if isinstance(model, str) else model.get("model_type", "a configuration without model_type")
        reason = str(error).splitlines()[0][:300]
        raise ConfigError(f"transformers cannot build an object-detection model from {name}: {reason}") from error


def _load_network(transformers: Any, name: str, num_labels: int) -> Any:
    local = Path(name).is_dir()
    config = _set_labels_and_size(transformers.AutoConfig.from_pretrained(name, local_files_only=local), num_labels)
    return transformers.AutoModelForObjectDetection.from_pretrained(
        name, config=config, dtype=torch.float32, ignore_mismatched_sizes=True, local_files_only=local
    )


def _set_labels_and_size(config: Any, num_labels: int) -> Any:
    """Set the number of labels and allow images of any size."""
    config.num_labels = num_labels
    for name in FIXED_SIZE:
        if getattr(config, name, None) is not None:
            setattr(config, name, None)
    return config
