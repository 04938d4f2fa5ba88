"""Box average precision, COCO protocol (101-point interpolation, IoU 0.50:0.95), by torchmetrics with pycocotools."""

from collections.abc import Mapping, Sequence

from torchmetrics.detection import MeanAveragePrecision

from dasnet_lightning.types import Detections, Target


class BoxAP:
    """Accumulates detections against ground truth; crowd and difficult objects neither count nor harm."""

    def __init__(self) -> None:
        self._metric = MeanAveragePrecision(box_format="xyxy", iou_type="bbox", class_metrics=True)
        self._metric.warn_on_many_detections = False

    def update(self, detections: Sequence[Detections], targets: Sequence[Target]) -> None:
        self._metric.update(
            [{"boxes": d.boxes.float(), "scores": d.scores.float(), "labels": d.labels} for d in detections],
            [{"boxes": t.boxes, "labels": t.labels, "iscrowd": t.ignore.long()} for t in targets],
        )

    def compute(self) -> Mapping[str, float]:
        """AP averaged over IoU 0.50:0.95, AP50 and AP75, in 0..1; -1 where nothing was annotated."""
        values = self._metric.compute()
        return {"ap": float(values["map"]), "ap50": float(values["map_50"]), "ap75": float(values["map_75"])}

    def reset(self) -> None:
        self._metric.reset()
