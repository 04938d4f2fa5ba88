"""Mask budgets: those of `make_split`, and `Nobjects`: exactly N objects of each reported class."""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from dasnet_lightning.data.splits import make_split, mask_labels
from dasnet_lightning.types import Target

from .data import Photographs, Study


@dataclass(frozen=True)
class MaskedObjects:
    """The objects whose masks may be used.

    Attributes:
        objects: indices of the objects, by index of the training image.
        counts: number of (images, objects) of each class name.
    """

    objects: Mapping[int, tuple[int, ...]]
    counts: Mapping[str, tuple[int, int]]

    @property
    def images(self) -> tuple[int, ...]:
        """Indices of the images with a mask."""
        return tuple(sorted(self.objects))

    @property
    def masks(self) -> int:
        """Number of masks."""
        return sum(map(len, self.objects.values()))

    def describe(self) -> str:
        """Return the images and objects of each class as one line."""
        return ", ".join(f"{name} {images}/{objects}" for name, (images, objects) in self.counts.items())

    def limit(self, targets: list[Target]) -> list[Target]:
        """Return the targets with the masks of the budget only; the other masks are missing."""
        limited = []
        for index, target in enumerate(targets):
            allowed = torch.zeros_like(target.has_mask)
            allowed[list(self.objects.get(index, ()))] = True
            limited.append(replace(target, has_mask=target.has_mask & allowed))
        return limited


def draw_masks(study: Study, budget: str, seed: int) -> MaskedObjects:
    """Draw the masks of a budget.

    Args:
        study: the data set.
        budget: as `make_split` reads it, or `5objects` for exactly five objects of each reported class.
        seed: seed of the drawing.
    """
    train = study.train
    exact = re.fullmatch(r"([0-9]+)objects", budget)
    if exact:
        objects = _exact_objects(study, int(exact[1]), seed)
    else:
        split = make_split(*mask_labels(train.records), budget, seed, len(study.class_names))
        drawn = set(split.image_ids)
        objects = {
            index: found
            for index, record in enumerate(train.records)
            if record.image_id in drawn and (found := usable_objects(train.targets[index]))
        }
    return MaskedObjects(objects, _count(study, objects))


def usable_objects(target: Target) -> tuple[int, ...]:
    """Return the objects of an image that have a mask to learn from."""
    return tuple(torch.nonzero(target.has_mask & ~target.ignore)[:, 0].tolist())


def _exact_objects(study: Study, number: int, seed: int) -> dict[int, tuple[int, ...]]:
    """Return the first `number` objects of each reported class in the order of a hash; larger numbers contain smaller."""
    by_label: dict[int, list[tuple[bytes, int, int]]] = {label: [] for label in study.main}
    for index, (record, target) in enumerate(zip(study.train.records, study.train.targets, strict=True)):
        for item in usable_objects(target):
            label = int(target.labels[item])
            if label in by_label:
                text = f"{seed}/{label}/{record.image_id}/{item}".encode(errors="surrogatepass")
                by_label[label].append((hashlib.blake2b(text, digest_size=16).digest(), index, item))
    objects: dict[int, tuple[int, ...]] = {}
    for candidates in by_label.values():
        for _, index, item in sorted(candidates)[:number]:
            objects[index] = (*objects.get(index, ()), item)
    return objects


def _count(study: Study, objects: Mapping[int, tuple[int, ...]]) -> dict[str, tuple[int, int]]:
    images, masks = Counter[int](), Counter[int]()
    for index, items in objects.items():
        labels = study.train.targets[index].labels[list(items)].tolist()
        images.update(set(labels))
        masks.update(labels)
    return {study.class_names[label]: (images[label], masks[label]) for label in sorted(masks)}


def limited_targets(photographs: Photographs, masked: MaskedObjects) -> tuple[list[Target], list[Target]]:
    """Return the targets of all images and of their mirror images, with the masks of the budget only."""
    return masked.limit(photographs.targets), masked.limit(photographs.mirrored_targets)
