"""Score the validation set with filled rectangles and filled ellipses in the ground-truth boxes: the floor of every figure.

uv run python experiments/floors.py dasnet_demo/data --image-size 128 --json experiments/results/demo_floors.json
"""

import argparse
import json
from pathlib import Path

from dasnet_lightning import MixedSupervisionDataModule
from dasnet_lightning.functional.regions import ground_truth_detections
from dasnet_lightning.metrics.floors import FLOORS, predict_floor
from dasnet_lightning.metrics.instance import InstanceAP


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
            for name, fill in FLOORS.items():
                prediction = predict_floor(fill, ground_truth_detections(target), input_size, size)
                metrics[name].update([image_id], [prediction], [target], input_size)
    results = {name: dict(metric.compute(data.class_names)) for name, metric in metrics.items()}
    for name, values in results.items():
        print(name, {key: round(value, 3) for key, value in values.items() if "/" not in key})
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
