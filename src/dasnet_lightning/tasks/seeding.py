"""What draws from the global generators draws from the batch: a step's randomness depends on its images alone."""

import random

import numpy as np
import torch

from dasnet_lightning.types import Batch


def seed_global_draws(batch: Batch) -> None:
    """Seed the global generators of Python, numpy and torch from the seeds of the batch's images.

    Our own draws take a generator. Detectors of other libraries sample proposals and drop features from the global ones;
    seeded like this, a training that is continued in the middle draws what it would have drawn, with no generator's
    state in the checkpoint, and each process draws for its own images.
    """
    state = np.random.SeedSequence(batch.seeds).generate_state(2, np.uint32)
    random.seed(int(state[0]))
    np.random.seed(int(state[0]))  # noqa: NPY002  (the global generator is what others use)
    torch.manual_seed(int(state[0]) << 32 | int(state[1]))
