"""The split inside a checkpoint: with other masks than before, a training would not continue but be another one."""

from collections.abc import Mapping
from typing import Any

from dasnet_lightning.data.splits import Split
from dasnet_lightning.errors import ConfigError


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
