"""Mask budgets and the split they draw: the training images whose masks may be used.

A budget is a number of images ('37'), a number per class ('5/class'), 'all', or a name of the paper (section 7).

One seed gives one order of all images that have masks. In every round each class takes its next image, in its own
shuffled order, that no class took before. Every budget is a prefix of that order, so it contains all smaller budgets
(paper, section 3; Seg100 = 5 rounds over 20 classes = 100 distinct images). Images are shuffled by sorting hashes, so the
order is the same on every machine and version.

A checkpoint keeps its split, because training cannot be resumed with other masks.
"""

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from dasnet_lightning.data.records import ImageRecord, MaskState
from dasnet_lightning.errors import BudgetError, ConfigError, DataError
from dasnet_lightning.storage.atomic import write_text

FORMAT = "dasnet-mask-split"
VERSION = 1

NAMED_BUDGETS = {"seg100": "5/class", "seg200": "10/class", "seg500": "25/class", "seg1.4k": "1464", "seg10k": "10528"}

ACCEPTED_BUDGETS = (
    "a number of images ('37', '0'), a number per class ('5/class'), 'all', or one of the paper's: "
    "'seg100', 'seg200', 'seg500' (5, 10, 25 images per class), 'seg1.4k' (1464 images), 'seg10k' (10528 images)"
)


@dataclass(frozen=True)
class Budget:
    """How many images may use their masks: `amount` images, `amount` images per class, or all (`amount` is then 0)."""

    kind: Literal["images", "per_class", "all"]
    amount: int
    name: str


@dataclass(frozen=True)
class Split:
    """Images whose masks may be used in training.

    Attributes:
        image_ids: ids in drawing order.
        budget: name of the budget.
        seed: seed of the drawing.
        candidates: number of images that have masks.
        per_class: number of drawn images that show each class.
        short: classes with fewer images than the budget asks for, as (wanted, available).
    """

    image_ids: tuple[str, ...]
    budget: str
    seed: int
    candidates: int
    per_class: dict[int, int] = field(default_factory=dict)
    short: dict[int, tuple[int, int]] = field(default_factory=dict)


def parse_budget(text: str | int) -> Budget:
    """Parse a budget of the command line or of a configuration. Raises BudgetError that lists the accepted forms."""
    name = str(text).strip().lower()
    form = NAMED_BUDGETS.get(name, name)
    if form == "all":
        return Budget("all", 0, name)
    match = re.fullmatch(r"([0-9]{1,12})(/class)?", form)
    if match is None or isinstance(text, bool):
        raise BudgetError(f"mask budget '{text}' is not valid, expected {ACCEPTED_BUDGETS}")
    return Budget("per_class" if match[2] else "images", int(match[1]), name)


def mask_labels(records: Sequence[ImageRecord]) -> tuple[tuple[str, ...], tuple[frozenset[int], ...]]:
    """Return the image ids and the labels with a mask by a person in each image, for `make_split`; opens no file."""
    usable = [
        [item for item in record.objects if item.mask is MaskState.PRESENT and not (item.ignore or item.by_model)]
        for record in records
    ]
    labels = tuple(frozenset(item.label for item in items) for items in usable)
    return tuple(record.image_id for record in records), labels


def make_split(
    image_ids: Sequence[str],
    labels: Sequence[Collection[int]],
    budget: Budget | str | int,
    seed: int,
    num_classes: int | None = None,
) -> Split:
    """Draw the images whose masks may be used; the result does not depend on the order of the images.

    Args:
        image_ids: distinct ids.
        labels: classes that have a mask in each image; an image without any cannot be drawn.
        budget: a parsed budget, or one as users write it.
        seed: seed of the drawing.
        num_classes: number of classes with background. If given, classes without any mask are reported as short too.

    Raises:
        BudgetError: more images are asked for than have masks, or images per class although no image has a mask.
        DataError: ids repeat, or the lengths of `image_ids` and `labels` differ.
    """
    parsed = budget if isinstance(budget, Budget) else parse_budget(budget)
    candidates = _select_candidates(image_ids, labels)
    order, rounds = _drawing_order(candidates, seed)
    drawn = order[: _number_to_draw(parsed, len(order), rounds)]
    available = _count_per_class(candidates, order)
    classes = available if num_classes is None else range(1, num_classes)
    wanted = parsed.amount if parsed.kind == "per_class" else 0
    return Split(
        image_ids=tuple(drawn),
        budget=parsed.name,
        seed=seed,
        candidates=len(order),
        per_class=_count_per_class(candidates, drawn),
        short={label: (wanted, available.get(label, 0)) for label in classes if available.get(label, 0) < wanted},
    )


def write_split(split: Split, path: Path) -> None:
    """Write a split as JSON, atomically."""
    write_text(path, json.dumps({"format": FORMAT, "version": VERSION, **asdict(split)}, indent=1, ensure_ascii=False))


def describe_short(split: Split, class_names: Sequence[str], limit: int = 20) -> list[str]:
    """Return a sentence for each class with fewer images than the budget asks for, and a count of those beyond `limit`."""
    texts = [
        f"class '{class_names[label]}' has {available} images with masks, the budget '{split.budget}' asks for {wanted} "
        "of each class"
        for label, (wanted, available) in split.short.items()
    ]
    return texts[:limit] + ([f"and {len(texts) - limit} more such classes"] if len(texts) > limit else [])


def read_split(path: Path) -> Split:
    """Read a split that `write_split` wrote. Raises DataError for every other file."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as a mask split ({error}), draw the split again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f'{path}: not a mask split, expected a JSON file with "format": "{FORMAT}"')
    if content.get("version") != VERSION:
        raise DataError(f"{path}: mask split of version {content.get('version')}, expected {VERSION}; draw it again")
    try:
        return _parse_split(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: the mask split is damaged ({error!r}), draw it again") from error


def read_split_of(path: Path, records: Sequence[ImageRecord]) -> Split:
    """Read a split file. Raises DataError if it names images that are not among the training images."""
    split = read_split(path)
    unknown = sorted(set(split.image_ids) - {record.image_id for record in records})
    if unknown:
        raise DataError(
            f"{path}: {len(unknown)} images of the split are not among the training images, the first is '{unknown[0]}'; "
            "use a split that was written for this data set"
        )
    return split


def split_state(split: Split | None) -> dict[str, Any] | None:
    """Return what a checkpoint keeps of a split, in plain values; None if no masks are used."""
    return None if split is None else {"image_ids": split.image_ids, "budget": split.budget, "seed": split.seed}


def check_same_split(split: Split | None, saved: Mapping[str, Any] | None, checkpoint: object) -> None:
    """Raise ConfigError if a resumed training has other masks than its checkpoint was trained on.

    Args:
        split: split of the training.
        saved: `split_state` in the checkpoint.
        checkpoint: path of the checkpoint, for the message.
    """
    current = split_state(split)
    differing = sorted(_image_ids(current) ^ _image_ids(saved))
    if not differing:
        return
    raise ConfigError(
        f"{checkpoint}: was trained on {_describe_state(saved)}, this training has {_describe_state(current)}; "
        f"{len(differing)} images differ, the first is '{differing[0]}'; resume with the same mask_budget, split_seed and "
        "data, or start a new training"
    )


def _select_candidates(image_ids: Sequence[str], labels: Sequence[Collection[int]]) -> dict[str, Collection[int]]:
    if len(image_ids) != len(labels):
        raise DataError(f"got {len(image_ids)} image ids and labels of {len(labels)} images, expected one entry each")
    if len(set(image_ids)) < len(image_ids):
        raise DataError(
            f"image ids repeat: {len(image_ids)} ids, {len(set(image_ids))} distinct; give each image its own"
        )
    return {image_id: classes for image_id, classes in zip(image_ids, labels, strict=True) if classes}


def _drawing_order(candidates: Mapping[str, Collection[int]], seed: int) -> tuple[list[str], list[int]]:
    """Return all candidates in drawing order, and how many were drawn after each round."""
    classes = sorted({label for labels in candidates.values() for label in labels})
    queues = {
        label: sorted(
            (image_id for image_id, labels in candidates.items() if label in labels),
            key=lambda image_id: _hash(seed, label, image_id),
        )
        for label in classes
    }
    positions = dict.fromkeys(classes, 0)
    order: dict[str, None] = {}
    rounds = [0]
    while len(order) < len(candidates):
        for label, queue in queues.items():
            while positions[label] < len(queue) and queue[positions[label]] in order:
                positions[label] += 1
            if positions[label] < len(queue):
                order[queue[positions[label]]] = None
        rounds.append(len(order))
    return list(order), rounds


def _hash(seed: int, label: int, image_id: str) -> tuple[bytes, str]:
    text = f"{seed}/{label}/{image_id}"
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest(), image_id


def _number_to_draw(budget: Budget, candidates: int, rounds: Sequence[int]) -> int:
    if budget.kind == "all":
        return candidates
    if budget.kind == "per_class":
        if candidates == 0 and budget.amount > 0:
            raise BudgetError(
                f"mask budget '{budget.name}' asks for {budget.amount} images per class, but no image has a mask; "
                "add masks or choose the budget '0'"
            )
        return rounds[min(budget.amount, len(rounds) - 1)]
    if budget.amount > candidates:
        raise BudgetError(
            f"mask budget '{budget.name}' asks for {budget.amount} images with masks, {candidates} are available; "
            "choose a smaller budget or 'all'"
        )
    return budget.amount


def _count_per_class(candidates: Mapping[str, Collection[int]], image_ids: Sequence[str]) -> dict[int, int]:
    counts: dict[int, int] = {}
    for image_id in image_ids:
        for label in set(candidates[image_id]):
            counts[label] = counts.get(label, 0) + 1
    return dict(sorted(counts.items()))


def _parse_split(content: Mapping[str, Any]) -> Split:
    ids = content["image_ids"]
    if not isinstance(ids, list) or not all(isinstance(item, str) for item in ids) or len(set(ids)) < len(ids):
        raise ValueError("image_ids is not a list of distinct strings")
    numbers = (content["seed"], content["candidates"])
    if not all(type(number) is int for number in numbers) or not isinstance(content["budget"], str):
        raise ValueError("budget, seed or candidates has the wrong type")
    return Split(
        image_ids=tuple(ids),
        budget=content["budget"],
        seed=content["seed"],
        candidates=content["candidates"],
        per_class={int(label): int(count) for label, count in content["per_class"].items()},
        short={int(label): (int(wanted), int(available)) for label, (wanted, available) in content["short"].items()},
    )


def _image_ids(state: Mapping[str, Any] | None) -> frozenset[str]:
    return frozenset() if state is None else frozenset(state["image_ids"])


def _describe_state(state: Mapping[str, Any] | None) -> str:
    if state is None:
        return "no masks"
    return f"the masks of {len(state['image_ids'])} images (budget '{state['budget']}', split_seed {state['seed']})"
