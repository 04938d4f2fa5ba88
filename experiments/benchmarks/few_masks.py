"""The masks of few labels, ours against every rival: same images, masks, frozen features and training time.

uv run python experiments/benchmarks/few_masks.py PHOTOS/voc12_animals --backbone-weights mobilenet_v2_in1k.pth \
    --main cat dog horse cow sheep person --cache runs/few_masks --plan
uv run python experiments/benchmarks/few_masks.py --table

Each point is one training and its rows; finished rows are never run again. With true boxes masks end at the box. With
boxes that were jittered to an IoU of 0.7 to 0.8 they may leave it, where a method can. All times are the processor's.
"""

import argparse
import itertools
import time
from pathlib import Path
from typing import Any

import torch
from few_masks_parts import budgets, results
from few_masks_parts.data import DetectorChoice, Study, open_study
from few_masks_parts.learner import train
from few_masks_parts.measure import KINDS, measure, measure_cost
from few_masks_parts.methods import METHODS, NO_BUDGET, PLAN, Method
from few_masks_parts.table import write_tables

OUT = Path(__file__).resolve().parents[1] / "results" / "few_masks"


def main() -> None:
    """Run the points that are missing, or make the tables."""
    args = parse()
    torch.set_num_threads(1)
    if args.table:
        write_tables(args.out, args.docs)
        return
    if args.data is None:
        raise SystemExit("give the folder of a data set, or --table")
    study = open_study(
        args.data, args.name or args.data.name, args.backbone_name or _backbone_name(args), _choice(args),
        args.image_size, args.main, args.cache,
    )  # fmt: skip
    path = args.out / f"{study.name}.csv"
    stages = PLAN if args.plan else [(args.methods, args.budgets, args.seeds)]
    for methods, drawn, seeds in stages:
        for seed, budget, name in itertools.product(seeds, drawn, methods):
            run_point(study, path, name, budget, seed, args.seconds, args.steps)


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", help="folder of a data set")
    parser.add_argument("--name", help="name of the data set in the results (default: that of the folder)")
    parser.add_argument("--main", nargs="*", default=[], metavar="CLASS", help="reported classes (default: all)")
    parser.add_argument("--detector", default="boxes", help="frozen detector, or `boxes` for a backbone alone")
    parser.add_argument("--backbone", default="mobilenet_v2", help="backbone of the detector `boxes`")
    parser.add_argument("--backbone-weights", type=Path, help="file of its weights")
    parser.add_argument(
        "--detector-checkpoint", type=Path, help="checkpoint of the detector; its boxes are measured too"
    )
    parser.add_argument("--backbone-name", help="name of the weights in the results (default: that of the file)")
    parser.add_argument(
        "--image-size", type=int, default=320, help="side of the input in pixels (default: %(default)s)"
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[each for each in METHODS if each != "paper"])
    parser.add_argument("--budgets", nargs="+", default=["5/class", "all"], help="as dasnet train, or Nobjects")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--plan", action="store_true", help="run all rows, budgets and seeds of the docs instead")
    parser.add_argument("--seconds", type=float, default=45.0, help="CPU seconds of a training (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=0, help="train so many steps instead; for tests")
    parser.add_argument("--cache", type=Path, help="folder that keeps the features")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the results")
    parser.add_argument("--table", action="store_true", help="make the tables and the figures of the results")
    parser.add_argument("--docs", type=Path, help="page whose tables between the markers are replaced, with --table")
    return parser.parse_args()


def _choice(args: argparse.Namespace) -> DetectorChoice:
    options: dict[str, Any] = {"image_size": args.image_size}
    if args.detector == "boxes":
        options["backbone"] = args.backbone
    if args.backbone_weights is not None:
        options["backbone_weights"] = str(args.backbone_weights)
    return DetectorChoice(args.detector, options, args.detector_checkpoint)


def _backbone_name(args: argparse.Namespace) -> str:
    network = args.backbone if args.detector == "boxes" else args.detector
    if args.detector_checkpoint is not None:
        return f"{network} trained on the boxes"
    return f"{network} with random weights" if args.backbone_weights is None else str(args.backbone_weights.stem)


def run_point(study: Study, path: Path, name: str, budget: str, seed: int, seconds: float, steps: int) -> None:
    """Train a method and append its rows, unless all of them are there."""
    method = METHODS[name]
    budget, seed, seconds = (budget, seed, seconds * method.time) if method.trained else (NO_BUDGET, 0, 0.0)
    shared = {"dataset": study.name, "backbone": study.backbone, "budget": budget, "seed": seed}
    shared["seconds"] = f"{steps} steps" if steps and method.trained else f"{seconds:g}"
    done = results.read_rows(path)
    missing = [row for row in method.rows if results.make_key({**shared, "method": row}) not in done]
    if not missing:
        return
    study.train.features, study.val.features  # noqa: B018  (computed once, in the time and the cost of no method)
    started = time.process_time()
    learner, facts = _train(study, method, budget, seed, seconds, steps)
    for row in missing:
        values = {**shared, **facts, "method": row, "torch": torch.__version__}
        measured = _measure(learner, method, row, path, values)
        measured["point_cpu_s"] = time.process_time() - started
        results.append_row(path, {**values, **measured})
        shown = {
            key: f"{measured[key]:.3f}"
            for key in ("true/main/iou", "true/main/ap", "true/main/miou")
            if key in measured
        }
        print(
            f"{study.name} {study.backbone} {row} {budget} seed {seed}: {shown}, {measured['point_cpu_s']:.0f} s",
            flush=True,
        )


def _train(
    study: Study, method: Method, budget: str, seed: int, seconds: float, steps: int
) -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(seed)
    learner = method.build(study)
    if not method.trained:
        return learner.eval(), {}
    masked = budgets.draw_masks(study, budget, seed)
    started = time.process_time()
    spent, taken = train(learner, masked, seconds, seed, steps)
    return learner, {
        "images": len(masked.images),
        "masks": masked.masks,
        "objects_by_class": masked.describe(),
        "train_cpu_s": spent,
        "steps": taken,
        "prepare_cpu_s": time.process_time() - started - spent,
        "parameters": sum(item.numel() for item in learner.parameters() if item.requires_grad),
    }


def _measure(learner: Any, method: Method, row: str, path: Path, values: dict[str, Any]) -> dict[str, Any]:
    extras = method.rows[row][1]
    measured: dict[str, Any] = dict(measure_cost(learner, extras))
    for kind in KINDS:
        if kind == "detected" and learner.study.detections is None:
            continue
        found, objects = measure(learner, kind, extras)
        measured |= {f"{kind}/{name}": value for name, value in found.items()}
        if objects is not None:
            results.append_objects(results.objects_path(path), values, kind, objects, learner.study.main)
    return measured


if __name__ == "__main__":
    main()
