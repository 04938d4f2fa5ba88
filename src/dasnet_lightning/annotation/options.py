"""Options of `dasnet annotate` and `dasnet_lightning.annotate`, one definition for both."""

from dataclasses import dataclass, field
from typing import Any, Literal

from dasnet_lightning.errors import ConfigError

FORMATS = ("coco", "voc", "yolo", "labelme", "cvat")  # those of `data.writers`, without importing it


def _option(default: Any, help: str, flag: str | None = None, metavar: str | None = None) -> Any:
    return field(default=default, metadata={"help": help, "flag": flag, "metavar": metavar})


@dataclass(frozen=True)
class AnnotateOptions:
    """Options of an annotation."""

    format: str = _option(
        "", f"{', '.join(FORMATS)} (default: the format of DATA if it is one of these, else coco)", metavar="NAME"
    )
    min_quality: float = _option(0.0, "leave objects as boxes whose mask has a lower quality, 0 to 1", metavar="Q")
    compare: bool = _option(False, "also segment the objects that have a mask, and report the IoU with it by class")
    polygon_tolerance: float = _option(
        1.0, "polygons may leave the outline of the mask by this distance; 0 for the exact outline", metavar="PX"
    )
    images: Literal["copy", "link"] = _option("copy", "copy the image files, or hard-link them")
    batch_size: int = _option(8, "images that are segmented together", metavar="B")
    device: str = _option("auto", "auto, cpu, cuda, cuda:1, ...", metavar="NAME")
    devices: int = _option(1, "processes, each with a GPU of its own if there is more than one", metavar="N")
    fix: Literal["error", "drop"] = _option("error", "drop: leave out labels that cannot be used")
    allow_missing: bool = _option(False, "leave out images whose file is missing")

    def __post_init__(self) -> None:
        if self.format and self.format not in FORMATS:
            raise ConfigError(f"--format {self.format}: cannot be written, expected one of {', '.join(FORMATS)}")
        if not 0 <= self.min_quality <= 1:
            raise ConfigError(f"--min-quality {self.min_quality}: expected 0 to 1")
        if not 0 <= self.polygon_tolerance < float("inf"):
            raise ConfigError(f"--polygon-tolerance {self.polygon_tolerance}: expected 0 or more pixels")
        for name, value in (("--batch-size", self.batch_size), ("--devices", self.devices)):
            if value < 1:
                raise ConfigError(f"{name} {value}: expected at least 1")


# where and how fast an annotation computes, not what
FREE_TO_CHANGE = ("device", "devices")
