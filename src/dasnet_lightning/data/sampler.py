"""Which image is drawn when, and the number from which its augmentation is drawn.

The sampler hands out (round, index) pairs, so an item is a function of its key alone: the same for any number of workers,
also for workers that live on from one epoch to the next.
"""

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
import torch
from torch.utils.data import DistributedSampler

Key = tuple[int, int]


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """Mix three numbers into a stable one of 63 bits (numpy's SeedSequence)."""
    if min(seed, epoch, index) < 0:
        raise ValueError(f"seed, epoch and index must not be negative, got {seed}, {epoch}, {index}")
    return int(np.random.SeedSequence((seed, epoch, index)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def permutation(num_samples: int, seed: int, number: int) -> list[int]:
    """The `number`-th shuffled order of 0..num_samples-1, from a generator of its own."""
    generator = torch.Generator().manual_seed(sample_seed(seed, number, num_samples))
    return torch.randperm(num_samples, generator=generator).tolist()


class EpochSampler(DistributedSampler[Key]):
    """Hands out (round, index) pairs: the next `num_draws` of one endless row of permutations.

    A round is one pass over all images. Where an epoch has as many draws as there are images, round and epoch are the
    same; a small set fills a longer epoch with several rounds, and every image is drawn equally often in the long run.
    Without shuffling the order is 0, 1, 2, ... and the round always starts at 0: an evaluation must not depend on when
    it runs.

    num_draws: draws of an epoch over all processes; None means num_samples. rank, world_size: each process takes every
    world_size-th draw; some have one fewer where that does not divide. taken: asked, when an iteration starts, how many
    draws of the row came before, over all processes: a training that is continued goes on in the middle of the row.
    None means `num_draws` times what `set_epoch` said.

    It is a DistributedSampler so that Lightning does not wrap it in another one.
    """

    def __init__(
        self,
        num_samples: int,
        seed: int,
        shuffle: bool,
        num_draws: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        taken: Callable[[], int] | None = None,
    ) -> None:
        self.num_images = num_samples
        self.num_draws = num_samples if num_draws is None else num_draws
        if self.num_draws and not num_samples:
            raise ValueError(f"cannot draw {num_draws} samples from none")
        self._ask_taken = taken
        super().__init__(
            range(num_samples),  # type: ignore[arg-type]
            num_replicas=world_size,
            rank=rank,
            shuffle=shuffle,
            seed=seed,
        )

    def __iter__(self) -> Iterator[Key]:
        return iter(list(self._draws())[self.rank :: self.num_replicas])

    def __len__(self) -> int:
        return (self.num_draws + self.num_replicas - 1 - self.rank) // self.num_replicas

    def _draws(self) -> Iterator[Key]:
        """All draws of the epoch, those of other processes too."""
        if not self.num_draws:
            return iter(())
        taken = self.epoch * self.num_draws if self._ask_taken is None else self._ask_taken()
        number, offset = divmod(taken if self.shuffle else 0, self.num_images)
        return islice(self._row(number), offset, offset + self.num_draws)

    def _row(self, number: int) -> Iterator[Key]:
        while True:
            order = permutation(self.num_images, self.seed, number) if self.shuffle else range(self.num_images)
            yield from ((number, index) for index in order)
            number += 1
