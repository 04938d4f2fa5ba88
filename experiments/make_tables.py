"""Turn the `results.json` of runs into the README's tables: `python experiments/make_tables.py RUN [RUN ...]`.

All figures are averaged over the classes given by --classes (mIoU with the background); without it over all that occur in
the validation set. --instances makes the table of mask AP instead of that of mIoU.
"""

import argparse
import json
from pathlib import Path
from typing import Any

BOXES = {"ground-truth boxes": "ground_truth_boxes", "detected boxes": "detected_boxes"}
IOU_THRESHOLDS = (50, 70, 75)
MIOU_HEADER = "| mask budget | detection AP50 | mIoU, ground-truth boxes | mIoU, detected boxes |\n|---|---|---|---|"
INSTANCE_HEADER = (
    "| detector, mask budget | boxes | mAP^r 0.5 | mAP^r 0.7 | mAP^r 0.75 | COCO AP | COCO AP50 | mIoU |\n"
    "|---|---|---|---|---|---|---|---|"
)


def mean(values: list[float]) -> float:
    """The mean of the values that are numbers: a class that never occurs has none."""
    known = [value for value in values if value == value]
    return sum(known) / len(known)


def miou(metrics: dict[str, float], kind: str, classes: list[str]) -> float:
    """Mean IoU over the background and the classes."""
    prefix = f"val/iou_{kind}/"
    names = ["background", *classes] if classes else [key.removeprefix(prefix) for key in metrics if prefix in key]
    return mean([metrics[prefix + name] for name in names])


def average(metrics: dict[str, float], figure: str, classes: list[str]) -> float:
    """The mean of a figure over the classes, or what was measured over all."""
    return mean([metrics[f"{figure}/{name}"] for name in classes]) if classes else metrics[figure]


def describe(item: dict[str, Any]) -> str:
    """A budget and what it holds."""
    return f"{item['budget']} ({item['mask_images']} images, {item['mask_objects']} masks)"


def miou_rows(results: dict[str, Any], classes: list[str]) -> list[str]:
    """One Markdown row for each budget of a run."""
    detection = average(results["detection"], "val/box_ap50", classes)
    lines = []
    for item in results["budgets"]:
        figures = " | ".join(f"{miou(item['metrics'], kind, classes):.3f}" for kind in BOXES.values())
        lines.append(f"| {describe(item)} | {detection:.3f} | {figures} |")
    return lines


def instance_rows(results: dict[str, Any], classes: list[str]) -> list[str]:
    """Two Markdown rows for each budget of a run, one for each kind of boxes; mAP^r as area / 11-point."""
    lines = []
    for item in results["budgets"]:
        for title, kind in BOXES.items():
            metrics = item["metrics"]
            both = [
                " / ".join(
                    f"{average(metrics, f'val/apr{threshold}_{protocol}_{kind}', classes):.3f}"
                    for protocol in ("area", "11point")
                )
                for threshold in IOU_THRESHOLDS
            ]
            coco = [f"{average(metrics, f'val/coco_{name}_{kind}', classes):.3f}" for name in ("ap", "ap50")]
            cells = [f"{results['detector']}, {describe(item)}", title, *both, *coco]
            lines.append(f"| {' | '.join(cells)} | {miou(metrics, kind, classes):.3f} |")
    return lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--classes", nargs="*", default=[])
    parser.add_argument("--instances", action="store_true")
    args = parser.parse_args()
    rows = instance_rows if args.instances else miou_rows
    print(INSTANCE_HEADER if args.instances else MIOU_HEADER)
    for path in args.runs:
        print("\n".join(rows(json.loads((path / "results.json").read_text()), args.classes)))


if __name__ == "__main__":
    main()
