"""The page of a sweep: learning curve with intervals, retention, the next doubling, cost, and the mask multiplier."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import yaml

from dasnet_lightning.errors import ConfigError
from dasnet_lightning.report import Curve, KeyFigure, Report, Table, Value
from dasnet_lightning.sweeps.cost import CostModel
from dasnet_lightning.sweeps.curve import LearningCurve, fit_curve, masks_needed, worth_drawing
from dasnet_lightning.sweeps.points import SweepPoint
from dasnet_lightning.training.config import RunConfig
from dasnet_lightning.training.report import plain

MAIN_METRIC = {"instance": "coco_ap", "semantic": "miou"}
TITLES = {"coco_ap": "COCO AP", "miou": "mIoU"}
TRUE, FOUND = "ground_truth_boxes", "detected_boxes"
WIDEN = 1.25  # factor of the noise; tests/sweeps/test_curve.py counts how often simulated values lie in their interval
LEAST_GAIN = 0.01  # of a doubling that is worth drawing
RIVAL_METRIC = {"coco_ap": "true/all/ap", "miou": "true/all/miou"}

Rows = list[list[Value]]
Rivals = Mapping[str, Mapping[float, Sequence[float]]]  # values by method and number of masks


@dataclass(frozen=True)
class SweepTables:
    """The tables of a sweep.

    Attributes:
        points: each budget, measured.
        curve: the fitted curve; None with less than two different numbers of masks.
        forecast: what the next masks are worth, None without a curve.
        advice: how many masks are worth drawing, None without a curve.
        multiplier: how many masks other methods need, None without rivals.
    """

    points: Table
    curve: LearningCurve | None = None
    forecast: Table | None = None
    advice: KeyFigure | None = None
    multiplier: Table | None = None

    @property
    def all(self) -> list[Table]:
        """The tables that there are."""
        return [table for table in (self.points, self.forecast, self.multiplier) if table is not None]


def sweep_tables(
    points: Sequence[SweepPoint], metric: str, boxes: int, cost: CostModel, rivals: Rivals | None
) -> SweepTables:
    """Return the tables of a sweep.

    Args:
        points: finished trainings.
        metric: name of the metric that the curve shows.
        boxes: number of boxes of the training images.
        cost: what labels cost to draw.
        rivals: measured values of other methods, or None.
    """
    multiplier = None if rivals is None else multiplier_table(points, metric, rivals)
    curve, measured = fitted(points, metric), points_table(points, metric)
    if curve is None:
        return SweepTables(measured, multiplier=multiplier)
    forecast = forecast_table(points, metric, curve, boxes, cost)
    return SweepTables(measured, curve, forecast, _advice(points, curve, boxes, cost), multiplier)


def build_report(
    points: Sequence[SweepPoint],
    metric: str,
    tables: SweepTables,
    config: RunConfig,
    box_ap50: float | None,
    notes: Sequence[str],
    command: str,
) -> Report:
    """Return the page of a sweep.

    Args:
        points: finished trainings.
        metric: name of the metric that the curve shows.
        tables: their tables.
        config: options of the sweep.
        box_ap50: of the detector, None if it finds no boxes.
        notes: what a reader of the metrics must know.
        command: what started the sweep.
    """
    rows = tables.points.rows
    figures = [KeyFigure(f"{TITLES[metric]}, {row[0]} masks", row[4], "ground-truth boxes, mean") for row in rows]
    figures += [] if tables.advice is None else [tables.advice]
    figures += [] if box_ap50 is None else [KeyFigure("box AP50", box_ap50, "one detector for all points")]
    seeds = len({point.seed for point in points})
    return Report(
        title="How many masks?",
        summary=(
            f"{len(points)} trainings of stage two with one detector ({config.detector}, decoder {config.decoder}): "
            f"{len(rows)} mask budgets, {seeds} seeds." + "".join(f" Note: {note}." for note in notes)
        ),
        key_figures=figures,
        tables=tables.all,
        curves=[learning_curves(points, metric, tables.curve)],
        command=command,
        configuration=yaml.safe_dump(plain(asdict(config)), sort_keys=False),
    )


def by_budget(points: Sequence[SweepPoint]) -> Mapping[str, list[SweepPoint]]:
    """Return the points of each budget, by their mean number of masks."""
    groups: dict[str, list[SweepPoint]] = {}
    for point in points:
        groups.setdefault(point.budget, []).append(point)
    return dict(sorted(groups.items(), key=lambda item: _mean([point.mask_objects for point in item[1]])))


def value_of(point: SweepPoint, metric: str, boxes: str = TRUE) -> float:
    """Return a metric of a point, nan if there was nothing to measure."""
    value = point.metrics.get(f"val/{metric}_{boxes}", math.nan)
    return math.nan if value < 0 else value


def points_table(points: Sequence[SweepPoint], metric: str) -> Table:
    """Return mean and spread of each budget, and its share of what all masks give."""
    groups = by_budget(points)
    best = _mean([value_of(point, metric) for point in groups.get("all", [])])
    rows: Rows = []
    for budget, group in groups.items():
        true, found = ([value_of(point, metric, kind) for point in group] for kind in (TRUE, FOUND))
        rows.append(
            [
                budget,
                round(_mean([point.mask_images for point in group])),
                round(_mean([point.mask_objects for point in group])),
                len(group),
                _mean(true),
                _spread(true),
                _mean(found),
                _spread(found),
                None if math.isnan(best) or not best else _mean(true) / best,
                round(_mean([point.seconds for point in group])),
            ]
        )
    header = [
        *("mask budget", "images", "masks", "seeds", "ground-truth boxes", "±", "detected boxes", "±"),
        *("share of all masks", "seconds"),
    ]
    note = "±: standard deviation over the seeds. Images, masks and seconds of a training are means over the seeds."
    return Table(f"{TITLES[metric]} by mask budget", header, rows, note)


def fitted(points: Sequence[SweepPoint], metric: str) -> LearningCurve | None:
    """Return the learning curve, None with less than two different numbers of masks."""
    usable = [point for point in points if not math.isnan(value_of(point, metric)) and point.mask_objects]
    masks = [float(point.mask_objects) for point in usable]
    if len(set(masks)) < 2:
        return None
    return fit_curve(masks, [value_of(point, metric) for point in usable], WIDEN)


def learning_curves(points: Sequence[SweepPoint], metric: str, curve: LearningCurve | None) -> Curve:
    """Return the measured means over the number of masks, and the fitted curve with its interval."""
    groups = by_budget(points)
    series: dict[str, list[tuple[float, float]]] = {}
    for title, kind in (("ground-truth boxes", TRUE), ("detected boxes", FOUND)):
        means = [
            (math.log10(_mean([p.mask_objects for p in group])), _mean([value_of(p, metric, kind) for p in group]))
            for group in groups.values()
        ]
        if any(not math.isnan(value) for _, value in means):
            series[title] = means
    if curve is not None:
        counts = [point.mask_objects for point in points if point.mask_objects]
        grid = np.geomspace(min(counts), 4 * max(counts), 40)
        fits = [(float(np.log10(number)), curve.predict(float(number))) for number in grid]
        series["fit"] = [(x, item.value) for x, item in fits]
        series["90 % low"] = [(x, item.low) for x, item in fits]
        series["90 % high"] = [(x, item.high) for x, item in fits]
    return Curve("Learning curve", "log10 of the number of masks", TITLES[metric], series)


def forecast_table(
    points: Sequence[SweepPoint], metric: str, curve: LearningCurve, boxes: int, cost: CostModel
) -> Table:
    """Return what each budget costs, and what twice as many masks would add."""
    rows: Rows = []
    for budget, group in by_budget(points).items():
        masks = _mean([point.mask_objects for point in group])
        if not masks:
            continue
        gain = curve.predict_gain(masks)
        rows.append(
            [
                budget,
                round(masks),
                cost.describe(cost.total(boxes, masks)),
                gain.value,
                f"{gain.low:.3f} to {gain.high:.3f}",
                cost.describe(cost.total(0, masks)),
            ]
        )
    header = ["mask budget", "masks", "cost with boxes", "gain of a doubling", "90 % interval", "cost of the doubling"]
    note = (
        f"Gain: predicted by the fitted curve, {TITLES[metric]} with ground-truth boxes. Cost: {cost.box:g} {cost.unit} a "
        f"box on all {boxes:,} boxes, {cost.mask:g} {cost.unit} a mask."
    )
    return Table("What the next masks are worth", header, rows, note)


def _advice(points: Sequence[SweepPoint], curve: LearningCurve, boxes: int, cost: CostModel) -> KeyFigure:
    number = worth_drawing(curve, [point.mask_objects for point in points if point.mask_objects], LEAST_GAIN)
    spent = cost.describe(cost.total(boxes, number))
    return KeyFigure(
        "masks worth drawing", number, f"then a doubling gains less than {LEAST_GAIN:g}; {spent} with boxes"
    )


def read_rivals(path: Path, metric: str) -> Rivals:
    """Return the values of other methods by method and number of masks, from a CSV file of the few-mask benchmark.

    Raises:
        ConfigError: the file cannot be read, or lacks a column.
    """
    column = RIVAL_METRIC[metric]
    measured: dict[str, dict[float, list[float]]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            table = csv.DictReader(file)
            if not {"method", "masks", column} <= set(table.fieldnames or ()):
                raise ConfigError(f"{path}: expected the columns method, masks and {column} of the few-mask benchmark")
            for row in table:
                if row["masks"] and row[column]:
                    of_method = measured.setdefault(row["method"], {})
                    of_method.setdefault(float(row["masks"]), []).append(float(row[column]))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as a table of rivals ({error})") from error
    return measured


def multiplier_table(points: Sequence[SweepPoint], metric: str, rivals: Rivals) -> Table:
    """Return how many masks other methods need for the value of each budget."""
    rows: Rows = []
    for method, values in sorted(rivals.items()):
        masks = sorted(values)
        means = [_mean(values[number]) for number in masks]
        for budget, group in by_budget(points).items():
            own = _mean([point.mask_objects for point in group])
            needed = masks_needed(masks, means, _mean([value_of(point, metric) for point in group]))
            text = f"more than {max(masks):,.0f}" if needed is None else f"{needed:,.0f}"
            rows.append([method, budget, round(own), text, None if needed is None else needed / own])
    header = ["method", "our budget", "our masks", "its masks for the same value", "multiplier"]
    note = f"{TITLES[metric]} with ground-truth boxes over all classes. Each rival was measured with its own training."
    return Table("Mask multiplier", header, rows, note)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def _spread(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
