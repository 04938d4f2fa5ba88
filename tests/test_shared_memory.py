"""Transfer of batches between processes: the same values, one block of memory, and no reference kept too long."""

import copy
import multiprocessing
import pickle
from collections.abc import Iterator

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from dasnet_lightning.shared_memory import SMALL, pack, unpack
from dasnet_lightning.types import Batch, GroundTruth, Target


def make_target(count: int, size: int, masks: bool, seed: int) -> Target:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.rand(shape, generator=generator)  # noqa: E731
    truth = GroundTruth((draw(size + 1, size + 3) * 255).to(torch.uint8), tuple([b"ab", None] * count)[:count], b"void")
    return Target(
        boxes=draw(count, 4),
        labels=(draw(count) * 20).long(),
        has_mask=draw(count) > 0.5,
        ignore=draw(count) > 0.5,
        masks=draw(count, size, size) > 0.5 if masks else None,
        void=(draw(size, size) > 0.5).t() if masks else None,  # not contiguous
        truth=truth if masks else None,
    )


def make_batch(size: int = 160) -> Batch:
    targets = tuple(make_target(count, size, masks, count) for count, masks in ((3, True), (0, True), (2, False)))
    return Batch(("a", "b", "c"), torch.rand(3, 3, size, size), targets, (1, 2**62, 3))


def leaves(value: object) -> Iterator[object]:
    """Yield all values of a record that are neither records nor tuples, in order."""
    if isinstance(value, tuple):
        for item in value:
            yield from leaves(item)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from leaves(getattr(value, name))
    else:
        yield value


def assert_equal(first: Batch, second: Batch) -> None:
    pairs = list(zip(leaves(first), leaves(second), strict=True))
    assert len(pairs) > 20
    for one, two in pairs:
        if isinstance(one, torch.Tensor):
            assert one.dtype == two.dtype
            assert one.shape == two.shape
            assert torch.equal(one, two)
        else:
            assert type(one) is type(two)
            assert one == two


@pytest.mark.parametrize("send", [lambda batch: pickle.loads(pickle.dumps(batch)), copy.deepcopy])
def test_a_batch_arrives_as_it_was(send):
    batch = make_batch()
    arrived = send(batch)
    assert isinstance(arrived, Batch)
    assert_equal(batch, arrived)
    arrived.images.zero_()
    assert batch.images.any(), "what arrived is a copy"


def test_only_what_is_large_shares_the_block():
    batch = make_batch()
    block, layout = pack(batch)
    assert block.is_shared()
    arrived = unpack(block, layout)
    shared = block.untyped_storage().data_ptr()
    tensors = [value for value in leaves(arrived) if isinstance(value, torch.Tensor)]
    views = [tensor.untyped_storage().data_ptr() == shared for tensor in tensors]
    assert views == [tensor.nbytes > SMALL for tensor in tensors]
    assert any(views)
    assert not all(views)
    assert all(tensor.data_ptr() % tensor.element_size() == 0 for tensor in tensors)


class Batches(IterableDataset):
    def __iter__(self) -> Iterator[Batch]:
        torch.manual_seed(0)
        return iter([make_batch(), make_batch()])


def test_what_a_worker_sends_lies_in_one_block():
    torch.manual_seed(0)
    expected = [make_batch(), make_batch()]
    for batch, wanted in zip(DataLoader(Batches(), batch_size=None, num_workers=1), expected, strict=True):
        assert_equal(wanted, batch)
        large = [value for value in leaves(batch) if isinstance(value, torch.Tensor) and value.nbytes > SMALL]
        assert len(large) >= 2  # the images, and the masks of the first
        assert all(tensor.is_shared() for tensor in large)
        assert len({tensor.untyped_storage().data_ptr() for tensor in large}) == 1


def _put_sum(batch: Batch, queue) -> None:
    queue.put(float(batch.images.sum() + batch.targets[0].boxes.sum()))


def test_a_batch_may_be_given_to_a_new_process():
    """Its arguments are sent after pickling: a block without an owner would be gone."""
    context = multiprocessing.get_context("spawn")
    queue, batch = context.Queue(), make_batch(8)
    process = context.Process(target=_put_sum, args=(batch, queue))
    process.start()
    assert queue.get(timeout=120) == pytest.approx(float(batch.images.sum() + batch.targets[0].boxes.sum()))
    process.join()
