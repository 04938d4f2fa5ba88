"""Score the validation set with filled rectangles and filled ellipses in the ground-truth boxes: the floor of every figure.

uv run python experiments/floors.py dasnet_demo/data --image-size 128 --json experiments/results/demo_floors.json
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dasnet_lightning import MixedSupervisionDataModule
from dasnet_lightning.functional.boxes import restore_boxes
from dasnet_lightning.functional.regions import ground_truth_detections
from dasnet_lightning.metrics.instance import InstanceAP
from dasnet_lightning.types import Detections, Prediction


def fill_rectangle(box: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Return the pixels whose centers lie in the box."""
    return (x >= box[0]) & (x < box[2]) & (y >= box[1]) & (y < box[3])


def fill_ellipse(box: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Return the pixels whose centers lie in the ellipse that touches the sides of the box."""
    (x0, y0, x1, y1), half = box.tolist(), 0.5
    return ((x - half * (x0 + x1)) / (half * (x1 - x0))) ** 2 + ((y - half * (y0 + y1)) / (half * (y1 - y0))) ** 2 <= 1


FLOORS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"rectangle": fill_rectangle, "ellipse": fill_ellipse}


def main() -> None:
    """Print and write the mask AP of both floors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="data set")
    parser.add_argument("--image-size", type=int, default=320)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    data = MixedSupervisionDataModule(args.data, image_size=args.image_size, num_workers=0)
    data.setup("validate")
    metrics = {name: InstanceAP() for name in FLOORS}
    for batch in data.val_dataloader():
        input_size = (batch.images.shape[2], batch.images.shape[3])
        for image_id, target in zip(batch.image_ids, batch.targets, strict=True):
            if target.truth is None:
                continue
            size = (target.truth.semantic.shape[0], target.truth.semantic.shape[1])
            y, x = torch.meshgrid(torch.arange(size[0]) + 0.5, torch.arange(size[1]) + 0.5, indexing="ij")
            given = ground_truth_detections(target)
            boxes = restore_boxes(given.boxes, input_size, size)
            for name, fill in FLOORS.items():
                masks = torch.stack([fill(box, y, x) for box in boxes]) if len(boxes) else torch.zeros(0, *size) > 0
                found = Detections(given.boxes, given.labels, given.scores)
                prediction = Prediction(found, masks, torch.zeros(size, dtype=torch.int64))
                metrics[name].update([image_id], [prediction], [target], input_size)
    results = {name: dict(metric.compute(data.class_names)) for name, metric in metrics.items()}
    for name, values in results.items():
        print(name, {key: round(value, 3) for key, value in values.items() if "/" not in key})
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
