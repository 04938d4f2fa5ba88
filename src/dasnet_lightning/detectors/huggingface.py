"""The object-detection models of Hugging Face transformers behind our protocol: DETR and its descendants.

transformers' models run their backbone inside `forward`. Here the backbone is taken out of the model and a `Replay` put
in its place: `features` runs the backbone once, and `detect` and `losses` run the rest of the model on the maps of the
pyramid. The pyramid holds the backbone's maps, not those of the model's encoder: the decoder of stage two has a
top-down path of its own. The rest of the model works in float32 also under autocast, matching and box arithmetic with
it. An ignored object takes no part in the matching; a query that finds it counts as background.
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

SLOTS = ("model", "backbone")  # where a model's image encoder holds its backbone
WHOLE = ("resnet", "rt_detr_resnet", "hgnet_v2")  # backbones that may return all their stages at no cost


class Replay(nn.Module):
    """Stands where a model's backbone was and answers with maps that were computed before.

    output: transformers' record of a backbone's answer.
    """

    def __init__(self, output: type) -> None:
        super().__init__()
        self.output = output
        self._maps: tuple[Tensor, ...] | None = None

    @contextmanager
    def showing(self, maps: tuple[Tensor, ...]) -> Iterator[None]:
        """Inside this context the backbone's answer is known."""
        self._maps = maps
        try:
            yield
        finally:
            self._maps = None

    def forward(self, pixel_values: Tensor) -> Any:
        assert self._maps is not None, "the model was called outside `showing`"
        return self.output(feature_maps=self._maps)


def take_backbone(model: Any, output: type) -> tuple[nn.Module, Replay]:
    """Take the backbone out of a model of transformers, and leave a Replay in its place.

    Raises ConfigError for a model that does not consist of a backbone and of what comes after it.
    """
    encoder = getattr(model.base_model, "backbone", None)
    encoder = getattr(encoder, "conv_encoder", encoder)  # where a module for the positions is wrapped around it
    found = [name for name in SLOTS if isinstance(getattr(encoder, name, None), nn.Module)]
    if not found:
        raise ConfigError(
            f"transformers' {type(model).__name__} has no backbone of its own that returns feature maps; "
            "take a DETR, Conditional DETR, Deformable DETR, DAB-DETR, RT-DETR (v1, v2), D-FINE or one built like them"
        )
    backbone, replay = getattr(encoder, found[0]), Replay(output)
    setattr(encoder, found[0], replay)
    return backbone, replay


def fuse_norms(module: nn.Module) -> None:
    """Put ours in the place of transformers' frozen BatchNorms: same answers, but in autocast's dtype and in one call."""
    for name, child in module.named_children():
        if type(child).__name__.endswith("FrozenBatchNorm2d"):
            state = child.state_dict()
            norm = FrozenBatchNorm(len(state["weight"]))
            norm.load_state_dict(state, strict=False)  # all but BatchNorm's counter
            setattr(module, name, norm)
        else:
            fuse_norms(child)


def open_stages(backbone: Any) -> tuple[int, ...]:
    """Let a backbone return all its stages, where this costs nothing; returns the places of those that its model reads."""
    config = getattr(backbone, "config", None)  # timm's are bare and return what they return
    if config is None or config.model_type not in WHOLE:
        return ()
    wanted = list(backbone.out_features)
    stages = [name for name in backbone.stage_names if name.startswith("stage")]
    backbone.out_features = [name for name in backbone.stage_names if name in stages or name in wanted]
    return tuple(backbone.out_features.index(name) for name in wanted)


class TransformersDetector(Detector):
    """A model of transformers whose backbone was taken out; `model` holds what comes after it.

    read: the places of the maps that `model` reads, none for all. mean, std: of the pixels, RGB in 0..1.
    portable_options: from them a checkpoint rebuilds the detector without the files that it was made from.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: Any,
        backbone: nn.Module,
        replay: Replay,
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
        self.strides = tuple(round(max(image_size) / max(map_.shape[-2:])) for map_ in maps)
        self.out_channels = tuple(map_.shape[1] for map_ in maps)

    @torch.no_grad()
    def _probe(self) -> tuple[Tensor, ...]:
        """The maps of an empty image of the detector's size: what transformers' configurations do not tell."""
        training = self.backbone.training
        maps = self._maps(torch.zeros(1, 3, *self.image_size, device=self.mean.device), self.backbone.eval())
        self.backbone.train(training)
        return maps

    def _maps(self, images: Images, backbone: nn.Module) -> tuple[Float[Tensor, "b _ _ _"], ...]:
        answer = backbone(images)
        return tuple(answer["feature_maps"] if isinstance(answer, Mapping) else answer)

    def features(self, images: Images) -> Pyramid:
        """Normalise the images (RGB, 0..1) and run the backbone once."""
        levels = self._maps((images - self.mean) / self.std, self.backbone)
        return Pyramid(levels=levels, strides=self.strides, size=(images.shape[-2], images.shape[-1]))

    def _run(self, pyramid: Pyramid, labels: list[dict[str, Tensor]] | None) -> Any:
        """The model's answer to a pyramid, in float32."""
        maps = tuple(pyramid.levels[place].float() for place in self.read)
        pixels = maps[0].new_zeros(()).expand(len(maps[0]), 3, *pyramid.size)  # nobody reads more than their shape
        with torch.autocast(maps[0].device.type, enabled=False), self.replay.showing(maps):
            return self.model(pixel_values=pixels, labels=labels)

    @torch.no_grad()
    def detect(self, pyramid: Pyramid) -> tuple[Detections, ...]:
        """Boxes in input pixels, clipped to the image, best first; a query may answer for several classes. No NMS."""
        # transformers caches anchors and positions; made in inference mode they could not serve training afterwards
        with torch.inference_mode(False), torch.no_grad():
            answer = self._run(pyramid, None)
        logits = answer.logits
        # with a last class for "no object" they are a softmax, else each class has a sigmoid of its own
        scores = logits.softmax(dim=2)[..., :-1] if logits.shape[2] == self.num_classes else logits.sigmoid()
        width_height = pyramid.size[::-1] * 2
        boxes = box_convert(answer.pred_boxes, "cxcywh", "xyxy") * logits.new_tensor(width_height)
        return tuple(self._select(*image, pyramid.size) for image in zip(scores, boxes, strict=True))

    def _select(self, scores: Float[Tensor, "q c"], boxes: Float[Tensor, "q 4"], size: tuple[int, int]) -> Detections:
        ranked, place = scores.flatten().sort(descending=True, stable=True)
        ranked, place = ranked[ranked > self.score_threshold], place[ranked > self.score_threshold]
        found = clip_boxes(boxes[place // scores.shape[1]], size)
        kept = has_area(found).nonzero()[: self.detections_per_image, 0]
        return Detections(boxes=found[kept], labels=place[kept] % scores.shape[1] + 1, scores=ranked[kept])

    def losses(self, pyramid: Pyramid, targets: Sequence[Target]) -> Mapping[str, Loss]:
        """The model's own loss after its own matching, weighted as its configuration says: one sum of all its parts."""
        loss = self._run(pyramid, [_labels(target, pyramid.size) for target in targets]).loss
        learning = [parameter for parameter in self.parameters() if parameter.requires_grad]
        # what is there for the queries of known objects gets no gradient where an image holds none
        return {"detection": loss + graph_zero(learning) if learning else loss}


def _labels(target: Target, size: tuple[int, int]) -> dict[str, Tensor]:
    """Objects as transformers' losses take them: labels from 0, boxes by centre and size as fractions of the image."""
    real = split_ignored(target)
    boxes = box_convert(real["boxes"], "xyxy", "cxcywh") / real["boxes"].new_tensor(size[::-1] * 2)
    return {"class_labels": real["labels"] - 1, "boxes": boxes}


def plain_config(config: Any) -> dict[str, Any]:
    """A configuration of transformers as plain values, without names of files and of classes."""
    values = json.loads(config.to_json_string(use_diff=False))
    return {key: value for key, value in values.items() if key not in ("_name_or_path", "id2label", "label2id")}
