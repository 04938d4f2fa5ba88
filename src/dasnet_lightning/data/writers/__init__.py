"""Writers of data sets, one for each format; all take the same labels."""

from collections.abc import Mapping

from dasnet_lightning.data.writers.base import Writer
from dasnet_lightning.data.writers.coco import CocoWriter
from dasnet_lightning.data.writers.cvat_xml import CvatWriter
from dasnet_lightning.data.writers.labelme import LabelmeWriter
from dasnet_lightning.data.writers.voc import VocWriter
from dasnet_lightning.data.writers.yolo import YoloWriter

WRITERS: Mapping[str, type[Writer]] = {
    "coco": CocoWriter,
    "voc": VocWriter,
    "yolo": YoloWriter,
    "labelme": LabelmeWriter,
    "cvat": CvatWriter,
}
