"""Box average precision, COCO protocol (101-point interpolation, IoU 0.50:0.95), by torchmetrics with pycocotools."""

from collections.abc import Mapping, Sequence

import torch
from torchmetrics.detection import MeanAveragePrecision

from dasnet_lightning.types import Detections, Target


class BoxAP:
    """Accumulates detections against ground truth; crowd and difficult objects neither count nor harm."""

    def __init__(self) -> None:
        self._metric = MeanAveragePrecision(box_format="xyxy", iou_type="bbox", extended_summary=True)
        self._metric.warn_on_many_detections = False

    def update(self, detections: Sequence[Detections], targets: Sequence[Target]) -> None:
        """Add images: what was detected in each, best 100 counted, and what is there."""
        self._metric.update(
            [{"boxes": d.boxes.float(), "scores": d.scores.float(), "labels": d.labels} for d in detections],
            [{"boxes": t.boxes, "labels": t.labels, "iscrowd": t.ignore.long()} for t in targets],
        )

    def compute(self, class_names: Sequence[str] = ()) -> Mapping[str, float]:
        """AP averaged over IoU 0.50:0.95, AP50 and AP75, in 0..1, -1 where nothing was annotated; AP50 by class name."""
        values = self._metric.compute()
        summary = {"ap": float(values["map"]), "ap50": float(values["map_50"]), "ap75": float(values["map_75"])}
        # precision by IoU, recall, class, area, number of detections; -1 for a class that was never annotated
        precision = torch.as_tensor(values["precision"])[0, :, :, 0, -1]
        for column, label in enumerate(values["classes"].reshape(-1).tolist()):
            if label < len(class_names) and float(precision[:, column].max()) > -1:
                summary[f"ap50/{class_names[label]}"] = float(precision[:, column].mean())
        return summary

    def reset(self) -> None:
        self._metric.reset()
