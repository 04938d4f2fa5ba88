"""Mask budgets as users write them: '37', '5/class', 'all', or one of the paper's names (section 7)."""

import re
from dataclasses import dataclass
from typing import Literal

from dasnet_lightning.errors import BudgetError

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
