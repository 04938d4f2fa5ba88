"""Inference without a trainer: `load(checkpoint).segment(image)` returns masks in the image's own pixels."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from numpy.typing import ArrayLike

from dasnet_lightning.data.pixels import ImageRange
from dasnet_lightning.detectors.fold_batchnorm import fold_norms
from dasnet_lightning.errors import CheckpointError, ConfigError
from dasnet_lightning.feature_cache.cache import FeatureCache, open_feature_cache
from dasnet_lightning.functional.boxes import restore_boxes, scale_boxes
from dasnet_lightning.inference.ahead import map_ahead
from dasnet_lightning.inference.folder import ModelCard, describe_network, is_folder, read_folder, write_folder
from dasnet_lightning.inference.prepare import ImageLike, PreparedImage, Request, make_requests, prepare
from dasnet_lightning.inference.segmentation import Segmentation
from dasnet_lightning.inference.stream import SegmentationStream, run_batches
from dasnet_lightning.models.box_scores import Refinement
from dasnet_lightning.models.dasnet import DASNet, build_dasnet
from dasnet_lightning.models.instance import InstanceOptions, segment_windows
from dasnet_lightning.models.semantic import SemanticOptions, segment_semantic_windows
from dasnet_lightning.models.window_prediction import WindowPrediction
from dasnet_lightning.nn.heads import PositionSensitiveHead, SemanticHead
from dasnet_lightning.tasks.checkpoints import load_network, read_checkpoint, sub_state, without_weights
from dasnet_lightning.tasks.config import NetworkConfig, restore_options
from dasnet_lightning.types import Detections, Images, Pyramid

InferenceOptions = SemanticOptions | InstanceOptions
PIXELS_AT_ONCE = 2**25  # pixels of the images that `segment_many` holds in a batch, and as many that wait for the next


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
    network = restore_options(NetworkConfig, saved["network"])
    network = replace(network, detector_options=without_weights(network.detector_options))
    model = _build(content, network, state, checkpoint, fold)
    options_class = InstanceOptions if saved.get("task") == "instance" else SemanticOptions
    class_names = tuple(saved["class_names"]) or tuple(f"class {label}" for label in range(saved["num_classes"]))
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


def _build(
    content: Mapping[str, Any],
    network: NetworkConfig,
    state: Mapping[str, torch.Tensor],
    checkpoint: str | Path,
    fold: bool,
) -> DASNet:
    """Build and fill the network, with folded normalization layers if `fold` is true."""
    saved, folded = content["hyper_parameters"], bool(content.get("folded"))
    instances = saved.get("task") == "instance"
    head = partial(PositionSensitiveHead, cells=saved["cells"]) if instances else SemanticHead
    model = build_dasnet(saved["num_classes"], **vars(network), head=head)
    if folded and not fold:
        raise ConfigError(f"{checkpoint}: its layers are folded, save it again from load(..., fold=False)")
    if folded:
        fold_norms(model.eval().detector)
    load_network(model, state, checkpoint, content)
    if fold and not folded:
        fold_norms(model.detector)
    return model


class Segmenter:
    """Segments images with a trained network.

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

    def segment(
        self, image: ImageLike, boxes: ArrayLike | None = None, labels: Sequence[int | str] | None = None
    ) -> Segmentation:
        """Detect and segment the objects of an image, or segment given boxes.

        Args:
            image: a path, a PIL image, or an array [H, W] or [H, W, 1 to 4] in gray or RGB. Values of more than 8 bits are
                scaled by `image_range`, else from 0..65535 (uint16) or 0..1 (floating point).
            boxes: boxes [n, 4], xyxy in the image's own pixels, to segment without detection. Each must have a part inside
                the image.
            labels: for each box its label, 1..num_classes-1, or its class name.

        Returns:
            Objects in the image's own pixels: detections by descending score, given boxes in their order.

        Raises:
            ConfigError: boxes, labels or the array are invalid.
            DataError: the file is not a readable image.
        """
        name = str(image) if isinstance(image, str | Path) else "image"
        return self._segment_batch([self._prepare(Request(image, name, boxes, labels))])[0]

    def segment_many(
        self,
        images: Iterable[ImageLike],
        boxes: Iterable[ArrayLike] | None = None,
        labels: Iterable[Sequence[int | str]] | None = None,
        *,
        batch_size: int = 8,
        workers: int = 2,
    ) -> "SegmentationStream":
        """Segment many images: threads decode and resize ahead of the network, which takes a batch in one pass.

        Args:
            images: images as `segment` takes them; they are read only a little ahead of the results.
            boxes: for each image its boxes; None detects.
            labels: for each image the labels of its boxes.
            batch_size: images in one pass of the network. A batch of large images is smaller, so that no more than
                `PIXELS_AT_ONCE` pixels are held, or one image.
            workers: threads that decode and resize; 0 for none.

        Returns:
            An iterator over the results in the order of the images. It raises the error of an image when it is that
            image's turn, and continues with the next image if it is asked again. `close` ends its threads early.

        Raises:
            ConfigError: `batch_size` or `workers` is too small.
        """
        if batch_size < 1 or workers < 0:
            raise ConfigError(f"batch_size={batch_size} must be at least 1, workers={workers} at least 0")
        requests = make_requests(images, boxes, labels)
        prepared = map_ahead(self._prepare, requests, workers, batch_size + workers, Request.pixels, PIXELS_AT_ONCE)
        return SegmentationStream(run_batches(prepared, self._segment_batch, batch_size, PIXELS_AT_ONCE))

    def _prepare(self, request: Request) -> PreparedImage:
        return prepare(request, self.image_size, self.image_range, self.class_names)

    @torch.inference_mode()
    def _segment_batch(self, batch: Sequence[PreparedImage]) -> list[Segmentation]:
        """Segment prepared images, all with given boxes or all without, in one pass of the network."""
        if not batch:
            return []
        device = next(self.model.parameters()).device
        stacked = torch.stack([image.resized for image in batch]).to(device)
        images = stacked.permute(0, 3, 1, 2).float() / 255
        pyramid, sizes = self._features(images), [image.size for image in batch]
        given = batch[0].given is not None
        boxes = [self._to_detections(image) for image in batch] if given else self.model.detector.detect(pyramid)
        predictions = self._predict(pyramid, boxes, sizes, self._refinement(images, batch), given)
        return [self._to_segmentation(*item) for item in zip(batch, predictions, strict=True)]

    def _to_segmentation(self, image: PreparedImage, prediction: WindowPrediction) -> Segmentation:
        """Return a prediction in pixels of its image."""
        scores = prediction.detections.scores.cpu()
        if image.given is not None:
            boxes, order = image.given.boxes, torch.arange(len(scores))
        else:  # the instance score changes the order of the detector
            boxes = restore_boxes(prediction.detections.boxes, self.image_size, image.size).cpu()
            order = torch.argsort(scores, descending=True, stable=True)
        return Segmentation(
            image=image.pixels,
            boxes=boxes[order],
            labels=prediction.detections.labels.cpu()[order],
            scores=scores[order],
            masks=prediction.masks.select(order.tolist()),
            semantic=prediction.semantic.cpu(),
            class_names=self.class_names,
            category_ids=self.category_ids,
            quality=prediction.quality.cpu()[order],
        )

    def _features(self, images: Images) -> Pyramid:
        if self.feature_cache is None:
            return self.model.detector.features(images)
        return self.feature_cache.features(self.model.detector, images)

    def _refinement(self, images: Images, batch: Sequence[PreparedImage]) -> Refinement:
        """Return what the options ask for: features of the mirrored images, and the images' own pixels as the guides."""
        return Refinement(
            self._features(images.flip(3)) if self.options.flip else None,
            [torch.from_numpy(image.pixels) for image in batch] if self.options.guided_filter else None,
        )

    def _predict(
        self,
        pyramid: Pyramid,
        detections: Sequence[Detections],
        sizes: Sequence[tuple[int, int]],
        refinement: Refinement,
        given: bool,
    ) -> tuple[WindowPrediction, ...]:
        """Segment the detections whose score reaches the threshold, or all of them if they are given boxes."""
        options = self.options
        if isinstance(options, InstanceOptions):
            options = replace(options, lowest_score=options.score_threshold)
            return segment_windows(self.model, pyramid, detections, sizes, options, given, refinement)
        return segment_semantic_windows(self.model, pyramid, detections, sizes, options, given, refinement)

    def _to_detections(self, image: PreparedImage) -> Detections:
        """Return the given boxes of an image as detections of score 1 in input pixels."""
        assert image.given is not None
        device = next(self.model.parameters()).device
        boxes = scale_boxes(image.given.boxes.to(device), image.size, self.image_size)
        return Detections(boxes, image.given.labels.to(device), torch.ones_like(boxes[:, 0]))
