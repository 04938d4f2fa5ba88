"""The points of a sweep: stage two for each mask budget and seed, with one detector for all of them.

Each finished point has a `point.json` in its folder and is never trained again. Several processes, also on several machines
with a common folder, share the points: each claims a point while it trains it.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from dasnet_lightning import console
from dasnet_lightning.data.sources.open import DataSet
from dasnet_lightning.distributed import is_rank_zero, run_on_rank_zero
from dasnet_lightning.storage.atomic import write_json
from dasnet_lightning.storage.claims import claim, describe_owner
from dasnet_lightning.training.config import RunConfig
from dasnet_lightning.training.detector_stage import ResolvedDetector, train_detector
from dasnet_lightning.training.mask_stage import audit_budget, budget_folder, start_task, train_budget
from dasnet_lightning.training.run import build_data

POINT = "point.json"
CLAIM = "claim.json"
PATIENCE = 10.0  # seconds between two looks at a point that another process trains


@dataclass(frozen=True)
class SweepPoint:
    """One training of stage two.

    Attributes:
        budget: name of the mask budget.
        seed: of the split and of the training.
        mask_images: training images whose masks were used.
        mask_objects: masks that were used.
        seconds: wall-clock time of training and evaluation.
        metrics: validation metrics, in 0..1.
        checkpoint: the trained network.
    """

    budget: str
    seed: int
    mask_images: int
    mask_objects: int
    seconds: float
    metrics: Mapping[str, float]
    checkpoint: str


@dataclass(frozen=True)
class PointRun:
    """What the trainings of all points have in common.

    Attributes:
        config: options of the sweep; its folder holds one folder for each seed.
        dataset: the checked data set.
        image_size: (H, W) of the network input.
        detector: checkpoint of stage one.
        score_threshold: of detections.
    """

    config: RunConfig
    dataset: DataSet
    image_size: tuple[int, int]
    detector: Path
    score_threshold: float

    def settings(self, seed: int) -> RunConfig:
        """Return the options of the points of a seed."""
        return replace(self.config, seed=seed, split_seed=seed, out=str(self.config.folder / f"seed-{seed}"))

    def train(self, budget: str, seed: int) -> SweepPoint | None:
        """Train one point, or read it if it is finished; None if another process is training it. Collective."""
        config = self.settings(seed)
        data = build_data(config, self.dataset, "masks", self.image_size, budget)
        folder = budget_folder(config, data)
        if run_on_rank_zero((folder / POINT).is_file):
            return read_point(folder)
        with claim_on_rank_zero(folder / CLAIM) as mine:
            if not mine:
                return None
            console.info(f"sweep: {budget} masks, seed {seed}")
            start = time.monotonic()
            counts = audit_budget(data, config)
            task = start_task(config, data, self.detector, self.score_threshold)
            result = train_budget(config, data, task, counts["all"]["trained"])
            point = SweepPoint(
                budget,
                seed,
                result.mask_images,
                result.mask_objects,
                round(time.monotonic() - start, 1),
                result.metrics,
                result.checkpoint,
            )
            run_on_rank_zero(lambda: write_json(folder / POINT, asdict(point)))
        return point


def read_point(folder: Path) -> SweepPoint:
    """Return a finished point."""
    return run_on_rank_zero(lambda: SweepPoint(**json.loads((folder / POINT).read_text())))


@contextmanager
def claim_on_rank_zero(path: Path) -> Iterator[bool]:
    """Claim work for all ranks of this run; see `storage.claims`. Collective."""
    with ExitStack() as stack:
        yield run_on_rank_zero(lambda: stack.enter_context(claim(path)))


def run_points(
    config: RunConfig, dataset: DataSet, detector: ResolvedDetector, budgets: Sequence[str], seeds: Sequence[int]
) -> tuple[Mapping[str, float], list[SweepPoint]]:
    """Train the detector once, then every point that is not finished. Collective.

    Args:
        config: options of the sweep.
        dataset: the checked data set.
        detector: the detector.
        budgets: names of the mask budgets.
        seeds: seeds of split and training.

    Returns:
        The detector's metrics, and all points by seed and budget.
    """
    boxes = build_data(config, dataset, "boxes", detector.image_size)
    with _wait_for(config.folder / "detector" / CLAIM, "stage one"):
        checkpoint, detection = train_detector(config, boxes, detector)
    run = PointRun(config, dataset, detector.image_size, checkpoint, detection["score_threshold"])
    order = [(budget, seed) for seed in seeds for budget in budgets]
    points: dict[tuple[str, int], SweepPoint] = {}
    announced = False
    while len(points) < len(order):
        before = len(points)
        for key in order:
            if key not in points and (point := run.train(*key)) is not None:
                points[key] = point
        if len(points) == before:
            if not announced:
                console.info(f"sweep: {len(order) - before} points are trained by other processes, waiting for them")
            announced = True
            time.sleep(PATIENCE)
    return detection, [points[key] for key in order]


@contextmanager
def _wait_for(path: Path, name: str) -> Iterator[None]:
    """Run the body when no other process has the claim. Collective."""
    announced = False
    while True:
        with claim_on_rank_zero(path) as mine:
            if mine:
                yield
                return
        if not announced and is_rank_zero():
            console.info(f"{name} is trained by {describe_owner(path)}, waiting for it")
        announced = True
        time.sleep(PATIENCE)
