"""Inference without a trainer: `load(checkpoint).segment(image)` returns masks in the image's own pixels."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

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
from dasnet_lightning.inference.folder import ModelCard, describe_network, is_folder, read_folder, write_folder
from dasnet_lightning.inference.segmentation import Segmentation
from dasnet_lightning.mask_windows import MaskWindows
from dasnet_lightning.models.box_scores import Refinement
from dasnet_lightning.models.dasnet import DASNet, build_dasnet
from dasnet_lightning.models.instance import InstanceOptions, WindowPrediction, segment_windows
from dasnet_lightning.models.semantic import SemanticOptions, segment_semantic
from dasnet_lightning.nn.heads import PositionSensitiveHead, SemanticHead
from dasnet_lightning.tasks.checkpoints import load_network, read_checkpoint, sub_state, without_weights
from dasnet_lightning.tasks.config import NetworkConfig, restore_options
from dasnet_lightning.types import Detections, Images, Pyramid

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
    """Load a checkpoint of stage two for inference. No other file is needed.

    Args:
        checkpoint: a checkpoint of SemanticTask or InstanceTask, a folder of `Segmenter.save`, or "hf://owner/name", such
            a folder on the Hugging Face Hub (needs dasnet-lightning[hub]).
        device: where the network runs.
        options: thresholds and limits, SemanticOptions or InstanceOptions as the task; default: those of its training.
        feature_cache: folder that keeps the detector's features of images that are segmented again, also by other
            decoders of the same detector.
        feature_cache_gb: maximum size of that folder, in units of 1e9 bytes.
        fold: fold the detector's normalization layers into its convolutions, which is faster and equal up to rounding.
            False keeps every parameter as it was trained.

    Raises:
        CheckpointError: the file is damaged, of another program, or holds a detector alone.
        ConfigError: the options are those of the other task, or `fold` is False for a folder with folded layers.
    """
    content = read_folder(checkpoint) if is_folder(checkpoint) else read_checkpoint(checkpoint)
    saved = content["hyper_parameters"]
    state = sub_state(content["state_dict"], "model.")
    if not state:
        raise CheckpointError(f"{checkpoint}: holds a detector without a decoder; train stage two with it first")
    instances = saved.get("task") == "instance"
    network = restore_options(NetworkConfig, saved["network"])
    network = replace(network, detector_options=without_weights(network.detector_options))
    head = partial(PositionSensitiveHead, cells=saved["cells"]) if instances else SemanticHead
    model = build_dasnet(saved["num_classes"], **vars(network), head=head)
    folded = bool(content.get("folded"))
    if folded and not fold:
        raise ConfigError(f"{checkpoint}: its layers are folded, save it again from load(..., fold=False)")
    if folded:
        fold_norms(model.eval().detector)
    load_network(model, state, checkpoint, content)
    if fold and not folded:
        fold_norms(model.detector)
    class_names = tuple(saved["class_names"]) or tuple(f"class {label}" for label in range(saved["num_classes"]))
    options_class = InstanceOptions if instances else SemanticOptions
    if options is not None and not isinstance(options, options_class):
        raise ConfigError(f"{checkpoint}: its task takes {options_class.__name__}, given: {type(options).__name__}")
    return Segmenter(
        model.to(device),
        class_names,
        options or options_class(**saved.get("inference", {})),
        saved.get("category_ids") or None,
        open_feature_cache(feature_cache, feature_cache_gb),
        ImageRange(*saved["image_range"]) if saved.get("image_range") else None,
        {**describe_network(saved, network), "folded": fold, "source": str(checkpoint)},
    )


class Segmenter:
    """Segments images one at a time with a trained network.

    Attributes:
        model: the network, in evaluation mode.
        class_names: background first.
        options: thresholds and limits; they may be replaced between two images.
        category_ids: the data set's own id of each label, None if it has none.
        feature_cache: cache of the detector's features, None without one.
        image_range: range of images of more than 8 bits that the network was trained with; None for that of their type.
        image_size: input size (H, W) of the network.
        description: from what `save` and `export` rebuild the network; empty for a network that `load` did not make.
    """

    def __init__(
        self,
        model: DASNet,
        class_names: Sequence[str],
        options: InferenceOptions,
        category_ids: Sequence[int | str] | None = None,
        feature_cache: FeatureCache | None = None,
        image_range: ImageRange | None = None,
        description: Mapping[str, Any] | None = None,
    ) -> None:
        self.description = dict(description or {})
        self.model = model.eval()
        self.image_range = image_range
        self.feature_cache = feature_cache
        self.class_names = tuple(class_names)
        self.category_ids = None if category_ids is None else tuple(category_ids)
        self.options = options
        self.image_size = model.detector.image_size

    def save(self, folder: str | Path, card: ModelCard | None = None) -> Path:
        """Write the model as a folder that `load` reads: safetensors, JSON and a model card.

        Args:
            folder: the folder; its files of an earlier `save` are replaced.
            card: what the README.md says; default: what the run folder of the checkpoint says, if there is one.

        Returns:
            The folder.

        Raises:
            ConfigError: `load` did not make this segmenter, or the folder is a file.
        """
        options, names = vars(self.options), {"class_names": self.class_names, "category_ids": self.category_ids}
        return write_folder(Path(folder), self.model, {**self.description, **names, "inference": options}, card)

    @torch.inference_mode()
    def segment(
        self, image: ImageLike, boxes: ArrayLike | None = None, labels: Sequence[int | str] | None = None
    ) -> Segmentation:
        """Detect and segment the objects of an image, or segment given boxes.

        Args:
            image: a path, a PIL image, or an array [H, W] or [H, W, 1 to 4] in gray or RGB. Values of more than 8 bits are
                scaled by `image_range`, else from 0..65535 (uint16) or 0..1 (floating point).
            boxes: boxes [n, 4], xyxy in the image's own pixels, to segment without detection.
            labels: for each box its label, 1..num_classes-1, or its class name.

        Returns:
            Objects in the image's own pixels: detections by descending score, given boxes in their order.

        Raises:
            ConfigError: boxes, labels or the array are invalid.
            DataError: the file is not a readable image.
        """
        pixels = _to_array(image, self.image_range)
        size = (pixels.shape[0], pixels.shape[1])
        device = next(self.model.parameters()).device
        resized = torch.from_numpy(cv2.resize(pixels, self.image_size[::-1], interpolation=cv2.INTER_LINEAR)).to(device)
        images = resized.permute(2, 0, 1)[None].float() / 255
        pyramid = self._features(images)
        refinement = self._refinement(images, pixels)
        if boxes is None:
            detections = self.model.detector.detect(pyramid)[0]
            prediction = self._predict(pyramid, detections, size, refinement)
            image_boxes = restore_boxes(prediction.detections.boxes, self.image_size, size)
        else:
            prediction = self._predict(pyramid, self._to_detections(boxes, labels, size), size, refinement, given=True)
            image_boxes = _to_boxes(boxes)
        scores = prediction.detections.scores.cpu()
        # the instance score changes the order of the detector; given boxes keep their order
        order = torch.arange(len(scores)) if boxes is not None else torch.argsort(scores, descending=True, stable=True)
        return Segmentation(
            image=pixels,
            boxes=image_boxes.cpu()[order],
            labels=prediction.detections.labels.cpu()[order],
            scores=scores[order],
            masks=prediction.masks.select(order.tolist()),
            semantic=prediction.semantic.cpu(),
            class_names=self.class_names,
            category_ids=self.category_ids,
        )

    def _features(self, images: Images) -> Pyramid:
        if self.feature_cache is None:
            return self.model.detector.features(images)
        return self.feature_cache.features(self.model.detector, images)

    def _refinement(self, images: Images, pixels: UInt8[np.ndarray, "H W 3"]) -> Refinement:
        """Return what the options ask for: features of the mirrored image, and the image's own pixels as the guide."""
        return Refinement(
            self._features(images.flip(3)) if self.options.flip else None,
            [torch.from_numpy(pixels)] if self.options.guided_filter else None,
        )

    def _predict(
        self,
        pyramid: Pyramid,
        detections: Detections,
        size: tuple[int, int],
        refinement: Refinement,
        given: bool = False,
    ) -> WindowPrediction:
        """Segment the detections whose score reaches the threshold, or all of them if they are given boxes."""
        options = self.options
        if isinstance(options, InstanceOptions):
            options = replace(options, lowest_score=options.score_threshold)
            return segment_windows(self.model, pyramid, [detections], [size], options, given, refinement)[0]
        prediction = segment_semantic(self.model, pyramid, [detections], [size], options, given, refinement)[0]
        return WindowPrediction(prediction.detections, MaskWindows.of(prediction.masks), prediction.semantic)

    def _to_detections(self, boxes: ArrayLike, labels: Sequence[int | str] | None, size: tuple[int, int]) -> Detections:
        """Return given boxes as detections of score 1 in input pixels; `size` is the (H, W) of the image."""
        device = next(self.model.parameters()).device
        image_boxes = _to_boxes(boxes).to(device)
        if labels is None or len(labels) != len(image_boxes):
            given = "none" if labels is None else str(len(labels))
            raise ConfigError(f"{len(image_boxes)} boxes need {len(image_boxes)} labels, given: {given}")
        for index, (x0, y0, x1, y1) in enumerate(image_boxes.tolist()):
            if not (x1 > x0 and y1 > y0):
                raise ConfigError(f"box {index}: {[x0, y0, x1, y1]} is not x0 < x1, y0 < y1")
        indices = torch.tensor([self._to_index(label) for label in labels], dtype=torch.int64, device=device)
        input_boxes = scale_boxes(image_boxes, size, self.image_size)
        return Detections(input_boxes, indices, torch.ones_like(input_boxes[:, 0]))

    def _to_index(self, label: int | str) -> int:
        names = self.class_names[1:]  # the background cannot be segmented
        index = 1 + names.index(label) if label in names else label
        if isinstance(index, str) or not 0 < int(index) < len(self.class_names):
            raise ConfigError(f"no class {label!r}; known: {', '.join(names)}")
        return int(index)


def _to_boxes(boxes: ArrayLike) -> Float[Tensor, "n 4"]:
    return torch.as_tensor(np.asarray(boxes, dtype=np.float32)).reshape(-1, 4)


def _to_array(image: ImageLike, image_range: ImageRange | None) -> UInt8[np.ndarray, "H W 3"]:
    if isinstance(image, str | Path):
        return read_image(Path(image), image_range=image_range)
    return convert_to_rgb(image, image_range)
