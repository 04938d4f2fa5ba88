"""What a checkpoint says about itself, and whether it fits the task that reads it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dasnet_lightning import __version__
from dasnet_lightning.errors import CheckpointError

KEY = "dasnet_lightning"
FORMAT = 1  # 0: a checkpoint of before, which says nothing about itself but its hyper-parameters
SHOWN = 5


@dataclass(frozen=True)
class CheckpointInfo:
    """Of a task and its network: what its checkpoints carry under `KEY`, and what another one is compared with.

    version: of the library that wrote it, "unknown" in format 0. task: "detection", "semantic" or "instance".
    class_names: background first, () where nobody named them. image_size: (H, W), None where an older checkpoint does
    not tell.
    """

    version: str
    format: int
    task: str
    detector: str
    num_classes: int
    class_names: tuple[str, ...]
    category_ids: tuple[int | str, ...]
    image_size: tuple[int, int] | None

    def plain(self) -> dict[str, Any]:
        """As a checkpoint holds it."""
        return asdict(self)


def describe(hyper_parameters: Mapping[str, Any], image_size: tuple[int, int]) -> CheckpointInfo:
    """The identity of a task, from its hyper-parameters and its detector's image size."""
    task = {"task": "detection", **hyper_parameters, "image_size": image_size}
    return _parse(task, __version__, FORMAT)


def is_ours(content: Mapping[str, Any]) -> bool:
    """Whether a checkpoint was written by one of our tasks."""
    saved = content.get("hyper_parameters")
    known = isinstance(saved, Mapping) and {"detector", "num_classes"} <= set(saved)
    return known and isinstance(content.get("state_dict"), Mapping)


def read_info(content: Mapping[str, Any], source: object) -> CheckpointInfo:
    """What a checkpoint of ours says about itself, or what its hyper-parameters say where it is of format 0.

    Raises CheckpointError where it is of a format that this version does not know.
    """
    entry = content.get(KEY)
    try:
        if entry is None:
            return _parse({"task": "detection", **content["hyper_parameters"]}, "unknown", 0)
        if entry["format"] <= FORMAT:
            return _parse(entry, str(entry["version"]), int(entry["format"]))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        message = f"{source}: what it says about itself cannot be understood ({error!r}), it was changed by somebody"
        raise CheckpointError(message) from error
    raise CheckpointError(
        f"{source}: written by dasnet_lightning {entry['version']} in format {entry['format']}, this is version "
        f"{__version__}, which reads formats up to {FORMAT}: update the library"
    )


def check_fits(content: Mapping[str, Any], own: CheckpointInfo, source: object, whole: bool = True) -> None:
    """Raise CheckpointError, in one sentence, where a checkpoint is of another task, detector, classes or image size.

    whole: as for continuing a training; else only weights are taken over, by a network that may look at images of
    another size.
    """
    found = read_info(content, source)
    if found.task != own.task:
        raise CheckpointError(_sentence(source, found, f"holds a task '{found.task}', expected '{own.task}'"))
    if found.detector != own.detector:
        raise CheckpointError(
            _sentence(source, found, f"its detector is '{found.detector}', expected '{own.detector}'")
        )
    check_classes(found, own.num_classes, own.class_names, source)
    if whole and found.image_size and own.image_size and found.image_size != own.image_size:
        theirs, ours = ("x".join(map(str, size)) for size in (found.image_size, own.image_size))
        raise CheckpointError(
            _sentence(source, found, f"its images have {theirs} pixels (height x width), expected {ours}")
        )


def check_classes(found: CheckpointInfo, num_classes: int, class_names: Sequence[str], source: object) -> None:
    """Raise CheckpointError where a checkpoint knows other classes, or the same ones in another order.

    class_names: background first; () compares the number alone.
    """
    if found.num_classes != num_classes:
        theirs, ours = _list(found.num_classes, found.class_names), _list(num_classes, class_names)
        raise CheckpointError(_sentence(source, found, f"knows {theirs}, expected {ours}"))
    for label, (theirs, ours) in enumerate(zip(found.class_names, class_names, strict=False)):
        if theirs != ours:
            raise CheckpointError(_sentence(source, found, f"its class {label} is '{theirs}', expected '{ours}'"))


def _parse(values: Mapping[str, Any], version: str, format: int) -> CheckpointInfo:
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


def _list(num_classes: int, class_names: Sequence[str]) -> str:
    names, more = ", ".join(class_names[1 : SHOWN + 1]), ", ..." if len(class_names) > SHOWN + 1 else ""
    return f"{num_classes - 1} classes{f' ({names}{more})' if names else ''}"


def _sentence(source: object, found: CheckpointInfo, difference: str) -> str:
    writer = f"dasnet_lightning {found.version}" if found.format else "an earlier version, which did not sign"
    return f"{source}: does not fit: {difference} (written by {writer})"
