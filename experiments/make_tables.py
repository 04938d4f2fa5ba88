"""Turn the `results.json` of runs into the README's table: `python experiments/make_tables.py RUN [RUN ...]`.

Detection AP50 and mIoU are averaged over the classes given by --classes (mIoU with the background); without it over all
that occur in the validation set.
"""

import argparse
import json
from pathlib import Path

BOXES = {"ground-truth boxes": "ground_truth_boxes", "detected boxes": "detected_boxes"}


def mean(values: list[float]) -> float:
    """The mean of the values that are numbers: a class that never occurs has none."""
    known = [value for value in values if value == value]
    return sum(known) / len(known)


def miou(metrics: dict[str, float], kind: str, classes: list[str]) -> float:
    """Mean IoU over the background and the classes."""
    prefix = f"val/iou_{kind}/"
    names = ["background", *classes] if classes else [key.removeprefix(prefix) for key in metrics if prefix in key]
    return mean([metrics[prefix + name] for name in names])


def ap50(detection: dict[str, float], classes: list[str]) -> float:
    """Mean AP50 over the classes."""
    return mean([detection[f"val/box_ap50/{name}"] for name in classes]) if classes else detection["val/box_ap50"]


def rows(path: Path, classes: list[str]) -> list[str]:
    """One Markdown row for each budget of a run."""
    results = json.loads((path / "results.json").read_text())
    lines = []
    for item in results["budgets"]:
        values = [miou(item["metrics"], kind, classes) for kind in BOXES.values()]
        figures = " | ".join(f"{value:.3f}" for value in values)
        masks = f"{item['mask_images']} images, {item['mask_objects']} masks"
        lines.append(f"| {item['budget']} ({masks}) | {ap50(results['detection'], classes):.3f} | {figures} |")
    return lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--classes", nargs="*", default=[])
    args = parser.parse_args()
    print("| mask budget | detection AP50 | mIoU, ground-truth boxes | mIoU, detected boxes |")
    print("|---|---|---|---|")
    for path in args.runs:
        print("\n".join(rows(path, args.classes)))


if __name__ == "__main__":
    main()
