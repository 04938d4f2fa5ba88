"""`dasnet data`: lists every label of a data set that is used or refused, and why. Changes no file.

One run lists all problems. The exit code says whether the data set can be used as it is.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dasnet_lightning.data.label_audit import LabelUse
    from dasnet_lightning.data.records import Problem, Source
    from dasnet_lightning.data.sources.checks import RecordsError
    from dasnet_lightning.data.sources.open import DataSet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    about = "folder of a VOC, COCO or SBD data set, a COCO file, or a YAML list of several"
    parser.add_argument("data", metavar="DATA", type=Path, help=about)
    parser.add_argument("--csv", metavar="FILE", type=Path, help="write one row for each label")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all counts and all problems")
    parser.add_argument("--fix", choices=["drop"], help="accept that unusable labels are dropped")
    parser.add_argument("--allow-missing", action="store_true", help="accept missing image files")
    parser.add_argument("--no-verify", action="store_true", help="do not decode images and masks (fast)")


def run(args: argparse.Namespace) -> int:
    """Print the audit; return 2 if something cannot be used and the options do not accept that."""
    from dasnet_lightning.data.label_audit import write_label_audit
    from dasnet_lightning.data.sources.checks import RecordsError
    from dasnet_lightning.data.sources.open import open_dataset

    try:
        # drop here what the options do not accept too, so that all of it is listed
        data = open_dataset(args.data, allow_missing=True, fix="drop")
    except RecordsError as error:
        if args.json is not None:
            _write_json(args.json, _describe_failure(args.data, error))
        raise
    finding = _examine(data, verify=not args.no_verify)
    refusals = _refusals(finding, args.fix == "drop", args.allow_missing)
    _print(data, finding, args)
    if args.csv is not None:
        write_label_audit(finding.rows, args.csv)
    if args.json is not None:
        _write_json(args.json, _describe(data, finding, not refusals))
    return _conclude(finding, refusals)


@dataclass(frozen=True, eq=False)
class Finding:
    """The result of the audit.

    Attributes:
        rows: one for each label.
        problems: all problems, each once.
        missing: images without a file.
        orphans: labels of missing images.
        refused: other labels that cannot be used.
        broken: images that cannot be decoded.
        verified: whether images and masks were decoded.
    """

    rows: "tuple[LabelUse, ...]"
    problems: "tuple[Problem, ...]"
    missing: tuple[str, ...]
    orphans: tuple[str, ...]
    refused: tuple[str, ...]
    broken: tuple[str, ...]
    verified: bool

    @property
    def invalid_masks(self) -> tuple[str, ...]:
        """The masks that cannot be used, as text."""
        return tuple(
            f"image '{row.image_id}': object {row.object_id} ({row.class_name}): {row.mask.removeprefix('invalid: ')}"
            for row in self.rows
            if row.mask.startswith("invalid")
        )

    def listed(self, action: str) -> list[str]:
        """Return the problems with that action, as text."""
        return [str(problem) for problem in self.problems if problem.action == action]


def _examine(data: "DataSet", verify: bool) -> Finding:
    from dasnet_lightning.console import counter
    from dasnet_lightning.data.label_audit import audit_labels
    from dasnet_lightning.data.sources.checks import parse_object

    found = (*data.train.problems, *data.val.problems, *data.problems)
    problems = tuple({str(problem): problem for problem in found}.values())  # both splits may report the same file
    refused = [problem for problem in problems if problem.action == "refused"]
    missing = [problem for problem in refused if parse_object(problem.record) is None]
    gone = {problem.record for problem in missing}
    labels = [(problem, parse_object(problem.record)) for problem in refused]
    broken = [text for source in (data.train, data.val) for text in _decode(source)] if verify else []
    rows: list[LabelUse] = []
    with counter("masks") as move:
        rows += audit_labels(data.train, None, "train", verify_masks=verify, progress=move)
        rows += audit_labels(data.val, None, "val", verify_masks=verify, progress=move)
    return Finding(
        rows=tuple(rows),
        problems=problems,
        missing=tuple(map(str, missing)),
        orphans=tuple(str(item) for item, named in labels if named and f"image '{named[1]}'" in gone),
        refused=tuple(str(item) for item, named in labels if named and f"image '{named[1]}'" not in gone),
        broken=tuple(broken),
        verified=verify,
    )


def _decode(source: "Source") -> list[str]:
    """Decode every image of a source; return the errors."""
    from dasnet_lightning.console import progress
    from dasnet_lightning.data.images import read_image
    from dasnet_lightning.errors import DataError

    broken = []
    for record in progress(source.records, "images"):
        try:
            read_image(record.path, record.size)
        except DataError as error:
            broken.append(str(error))
    return broken


def _refusals(finding: Finding, drop: bool, allow_missing: bool) -> int:
    """Count what cannot be used and no option accepts; a broken image is never accepted."""
    labels = 0 if drop else len(finding.refused) + len(finding.invalid_masks)
    return len(finding.broken) + (0 if allow_missing else len(finding.missing)) + labels


def _print(data: "DataSet", finding: Finding, args: argparse.Namespace) -> None:
    from dasnet_lightning import console
    from dasnet_lightning.console import print_list, print_table
    from dasnet_lightning.report import Table

    console.out(f"{data.root}: {data.format.upper()}, {len(data.train.class_names) - 1} classes\n")
    images = {"train": data.train.records, "val": data.val.records}
    header = ("split", "images", "with masks", *_COUNTED)
    rows: list[tuple[str | int, ...]] = [
        (
            split,
            len(records),
            sum(record.has_masks for record in records),
            *_count(row for row in finding.rows if row.split == split),
        )
        for split, records in images.items()
    ]
    print_table(Table("Splits", header, rows))
    print_table(Table("Classes", ("class", "images", *_COUNTED), _class_rows(data, finding)))
    rest = f"all in {args.json}" if args.json is not None else "--json FILE writes all of them"
    print_list("Images that cannot be read", finding.broken, rest=rest)
    print_list("Images that are missing", finding.missing, rest=rest)
    print_list("Labels of missing images", finding.orphans, rest=rest)
    print_list("Labels refused", finding.refused, rest=rest)
    print_list("Masks that cannot be used; their boxes are", finding.invalid_masks, rest=rest)
    print_list("Boxes clipped at the border of their image", finding.listed("clipped"), rest=rest)
    print_list("Worth knowing", finding.listed("warning"), rest=rest)


_COUNTED = ("boxes", "masks", "no mask", "invalid mask", "ignored", "refused")


def _count(rows: Iterable["LabelUse"]) -> tuple[int, ...]:
    """Return the counts of _COUNTED over rows of the audit."""
    from dasnet_lightning.data.label_audit import summarize

    total = summarize(rows)["all"]
    return tuple(total[name] for name in ("boxes", "masks", "absent", "invalid", "ignored", "refused"))


def _class_rows(data: "DataSet", finding: Finding) -> list[tuple[str | int, ...]]:
    """Return one row for each class, in the order of the labels, and one for all."""
    records = (*data.train.records, *data.val.records)
    images = Counter(label for record in records for label in {item.label for item in record.objects})
    rows: dict[str, list[LabelUse]] = {name: [] for name in data.train.class_names[1:]}
    for row in finding.rows:
        rows.setdefault(row.class_name, []).append(row)
    table: list[tuple[str | int, ...]] = [
        (name, images[label], *_count(rows[name])) for label, name in enumerate(data.train.class_names) if label > 0
    ]
    return [*table, ("all", len(records), *_count(finding.rows))]


def _conclude(finding: Finding, refusals: int) -> int:
    from dasnet_lightning import console

    checked = "" if finding.verified else "; images and masks were not opened (--no-verify)"
    if refusals == 0:
        console.out(f"{len(finding.rows):,} labels were read, this data set can be used{checked}.")
        return 0
    entries = "entry" if refusals == 1 else "entries"
    console.error(
        f"dasnet: {refusals:,} {entries} above cannot be used: fix the files, or use --fix drop to drop refused labels "
        f"and --allow-missing to skip missing images{checked}"
    )
    return 2


def _describe(data: "DataSet", finding: Finding, usable: bool) -> dict[str, Any]:
    splits = {"train": data.train, "val": data.val}
    return {
        "data": str(data.root),
        "format": data.format,
        "usable": usable,
        "verified": finding.verified,
        "class_names": list(data.train.class_names),
        "images": {name: len(source.records) for name, source in splits.items()},
        "classes": {
            str(row[0]): dict(zip(("images", *_COUNTED), row[1:], strict=True)) for row in _class_rows(data, finding)
        },
        "broken_images": list(finding.broken),
        "invalid_masks": list(finding.invalid_masks),
        "problems": _problems(finding.problems),
    }


def _describe_failure(path: Path, error: "RecordsError") -> dict[str, Any]:
    return {"data": str(path), "usable": False, "problems": _problems(error.problems)}


def _problems(problems: "tuple[Problem, ...]") -> list[dict[str, str]]:
    return [
        {"file": str(item.file), "record": item.record, "message": item.message, "action": item.action}
        for item in problems
    ]


def _write_json(path: Path, content: dict[str, Any]) -> None:
    from dasnet_lightning.storage.atomic import write_text

    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
