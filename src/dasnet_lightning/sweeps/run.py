"""A sweep over mask budgets and seeds: `sweep.csv`, and a page with the learning curve and what it says."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from dasnet_lightning import console
from dasnet_lightning.console import print_table
from dasnet_lightning.data.sources.open import DataSet
from dasnet_lightning.distributed import is_rank_zero
from dasnet_lightning.errors import ConfigError
from dasnet_lightning.report import Report, write_report
from dasnet_lightning.storage.atomic import write_text
from dasnet_lightning.sweeps.cost import CostModel
from dasnet_lightning.sweeps.page import MAIN_METRIC, SweepTables, build_report, read_rivals, sweep_tables
from dasnet_lightning.sweeps.points import SweepPoint, run_points
from dasnet_lightning.training.detector_stage import ResolvedDetector
from dasnet_lightning.training.hardware import quiet_lightning, set_thread_counts
from dasnet_lightning.training.options import TrainOptions, build_config
from dasnet_lightning.training.results import GIVEN_BOXES
from dasnet_lightning.training.run import hold_out_if_needed, run_on_data

BUDGETS = ("1/class", "2/class", "5/class", "10/class", "25/class", "all")
CSV, PAGE = "sweep.csv", "sweep.html"
# the columns of the table beside those of a point
METRICS = ("coco_ap", "coco_ap50", "apr50_area", "apr70_area", "apr75_area", "miou")
BOXES = ("ground_truth_boxes", "detected_boxes")


@dataclass(frozen=True)
class SweepResult:
    """The result of a sweep.

    Attributes:
        folder: of the sweep; it holds `sweep.csv` and `sweep.html`.
        points: all trainings, by seed and budget.
        box_ap50: of the detector, None if it finds no boxes.
    """

    folder: Path
    points: tuple[SweepPoint, ...]
    box_ap50: float | None


def sweep(
    data: str | Path,
    budgets: Sequence[str] = BUDGETS,
    seeds: int | Sequence[int] = 3,
    out: str | Path | None = None,
    cost: CostModel | None = None,
    rivals: str | Path | None = None,
    **options: Unpack[TrainOptions],
) -> SweepResult:
    """Train stage two for each mask budget and seed with one detector, and write the learning curve.

    Finished points are never trained again. A sweep that was interrupted continues when it is started again, and may get
    more budgets and seeds. Several processes may run the same sweep in one folder: they share its points.

    Args:
        data: the data set: a folder, a label file, or a YAML list of several.
        budgets: mask budgets, as `mask_budgets` of `train`. The splits of one seed are nested.
        seeds: number of seeds from 0 on, or the seeds; each is a seed of the split and of the training.
        out: folder of the sweep; None for runs/DATA-sweep.
        cost: what a box and a mask cost to draw; None for published times.
        rivals: CSV file of `experiments/benchmarks/few_masks.py`, for how many masks another method needs.
        options: as in `train`; `seed` is the seed of stage one.

    Raises:
        BudgetError: a mask budget is unknown, or too large.
        ConfigError: an option is unknown or does not fit, or the folder holds another sweep.
        DataError: the data set cannot be used.

    Example:
        >>> result = dasnet_lightning.sweep("data/pets", budgets=("1/class", "5/class", "all"), seeds=3)
        >>> result.folder / "sweep.html"
    """
    arguments = {"budgets": budgets, "seeds": seeds, "out": out, "cost": cost, "rivals": rivals, **options}
    given = [repr(str(data)), *(f"{name}={value!r}" for name, value in arguments.items() if value is not None)]
    command = f"dasnet_lightning.sweep({', '.join(given)})"
    return run_sweep(data, budgets, seeds, out, cost, rivals, options, command)


def run_sweep(
    data: str | Path,
    budgets: Sequence[str],
    seeds: int | Sequence[int],
    out: str | Path | None,
    cost: CostModel | None,
    rivals: str | Path | None,
    options: Mapping[str, Any],
    command: str,
) -> SweepResult:
    """Do the work of `sweep`, whose arguments it takes; `command` is what the page shows."""
    chosen = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not budgets or not chosen:
        raise ConfigError(f"a sweep of {len(budgets)} budgets and {len(chosen)} seeds has no point")
    unsupported = [name for name in ("mask_budgets", "split_seed", "joint_steps") if options.get(name)]
    if unsupported:
        raise ConfigError(f"sweep: {unsupported[0]} is not an option of a sweep; use budgets and seeds")
    folder = Path(out) if out is not None else Path("runs") / f"{Path(data).resolve().stem}-sweep"
    config = build_config(data, folder, {**options, "mask_budgets": ("sweep",)}, "sweep")
    metric = MAIN_METRIC[config.task]
    others = None if rivals is None else read_rivals(Path(rivals), metric)  # before hours of training
    quiet_lightning()
    set_thread_counts(config.num_workers or 0)

    def stages(dataset: DataSet, detector: ResolvedDetector, notes: Sequence[str]) -> SweepResult:
        settings = hold_out_if_needed(config, detector)
        detection, points = run_points(settings, dataset, detector, budgets, chosen)
        box_ap50 = detection.get("val/box_ap50") if detector.name != GIVEN_BOXES else None
        result = SweepResult(config.folder, tuple(points), box_ap50)
        if is_rank_zero():
            boxes = sum(len(record.objects) for record in dataset.train.records)
            tables = sweep_tables(result.points, metric, boxes, cost or CostModel(), others)
            _write(result, tables, build_report(result.points, metric, tables, config, box_ap50, notes, command))
        return result

    return run_on_data(config, stages, [(budget, seed) for seed in chosen for budget in budgets])


def _write(result: SweepResult, tables: SweepTables, report: Report) -> None:
    """Write the CSV file and the page, and print the tables."""
    write_text(result.folder / CSV, points_csv(result.points))
    page = write_report(result.folder / PAGE, report)
    for table in tables.all:
        print_table(table)
    console.out(f"table: {result.folder / CSV}")
    console.out(f"page: {page}")


def points_csv(points: Sequence[SweepPoint]) -> str:
    """Return one row for each point; times and paths are left out, so that the same points give the same bytes."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    names = [f"{metric}_{boxes}" for boxes in BOXES for metric in METRICS]
    writer.writerow(["budget", "seed", "mask_images", "mask_objects", *names])
    for point in points:
        values: list[Any] = [point.metrics.get(f"val/{name}") for name in names]
        cells = ["" if value is None or value != value or value < 0 else f"{value:.6f}" for value in values]
        writer.writerow([point.budget, point.seed, point.mask_images, point.mask_objects, *cells])
    return file.getvalue()
