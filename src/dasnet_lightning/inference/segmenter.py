"""From a checkpoint to masks: `load(checkpoint).segment(image)`, in the image's own pixels, without a trainer."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import ArrayLike
from PIL import Image
from torch import Tensor

from dasnet_lightning.data.images import read_image
from dasnet_lightning.data.pixels import ImageRange, convert_to_rgb
from dasnet_lightning.detectors.fold_batchnorm import fold_norms
from dasnet_lightning.errors import CheckpointError, ConfigError
from dasnet_lightning.feature_cache.cache import FeatureCache, open_feature_cache
from dasnet_lightning.functional.boxes import restore_boxes, scale_boxes
from dasnet_lightning.inference.segmentation import Segmentation
from dasnet_lightning.models.dasnet import DASNet, build_dasnet
from dasnet_lightning.models.instance import InstanceOptions, segment_instances
from dasnet_lightning.models.semantic import SemanticOptions, segment_semantic
from dasnet_lightning.nn.heads import PositionSensitiveHead, SemanticHead
from dasnet_lightning.tasks.checkpoints import load_network, read_checkpoint, sub_state, without_weights
from dasnet_lightning.types import Detections, Images, Prediction, Pyramid

EVERY = 10**9

ImageLike = str | Path | Image.Image | np.ndarray
InferenceOptions = SemanticOptions | InstanceOptions


def load(
    checkpoint: str | Path,
    device: str | torch.device = "cpu",
    options: InferenceOptions | None = None,
    feature_cache: str | Path | None = None,
    feature_cache_gb: float = 10.0,
    fold: bool = True,
) -> "Segmenter":
    """Read a checkpoint of stage two and make it ready to segment.

    Nothing but the checkpoint is needed: it holds the detector, the decoder, the class names, and the options that its
    training chose (`options` replaces them; SemanticOptions or InstanceOptions, as its task was). feature_cache: a folder
    that keeps the detector's features, of at most feature_cache_gb * 1e9 bytes, for images that are segmented again, also
    by other decoders on the same detector. fold: the detector's norms go into its convolutions, which is quicker and the
    same but for rounding; with False the network stays as it was trained, parameter by parameter. Raises CheckpointError
    where the file is damaged, foreign, or holds a detector alone.
    """
    content = read_checkpoint(checkpoint)
    saved = content["hyper_parameters"]
    state = sub_state(content["state_dict"], "model.")
    if not state:
        raise CheckpointError(f"{checkpoint}: holds a detector without a decoder, train stage two with it first")
    names = ("num_classes", "detector", "decoder", "rounding")
    instances = saved.get("task") == "instance"
    model = build_dasnet(
        **{name: saved[name] for name in names},
        detector_options=without_weights(saved["detector_options"]),
        decoder_options=saved["decoder_options"],
        soft_attention=saved.get("soft_attention", 0.0),
        head=partial(PositionSensitiveHead, cells=saved["cells"]) if instances else SemanticHead,
    )
    load_network(model, state, checkpoint, content)
    if fold:
        fold_norms(model.detector)
    class_names = tuple(saved["class_names"]) or tuple(f"class {label}" for label in range(saved["num_classes"]))
    kind = InstanceOptions if instances else SemanticOptions
    if options is not None and not isinstance(options, kind):
        raise ConfigError(f"{checkpoint}: its task takes {kind.__name__}, given: {type(options).__name__}")
    return Segmenter(
        model.to(device),
        class_names,
        options or kind(**saved.get("inference", {})),
        saved.get("category_ids") or None,
        open_feature_cache(feature_cache, feature_cache_gb),
        ImageRange(*saved["image_range"]) if saved.get("image_range") else None,
    )


class Segmenter:
    """Segments one image after the other with a trained network; `options` may be replaced at any time.

    `image_range` is the range of images of more than 8 bits that the network was trained with.
    """

    def __init__(
        self,
        model: DASNet,
        class_names: Sequence[str],
        options: InferenceOptions,
        category_ids: Sequence[int | str] | None = None,
        feature_cache: FeatureCache | None = None,
        image_range: ImageRange | None = None,
    ) -> None:
        self.model = model.eval()
        self.image_range = image_range
        self.feature_cache = feature_cache
        self.class_names = tuple(class_names)
        self.category_ids = None if category_ids is None else tuple(category_ids)
        self.options = options
        self.image_size = model.detector.image_size

    @torch.inference_mode()
    def segment(
        self, image: ImageLike, boxes: ArrayLike | None = None, labels: Sequence[int | str] | None = None
    ) -> Segmentation:
        """Find and cut out the objects of an image: a path, a PIL image, or an array in RGB or gray; best first.

        Arrays are (H, W) or (H, W, 1 to 4) of uint8, uint16 (0 to 65535) or floats (0 to 1), see `convert_to_rgb`.

        boxes: xyxy in the image's own pixels; then nothing is detected and these are segmented and come back in their
        order, each with its label (a number 1..num_classes-1 or a class name). Raises ConfigError where boxes come
        without labels, DataError for a file that is no readable image.
        """
        pixels = _to_array(image, self.image_range)
        size = (pixels.shape[0], pixels.shape[1])
        device = next(self.model.parameters()).device
        resized = torch.from_numpy(cv2.resize(pixels, self.image_size[::-1], interpolation=cv2.INTER_LINEAR)).to(device)
        pyramid = self._features(resized.permute(2, 0, 1)[None].float() / 255)
        if boxes is None:
            found = self.model.detector.detect(pyramid)[0]
            answer = self._answer(pyramid, found, size, self.options.score_threshold)
            corners = restore_boxes(answer.detections.boxes, self.image_size, size)
        else:
            found = self._given(boxes, labels, size)
            answer = self._answer(pyramid, found, size, None)
            corners = _corners(boxes)  # all of them are segmented, in their order
        scores = answer.detections.scores.cpu()
        # the instance score has its say only after the detector's order was made; given boxes keep theirs
        order = torch.arange(len(scores)) if boxes is not None else torch.argsort(scores, descending=True, stable=True)
        return Segmentation(
            image=pixels,
            boxes=corners.cpu()[order],
            labels=answer.detections.labels.cpu()[order],
            scores=scores[order],
            masks=answer.masks.cpu()[order],
            semantic=answer.semantic.cpu(),
            class_names=self.class_names,
            category_ids=self.category_ids,
        )

    def _features(self, images: Images) -> Pyramid:
        if self.feature_cache is None:
            return self.model.detector.features(images)
        return self.feature_cache.features(self.model.detector, images)

    def _answer(
        self, pyramid: Pyramid, found: Detections, size: tuple[int, int], threshold: float | None
    ) -> Prediction:
        """Segment the detections from a score on; None segments all of them."""
        options, lowest = self.options, 0.0 if threshold is None else threshold
        if isinstance(options, InstanceOptions):
            most = EVERY if threshold is None else options.max_detections
            options = replace(options, score_threshold=lowest, lowest_score=lowest, max_detections=most)
            return segment_instances(self.model, pyramid, [found], [size], options)[0]
        most = EVERY if threshold is None else options.max_classes
        options = replace(options, score_threshold=lowest, max_classes=most)
        return segment_semantic(self.model, pyramid, [found], [size], options)[0]

    def _given(self, boxes: ArrayLike, labels: Sequence[int | str] | None, size: tuple[int, int]) -> Detections:
        device = next(self.model.parameters()).device
        corners = _corners(boxes).to(device)
        if labels is None or len(labels) != len(corners):
            given = "none" if labels is None else str(len(labels))
            raise ConfigError(f"{len(corners)} boxes need {len(corners)} labels, given: {given}")
        wrong = [index for index, (x0, y0, x1, y1) in enumerate(corners.tolist()) if not (x1 > x0 and y1 > y0)]
        if wrong:
            raise ConfigError(f"box {wrong[0]}: {corners[wrong[0]].tolist()} is not x0 < x1, y0 < y1")
        indices = torch.tensor([self._label(label) for label in labels], dtype=torch.int64, device=device)
        return Detections(scale_boxes(corners, size, self.image_size), indices, torch.ones_like(corners[:, 0]))

    def _label(self, label: int | str) -> int:
        index = self.class_names.index(label) if label in self.class_names else label
        if isinstance(index, str) or not 0 < int(index) < len(self.class_names):
            raise ConfigError(f"no class {label!r}; known: {', '.join(self.class_names[1:])}")
        return int(index)


def _corners(boxes: ArrayLike) -> Float[Tensor, "n 4"]:
    return torch.as_tensor(np.asarray(boxes, dtype=np.float32)).reshape(-1, 4)


def _to_array(image: ImageLike, image_range: ImageRange | None) -> UInt8[np.ndarray, "H W 3"]:
    if isinstance(image, str | Path):
        return read_image(Path(image), image_range=image_range)
    return convert_to_rgb(image, image_range)
