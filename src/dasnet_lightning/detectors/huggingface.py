"""Object-detection models of Hugging Face transformers, DETR and its descendants, as detectors.

transformers' models run their backbone inside `forward`. Here the backbone is taken out of the model and replaced by a
`Replay`. `features` runs the backbone once; `detect` and `losses` run the rest of the model on the maps of the pyramid.

The pyramid holds the maps of the backbone, not those of the model's encoder, because the decoder of stage two has its own
top-down path. The rest of the model runs in float32, also under autocast, and so do matching and box arithmetic. Ignored
objects are not matched; a query that detects one counts as background.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import box_convert

from dasnet_lightning.detectors.base import Detector
from dasnet_lightning.detectors.layers import FrozenBatchNorm
from dasnet_lightning.detectors.torchvision_targets import has_area, split_ignored
from dasnet_lightning.errors import ConfigError
from dasnet_lightning.functional.boxes import clip_boxes
from dasnet_lightning.functional.losses import graph_zero
from dasnet_lightning.types import Detections, Images, Loss, Pyramid, Target

BACKBONE_NAMES = ("model", "backbone")  # attributes of a model's image encoder that may hold the backbone
MULTI_STAGE_BACKBONES = ("resnet", "rt_detr_resnet", "hgnet_v2")  # can return all of their stages at no extra cost


class TransformersDetector(Detector):
    """Detector from a model of transformers whose backbone was taken out.

    Args:
        model: the rest of the model, with `replay` in the place of the backbone.
        backbone: the backbone.
        replay: hands the maps of the pyramid to `model`.
        read: indices of the maps that `model` reads; empty for all.
        num_classes: number of classes, background included.
        image_size: (H, W) of the images.
        mean: mean of the pixels, RGB in 0..1.
        std: standard deviation of the pixels.
        score_threshold: lowest score of a detection.
        detections_per_image: number of detections of an image.
        portable_options: builder options that rebuild the detector without the files that it was made from.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: Any,
        backbone: nn.Module,
        replay: "Replay",
        read: tuple[int, ...],
        num_classes: int,
        image_size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        score_threshold: float,
        detections_per_image: int,
        portable_options: dict[str, Any],
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.model = model
        self.replay = replay
        self.num_classes = num_classes
        self.image_size = image_size
        self.score_threshold = score_threshold
        self.detections_per_image = detections_per_image
        self.portable_options = portable_options
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        maps = self._probe()
        self.read = read or tuple(range(len(maps)))
        self.strides = tuple(round(max(image_size) / max(level.shape[-2:])) for level in maps)
        self.out_channels = tuple(level.shape[1] for level in maps)

    @torch.no_grad()
    def _probe(self) -> tuple[Tensor, ...]:
        """Return the maps of an empty image; transformers' configurations do not state their strides and channels."""
        training = self.backbone.training
        maps = self._run_backbone(torch.zeros(1, 3, *self.image_size, device=self.mean.device), self.backbone.eval())
        self.backbone.train(training)
        return maps

    def _run_backbone(self, images: Images, backbone: nn.Module) -> tuple[Float[Tensor, "b _ _ _"], ...]:
        output = backbone(images)
        return tuple(output["feature_maps"] if isinstance(output, Mapping) else output)

    def features(self, images: Images) -> Pyramid:
        """See `Detector.features`."""
        levels = self._run_backbone((images - self.mean) / self.std, self.backbone)
        return Pyramid(levels=levels, strides=self.strides, size=(images.shape[-2], images.shape[-1]))

    @torch.no_grad()
    def detect(self, pyramid: Pyramid) -> tuple[Detections, ...]:
        """Return the detections of each image, without NMS; a query may be detected as several classes."""
        # transformers caches anchors and positions; made in inference mode they could not be used in training.
        with torch.inference_mode(False), torch.no_grad():
            output = self._run_model(pyramid, None)
        logits = output.logits
        # With a last class for "no object" the logits are of a softmax, otherwise each class has its own sigmoid.
        scores = logits.softmax(dim=2)[..., :-1] if logits.shape[2] == self.num_classes else logits.sigmoid()
        width_height = pyramid.size[::-1] * 2
        boxes = box_convert(output.pred_boxes, "cxcywh", "xyxy") * logits.new_tensor(width_height)
        return tuple(self._select(*image, pyramid.size) for image in zip(scores, boxes, strict=True))

    def _select(self, scores: Float[Tensor, "q c"], boxes: Float[Tensor, "q 4"], size: tuple[int, int]) -> Detections:
        """Select the best pairs of query and class of one image."""
        ranked, index = scores.flatten().sort(descending=True, stable=True)
        ranked, index = ranked[ranked > self.score_threshold], index[ranked > self.score_threshold]
        boxes = clip_boxes(boxes[index // scores.shape[1]], size)
        kept = has_area(boxes).nonzero()[: self.detections_per_image, 0]
        return Detections(boxes=boxes[kept], labels=index[kept] % scores.shape[1] + 1, scores=ranked[kept])

    def losses(self, pyramid: Pyramid, targets: Sequence[Target]) -> Mapping[str, Loss]:
        """Return the model's own loss, the sum of its parts weighted as its configuration says."""
        loss = self._run_model(pyramid, [_transformers_labels(target, pyramid.size) for target in targets]).loss
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        # Denoising queries have no gradient if an image has no objects.
        return {"detection": loss + graph_zero(trainable) if trainable else loss}

    def _run_model(self, pyramid: Pyramid, labels: list[dict[str, Tensor]] | None) -> Any:
        """Run the model on a pyramid, in float32."""
        maps = tuple(pyramid.levels[index].float() for index in self.read)
        pixels = maps[0].new_zeros(()).expand(len(maps[0]), 3, *pyramid.size)  # only their shape is read
        with torch.autocast(maps[0].device.type, enabled=False), self.replay.showing(maps):
            return self.model(pixel_values=pixels, labels=labels)


def _transformers_labels(target: Target, size: tuple[int, int]) -> dict[str, Tensor]:
    """Return the objects for transformers' losses: labels from 0, boxes as cxcywh in fractions of the image."""
    real = split_ignored(target)
    boxes = box_convert(real["boxes"], "xyxy", "cxcywh") / real["boxes"].new_tensor(size[::-1] * 2)
    return {"class_labels": real["labels"] - 1, "boxes": boxes}


class Replay(nn.Module):
    """Replaces the backbone of a model and returns maps that were computed before.

    Args:
        output: transformers' record of a backbone's output.
    """

    def __init__(self, output: type) -> None:
        super().__init__()
        self.output = output
        self._maps: tuple[Tensor, ...] | None = None

    @contextmanager
    def showing(self, maps: tuple[Tensor, ...]) -> Iterator[None]:
        """Return these maps from `forward` inside this context."""
        self._maps = maps
        try:
            yield
        finally:
            self._maps = None

    def forward(self, pixel_values: Tensor) -> Any:
        """Return the maps; the pixels are not read."""
        assert self._maps is not None, "the model was called outside `showing`"
        return self.output(feature_maps=self._maps)


def take_backbone(model: Any, output: type) -> tuple[nn.Module, Replay]:
    """Take the backbone out of a model of transformers and put a Replay in its place.

    Raises:
        ConfigError: the model does not have a separate backbone.
    """
    encoder = getattr(model.base_model, "backbone", None)
    encoder = getattr(encoder, "conv_encoder", encoder)  # a module for the positions may be wrapped around it
    names = [name for name in BACKBONE_NAMES if isinstance(getattr(encoder, name, None), nn.Module)]
    if not names:
        raise ConfigError(
            f"transformers' {type(model).__name__} has no backbone of its own that returns feature maps: "
            "take a DETR, Conditional DETR, Deformable DETR, DAB-DETR, RT-DETR (v1, v2), D-FINE or one built like them"
        )
    backbone, replay = getattr(encoder, names[0]), Replay(output)
    setattr(encoder, names[0], replay)
    return backbone, replay


def replace_frozen_norms(module: nn.Module) -> None:
    """Replace transformers' frozen BatchNorms by ours: the same result, in autocast's dtype and in one fused call."""
    for name, child in module.named_children():
        if type(child).__name__.endswith("FrozenBatchNorm2d"):
            state = child.state_dict()
            norm = FrozenBatchNorm(len(state["weight"]))
            norm.load_state_dict(state, strict=False)  # all but BatchNorm's counter
            setattr(module, name, norm)
        else:
            replace_frozen_norms(child)


def return_all_stages(backbone: Any) -> tuple[int, ...]:
    """Let a backbone return all of its stages if that has no cost; return the indices of those that its model reads."""
    config = getattr(backbone, "config", None)  # timm's backbones have no config
    if config is None or config.model_type not in MULTI_STAGE_BACKBONES:
        return ()
    read = list(backbone.out_features)
    stages = [name for name in backbone.stage_names if name.startswith("stage")]
    backbone.out_features = [name for name in backbone.stage_names if name in stages or name in read]
    return tuple(backbone.out_features.index(name) for name in read)


def plain_config(config: Any) -> dict[str, Any]:
    """Return a configuration of transformers as plain values, without the names of files and classes."""
    values = json.loads(config.to_json_string(use_diff=False))
    return {key: value for key, value in values.items() if key not in ("_name_or_path", "id2label", "label2id")}
