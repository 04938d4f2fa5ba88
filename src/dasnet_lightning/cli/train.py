"""`dasnet train DATA`: both stages on the user's data set, evaluation and report; resumes where it stopped."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from dasnet_lightning.cli.options import add_feature_cache_arguments, parse_options
from dasnet_lightning.training.hardware import default_precision, default_workers, quiet_lightning, set_thread_counts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a run; `add_training_arguments` holds those that `dasnet demo` shares."""
    about = "VOC, COCO or SBD data set: a folder, a COCO file, or a YAML list of several"
    parser.add_argument("data", metavar="DATA", help=about)
    parser.add_argument("--out", help="folder of the run (default: runs/NAME-BUDGETS)")
    parser.add_argument(
        "--mask-budget",
        nargs="+",
        default=["all"],
        metavar="N",
        help="masks to use: N images, N/class, seg100, seg200, seg500, all; several budgets share one detector",
    )
    parser.add_argument("--split-seed", type=int, default=0, help="draws the images whose masks are used")
    parser.add_argument("--detector", default="ssd320_vgg16", help="a registered detector (default: %(default)s)")
    parser.add_argument(
        "--detector-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the detector's builder, such as frozen_blocks=7; may be repeated",
    )
    parser.add_argument("--backbone-weights", metavar="W", help="torchvision's name of pretrained weights, or a file")
    parser.add_argument("--detector-checkpoint", metavar="FILE", help="start from a trained detector, skip stage one")
    parser.add_argument(
        "--image-size", type=int, default=0, metavar="PX", help="side of the input (default: detector's)"
    )
    parser.add_argument("--detector-batch-size", type=int, default=16, metavar="B")
    parser.add_argument(
        "--detector-lr",
        type=float,
        default=None,
        help="of stage one (default: 2e-4 for VGG, ResNet and transformers, else 1e-3)",
    )
    parser.add_argument("--batch-size", type=int, default=8, metavar="B", help="of stage two (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=1e-3, help="of stage two (default: %(default)s)")
    parser.add_argument(
        "--detector-augmentation",
        choices=["ssd", "segment", "flip", "none"],
        default="ssd",
        help="of stage one; ssd zooms out up to 4 times, segment up to 2, for short trainings (default: %(default)s)",
    )
    parser.add_argument("--decoder", default="light", help="light or paper (default: %(default)s)")
    parser.add_argument(
        "--soft-attention",
        type=float,
        default=0.0,
        metavar="A",
        help="0 to 1: decode twice, the second time with features weighted by the first answer (default: %(default)s)",
    )
    parser.add_argument(
        "--score-threshold",
        type=float,
        default=0.0,
        metavar="S",
        help="detections to believe when measuring with detected boxes (default: best F1 on training images)",
    )
    parser.add_argument("--allow-missing", action="store_true", help="leave out images whose file does not exist")
    parser.add_argument("--fix", choices=["error", "drop"], default="error", help="what to do with unusable boxes")
    add_feature_cache_arguments(parser, "of the validation images, for all budgets and runs that share a detector,")
    add_training_arguments(parser)


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Task, length, seed, hardware and logging of a run."""
    add_task_argument(parser)
    parser.add_argument(
        "--joint-steps",
        type=int,
        default=0,
        metavar="N",
        help="fine-tune detector and decoder together after stage two (default: no)",
    )
    parser.add_argument("--detector-steps", type=int, default=0, help="length of stage one (default: by data set size)")
    parser.add_argument("--steps", type=int, default=0, help="length of stage two (default: 1500)")
    parser.add_argument("--seed", type=int, default=0, help="initial weights, order and augmentation")
    parser.add_argument("--num-workers", type=int, default=None, help="loader processes (default: half the processors)")
    parser.add_argument("--accelerator", default="auto", help="cpu, cuda, ... (default: %(default)s)")
    parser.add_argument("--devices", type=int, default=1, help="processes, each with a batch of its own")
    parser.add_argument("--num-nodes", type=int, default=1, help="machines (default: %(default)s; torchrun's)")
    parser.add_argument("--strategy", default="auto", help="ddp for several devices (default: %(default)s)")
    parser.add_argument(
        "--scale-lr",
        choices=["none", "linear"],
        default="none",
        help="linear: multiply the learning rates by the number of processes (default: %(default)s)",
    )
    parser.add_argument("--precision", default=None, help="32-true, bf16-mixed, ... (default: what the hardware has)")
    parser.add_argument(
        "--checkpoint-every",
        type=int,
        default=100,
        metavar="N",
        help="steps between checkpoints (default: %(default)s)",
    )
    parser.add_argument(
        "--deterministic", action="store_true", help="slower, but the same bits every time on a GPU too"
    )
    parser.add_argument("--logger", choices=["csv", "wandb"], default="csv", help="wandb logs beside the CSV files")
    parser.add_argument("--project", default="dasnet", help="project name for wandb")


def add_task_argument(parser: argparse.ArgumentParser) -> None:
    """What stage two is trained for."""
    parser.add_argument(
        "--task",
        choices=["semantic", "instance"],
        default="semantic",
        help="semantic: a class map; instance: a mask for each object, and a class map (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Train, evaluate, report."""
    quiet_lightning()
    workers = default_workers() if args.num_workers is None else args.num_workers
    set_thread_counts(workers)
    from dasnet_lightning.distributed import is_rank_zero
    from dasnet_lightning.training.config import RunConfig
    from dasnet_lightning.training.report import finish
    from dasnet_lightning.training.run import execute

    config = RunConfig(
        data=args.data,
        out=args.out or default_folder(args.data, args.mask_budget, args.split_seed),
        task=args.task,
        mask_budgets=tuple(args.mask_budget),
        detector=args.detector,
        detector_options=parse_options(args.detector_option, "--detector-option"),
        backbone_weights=args.backbone_weights,
        detector_checkpoint=args.detector_checkpoint,
        image_size=args.image_size,
        detector_steps=args.detector_steps,
        steps=args.steps,
        joint_steps=args.joint_steps,
        detector_batch_size=args.detector_batch_size,
        batch_size=args.batch_size,
        detector_augmentation=args.detector_augmentation,
        detector_lr=default_detector_lr(args.detector) if args.detector_lr is None else args.detector_lr,
        lr=args.lr,
        decoder=args.decoder,
        soft_attention=args.soft_attention,
        score_threshold=args.score_threshold,
        seed=args.seed,
        split_seed=args.split_seed,
        num_workers=workers,
        allow_missing=args.allow_missing,
        fix=args.fix,
        feature_cache=args.feature_cache,
        feature_cache_gb=args.feature_cache_gb,
        trainer=trainer_settings(args),
    )
    result = execute(config)
    if is_rank_zero():
        finish(config, result, "Masks from boxes and a few masks", ["dasnet", *sys.argv[1:]])
    return 0


def default_detector_lr(detector: str) -> float:
    """AdamW's rate: deep pretrained backbones without normalisation that learns want a small one, and so do transformers."""
    return 2e-4 if any(kind in detector for kind in ("vgg", "resnet", "transformers")) else 1e-3


def default_folder(data: str, budgets: Sequence[str], split_seed: int) -> str:
    """Where a run goes when nobody says: a folder of its own for each data set, budgets and split seed."""
    name = "-".join([Path(data).resolve().stem, *(budget.replace("/", "-per-") for budget in budgets)])
    return str(Path("runs") / (f"{name}-split{split_seed}" if split_seed else name))


def trainer_settings(args: argparse.Namespace):  # type: ignore[no-untyped-def]
    """The hardware and logging options, as the stages take them."""
    from dasnet_lightning.training.stage import TrainerSettings

    devices, num_nodes, strategy = args.devices, args.num_nodes, args.strategy
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun knows, also where machines come and go
        devices, num_nodes = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["GROUP_WORLD_SIZE"])
        strategy = "ddp" if strategy == "auto" else strategy
    return TrainerSettings(
        accelerator=args.accelerator,
        devices=devices,
        num_nodes=num_nodes,
        strategy=strategy,
        precision=args.precision or default_precision(args.accelerator),
        logger=args.logger,
        project=args.project,
        checkpoint_every=args.checkpoint_every,
        deterministic=args.deterministic,
        scale_lr=args.scale_lr,
    )
