"""Runs an exported network with numpy, Pillow and onnxruntime: `python run.py IMAGES` writes DIR/NAME.npz for each."""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray as Array
from PIL import Image, ImageOps


class Model:
    """An exported network, from the folder that holds model.json and the graphs."""

    def __init__(self, folder: Path) -> None:
        self.about = json.loads((folder / "model.json").read_text())
        self.size = tuple(self.about["input"]["size"])
        self.options, self.masks = self.about["inference"], self.about["masks"]
        names = self.about["names"]
        self.image_graph, self.mask_graph = (open_graph(folder / file, names) for file in self.about["graphs"])

    def segment(self, image: Array, boxes: Any = None, labels: Any = None) -> dict[str, Array]:
        """Segment an RGB image [H, W, 3] of 8 bits: its detections, or given boxes in its pixels with their labels."""
        given, size = boxes is not None, image.shape[:2]
        values = resize(image, self.size).transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255)
        levels = self.image_graph({"image": values})
        all_boxes, all_scores = levels.pop("boxes", None), levels.pop("scores", None)
        if given:
            image_boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
            scores, labels = np.ones(len(image_boxes), np.float32), np.asarray(labels, np.int64).reshape(-1)
            boxes = scale(image_boxes, size, self.size)
        elif all_boxes is None:
            raise SystemExit("this network detects nothing: give boxes and labels")
        else:
            boxes, labels, scores = self.select(*detect(all_boxes, all_scores, self.about["detection"]))
            image_boxes = snap(scale(boxes, self.size, size))
        task = self.segment_instances if self.about["task"] == "instance" else self.segment_classes
        scores, masks, semantic = task(levels, boxes, labels, scores, size, given)
        order = np.arange(len(scores)) if given else np.argsort(-scores, kind="stable")
        result = {"boxes": image_boxes, "labels": labels, "scores": scores, "masks": masks}
        return {name: values[order] for name, values in result.items()} | {"semantic": semantic}

    def select(self, boxes: Array, labels: Array, scores: Array) -> tuple[Array, Array, Array]:
        """Return the detections that get a mask."""
        keep = np.flatnonzero(scores >= np.float32(self.options["score_threshold"]))
        if "max_classes" in self.options:
            classes = list(dict.fromkeys(labels[keep].tolist()))[: self.options["max_classes"]]
            keep = keep[np.isin(labels[keep], classes)]
        keep = keep[: self.options.get("max_detections")]
        return boxes[keep], labels[keep], scores[keep]

    def segment_instances(
        self, levels: dict[str, Array], boxes: Array, labels: Array, scores: Array, size: tuple[int, int], given: bool
    ) -> tuple[Array, Array, Array]:
        """Return the scores and the mask of each box, and the class map."""
        threshold = np.float32(self.options["foreground_threshold"])
        masks, semantic = np.zeros((len(boxes), *size), bool), np.zeros(size, np.int64)
        best, quality = np.zeros(size, np.float32), np.ones(len(boxes), np.float32)
        regions = labels if self.options["grouping"] == "class" else np.arange(len(boxes))
        clip = given or self.options["clip_to_boxes"]
        for index, (rows, columns), inside, score in self.read(levels, boxes, regions, size, clip):
            masks[index, rows, columns], quality[index] = inside > threshold, score
            weighted = np.where(inside > threshold, inside * scores[index], 0)
            wins = weighted > best[rows, columns]
            if given or scores[index] >= self.options["score_threshold"]:
                best[rows, columns][wins], semantic[rows, columns][wins] = weighted[wins], labels[index]
        return scores * quality if self.options["weight_by_instance_score"] else scores, masks, semantic

    def segment_classes(
        self, levels: dict[str, Array], boxes: Array, labels: Array, scores: Array, size: tuple[int, int], given: bool
    ) -> tuple[Array, Array, Array]:
        """Return the scores, the part of the class map in each box that has its class, and the class map."""
        classes = np.unique(labels)
        margin = np.array([-1, -1, 1, 1], np.float32) * np.float32(self.options["box_margin"])
        best, semantic = np.zeros(size, np.float32), np.zeros(size, np.int64)
        for label, foreground in zip(classes, self.read_classes(levels, boxes, labels, classes, size), strict=True):
            mine = labels == label
            weights = scores[mine] if self.options["weight_by_score"] else np.ones(mine.sum(), np.float32)
            weight = np.max(inside_boxes(boxes[mine] + margin, self.size, size) * weights[:, None, None], axis=0)
            weighted = np.where(foreground < np.float32(self.options["foreground_threshold"]), 0, foreground * weight)
            wins = weighted > best
            best[wins], semantic[wins] = weighted[wins], label
        masks = inside_boxes(snap(scale(boxes, self.size, size)), size, size) & (semantic == labels[:, None, None])
        return scores, masks, semantic

    def read(
        self, levels: dict[str, Array], boxes: Array, regions: Array, size: tuple[int, int], clip: bool
    ) -> Iterator[tuple[int, tuple[slice, slice], Array, float]]:
        """Yield the index of each box, its pixels, their probabilities, and the score of the mask."""
        grids = self.masks["kind"] == "grids"
        kinds, region_of_box = np.unique(regions, return_inverse=True)
        members = (kinds[:, None] == regions).astype(np.float32)
        logits = self.mask_graph({"boxes": boxes, "members": members, **levels})["masks"]
        for index, box in enumerate(snap(scale(boxes, self.size, size))):
            margin = np.float32(self.masks.get("margin", 0)) * np.array([-1, -1, 1, 1], np.float32)
            outer = box + np.tile(box[2:] - box[:2], 2) * margin
            window = box if clip else outer
            x0, y0 = np.floor(window[:2]).clip(0).astype(int)
            x1, y1 = np.maximum(np.minimum(np.ceil(window[2:]), size[::-1]).astype(int), (x0, y0))
            ys, xs = np.arange(y0, y1), np.arange(x0, x1)
            if grids:
                inside = sigmoid(read_grid(logits[index, 0], outer, ys, xs))
                score = expected_iou(sigmoid(logits[index, 0]))
            else:
                inside, score = read_maps(logits[region_of_box[index]], box, ys, xs, size, self.masks["cells"])
            yield index, (slice(y0, y1), slice(x0, x1)), inside, score

    def read_classes(
        self, levels: dict[str, Array], boxes: Array, labels: Array, classes: Array, size: tuple[int, int]
    ) -> Iterator[Array]:
        """Yield the foreground probability of each class in the image's pixels."""
        if self.masks["kind"] == "grids":
            maps = np.zeros((len(classes), *size), np.float32)
            for index, pixels, inside, _ in self.read(levels, boxes, np.arange(len(boxes)), size, clip=False):
                of_class = maps[np.searchsorted(classes, labels[index])]
                of_class[pixels] = np.maximum(of_class[pixels], inside)
            yield from maps
        else:
            members = (labels == classes[:, None]).astype(np.float32)
            maps = self.mask_graph({"boxes": boxes, "members": members, **levels})["masks"]
            rows, columns = map(stretch, self.size, size)
            yield from (rows @ values[0] @ columns.T for values in maps)


def open_graph(path: Path, names: dict[str, Any]) -> Any:
    """Return a function from named inputs to named outputs; inputs that the graph does not have are ignored."""
    names = names[path.stem]
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=onnxruntime.get_available_providers())
        call = lambda values: session.run(None, values)  # noqa: E731
    else:
        import torch  # only for --to torch-export

        module = torch.export.load(path).module()
        call = lambda values: [each.detach().numpy() for each in module(*map(torch.from_numpy, values.values()))]  # noqa: E731
    return lambda feed: dict(zip(names["outputs"], call({name: feed[name] for name in names["inputs"]}), strict=True))


def resize(image: Array, size: tuple[int, int]) -> Array:
    """Resize an 8-bit image as training and `segment` do: average where it shrinks, then interpolate where it grows."""
    shape = [min(int(np.ceil(length * (new / length))), length) for length, new in zip(image.shape, size, strict=False)]
    image = image if image.shape[:2] == tuple(shape) else average(image, shape)
    rows, columns = map(stretch, image.shape, size)  # nothing to do gives weights of 1
    lines = (rows @ image.reshape(len(image), -1).astype(np.float32)).reshape(len(rows), -1, 3)
    return np.rint(columns @ lines).clip(0, 255).astype(np.uint8)


def average(image: Array, size: Sequence[int]) -> Array:
    """Average an image over cells as OpenCV's INTER_AREA does, in single precision and in its order: equal roundings."""
    ratios = [image.shape[axis] / size[axis] for axis in (0, 1)]
    whole = all(ratio == int(ratio) for ratio in ratios)  # then OpenCV adds integers and scales the sum
    values = image.astype(np.float32)
    for axis, ratio in ((1, ratios[1]), (0, ratios[0])):
        low = np.arange(size[axis]) * ratio
        index = np.floor(low).astype(int) + np.arange(int(np.ceil(ratio)) + 1)[:, None]
        covered = (np.minimum(low + ratio, index + 1) - np.maximum(low, index)).clip(0)
        shares = np.where(covered > 1e-3, covered, 0) / (1 if whole else np.minimum(ratio, image.shape[axis] - low))
        weights = shares.astype(np.float32).reshape(*index.shape, *(1,) * (2 - axis))
        pixels = zip(index.clip(0, image.shape[axis] - 1), weights, strict=True)
        values = sum(values.take(each, axis) * weight for each, weight in pixels)
    values = values * np.float32(1 / np.prod(ratios)) if whole else values
    return (np.floor(values + np.float32(0.5)) if ratios == [2, 2] else np.rint(values)).clip(0, 255).astype(np.uint8)


def detect(boxes: Array, scores: Array, settings: dict[str, Any]) -> tuple[Array, Array, Array]:
    """Select detections from the boxes [a, 4] and scores [a, c] of all anchors, best first: NMS in each class."""
    found: list[tuple[int, int]] = []
    for column, of_class in enumerate(scores.T):
        order = np.argsort(-of_class, kind="stable")[: settings["top_k"]]
        order = order[of_class[order] > np.float32(settings["score_threshold"])]
        order = order[((boxes[order, 2:] - boxes[order, :2]) > np.float32(settings["min_side"])).all(axis=1)]
        found += [(index, column) for index in suppress(boxes, order, settings["nms_threshold"])]
    anchors, columns = np.array(found, np.int64).reshape(-1, 2).T
    best = np.argsort(-scores[anchors, columns], kind="stable")[: settings["detections_per_image"]]
    return boxes[anchors[best]], columns[best] + 1, scores[anchors[best], columns[best]]


def suppress(boxes: Array, order: Array, threshold: float) -> list[int]:
    """Greedy NMS of the boxes at these indices, best first."""
    kept, areas = [], (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    while len(order):
        first, order = int(order[0]), order[1:]
        kept.append(first)
        low, high = np.maximum(boxes[first, :2], boxes[order, :2]), np.minimum(boxes[first, 2:], boxes[order, 2:])
        overlap = (high - low).clip(0).prod(axis=1)
        order = order[overlap / (areas[first] + areas[order] - overlap) <= threshold]
    return kept


def scale(boxes: Array, size: Sequence[int], new_size: Sequence[int]) -> Array:
    """Scale boxes as an image is resized between two sizes (H, W)."""
    return boxes * np.tile([new_size[1] / size[1], new_size[0] / size[0]], 2).astype(np.float32)


def snap(boxes: Array) -> Array:
    """Move edges to the whole pixels that rounding moved them off."""
    return np.where(np.abs(boxes - np.rint(boxes)) < np.float32(0.01), np.rint(boxes), boxes)


def inside_boxes(boxes: Array, image: Sequence[int], size: Sequence[int]) -> Array:
    """Return which of `size` cells each box of an image touches, at least one: [n, h, w]."""
    axes = []
    for axis, length in enumerate(size):
        low, high = (boxes[:, 1 - axis + side] * length / image[axis] for side in (0, 2))
        first, cells = np.floor(low).clip(0, length - 1)[:, None], np.arange(length)
        axes.append((cells >= first) & (cells < np.maximum(np.ceil(high).clip(max=length)[:, None], first + 1)))
    return axes[0][:, :, None] & axes[1][:, None, :]


def linear(position: Array, cells: int) -> Array:
    """Return the weights [m, cells] of linear interpolation at positions in cells."""
    return np.clip(1 - np.abs(position.clip(0, cells - 1)[:, None] - np.arange(cells)), 0, None).astype(np.float32)


def stretch(cells: int, pixels: int) -> Array:
    """Return the weights [pixels, cells] of a map that is resized along one axis."""
    return linear((np.arange(pixels) + 0.5) * cells / pixels - 0.5, cells)


def read_grid(logits: Array, window: Array, ys: Array, xs: Array) -> Array:
    """Interpolate the grid of a window at these rows and columns of the image."""
    cells, extent = logits.shape[0], np.maximum(window[2:] - window[:2], 1e-3)
    rows, columns = (linear((p + 0.5 - window[a]) / extent[a] * cells - 0.5, cells) for p, a in ((ys, 1), (xs, 0)))
    return rows @ logits @ columns.T


def expected_iou(probs: Array) -> float:
    """Return the IoU that the probabilities of a mask let expect: D / (2 - D) of the Soft Dice Confidence D."""
    mask = probs > 0.5
    dice = 2 * probs[mask].sum() / (probs.sum() + mask.sum()) if mask.any() else 0.0
    return float(dice / (2 - dice))


def read_maps(maps: Array, box: Array, ys: Array, xs: Array, size: Sequence[int], k: int) -> tuple[Array, float]:
    """Read position-sensitive maps [2 k k, h, w] inside a box: the inside probabilities and the score of the mask."""
    scores = np.zeros((2, len(ys), len(xs)), np.float32)
    rows, columns = stretch(maps.shape[1], size[0])[ys], stretch(maps.shape[2], size[1])[xs]
    extent = np.maximum(box[2:] - box[:2], np.float32(1e-6))
    row_cell, column_cell = (
        np.floor(k * (p + np.float32(0.5) - box[a]) / extent[a]).clip(0, k - 1) for p, a in ((ys, 1), (xs, 0))
    )
    for cell in range(k * k):
        of_rows, of_columns = np.flatnonzero(row_cell == cell // k), np.flatnonzero(column_cell == cell % k)
        scores[:, of_rows[:, None], of_columns] = rows[of_rows] @ maps[2 * cell : 2 * cell + 2] @ columns[of_columns].T
    best = scores.max(axis=0).mean() if scores.size else 0.0
    return sigmoid(scores[0] - scores[1]), float(sigmoid(np.float32(best)))


def sigmoid(values: Any) -> Any:
    """Return the logistic function, without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * values))


def main() -> None:
    """Segment image files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", metavar="IMAGE", nargs="+", type=Path)
    parser.add_argument("--model", metavar="DIR", type=Path, default=Path(__file__).parent, help="default: %(default)s")
    parser.add_argument("--boxes", type=Path, help='JSON: {"NAME.jpg": {"boxes": [[x0, y0, x1, y1]], "labels": [1]}}')
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("segmented"))
    args = parser.parse_args()
    model, given = Model(args.model), json.loads(args.boxes.read_text()) if args.boxes else {}
    args.out.mkdir(parents=True, exist_ok=True)
    for path in args.images:
        with Image.open(path) as file:
            if file.mode.startswith(("I", "F")):
                raise SystemExit(f"{path}: expected an 8-bit image")
            image = np.asarray(ImageOps.exif_transpose(file).convert("RGB"))
        result = model.segment(image, **given.get(path.name, {}))
        np.savez_compressed(args.out / f"{path.stem}.npz", allow_pickle=False, **result)
        for label, score, box in zip(result["labels"], result["scores"], result["boxes"], strict=True):
            print(path.name, model.about["classes"][label], f"{score:.3f}", [round(float(x), 1) for x in box])


if __name__ == "__main__":
    main()
