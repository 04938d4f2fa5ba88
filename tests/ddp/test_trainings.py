"""Two processes with a batch of B train as one with a batch of 2B: the same curves, the same weights, the same figures."""

from pathlib import Path

import pytest
import torch
from forks import run
from trainings import largest_difference, learn, train

from dasnet_lightning.data.synthetic.dataset import write_synthetic
from dasnet_lightning.types import Batch
from toy import make_batch, make_target

KINDS = ("detection", "semantic", "instance", "joint")
STEPS = 5
BOXES = [[4.0, 4, 30, 28], [34, 30, 60, 58]]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("shapes"), num_train=10, num_val=5, size=64)


def assert_same(first, second):
    """Bit for bit, and nothing is missing."""
    assert first.keys() == second.keys()
    assert [key for key, value in first.items() if not torch.equal(value, second[key])] == []


def assert_same_curves(alone, together):
    assert alone.keys() == together.keys()
    for name, values in alone.items():
        assert together[name] == pytest.approx(values, rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_with_half_the_batch_train_as_one(kind, shapes):
    (alone,) = run(1, train, kind, shapes, 4, STEPS, "ssd_plain")
    first, second = run(2, train, kind, shapes, 2, STEPS, "ssd_plain")
    assert_same(first["weights"], second["weights"])
    assert first["curves"] == second["curves"]  # what is logged is the same on every process
    assert str(first["figures"]) == str(second["figures"])
    assert_same_curves(alone["curves"], first["curves"])
    assert len(alone["curves"]["train/loss"]) == STEPS
    assert alone["box_ap_before"] == first["box_ap_before"] == second["box_ap_before"]
    assert (alone["box_ap_before"] is not None) == (kind == "joint")
    assert largest_difference(alone["weights"], first["weights"]) < 1e-5
    assert largest_difference(alone["weights"], alone["before"]) > 1e-3  # something was learned
    frozen = {key: value for key, value in alone["before"].items() if ".frozen." in key}
    assert bool(frozen) == (kind in ("semantic", "instance"))
    for rank in (first, second):
        assert_same(frozen, {key: rank["weights"][key] for key in frozen})


def batches(has_mask: list[bool] | None, labels: list[int], seed: int) -> list[Batch]:
    target = make_target(BOXES[: len(labels)], labels, has_mask, size=(64, 64))
    return [make_batch([target, target], size=(64, 64), seed=seed + step) for step in range(3)]


def join(one: Batch, other: Batch) -> Batch:
    return Batch(
        (*one.image_ids, *other.image_ids),
        torch.cat([one.images, other.images]),
        one.targets + other.targets,
        one.seeds + other.seeds,
    )


@pytest.mark.parametrize("case", ["no mask", "no box"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_process_that_never_sees_a_mask_or_a_box_trains_along(kind, case, tmp_path):
    rich = batches(None, [1, 2], seed=0)
    poor = batches([False, False], [1, 2], seed=50) if case == "no mask" else batches(None, [], seed=50)
    first, second = run(2, learn, kind, tmp_path, [rich, poor], limit=40)
    assert_same(first["weights"], second["weights"])
    assert all(value.isfinite().all() for value in first["weights"].values())
    assert first["curves"] == second["curves"]
    # the losses are means over what both have: one process with all images learns the same
    both = [join(one, other) for one, other in zip(rich, poor, strict=True)]
    (alone,) = run(1, learn, kind, tmp_path, [both])
    assert_same_curves(alone["curves"], first["curves"])
    assert largest_difference(alone["weights"], first["weights"]) < 1e-5


@pytest.mark.parametrize("labels", [[], [1]], ids=["no box", "one box"])
def test_with_a_decoder_of_boxes_a_process_of_few_boxes_trains_along(labels, tmp_path):
    """Each process has BatchNorm statistics of its own boxes, so two processes do not learn exactly what one does."""
    rich = batches(None, [1, 2], seed=0)
    poor = [batch.select([0]) for batch in batches(None, labels, seed=50)]
    first, second = run(2, learn, "zoom", tmp_path, [rich, poor], limit=40)
    assert_same(first["weights"], second["weights"])
    assert all(value.isfinite().all() for value in first["weights"].values())
    assert first["curves"] == second["curves"]
    assert first["curves"]["train/regions"] == [4 + len(labels)] * 3


def test_no_process_sees_a_mask(tmp_path):
    nothing = batches(None, [], seed=50)
    first, second = run(2, learn, "semantic", tmp_path, [nothing, nothing], limit=40)
    assert first["curves"]["train/loss"] == second["curves"]["train/loss"] == [0, 0, 0]


def test_batchnorm_that_trains_has_one_state_in_the_end_also_where_a_process_measures_nothing(tmp_path):
    """Each process takes the statistics of its own images; the first one's are kept, as its checkpoint says."""
    root = write_synthetic(tmp_path / "shapes", num_train=8, num_val=1, size=64)
    first, second = run(2, train, "detection", root, 2, 3, "ssd_tiny", limit=40)
    assert any("running_mean" in key for key in first["weights"])
    assert_same(first["weights"], second["weights"])
    assert str(first["figures"]) == str(second["figures"])
