"""The page of a sweep: learning curve with intervals, retention, the next doubling, cost, and the mask multiplier."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dasnet_lightning.errors import ConfigError
from dasnet_lightning.report import Curve, KeyFigure, Report, Table, Value
from dasnet_lightning.sweeps.cost import CostModel
from dasnet_lightning.sweeps.curve import LearningCurve, fit_curve, masks_needed, worth_drawing
from dasnet_lightning.sweeps.points import SweepPoint
from dasnet_lightning.training.config import RunConfig

MAIN_METRIC = {"instance": "coco_ap", "semantic": "miou"}
TITLES = {"coco_ap": "COCO AP", "miou": "mIoU"}
TRUE, FOUND = "ground_truth_boxes", "detected_boxes"
WIDEN = 1.25  # of the noise; experiments/sweep_coverage.py counts how often predictions lie within their interval
LEAST_GAIN = 0.01  # of a doubling that is worth drawing
RIVAL_METRIC = {"coco_ap": "true/all/ap", "miou": "true/all/miou"}

Rows = list[list[Value]]


def build_report(
    points: Sequence[SweepPoint],
    boxes: int,
    cost: CostModel,
    config: RunConfig,
    metric: str,
    box_ap50: float | None,
    rivals: str | Path | None,
    notes: Sequence[str],
) -> Report:
    """Return the page of a sweep.

    Args:
        points: finished trainings.
        boxes: number of boxes of the training images.
        cost: what labels cost to draw.
        config: options of the sweep.
        metric: name of the metric that the curve shows.
        box_ap50: of the detector, None if it finds no boxes.
        rivals: CSV file with other methods, or None.
        notes: what a reader of the metrics must know.
    """
    curve = fitted(points, metric)
    name = TITLES[metric]
    tables = [points_table(points, metric)]
    figures = [KeyFigure(f"{name}, {row[0]} masks", row[4], "ground-truth boxes, mean") for row in tables[0].rows]
    curves = [learning_curves(points, metric, curve)]
    if curve is not None:
        tables.append(forecast_table(points, metric, curve, boxes, cost))
        figures.append(_advice(points, curve, boxes, cost))
    if rivals is not None:
        tables.append(multiplier_table(points, metric, Path(rivals)))
    if box_ap50 is not None:
        figures.append(KeyFigure("box AP50", box_ap50, "one detector for all points"))
    seeds = len({point.seed for point in points})
    return Report(
        title="How many masks?",
        summary=(
            f"{len(points)} trainings of stage two with one detector ({config.detector}, decoder {config.decoder}): "
            f"{len(points) // max(1, seeds)} mask budgets, {seeds} seeds."
            + "".join(f" Note: {note}." for note in notes)
        ),
        key_figures=figures,
        tables=tables,
        curves=curves,
        command=f"dasnet sweep {config.data} --out {config.out}",
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


def multiplier_table(points: Sequence[SweepPoint], metric: str, rivals: Path) -> Table:
    """Return how many masks other methods need for the value of each budget.

    Raises:
        ConfigError: the file has not the columns of the few-mask benchmark.
    """
    column = RIVAL_METRIC[metric]
    measured: dict[str, dict[float, list[float]]] = {}
    with rivals.open(newline="") as file:
        for row in csv.DictReader(file):
            if not {"method", "masks", column} <= set(row):
                raise ConfigError(
                    f"{rivals}: expected the columns method, masks and {column} of the few-mask benchmark"
                )
            if row["masks"] and row[column]:
                measured.setdefault(row["method"], {}).setdefault(float(row["masks"]), []).append(float(row[column]))
    groups = by_budget(points)
    rows: Rows = []
    for method, values in sorted(measured.items()):
        masks = sorted(values)
        means = [_mean(values[number]) for number in masks]
        for budget, group in groups.items():
            own = _mean([point.mask_objects for point in group])
            needed = masks_needed(masks, means, _mean([value_of(point, metric) for point in group]))
            more = None if needed is None else needed / own
            text = f"more than {max(masks):,.0f}" if needed is None else f"{needed:,.0f}"
            rows.append([method, budget, round(own), text, more])
    header = ["method", "our budget", "our masks", "its masks for the same value", "multiplier"]
    note = f"{TITLES[metric]} with ground-truth boxes over all classes. Rivals: {rivals.name}, measured with its own training."
    return Table("Mask multiplier", header, rows, note)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def _spread(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
