"""Class predictors of COCO-trained detectors, whose rows the user's classes of the same name take over.

All published COCO detectors here have 91 classes: the background, and COCO's category ids 1 to 90, ten of them unused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from torch import Tensor
from torchvision.models.detection import SSD300_VGG16_Weights

from dasnet_lightning.errors import ConfigError

Predictors = Mapping[str, int]  # key of a layer without ".weight" or ".bias" -> channels of each class at an anchor
Rows = Sequence[int | None]  # for each class, background first, its class in the loaded detector; None for none

BACKGROUND = 0
SYNONYMS = {  # both sides as `normalize_name` returns them
    "aeroplane": "airplane",
    "plane": "airplane",
    "motorbike": "motorcycle",
    "sofa": "couch",
    "tvmonitor": "tv",
    "television": "tv",
    "human": "person",
    "people": "person",
    "pedestrian": "person",
    "lorry": "truck",
    "hydrant": "firehydrant",
    "rucksack": "backpack",
    "necktie": "tie",
    "doughnut": "donut",
    "houseplant": "pottedplant",
    "remotecontrol": "remote",
    "computermouse": "mouse",
    "computerkeyboard": "keyboard",
    "phone": "cellphone",
    "mobilephone": "cellphone",
    "fridge": "refrigerator",
    "teddy": "teddybear",
    "hairdryer": "hairdrier",
}


def normalize_name(name: str) -> str:
    """Return a class name in lower case without spaces, hyphens and underscores: "Dining_Table" is "diningtable"."""
    return "".join(character for character in name.casefold() if character.isalnum())


@cache
def coco_names() -> tuple[str, ...]:
    """Return the names of the 91 classes, the background first; an unused id is "N/A"."""
    return tuple(SSD300_VGG16_Weights.COCO_V1.meta["categories"])


@cache
def _coco_index() -> Mapping[str, int]:
    return {normalize_name(name): label for label, name in enumerate(coco_names()) if label and name != "N/A"}


def match_coco(class_names: Sequence[str]) -> tuple[int | None, ...]:
    """Return COCO's class for each class name, the background first; None if COCO does not have the class."""
    names = [normalize_name(name) for name in class_names[1:]]
    return (BACKGROUND, *(_coco_index().get(SYNONYMS.get(name, name)) for name in names))


def describe_rows(class_names: Sequence[str], rows: Rows) -> str:
    """Say which classes took over a row of COCO, with COCO's name in parentheses if it differs, and which start fresh."""
    pairs = list(zip(class_names, rows, strict=True))[1:]
    known = [(name, coco_names()[row]) for name, row in pairs if row is not None]
    taken = [name if normalize_name(name) == normalize_name(coco) else f"{name} ({coco})" for name, coco in known]
    fresh = [name for name, row in pairs if row is None]
    parts = [f"takes over COCO's rows of {', '.join(taken)}" if taken else "takes over none of COCO's class rows"]
    return "; ".join([*parts, f"fresh: {', '.join(fresh)}"] if fresh else parts)


@dataclass(frozen=True)
class ClassHead:
    """The class predictors of a detector that is being built.

    Attributes:
        predictors: the layers that predict classes.
        num_classes: number of classes, background included.
        class_names: their names, background first; empty if they are unknown.
    """

    predictors: Predictors
    num_classes: int
    class_names: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Check that there is a name for each class."""
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ConfigError(f"class_names has {len(self.class_names)} names, expected {self.num_classes}")

    def take_over(self, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
        """Return a loaded state dict with predictors for this head's classes, and a note on them.

        COCO's rows go to the classes of the same name. Other weights must have the same number of classes, else the
        predictors start fresh.

        Args:
            state: the loaded state dict.
            own: the state dict of the untrained detector.
        """
        count = count_classes(state, own, self.predictors, self.num_classes)
        if self.class_names and count == len(coco_names()):
            rows = match_coco(self.class_names)
            return take_rows(state, own, self.predictors, rows), describe_rows(self.class_names, rows)
        if count in (0, self.num_classes):
            return dict(state), ""
        fresh = take_rows(state, own, self.predictors, [None] * self.num_classes)
        return fresh, f"its class predictors are for {count - 1} classes and start fresh"


def count_classes(state: Mapping[str, Tensor], own: Mapping[str, Tensor], predictors: Predictors, classes: int) -> int:
    """Return the number of classes of a loaded state dict, background included; 0 if it has no such predictor.

    Args:
        state: the loaded state dict.
        own: the state dict of a detector with the same anchors.
        predictors: the layers that predict classes.
        classes: the number of classes of `own`.
    """
    for key, value in own.items():
        if key.rpartition(".")[0] in predictors and key in state and state[key].ndim > 0:
            return len(state[key]) * classes // len(value)
    return 0


def take_rows(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], predictors: Predictors, rows: Rows
) -> dict[str, Tensor]:
    """Return the state dict with predictors for the user's classes, whose remaining rows are those of `own`.

    A predictor of another shape is returned as it is.

    Args:
        state: the loaded state dict.
        own: the state dict of the untrained detector.
        predictors: the layers that predict classes.
        rows: the class of `state` for each class of `own`.
    """
    ours = [label for label, row in enumerate(rows) if row is not None]
    theirs = [row for row in rows if row is not None]
    result = dict(state)
    for key, value in own.items():
        channels = predictors.get(key.rpartition(".")[0])
        if channels is None or key not in state or state[key].shape[1:] != value.shape[1:]:
            continue
        anchors = len(value) // (len(rows) * channels)
        if len(state[key]) % (anchors * channels) == 0:
            loaded = state[key].unflatten(0, (anchors, -1, channels))
            merged = value.unflatten(0, (anchors, len(rows), channels)).clone()
            merged[:, ours] = loaded[:, theirs].to(merged)
            result[key] = merged.flatten(0, 2)
    return result
