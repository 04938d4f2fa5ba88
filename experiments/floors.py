"""Score the validation set with filled rectangles and filled ellipses in the ground-truth boxes: the floor of every figure.

uv run python experiments/floors.py dasnet_demo/data --image-size 128 --json experiments/results/demo_floors.json
"""

import argparse
import json
from pathlib import Path

from dasnet_lightning import MixedSupervisionDataModule
from dasnet_lightning.functional.regions import ground_truth_detections
from dasnet_lightning.metrics.floors import FloorMetrics


def main() -> None:
    """Print and write mIoU and mask AP of both floors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="data set")
    parser.add_argument("--image-size", type=int, default=320)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    data = MixedSupervisionDataModule(args.data, image_size=args.image_size, num_workers=0)
    data.setup("validate")
    metric = FloorMetrics(data.num_classes)
    for batch in data.val_dataloader():
        given = [ground_truth_detections(target) for target in batch.targets]
        metric.update(batch.image_ids, given, batch.targets, (batch.images.shape[2], batch.images.shape[3]))
    results = {shape: dict(values) for shape, values in metric.compute(data.class_names).items()}
    for name, values in results.items():
        print(name, {key: round(value, 3) for key, value in values.items() if "/" not in key})
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
