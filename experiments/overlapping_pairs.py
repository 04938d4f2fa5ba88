"""Do position-sensitive maps need boxes that match nothing? Two overlapping shapes of one class, trained with and without.

`python experiments/overlapping_pairs.py --out runs/pairs` trains a small detector, then the instance task twice: with the
paper's 4 negatives around each object, and with none. It writes pairs.json and pairs.png, and prints how many validation
pairs come out as two masks with an IoU of at least 0.7 each:

* `true boxes`: both boxes are given, each is decoded alone.
* `class attention`: both are given, but the decoder sees both at once; only the maps can tell them apart.
* `proposals`: nothing is given but a heap of boxes, of which most straddle both shapes; the instance score has to find the
  two that fit (box NMS at 0.5, the best two).
"""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import lightning as L
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import nms

from dasnet_lightning.data.datamodule import MixedSupervisionDataModule
from dasnet_lightning.data.synthetic.dataset import write_synthetic
from dasnet_lightning.data.synthetic.scenes import render_pair
from dasnet_lightning.functional.instance_targets import SamplingOptions
from dasnet_lightning.functional.sampling import sample_boxes
from dasnet_lightning.models.instance import InstanceOptions, segment_instances
from dasnet_lightning.rle import decode
from dasnet_lightning.tasks.checkpoints import load_checkpoint
from dasnet_lightning.tasks.config import NetworkConfig, RecipeConfig
from dasnet_lightning.tasks.detection import DetectionTask
from dasnet_lightning.tasks.instance import InstanceTask
from dasnet_lightning.tasks.optimization import OptimizerConfig
from dasnet_lightning.training.config import TrainerSettings
from dasnet_lightning.training.hardware import quiet_lightning
from dasnet_lightning.training.stage import Stage, run_stage
from dasnet_lightning.types import Batch, Detections, Prediction, Pyramid, Target
from dasnet_lightning.visualization import draw_masks, side_by_side

SIZE = 128
SEPARATED = 0.7
OPTIONS = InstanceOptions(score_threshold=0.0, lowest_score=0.0, max_detections=10**6, regions_at_once=64)


def recipe(lr: float) -> OptimizerConfig:
    """How both stages learn."""
    return OptimizerConfig("adamw", lr, weight_decay=0.01, double_bias=False, schedule="onecycle")


def train(args: argparse.Namespace, data: Path) -> dict[str, InstanceTask]:
    """One detector, and the instance task with and without negatives."""
    common = {"data_root": str(data), "image_size": SIZE, "batch_size": 16, "num_workers": args.num_workers}
    boxes = MixedSupervisionDataModule(**common, supervision="boxes", augmentation="flip")
    settings = TrainerSettings(accelerator=args.accelerator)
    names = (boxes.num_classes, boxes.class_names)
    detector = DetectionTask(*names, detector="ssd_tiny", optimizer=recipe(4e-3))
    stage = Stage("stage one", args.out / "detector", args.detector_steps, validations=0)
    checkpoint = run_stage(stage, detector, boxes, settings)
    tasks = {}
    for name, negatives in (("4 negatives", 4), ("no negatives", 0)):
        L.seed_everything(0, verbose=False)
        masks = MixedSupervisionDataModule(
            **common, supervision="masks", augmentation="segment", samples_per_epoch=50 * 16
        )
        task = InstanceTask(
            *names,
            subset=False,  # the paper: all boxes of the class
            sampling=SamplingOptions(negatives=negatives),
            network=NetworkConfig("ssd_tiny"),
            recipe=RecipeConfig(detector_checkpoint=str(checkpoint)),
            optimizer=recipe(2e-3),
        )
        stage = Stage(name, args.out / name.replace(" ", "-"), args.steps, validations=0)
        load_checkpoint(task, run_stage(stage, task, masks, settings))
        tasks[name] = task.eval()
    return tasks


def proposals(target: Target, generator: torch.Generator) -> Detections:
    """A heap of boxes: for each shape 8 that match it and 24 that match none, and one around both."""
    around = torch.arange(len(target.labels))
    drawn = sample_boxes(target.boxes, around, (SIZE, SIZE), generator, positives=8, negatives=24, min_iou=0.1)
    both = torch.cat([target.boxes[:, :2].amin(dim=0), target.boxes[:, 2:].amax(dim=0)])
    heap = torch.cat([drawn.boxes, both[None]])
    return Detections(heap, target.labels[:1].expand(len(heap)), torch.ones(len(heap)))


def keep_two(answer: Prediction) -> Tensor:
    """The masks of the two best boxes after NMS."""
    return answer.masks[nms(answer.detections.boxes, answer.detections.scores, 0.5)[:2]]


def is_separated(masks: Tensor, truth: Tensor) -> bool:
    """Whether each of the two shapes is the mask of another answer, in either order."""
    if len(masks) < 2:
        return False
    iou = (masks[:, None] & truth).sum(dim=(2, 3)) / (masks[:, None] | truth).sum(dim=(2, 3)).clamp(min=1)
    straight, crossed = torch.stack([iou[0, 0], iou[1, 1]]), torch.stack([iou[0, 1], iou[1, 0]])
    return bool((straight >= SEPARATED).all() | (crossed >= SEPARATED).all())


def answers(task: InstanceTask, pyramid: Pyramid, batch: Batch, heaps: Sequence[Detections]) -> dict[str, list[Tensor]]:
    """The two masks of each image under each of the three questions."""
    sizes = [(SIZE, SIZE)] * len(batch)
    given = [Detections(t.boxes, t.labels, torch.ones(len(t.labels))) for t in batch.targets]
    ask = segment_instances
    return {
        "true boxes": [a.masks for a in ask(task.model, pyramid, given, sizes, OPTIONS)],
        "class attention": [
            a.masks for a in ask(task.model, pyramid, given, sizes, replace(OPTIONS, grouping="class"))
        ],
        "proposals": [keep_two(a) for a in ask(task.model, pyramid, heaps, sizes, OPTIONS)],
    }


@torch.inference_mode()
def measure(tasks: dict[str, InstanceTask], data: MixedSupervisionDataModule, shown: int) -> tuple[dict, Image.Image]:
    """The share of separated pairs by training and question, and a picture of the first few."""
    counts = {name: dict.fromkeys(("true boxes", "class attention", "proposals"), 0) for name in tasks}
    rows, pairs, generator = [], 0, torch.Generator().manual_seed(0)
    for batch in data.val_dataloader():
        truth = [torch.from_numpy(decode([c for c in t.truth.masks if c], (SIZE, SIZE))) for t in batch.targets]
        heaps = [proposals(target, generator) for target in batch.targets]
        found = {}
        for name, task in tasks.items():
            pyramid = task.model.detector.features(batch.images)
            found[name] = answers(task, pyramid, batch, heaps)
            for question, masks in found[name].items():
                counts[name][question] += sum(map(is_separated, masks, truth))
        pairs += len(batch)
        for index in range(min(shown - len(rows), len(batch))):
            image = (batch.images[index].permute(1, 2, 0) * 255).byte().numpy()
            panels = {"truth": truth[index]}
            for question in ("true boxes", "proposals"):
                panels |= {f"{name}, {question}": found[name][question][index] for name in tasks}
            drawn = [draw_masks(image, masks.numpy(), scale=2) for masks in panels.values()]
            rows.append(side_by_side(drawn, list(panels)))
    shares = {name: {question: count / pairs for question, count in by.items()} for name, by in counts.items()}
    return {"pairs": pairs, "iou": SEPARATED, "separated": shares}, Image.fromarray(np.concatenate(rows))


def main() -> None:
    """Train what is not trained yet, measure, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/pairs"))
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--detector-steps", type=int, default=700)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--num-workers", type=int, default=1)
    parser.add_argument("--accelerator", default="auto")
    args = parser.parse_args()
    quiet_lightning()
    L.seed_everything(0, verbose=False)
    data = write_synthetic(args.out / "data", args.images, max(2, args.images // 8), size=SIZE, render=render_pair)
    tasks = train(args, data)
    module = MixedSupervisionDataModule(str(data), image_size=SIZE, supervision="masks", batch_size=16)
    figures, picture = measure(tasks, module, shown=6)
    (args.out / "pairs.json").write_text(json.dumps(figures, indent=1) + "\n")
    picture.save(args.out / "pairs.png")
    print("| trained with | " + " | ".join(next(iter(figures["separated"].values()))) + " |\n|---|---|---|---|")
    for name, shares in figures["separated"].items():
        print(f"| {name} | " + " | ".join(f"{100 * share:.1f} %" for share in shares.values()) + " |")


if __name__ == "__main__":
    main()
