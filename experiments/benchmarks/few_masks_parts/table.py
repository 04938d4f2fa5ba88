"""Tables and figures from the CSV files: means over seeds, spread over seeds, and intervals over images."""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dasnet_lightning.report.curves import draw_curve
from dasnet_lightning.report.records import Curve
from dasnet_lightning.storage.atomic import write_text

from .differences import PairedDifferences
from .methods import NO_BUDGET, TITLES
from .results import Row, read_rows

CURVES = ("zoom_flip_filter", "zoom", "crop_ours", "crop", "maskrcnn_agnostic", "light")
COLUMNS = {
    "true/main/iou": "IoU",
    "true/main/share50": "≥ 0.5",
    "true/main/share75": "≥ 0.75",
    "true/main/biou": "bIoU",
    "true/main/ap": "COCO AP",
    "true/main/ap_scored": "AP, own scores",
    "true/main/apr50": "mAP^r 0.5",
    "true/main/apr75": "mAP^r 0.75",
    "true/main/miou": "mIoU",
    "true/all/ap": "AP, all classes",
    "jittered/main/iou": "IoU, jittered",
    "jittered/main/share75": "≥ 0.75, jittered",
    "jittered/main/ap": "AP, jittered",
    "detected/main/ap": "AP, detected",
}
STYLE = (
    "text{font:12px sans-serif;fill:#444}.rule{stroke:#ddd;fill:none}.axis{stroke:#888;fill:none}"
    ".line{fill:none;stroke:currentColor;stroke-width:2}circle{fill:currentColor}"
    ".s0{color:#2563c9}.s1{color:#14917f}.s2{color:#d9542b}.s3{color:#c58a06}.s4{color:#9353c4}.s5{color:#6b7280}"
)

Rows = Sequence[Row]


def write_tables(out: Path, docs: Path | None) -> None:
    """Write NAME.md and a figure beside each CSV file of results; put them into a page of the docs if one is given."""
    texts = []
    for path in sorted(out.glob("*.csv")):
        if path.stem.endswith("_objects"):
            continue
        rows = list(read_rows(path).values())
        text = "\n".join(_sections(rows, PairedDifferences(path)))
        write_text(path.with_suffix(".md"), text)
        picture = _figure(rows)
        if picture is not None:
            write_text(path.with_suffix(".svg"), picture)
            if docs is not None:
                write_text(docs.parent / "images" / f"few_masks_{path.stem}.svg", picture)
                text += f"\n![COCO AP with true boxes by number of masks](images/few_masks_{path.stem}.svg)\n"
        texts.append(text)
    if docs is not None:
        replace_between_markers(docs, "\n".join(texts))


def replace_between_markers(page: Path, text: str) -> None:
    """Replace what stands between the two markers of a page.

    Raises:
        SystemExit: the page lacks the markers.
    """
    content = page.read_text(encoding="utf-8")
    pattern = r"(<!-- few masks: begin -->\n).*?(<!-- few masks: end -->)"
    if not re.search(pattern, content, re.DOTALL):
        raise SystemExit(f"{page}: expected the lines '<!-- few masks: begin -->' and '<!-- few masks: end -->'")
    write_text(page, re.sub(pattern, lambda match: f"{match[1]}\n{text}\n{match[2]}", content, flags=re.DOTALL))


def _sections(rows: Rows, differences: PairedDifferences) -> list[str]:
    by_study: dict[tuple[str, str], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        by_study[row["dataset"], row["backbone"]][row["budget"]].append(row)
    lines = []
    for (dataset, backbone), budgets in by_study.items():
        floors = budgets.pop(NO_BUDGET, [])
        for budget, found in sorted(budgets.items(), key=lambda item: _mean(item[1], "masks")):
            lines += [f"**{dataset}, {backbone}, {budget}** ({_describe(found)})", ""]
            lines += [_table([*floors, *found], budget, differences), ""]
        lines += _retention(dataset, backbone, budgets)
    return lines


def _describe(rows: Rows) -> str:
    """Return the images and objects of each class, of the first seed."""
    first = min(rows, key=lambda row: int(row["seed"]))
    counts = f"{first['images']} images, {first['masks']} masks"
    return f"seed {first['seed']}: {counts}; images/objects: {first['objects_by_class']}"


def _table(rows: Rows, budget: str, differences: PairedDifferences) -> str:
    used = [(key, title) for key, title in COLUMNS.items() if any(row[key] for row in rows)]
    header = [
        "method",
        "seeds",
        "CPU s",
        "steps",
        "GMAC / box",
        "ms / box",
        *(title for _, title in used),
        "IoU of zoom minus it",
    ]
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    by_method: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_method[row["method"]].append(row)
    for method in sorted(by_method, key=list(TITLES).index):
        found = by_method[method]
        costs = [
            _number(found, name, digits)
            for name, digits in (("train_cpu_s", 0), ("steps", 0), ("gmac_box", 3), ("ms_box", 1))
        ]
        cells = [_cell(found, key) for key, _ in used]
        seeds = "" if found[0]["budget"] == NO_BUDGET else str(len({row["seed"] for row in found}))
        lines.append([TITLES[method], seeds, *costs, *cells, differences.describe(found, budget)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(rows: Rows, key: str) -> str:
    """Return the mean over seeds and their standard deviation, x 100; IoU with its interval over images."""
    values = [100 * float(row[key]) for row in rows if row[key]]
    if not values:
        return ""
    text = f"{np.mean(values):.1f}"
    if len(values) > 1:
        text += f" ± {np.std(values, ddof=1):.1f}"
    if key == "true/main/iou":
        low, high = (100 * _mean(rows, f"{key}_{side}") for side in ("low", "high"))
        text += f" [{low:.1f}, {high:.1f}]"
    return text


def _number(rows: Rows, key: str, digits: int) -> str:
    value = _mean(rows, key)
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def _mean(rows: Rows, key: str) -> float:
    values = [float(row[key]) for row in rows if row[key]]
    return float(np.mean(values)) if values else math.nan


def _retention(dataset: str, backbone: str, budgets: Mapping[str, Rows]) -> list[str]:
    """Return a table of COCO AP as a share of that of all masks with the same recipe."""
    methods = [name for name in TITLES if any(row["method"] == name for row in budgets.get("all", ()))]
    names = sorted((name for name in budgets if name != "all"), key=lambda name: _mean(budgets[name], "masks"))
    lines = [[f"{dataset}, {backbone}: COCO AP as a share of that of all masks, main classes / all", *names]]
    lines.append(["---", *["---:"] * len(names)])
    for method in methods:
        cells = [
            " / ".join(_share(budgets[name], budgets["all"], method, f"true/{group}/ap") for group in ("main", "all"))
            for name in names
        ]
        if any(cell.strip(" /") for cell in cells):
            lines.append([TITLES[method], *cells])
    return ["\n".join(f"| {' | '.join(line)} |" for line in lines), ""] if len(lines) > 2 else []


def _share(rows: Rows, whole: Rows, method: str, key: str) -> str:
    """Return the share over the seeds that both budgets have."""
    of_budget = {row["seed"]: float(row[key]) for row in rows if row["method"] == method and row[key]}
    of_all = {row["seed"]: float(row[key]) for row in whole if row["method"] == method and row[key]}
    seeds = of_budget.keys() & of_all.keys()
    if not seeds:
        return ""
    return f"{100 * np.mean([of_budget[seed] / of_all[seed] for seed in seeds]):.1f} %"


def _figure(rows: Rows) -> str | None:
    """Draw COCO AP with true boxes by the number of masks, of the first backbone; None if there are no two budgets."""
    backbone = rows[0]["backbone"] if rows else ""
    series = {}
    for method in CURVES:
        points: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            if row["method"] == method and row["backbone"] == backbone and not row["budget"].endswith("objects"):
                points[row["budget"]].append(row)
        if len(points) > 1:
            found = ((math.log10(_mean(each, "masks")), 100 * _mean(each, "true/main/ap")) for each in points.values())
            series[TITLES[method]] = tuple(sorted(found))
    if not series:
        return None
    curve = Curve("Few masks", "number of masks, log10", "COCO AP with true boxes", series)
    svg = draw_curve(curve, 640, 400)
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(
        ">", f"><style>{STYLE}</style>", 1
    )
