"""Real processes: the figures do not depend on how the images are spread over them."""

import json
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from metric_scenes import INPUT_SIZE, NAMES, prediction_of, random_image, target_of

from dasnet_lightning.distributed import evaluate_gathered, gather_records
from dasnet_lightning.metrics.box import BoxAP
from dasnet_lightning.metrics.instance import InstanceAP
from dasnet_lightning.types import Detections

LIMIT = 60  # seconds
IMAGES = 9

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")  # of Python 3.12 and later


def measure(numbers: Sequence[int]) -> dict[str, float]:
    """Both metrics over these images; each image is made from its own number."""
    masks, boxes = InstanceAP(), BoxAP()
    for number in numbers:
        image = random_image(np.random.default_rng(number))
        target, prediction = target_of(image), prediction_of(image)
        found = torch.cat([target.boxes + 1, target.boxes + 4])
        scores = torch.tensor([1 / (1 + k % 4) for k in range(len(found))])
        detections = Detections(found, torch.cat([target.labels, target.labels]), scores)
        masks.update([f"image{number}"], [prediction], [target], INPUT_SIZE)
        boxes.update([f"image{number}"], [detections], [target])
    return dict(masks.compute(NAMES)) | {f"box_{name}": value for name, value in boxes.compute(NAMES).items()}


def evaluate_badly(numbers: Sequence[int]) -> dict[str, str]:
    def evaluate(records: dict[str, int]) -> None:
        raise ArithmeticError(f"{len(records)} records")

    try:
        evaluate_gathered({str(number): number for number in numbers}, evaluate)
    except ArithmeticError as error:
        return {"error": str(error)}
    return {}


def gather_only(numbers: Sequence[int]) -> dict[str, int]:
    return gather_records({f"{number:02}": 100 * dist.get_rank() + number for number in numbers})


def work(rank: int, folder: Path, shards: Sequence[Sequence[int]], task: Callable) -> None:
    torch.set_num_threads(1)
    limit = timedelta(seconds=LIMIT)
    dist.init_process_group("gloo", f"file://{folder}/store", limit, len(shards), rank)
    result = task(shards[rank])
    (folder / f"{rank}.json").write_text(json.dumps(list(result.items())))
    dist.destroy_process_group()


def run(folder: Path, shards: Sequence[Sequence[int]], task: Callable) -> list[dict]:
    """What each process answers; none may take longer than LIMIT."""
    context = mp.get_context("fork")
    processes = [context.Process(target=work, args=(rank, folder, shards, task)) for rank in range(len(shards))]
    for process in processes:
        process.start()
    deadline = time.monotonic() + LIMIT
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    for process in processes:
        process.kill()  # only one that still waits
        process.join()
    assert [process.exitcode for process in processes] == [0] * len(shards)
    return [dict(json.loads((folder / f"{rank}.json").read_text())) for rank in range(len(shards))]


@pytest.mark.parametrize(
    "shards",
    [
        [[0, 2, 4, 6, 8], [1, 3, 5, 7]],
        [[8, 7, 6, 5, 4, 3, 2, 1, 0], []],
        [[0, 3, 6], [1, 4, 7, 0], [2, 5, 8, 1]],  # padded: some images twice
        [[], [5, 1, 8, 0, 2], [7, 3, 6, 4]],
    ],
)
def test_the_same_figures_for_any_number_of_processes(tmp_path: Path, shards: list[list[int]]) -> None:
    alone = measure(range(IMAGES))
    assert 0 < alone["apr50_area"] < 1
    assert 0 < alone["coco_ap"] < 1
    assert 0 < alone["box_ap"] < 1
    for answer in run(tmp_path, shards, measure):
        assert answer == alone  # exactly


def test_records_come_together_on_rank_0_in_order(tmp_path: Path) -> None:
    first, *others = run(tmp_path, [[7, 1], [], [4, 7]], gather_only)
    assert list(first.items()) == [("01", 1), ("04", 204), ("07", 7)]
    assert others == [{}, {}]


def test_an_error_reaches_every_rank(tmp_path: Path) -> None:
    assert run(tmp_path, [[1, 2], [3]], evaluate_badly) == [{"error": "3 records"}] * 2


def test_without_processes_the_order_of_arrival_does_not_matter() -> None:
    assert measure(range(IMAGES)) == measure(range(IMAGES)[::-1])
    assert list(gather_records({"b": 1, "a": 2})) == ["a", "b"]
