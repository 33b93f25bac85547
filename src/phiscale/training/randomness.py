"""Randomness of a training step as a pure function of (seed, epoch, batch).

Dropout, drop path and mixup draw from torch's global generator. Seeding it anew at each step makes the
step depend on nothing that came before, so a resumed run needs no stored generator state to go on bit
for bit, and what another library draws between two steps changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["repeatable_kernels", "seed_step", "step_seed"]


def step_seed(seed: int, epoch: int, batch: int) -> int:
    """A seed of 63 bits for one training step; neighbouring steps get unrelated seeds.

    Examples:
        >>> step_seed(0, 1, 2) == step_seed(0, 1, 2), step_seed(0, 1, 2) == step_seed(0, 2, 1)
        (True, False)
    """
    word = np.random.SeedSequence((seed, epoch, batch)).generate_state(1, np.uint64)[0]
    return int(word >> np.uint64(1))


@contextmanager
def repeatable_kernels() -> Iterator[None]:
    """Have torch choose kernels that repeat themselves where there is a GPU, until the end of the block.

    The CPU's kernels do so anyway, and the mode costs time there.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        if torch.cuda.is_available():
            torch.use_deterministic_algorithms(True, warn_only=True)
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


def seed_step(seed: int, epoch: int, batch: int) -> None:
    """Seed torch's global generators (CPU and accelerators) for one training step."""
    torch.manual_seed(step_seed(seed, epoch, batch))
