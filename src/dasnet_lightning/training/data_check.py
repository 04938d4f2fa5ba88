"""Check of the data set before stage one: everything that would fail later, and the masks that training would rely on."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from dasnet_lightning import console
from dasnet_lightning.console import counter, print_table
from dasnet_lightning.data.label_audit import audit_dataset
from dasnet_lightning.data.label_counts import LabelCounts, count_labels
from dasnet_lightning.data.mask_check import CheckedMasks, check_drawn_masks
from dasnet_lightning.data.obstacles import training_obstacle, validation_obstacle
from dasnet_lightning.data.records import Problem, Source
from dasnet_lightning.data.sources.open import DataSet
from dasnet_lightning.data.splits import Split, make_split, mask_labels
from dasnet_lightning.distributed import run_on_rank_zero
from dasnet_lightning.errors import BudgetError, DataError
from dasnet_lightning.training.data_tables import splits_table

SHOWN = 5  # unused files in the first lines of a training


@dataclass(frozen=True, eq=False)
class CheckedData:
    """Data set of a run after its masks were decoded.

    Attributes:
        dataset: the data set, with masks that cannot be used marked INVALID.
        checked: what was decoded.
        counts: counts of all labels.
    """

    dataset: DataSet
    checked: CheckedMasks
    counts: LabelCounts


def check_labels(dataset: DataSet, draws: Sequence[tuple[str, int]]) -> None:
    """Check what the annotation files alone show; opens no mask.

    Args:
        dataset: the data set.
        draws: mask budgets and their split seeds.

    Raises:
        BudgetError: a mask budget is larger than the number of masks, or 0.
        DataError: a stage would have nothing to train.
    """
    obstacle = training_obstacle(dataset)
    if obstacle:
        raise DataError(f"{dataset.root}: {obstacle}")
    for budget, seed in draws:
        if not draw_budget(dataset.train, budget, seed).image_ids:
            raise BudgetError(f"mask budget '{budget}' has no image, stage two needs masks; choose a larger budget")


def draw_budget(source: Source, budget: str, seed: int) -> Split:
    """Draw the training images of one mask budget."""
    return make_split(*mask_labels(source.records), budget, seed, len(source.class_names))


def check_masks(dataset: DataSet, draws: Sequence[tuple[str, int]]) -> CheckedData:
    """Decode the training masks inside the budgets and all validation masks. Collective.

    Args:
        dataset: the data set.
        draws: mask budgets and their split seeds.

    Raises:
        BudgetError: a mask budget is larger than the number of usable masks.
        DataError: no mask can be used.
    """

    def draw(source: Source) -> Collection[str]:
        return {image for budget, seed in draws for image in draw_budget(source, budget, seed).image_ids}

    def decode() -> CheckedMasks:
        with counter("checking masks") as move:
            return check_drawn_masks(dataset, draw, move)

    checked = run_on_rank_zero(decode)
    corrected = checked.apply(dataset)
    obstacle = training_obstacle(corrected)
    if obstacle:
        raise DataError(f"{dataset.root}: {obstacle}")
    return CheckedData(corrected, checked, count_labels(corrected, audit_dataset(corrected), checked))


def unchecked(dataset: DataSet) -> CheckedData:
    """Return a data set none of whose masks was decoded."""
    checked = CheckedMasks()
    return CheckedData(dataset, checked, count_labels(dataset, audit_dataset(dataset), checked))


def announce_data(data: CheckedData, problems: Sequence[Problem]) -> None:
    """Print the counts of the labels and what deserves a warning."""
    dataset = data.dataset
    console.out(f"{dataset.root}: {dataset.format.upper()}, {len(dataset.train.class_names) - 1} classes")
    print_table(splits_table(data.counts))
    for warning in data_warnings(data, problems):
        console.error(f"warning: {warning}")


def data_warnings(data: CheckedData, problems: Sequence[Problem]) -> list[str]:
    """Return what deserves a warning before training."""
    warnings = []
    if faults := data.checked.faults:
        (name, reason), total = faults[0], data.counts.splits["all"]["masks"] + len(faults)
        warnings.append(
            f"{len(faults)} of {total} masks cannot be used, only their boxes are; the first: {name}: {reason}"
        )
    if obstacle := validation_obstacle(data.dataset.val):
        warnings.append(f"{obstacle}; the metrics are shown as '-'")
    test = data.dataset.test
    refused = 0 if test is None else sum(problem.action == "refused" for problem in test.problems)
    if refused:
        warnings.append(f"{refused} entries of the test split cannot be used; `dasnet data` lists them")
    unused = [str(problem) for problem in problems if problem.action == "unused"]
    warnings += unused[:SHOWN]
    if len(unused) > SHOWN:
        warnings.append(f"{len(unused) - SHOWN} more groups of files are not used; `dasnet data` lists them")
    return warnings
