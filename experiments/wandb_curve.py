"""Table and curve of a metric by mask budget, from W&B runs: `python experiments/wandb_curve.py SOURCE [SOURCE ...]`.

A source is a folder with W&B's local files (a run folder, or one above several), a CSV file exported from a table of runs
on W&B's page, or a JSON file with a list of runs, each with "config" and "summary" or "history", as W&B's Python API has them.
"""

import argparse
import csv
import json
import math
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dasnet_lightning.errors import DataError
from dasnet_lightning.report import Curve, Report, Table, format_text_table, write_report
from dasnet_lightning.training.wandb_files import find_run_files, join_run_files, read_run_file

METRICS = ("val/miou_ground_truth_boxes", "val/miou_detected_boxes")


class Measured(NamedTuple):
    """The result of one budget in one run."""

    run: str
    budget: str
    masks: float
    seed: str
    metrics: Mapping[str, float]


def read_source(path: Path) -> list[Measured]:
    """Return the results of all runs of a folder, a CSV file or a JSON file."""
    if path.is_dir():
        runs = join_run_files(read_run_file(file) for file in find_run_files(path))
        found = [item for name, run in runs.items() for item in read_history(name, run.config, run.rows)]
    elif path.suffix == ".json":
        found = [item for run in json.loads(path.read_text()) for item in read_run(run)]
    elif path.suffix == ".csv":
        with path.open(newline="") as file:
            found = [item for row in csv.DictReader(file) for item in read_history(row.get("ID", ""), row, [row])]
    else:
        raise DataError(f"{path}: expected a folder, or a .csv or .json file exported from W&B")
    if not found:
        raise DataError(f"{path}: holds no result of a mask budget, expected rows with mask_objects and budget")
    return found


def read_run(run: Mapping[str, Any]) -> list[Measured]:
    """Return the results of a run of W&B's Python API; without a history only its last budget."""
    rows = run.get("history") or [run.get("summary") or {}]
    return read_history(str(run.get("id") or run.get("name") or ""), run.get("config", {}), rows)


def read_history(run: str, config: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> list[Measured]:
    """Return the results among the rows of a run: those with the number of masks."""
    found = []
    for row in rows:
        budget = row.get("budget") or row.get("mask_budget") or config.get("mask_budget")
        masks = to_number(row.get("mask_objects"))
        if budget and math.isfinite(masks):
            metrics = {name: to_number(value) for name, value in row.items() if str(name).startswith("val/")}
            found.append(Measured(run, str(budget), masks, str(config.get("split_seed", "")), metrics))
    return found


def to_number(value: Any) -> float:
    """Return a value of an export as a number, NaN if it is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def summarize(found: Sequence[Measured], metric: str) -> list[tuple[str, int, float, float, float | None]]:
    """Return budget, runs, mean number of masks, mean and standard deviation of a metric, by rising number of masks."""
    by_budget: dict[str, list[Measured]] = {}
    for item in found:
        if math.isfinite(item.metrics.get(metric, math.nan)):
            by_budget.setdefault(item.budget, []).append(item)
    rows = []
    for budget, items in by_budget.items():
        values = [item.metrics[metric] for item in items]
        spread = statistics.stdev(values) if len(values) > 1 else None
        masks = statistics.mean(item.masks for item in items)
        rows.append((budget, len(items), masks, statistics.mean(values), spread))
    return sorted(rows, key=lambda row: row[2])


def write_rows(path: Path, found: Sequence[Measured], metrics: Sequence[str]) -> None:
    """Write one row for each result."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "budget", "mask_objects", "split_seed", *metrics])
        for item in found:
            values = [item.metrics.get(metric, "") for metric in metrics]
            writer.writerow([item.run, item.budget, item.masks, item.seed, *values])


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table for each metric, and write what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", type=Path, metavar="SOURCE")
    parser.add_argument("--metric", nargs="+", default=list(METRICS), metavar="NAME", help="default: %(default)s")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write one row for each run and budget")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write a page with the table and the curve")
    args = parser.parse_args(argv)
    try:
        found = [item for source in args.sources for item in read_source(source)]
    except DataError as error:
        print(error, file=sys.stderr)
        return 2
    header = ["mask budget", "runs", "masks", "mean", "standard deviation"]
    summaries = {metric: summarize(found, metric) for metric in args.metric}
    tables = [Table(metric, header, rows, "Over runs, such as split seeds.") for metric, rows in summaries.items()]
    for table in tables:
        print(format_text_table(table), end="\n\n")
    if args.csv:
        write_rows(args.csv, found, args.metric)
    if args.page:
        series = {metric: [(row[2], row[3]) for row in rows] for metric, rows in summaries.items()}
        curve = Curve("Masks and what they give", "masks", "mean over runs", series)
        count = len({item.run for item in found})
        write_report(
            args.page, Report("Metrics by mask budget", f"From {count} W&B runs.", tables=tables, curves=[curve])
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
