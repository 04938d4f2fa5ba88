"""`dasnet data`: lists every label of a data set that is used or refused, and why. Changes no file.

One run lists all problems. The exit code says whether the data set can be used as it is.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dasnet_lightning.cli.json_output import json_document

if TYPE_CHECKING:
    from dasnet_lightning.data.label_audit import LabelUse
    from dasnet_lightning.data.label_counts import LabelCounts
    from dasnet_lightning.data.mask_check import CheckedMasks
    from dasnet_lightning.data.pixels import ImageRange
    from dasnet_lightning.data.records import Problem, Source
    from dasnet_lightning.data.sources.checks import RecordsError
    from dasnet_lightning.data.sources.open import DataSet

PAGE_IMAGE_SIZE = 320  # pixels of the network input on the page


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    about = "data set in any supported format: a folder, a label file, or a YAML list of several"
    parser.add_argument("data", metavar="DATA", type=Path, help=about)
    parser.add_argument("--csv", metavar="FILE", type=Path, help="write one row for each label")
    parser.add_argument(
        "--json",
        metavar="FILE",
        nargs="?",
        const="-",
        help="write all counts and all problems; without a file, as one document on stdout, messages on stderr",
    )
    parser.add_argument("--page", metavar="FILE", type=Path, help="write an HTML page with augmented training images")
    parser.add_argument("--fix", choices=["drop"], help="accept that unusable labels are dropped")
    parser.add_argument("--allow-missing", action="store_true", help="accept missing image files")
    parser.add_argument("--crowd", choices=["ignore", "object"], default="ignore", help="object: as ordinary labels")
    parser.add_argument("--fast", action="store_true", help="read headers only, do not decode images and masks")
    parser.add_argument("--no-verify", dest="fast", action="store_true", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Print the audit; return 2 if something cannot be used and the options do not accept that."""
    with json_document(args.json == "-") as document:
        code = _run(args, document)
        if args.json not in (None, "-"):
            _write_json(Path(args.json), document)
    return code


def _run(args: argparse.Namespace, document: dict[str, Any]) -> int:
    """Print the audit, write the other files, and fill the JSON document, also if the data set cannot be opened."""
    from dasnet_lightning.data.label_audit import write_label_audit
    from dasnet_lightning.data.sources.checks import RecordsError
    from dasnet_lightning.data.sources.open import open_dataset

    try:
        # drop here what the options do not accept too, so that all of it is listed
        opened = open_dataset(args.data, allow_missing=True, fix="drop", crowd=args.crowd)
    except RecordsError as error:
        document |= _describe_failure(args.data, error)
        if args.json not in (None, "-"):
            _write_json(Path(args.json), document)
        raise
    finding = _examine(opened, verify=not args.fast)
    refusals = _refusals(finding, args.fix == "drop", args.allow_missing)
    _print(finding, args)
    if args.csv is not None:
        write_label_audit(finding.rows, args.csv)
    if args.page is not None:
        _write_page(args.page, finding)
    document |= _describe(finding, not refusals)
    return _conclude(finding, refusals)


def _write_page(path: Path, finding: "Finding") -> None:
    from dasnet_lightning import console
    from dasnet_lightning.training.dataset_page import draw_masked_samples, write_dataset_page

    image_size = (PAGE_IMAGE_SIZE, PAGE_IMAGE_SIZE)
    data, pictures = finding.data, draw_masked_samples(finding.data, image_size)
    problems = [*finding.checked.problems(data), *finding.problems]
    write_dataset_page(path, data, finding.counts, problems, pictures, image_size, sys.argv[1:])
    console.out(f"page: {path}\n")


@dataclass(frozen=True, eq=False)
class Finding:
    """The result of the audit.

    Attributes:
        data: the data set, with masks that cannot be used marked invalid.
        rows: one for each label.
        counts: counts of all labels.
        problems: all problems, each once.
        missing: images without a file.
        orphans: labels of missing images.
        refused: other labels that cannot be used.
        broken: images that cannot be decoded.
        obstacle: why training would stop, or empty.
        checked: masks that were decoded.
        verified: whether images and masks were decoded.
    """

    data: "DataSet"
    counts: "LabelCounts"
    rows: "tuple[LabelUse, ...]"
    problems: "tuple[Problem, ...]"
    missing: tuple[str, ...]
    orphans: tuple[str, ...]
    refused: tuple[str, ...]
    broken: tuple[str, ...]
    obstacle: str
    checked: "CheckedMasks"
    verified: bool

    @property
    def invalid_masks(self) -> tuple[str, ...]:
        """The masks that cannot be used, as text."""
        return tuple(
            f"image '{row.image_id}': object {row.object_id} ({row.class_name}): {row.mask.removeprefix('invalid: ')}"
            for row in self.rows
            if row.mask.startswith("invalid")
        )

    @property
    def notes(self) -> list[str]:
        """Sentences about the data set as a whole."""
        from dasnet_lightning.data.obstacles import validation_obstacle

        training = f"training would stop: {self.obstacle}" if self.obstacle else ""
        return [note for note in (training, validation_obstacle(self.data.val)) if note]

    def listed(self, action: str) -> list[str]:
        """Return the problems with that action, as text."""
        return [str(problem) for problem in self.problems if problem.action == action]


def _examine(data: "DataSet", verify: bool) -> Finding:
    from dasnet_lightning.console import counter
    from dasnet_lightning.data.label_audit import audit_dataset
    from dasnet_lightning.data.label_counts import count_labels
    from dasnet_lightning.data.mask_check import CheckedMasks, check_all_masks
    from dasnet_lightning.data.obstacles import training_obstacle
    from dasnet_lightning.data.sources.checks import parse_object
    from dasnet_lightning.data.unused_files import list_problems

    problems = list_problems(data)
    refused = [problem for problem in problems if problem.action == "refused"]
    missing = [problem for problem in refused if parse_object(problem.record) is None]
    gone = {problem.record for problem in missing}
    labels = [(problem, parse_object(problem.record)) for problem in refused]
    broken = [text for source in data.sources.values() for text in _decode(source, data.image_range)] if verify else []
    with counter("masks") as move:
        checked = check_all_masks(data, move) if verify else CheckedMasks()
    corrected = checked.apply(data)
    rows = audit_dataset(corrected)
    return Finding(
        data=corrected,
        counts=count_labels(corrected, rows, checked),
        rows=rows,
        problems=problems,
        missing=tuple(map(str, missing)),
        orphans=tuple(str(item) for item, named in labels if named and f"image '{named[1]}'" in gone),
        refused=tuple(str(item) for item, named in labels if named and f"image '{named[1]}'" not in gone),
        broken=tuple(broken),
        obstacle=training_obstacle(corrected),
        checked=checked,
        verified=verify,
    )


def _decode(source: "Source", image_range: "ImageRange | None") -> list[str]:
    """Decode every image of a source; return the errors."""
    from dasnet_lightning.console import progress
    from dasnet_lightning.data.images import read_image
    from dasnet_lightning.errors import DataError

    broken = []
    for record in progress(source.records, "images"):
        try:
            read_image(record.path, record.size, image_range=image_range)
        except DataError as error:
            broken.append(str(error))
    return broken


def _refusals(finding: Finding, drop: bool, allow_missing: bool) -> int:
    """Count what cannot be used and no option accepts; a broken image is never accepted."""
    labels = 0 if drop else len(finding.refused) + len(finding.invalid_masks)
    return len(finding.broken) + (0 if allow_missing else len(finding.missing)) + labels


def _print(finding: Finding, args: argparse.Namespace) -> None:
    from dasnet_lightning import console
    from dasnet_lightning.console import print_list, print_table
    from dasnet_lightning.training.data_tables import classes_table, splits_table

    data = finding.data
    console.out(f"{data.root}: {data.format.upper()}, {len(data.train.class_names) - 1} classes\n")
    print_table(splits_table(finding.counts))
    print_table(classes_table(finding.counts))
    rest = "--json FILE writes all of them" if args.json is None else f"all in {args.json}"
    rest = "all in the JSON document" if args.json == "-" else rest
    print_list("Images that cannot be read", finding.broken, rest=rest)
    print_list("Images that are missing", finding.missing, rest=rest)
    print_list("Labels of missing images", finding.orphans, rest=rest)
    print_list("Labels refused", finding.refused, rest=rest)
    print_list("Masks that cannot be used; their boxes are", finding.invalid_masks, rest=rest)
    print_list("Boxes clipped at the border of their image", finding.listed("clipped"), rest=rest)
    print_list("Files that are not used", finding.listed("unused"), rest=rest)
    print_list("Worth knowing", [*finding.notes, *finding.listed("warning")], rest=rest)


def _conclude(finding: Finding, refusals: int) -> int:
    from dasnet_lightning import console

    checked = "" if finding.verified else "; images and masks were not opened (--fast)"
    if refusals == 0:
        decoded = " All images and masks were decoded." if finding.verified else ""
        usable = "but training would stop, see above" if finding.obstacle else "this data set can be used"
        console.out(f"{len(finding.rows):,} labels were read, {usable}{checked}.{decoded}")
        return 0
    entries = "entry" if refusals == 1 else "entries"
    console.error(
        f"dasnet: {refusals:,} {entries} above cannot be used: fix the files, or use --fix drop to drop refused labels "
        f"and --allow-missing to skip missing images{checked}"
    )
    return 2


def _describe(finding: Finding, usable: bool) -> dict[str, Any]:
    data, splits = finding.data, finding.counts.splits
    return {
        "data": str(data.root),
        "format": data.format,
        "usable": usable,
        "verified": finding.verified,
        "class_names": list(data.train.class_names),
        "images": {name: counts["images"] for name, counts in splits.items() if name != "all"},
        "splits": splits,
        "classes": {"all": _total(splits), **finding.counts.classes},
        "notes": finding.notes,
        "broken_images": list(finding.broken),
        "invalid_masks": list(finding.invalid_masks),
        "problems": _problems(finding.problems),
    }


def _total(splits: dict[str, dict[str, int]]) -> dict[str, int]:
    """Return the counts of all classes, which have the keys of one class."""
    return {key: count for key, count in splits["all"].items() if key != "with masks"}


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
