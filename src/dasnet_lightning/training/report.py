"""The results of a run: tables on the terminal, and the report page with curves and pictures."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import yaml

from dasnet_lightning import console
from dasnet_lightning.console import print_table
from dasnet_lightning.metrics.matching import NOT_ANNOTATED
from dasnet_lightning.report import Curve, KeyFigure, Report, Table, write_report
from dasnet_lightning.training.config import RunConfig
from dasnet_lightning.training.error_page import ERROR_PAGE, error_tables, write_error_page
from dasnet_lightning.training.pictures import draw_pictures
from dasnet_lightning.training.result_tables import (
    accounting_table,
    detection_table,
    mask_tables,
    measured,
    own_figure,
    per_class_tables,
)
from dasnet_lightning.training.results import RunResult
from dasnet_lightning.training.stage import read_curves


def write_page(result: RunResult, title: str, command: Sequence[str], pictures: int = 8) -> Path:
    """Write the report of a run into its folder, with pictures of validation images."""
    config = result.config
    figure, name = own_figure(result)
    true = "ground-truth boxes"
    report = Report(
        title=title,
        summary=(
            f"Boxes on every training image, masks on {_join([str(item.mask_images) for item in result.budgets])} of them. "
            f"Detector {result.detector}, decoder {config.decoder}."
            + "".join(f" Note: {note}." for note in result.notes)
        ),
        key_figures=[
            *(
                KeyFigure(
                    f"{name}, {item.budget} masks",
                    measured(result, item.metrics, f"val/{figure}_ground_truth_boxes"),
                    true,
                )
                for item in result.budgets
            ),
            *(_detector_figures(result) if result.detects else []),
        ],
        tables=[*run_tables(result), *per_class_tables(result), *error_tables(result)],
        curves=run_curves(result),
        pictures=[*draw_pictures(result, pictures)],
        accounting=accounting_table(result),
        command=command[0] if len(command) == 1 else shlex.join(command),
        configuration=yaml.safe_dump(plain(asdict(config)), sort_keys=False),
    )
    return write_report(config.folder / "report.html", report)


def run_tables(result: RunResult) -> list[Table]:
    """Return the tables of stage two and of the detector, unless it finds no boxes."""
    return [*mask_tables(result), *([detection_table(result)] if result.detects else [])]


def _detector_figures(result: RunResult) -> list[KeyFigure]:
    last, (figure, name) = result.budgets[-1], own_figure(result)
    value = measured(result, last.metrics, f"val/{figure}_detected_boxes")
    return [
        KeyFigure(f"{name}, detected boxes", value, f"{last.budget} masks"),
        KeyFigure("box AP50", measured(result, result.detection, "val/box_ap50"), "COCO protocol"),
    ]


def run_curves(result: RunResult) -> list[Curve]:
    """Return losses and validation metrics of all stages by step."""
    folder, (figure, title) = result.config.folder, own_figure(result)
    detector = read_curves(folder / "detector")
    budgets = {item.budget: read_curves(Path(item.checkpoint).parent) for item in result.budgets}
    losses = {"stage one": _points(detector, "train/loss")}
    curves = [
        Curve("Stage one: loss", "step", "loss", losses),
        Curve("Stage one: box AP50", "step", "AP50", {"AP50": _points(detector, "val/box_ap50")}),
        Curve("Stage two: loss", "step", "loss", {name: _points(log, "train/loss") for name, log in budgets.items()}),
        Curve(
            f"Stage two: {title} with ground-truth boxes",
            "step",
            title,
            {name: _points(log, f"val/{figure}_ground_truth_boxes") for name, log in budgets.items()},
        ),
    ]
    return [curve for curve in curves if any(curve.series.values())]


def _points(log: Mapping[str, list[tuple[float, float]]], name: str) -> list[tuple[float, float]]:
    """Return the logged points of a metric without those where there was nothing to measure."""
    return [point for point in log.get(name, []) if point[1] != NOT_ANNOTATED]


def plain(value: object) -> object:
    """Return the value as plain lists and dicts for YAML's safe dumper."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value


def announce(result: RunResult, page: Path) -> None:
    """Print where report and checkpoints are."""
    console.out(f"report: {page}")
    if error_tables(result):
        console.out(f"errors: {page.parent / ERROR_PAGE}")
    for item in result.budgets:
        console.out(f"checkpoint ({item.budget} masks): {item.checkpoint}")


def _join(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def finish(config: RunConfig, result: RunResult, title: str, command: Sequence[str]) -> None:
    """Print the tables and write the page."""
    for table in run_tables(result):
        print_table(table)
    for table in error_tables(result):
        print_table(table)
    write_error_page(result, title)
    announce(result, write_page(result, title, command))
