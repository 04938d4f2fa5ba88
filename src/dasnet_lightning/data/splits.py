"""Mask budgets: which images' masks may be used in training, drawn so that every budget contains all smaller ones.

One seed gives one order of all images that have masks: in every round each class takes its next image, in its own shuffled
order, that no class took before. Every budget is a prefix of that order (paper, section 3; Seg100 = 5 rounds over 20
classes = 100 distinct images). The shuffles are sorted by hashes, so they are the same on every machine and version.

Mask budgets as users write them: '37', '5/class', 'all', or one of the paper's names (section 7).

The split inside a checkpoint: with other masks than before, a training would not continue but be another one.
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


NAMED = {"seg100": "5/class", "seg200": "10/class", "seg500": "25/class", "seg1.4k": "1464", "seg10k": "10528"}


ACCEPTED = (
    "a number of images ('37', '0'), a number per class ('5/class'), 'all', or one of the paper's: "
    "'seg100', 'seg200', 'seg500' (5, 10, 25 images per class), 'seg1.4k' (1464 images), 'seg10k' (10528 images)"
)


@dataclass(frozen=True)
class Budget:
    """How many images may show their masks: `amount` images, `amount` per class, or all (the amount is then 0)."""

    kind: Literal["images", "per_class", "all"]
    amount: int
    name: str


def parse_budget(text: str | int) -> Budget:
    """Read a budget as the command line and the configurations write it. Raises BudgetError with the accepted forms."""
    name = str(text).strip().lower()
    form = NAMED.get(name, name)
    if form == "all":
        return Budget("all", 0, name)
    match = re.fullmatch(r"([0-9]{1,12})(/class)?", form)
    if match is None or isinstance(text, bool):
        raise BudgetError(f"mask budget '{text}' cannot be read, expected {ACCEPTED}")
    return Budget("per_class" if match[2] else "images", int(match[1]), name)


@dataclass(frozen=True)
class Split:
    """The images whose masks may be used, in drawing order; `budget` is the name of the budget.

    candidates: how many images have masks. per_class: how many drawn images show each class. short: the classes with
    fewer images than the budget wants of each, as (wanted, available).
    """

    image_ids: tuple[str, ...]
    budget: str
    seed: int
    candidates: int
    per_class: dict[int, int] = field(default_factory=dict)
    short: dict[int, tuple[int, int]] = field(default_factory=dict)


def mask_labels(records: Sequence[ImageRecord]) -> tuple[tuple[str, ...], tuple[frozenset[int], ...]]:
    """Image ids, and the labels that have a mask in each image; what `make_split` draws from. Opens no file."""
    labels = tuple(
        frozenset(item.label for item in record.objects if item.mask is MaskState.PRESENT and not item.ignore)
        for record in records
    )
    return tuple(record.image_id for record in records), labels


def make_split(
    image_ids: Sequence[str],
    labels: Sequence[Collection[int]],
    budget: Budget | str | int,
    seed: int,
    num_classes: int | None = None,
) -> Split:
    """Draw the images whose masks may be used; independent of the order of the images.

    labels: of each image, the classes that have a mask there; an image with none is no candidate. num_classes: with
    background; given, classes without any mask are reported as short too. Raises BudgetError where the budget asks for more
    images than have masks, or for images per class where there is no mask at all.
    """
    wanted = budget if isinstance(budget, Budget) else parse_budget(budget)
    known = _collect(image_ids, labels)
    order, rounds = _draw(known, seed)
    drawn = order[: _count(wanted, len(order), rounds)]
    available = _per_class(known, order)
    classes = available if num_classes is None else range(1, num_classes)
    least = wanted.amount if wanted.kind == "per_class" else 0
    return Split(
        image_ids=tuple(drawn),
        budget=wanted.name,
        seed=seed,
        candidates=len(order),
        per_class=_per_class(known, drawn),
        short={label: (least, available.get(label, 0)) for label in classes if available.get(label, 0) < least},
    )


def write_split(split: Split, path: Path) -> None:
    """Write a split; a reader sees the old file or the new one, never half of one."""
    write_text(path, json.dumps({"format": FORMAT, "version": VERSION, **asdict(split)}, indent=1, ensure_ascii=False))


def read_split(path: Path) -> Split:
    """Read a split that `write_split` wrote. Raises DataError for every other file."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as a mask split ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f'{path}: is no mask split, expected a JSON with "format": "{FORMAT}"')
    if content.get("version") != VERSION:
        raise DataError(f"{path}: is a mask split of version {content.get('version')}, expected {VERSION}")
    try:
        return _parse(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: the mask split is damaged ({error!r}), draw it again") from error


def _collect(image_ids: Sequence[str], labels: Sequence[Collection[int]]) -> dict[str, Collection[int]]:
    if len(image_ids) != len(labels):
        raise DataError(f"{len(image_ids)} images but labels for {len(labels)}, expected one entry for each image")
    known = {image_id: owned for image_id, owned in zip(image_ids, labels, strict=True) if owned}
    if len(set(image_ids)) < len(image_ids):
        raise DataError(f"image ids occur twice: {len(image_ids)} ids, {len(set(image_ids))} distinct")
    return known


def _draw(known: dict[str, Collection[int]], seed: int) -> tuple[list[str], list[int]]:
    """All candidates in drawing order, and how many were drawn after each round."""
    classes = sorted({label for owned in known.values() for label in owned})
    queues = {
        label: sorted((item for item in known if label in known[item]), key=lambda item: _hash(seed, label, item))
        for label in classes
    }
    places = dict.fromkeys(classes, 0)
    order: dict[str, None] = {}
    rounds = [0]
    while len(order) < len(known):
        for label, queue in queues.items():
            while places[label] < len(queue) and queue[places[label]] in order:
                places[label] += 1
            if places[label] < len(queue):
                order[queue[places[label]]] = None
        rounds.append(len(order))
    return list(order), rounds


def _hash(seed: int, label: int, image_id: str) -> tuple[bytes, str]:
    return hashlib.blake2b(
        f"{seed}/{label}/{image_id}".encode(errors="surrogatepass"), digest_size=16
    ).digest(), image_id


def _count(budget: Budget, candidates: int, rounds: Sequence[int]) -> int:
    if budget.kind == "all":
        return candidates
    if budget.kind == "per_class":
        if candidates == 0 and budget.amount > 0:
            raise BudgetError(
                f"mask budget '{budget.name}' wants {budget.amount} images per class, but no image has a mask"
            )
        return rounds[min(budget.amount, len(rounds) - 1)]
    if budget.amount > candidates:
        raise BudgetError(
            f"mask budget '{budget.name}' wants {budget.amount} images with masks, {candidates} are available; "
            "choose a smaller budget or 'all'"
        )
    return budget.amount


def _per_class(known: dict[str, Collection[int]], chosen: Sequence[str]) -> dict[int, int]:
    counts: dict[int, int] = {}
    for item in chosen:
        for label in set(known[item]):
            counts[label] = counts.get(label, 0) + 1
    return dict(sorted(counts.items()))


def _parse(content: dict[str, Any]) -> Split:
    ids = content["image_ids"]
    numbers = (content["seed"], content["candidates"])
    if not isinstance(ids, list) or not all(isinstance(item, str) for item in ids) or len(set(ids)) < len(ids):
        raise ValueError("image_ids is no list of distinct names")
    if not all(type(number) is int for number in numbers) or not isinstance(content["budget"], str):
        raise ValueError("budget, seed or candidates have the wrong type")
    return Split(
        image_ids=tuple(ids),
        budget=content["budget"],
        seed=content["seed"],
        candidates=content["candidates"],
        per_class={int(label): int(count) for label, count in content["per_class"].items()},
        short={int(label): (int(wanted), int(there)) for label, (wanted, there) in content["short"].items()},
    )


def split_state(split: Split | None) -> dict[str, Any] | None:
    """What a checkpoint keeps of a split, in plain values; None where no masks are used."""
    return None if split is None else {"image_ids": split.image_ids, "budget": split.budget, "seed": split.seed}


def check_same_split(split: Split | None, saved: Mapping[str, Any] | None, source: object) -> None:
    """Raise ConfigError, in a sentence, where the masks of a training are not those that its checkpoint was trained on."""
    now, before = _ids(split_state(split)), _ids(saved)
    if now == before:
        return
    differing = sorted(now ^ before)
    raise ConfigError(
        f"{source}: was trained on {_describe(saved)}, this training has {_describe(split_state(split))}; "
        f"{len(differing)} images differ, the first is '{differing[0]}': continue with the same mask_budget, split_seed and "
        "data, or start anew"
    )


def _ids(state: Mapping[str, Any] | None) -> frozenset[str]:
    return frozenset() if state is None else frozenset(state["image_ids"])


def _describe(state: Mapping[str, Any] | None) -> str:
    if state is None:
        return "no masks"
    return f"the masks of {len(state['image_ids'])} images (budget '{state['budget']}', split_seed {state['seed']})"
