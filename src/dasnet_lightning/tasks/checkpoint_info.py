"""Description of a task inside its checkpoints, and the checks that a checkpoint fits the task that reads it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dasnet_lightning import __version__
from dasnet_lightning.errors import CheckpointError

KEY = "dasnet_lightning"
# 0: hyper-parameters without a description. 1 (version 0.1.0): with a description under KEY.
# 2: the arguments of network and recipe are nested.
FORMAT = 2
FLAT_BEFORE_FORMAT_2 = {
    "network": ("detector", "detector_options", "decoder", "decoder_options", "rounding", "soft_attention"),
    "recipe": ("detector_checkpoint", "initial_checkpoint", "joint", "box_loss_weight"),
}
MAX_LISTED_NAMES = 5


@dataclass(frozen=True)
class CheckpointInfo:
    """Description of a task and its network that checkpoints carry under `KEY`.

    Attributes:
        version: version of the library that wrote the checkpoint, "unknown" in format 0.
        format: format of the checkpoint, see `FORMAT`.
        task: "detection", "semantic" or "instance".
        detector: registered name of the detector.
        num_classes: number of classes, background included.
        class_names: background first; () if the classes have no names.
        category_ids: the data set's own id of each label; () if it has none.
        image_size: input size (H, W) in pixels; None in checkpoints of format 0.
    """

    version: str
    format: int
    task: str
    detector: str
    num_classes: int
    class_names: tuple[str, ...]
    category_ids: tuple[int | str, ...]
    image_size: tuple[int, int] | None

    def to_dict(self) -> dict[str, Any]:
        """Return the plain values that a checkpoint holds."""
        return asdict(self)


def describe(hyper_parameters: Mapping[str, Any], image_size: tuple[int, int]) -> CheckpointInfo:
    """Describe a task by its hyper-parameters and the input size (H, W) of its detector."""
    return _parse_info({**_flatten(hyper_parameters), "image_size": image_size}, __version__, FORMAT)


def is_ours(content: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint was written by a task of this library."""
    saved = content.get("hyper_parameters")
    if not isinstance(saved, Mapping) or not isinstance(content.get("state_dict"), Mapping):
        return False
    network = saved.get("network", saved)
    return "num_classes" in saved and isinstance(network, Mapping) and "detector" in network


def upgrade_hyper_parameters(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return hyper-parameters of any format as this version writes them.

    Up to format 1 the arguments of `network` and `recipe` stood among the others. Those of a detector never changed.
    """
    upgraded = dict(saved)
    if "network" in saved:
        upgraded.pop("detector", None)  # written for version 0.1.0, see `write_info`
        return upgraded
    if "decoder" not in saved:
        return upgraded
    for group, names in FLAT_BEFORE_FORMAT_2.items():
        upgraded[group] = {name: upgraded.pop(name) for name in names if name in upgraded}
    return upgraded


def saved_detector(hyper_parameters: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return name and builder options of the detector in the hyper-parameters of any task and format."""
    network = hyper_parameters.get("network", hyper_parameters)
    return network["detector"], dict(network.get("detector_options") or {})


def read_info(content: Mapping[str, Any], source: object) -> CheckpointInfo:
    """Return the description that a checkpoint carries; in format 0, what its hyper-parameters say.

    Args:
        content: a checkpoint for which `is_ours` holds.
        source: its path, for messages.

    Raises:
        CheckpointError: the format is newer than this version, or the description is malformed.
    """
    entry = content.get(KEY)
    try:
        if entry is None:
            return _parse_info(_flatten(content["hyper_parameters"]), "unknown", 0)
        if entry["format"] <= FORMAT:
            return _parse_info(entry, str(entry["version"]), int(entry["format"]))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CheckpointError(f"{source}: its entry '{KEY}' is malformed ({error!r}); it was edited") from error
    raise CheckpointError(
        f"{source}: written by dasnet_lightning {entry['version']} in format {entry['format']}, this is version "
        f"{__version__}, which reads formats up to {FORMAT}: update the library"
    )


def check_fits(content: Mapping[str, Any], own: CheckpointInfo, source: object, whole: bool = True) -> None:
    """Check that a checkpoint is of the same task, detector, classes and image size.

    Args:
        content: the checkpoint.
        own: description of the task that reads it.
        source: path of the checkpoint, for messages.
        whole: True to continue a training. False to take over weights, which fit images of any size.

    Raises:
        CheckpointError: names the first difference.
    """
    saved = read_info(content, source)
    if saved.task != own.task:
        raise CheckpointError(_mismatch(source, saved, f"holds a task '{saved.task}', expected '{own.task}'"))
    if saved.detector != own.detector:
        raise CheckpointError(
            _mismatch(source, saved, f"its detector is '{saved.detector}', expected '{own.detector}'")
        )
    check_classes(saved, own.num_classes, own.class_names, source)
    if whole and saved.image_size and own.image_size and saved.image_size != own.image_size:
        theirs, ours = ("x".join(map(str, size)) for size in (saved.image_size, own.image_size))
        raise CheckpointError(
            _mismatch(source, saved, f"its images have {theirs} pixels (height x width), expected {ours}")
        )


def check_classes(saved: CheckpointInfo, num_classes: int, class_names: Sequence[str], source: object) -> None:
    """Check that a checkpoint has the same classes in the same order.

    Args:
        saved: description of the checkpoint.
        num_classes: expected number of classes, background included.
        class_names: expected names, background first; () compares the number alone.
        source: path of the checkpoint, for messages.

    Raises:
        CheckpointError: names the first difference.
    """
    if saved.num_classes != num_classes:
        theirs = _list_classes(saved.num_classes, saved.class_names)
        raise CheckpointError(
            _mismatch(source, saved, f"knows {theirs}, expected {_list_classes(num_classes, class_names)}")
        )
    for label, (theirs, ours) in enumerate(zip(saved.class_names, class_names, strict=False)):
        if theirs != ours:
            raise CheckpointError(_mismatch(source, saved, f"its class {label} is '{theirs}', expected '{ours}'"))


def _flatten(hyper_parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return hyper-parameters of any format with the entries of `network` among the others."""
    return {"task": "detection", **hyper_parameters, **hyper_parameters.get("network", {})}


def _parse_info(values: Mapping[str, Any], version: str, format: int) -> CheckpointInfo:
    size = values.get("image_size")
    return CheckpointInfo(
        version=version,
        format=format,
        task=str(values["task"]),
        detector=str(values["detector"]),
        num_classes=int(values["num_classes"]),
        class_names=tuple(str(name) for name in values.get("class_names") or ()),
        category_ids=tuple(values.get("category_ids") or ()),
        image_size=None if size is None else (int(size[0]), int(size[1])),
    )


def _list_classes(num_classes: int, class_names: Sequence[str]) -> str:
    names = ", ".join(class_names[1 : MAX_LISTED_NAMES + 1])
    more = ", ..." if len(class_names) > MAX_LISTED_NAMES + 1 else ""
    return f"{num_classes - 1} classes{f' ({names}{more})' if names else ''}"


def _mismatch(source: object, saved: CheckpointInfo, difference: str) -> str:
    writer = f"dasnet_lightning {saved.version}" if saved.format else "an earlier version, which did not record itself"
    return f"{source}: does not fit: {difference} (written by {writer})"
