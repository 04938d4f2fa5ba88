"""Order of the images over epochs and processes, and the seed of each sample's augmentation.

The sampler yields (round, index) pairs, and a sample is a function of its pair alone. Samples are therefore the same for
any number of workers, also if workers persist over epochs.
"""

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
import torch
from torch.utils.data import DistributedSampler

Key = tuple[int, int]


class EpochSampler(DistributedSampler[Key]):
    """Sampler of (round, index) pairs: each epoch is the next slice of an endless stream of permutations.

    A round is one pass over all images. If an epoch has as many draws as there are images, round and epoch are the same.
    A longer epoch over a small set spans several rounds, so in the long run every image is drawn equally often. Without
    shuffling the order is 0, 1, 2, ... from round 0 in every epoch, so that an evaluation does not depend on the epoch.

    Subclasses DistributedSampler so that Lightning does not wrap it in another one.

    Args:
        num_samples: number of images.
        seed: seed of the permutations.
        shuffle: whether to permute the images.
        num_draws: draws of an epoch over all processes; None means `num_samples`.
        rank: rank of this process. It takes every `world_size`-th draw.
        world_size: number of processes. If it does not divide `num_draws`, some ranks get one draw less.
        taken: called at the start of an iteration, returns the draws taken before over all processes. A resumed training
            thus continues in the middle of the stream. None means `num_draws` times the epoch of `set_epoch`.
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
            raise ValueError(f"cannot draw {num_draws} samples from an empty set, num_samples must be positive")
        self._count_taken = taken
        super().__init__(
            range(num_samples),  # type: ignore[arg-type]
            num_replicas=world_size,
            rank=rank,
            shuffle=shuffle,
            seed=seed,
        )

    def __iter__(self) -> Iterator[Key]:
        return iter(list(self._epoch_draws())[self.rank :: self.num_replicas])

    def __len__(self) -> int:
        return (self.num_draws + self.num_replicas - 1 - self.rank) // self.num_replicas

    def _epoch_draws(self) -> Iterator[Key]:
        """Yield all draws of the epoch, over all processes."""
        if not self.num_draws:
            return iter(())
        taken = self.epoch * self.num_draws if self._count_taken is None else self._count_taken()
        first_round, offset = divmod(taken if self.shuffle else 0, self.num_images)
        return islice(self._stream(first_round), offset, offset + self.num_draws)

    def _stream(self, first_round: int) -> Iterator[Key]:
        number = first_round
        while True:
            order = permutation(self.num_images, self.seed, number) if self.shuffle else range(self.num_images)
            yield from ((number, index) for index in order)
            number += 1


def permutation(num_samples: int, seed: int, number: int) -> list[int]:
    """Return the `number`-th permutation of 0..num_samples-1, drawn from a generator of its own."""
    generator = torch.Generator().manual_seed(sample_seed(seed, number, num_samples))
    return torch.randperm(num_samples, generator=generator).tolist()


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """Mix three numbers into one 63-bit seed that is the same on every machine (numpy's SeedSequence)."""
    if min(seed, epoch, index) < 0:
        raise ValueError(f"seed, epoch and index must not be negative, got {seed}, {epoch}, {index}")
    return int(np.random.SeedSequence((seed, epoch, index)).generate_state(1, np.uint64)[0] >> np.uint64(1))
