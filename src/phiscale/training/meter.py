"""Mean loss and accuracy of an epoch, without waiting for the device in each step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from phiscale.training.ranks import global_sum

__all__ = ["Meter"]


class Meter:
    """Collects (loss, right answers) of batches on their device; `mean` reads them once."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._right: list[Tensor] = []
        self._counts: list[int] = []

    @property
    def count(self) -> int:
        """Images seen by this process."""
        return sum(self._counts)

    @property
    def last_loss(self) -> Tensor | None:
        """The newest batch's loss, still on its device."""
        return self._losses[-1] if self._losses else None

    def reset(self) -> None:
        """Forget everything."""
        self.__init__()  # type: ignore[misc]

    def add(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Add a batch.

        Args:
            loss: Scalar, a mean over the batch.
            logits: (N, classes).
            targets: (N,) labels, or (N, classes) soft targets, of which the largest counts.
        """
        labels = targets if targets.ndim == 1 else targets.argmax(1)
        self._losses.append(loss.detach())
        self._right.append((logits.detach().argmax(1) == labels).sum())
        self._counts.append(len(labels))

    def state(self) -> dict[str, Any]:
        """All that was added, on the CPU, for a checkpoint."""
        if not self._counts:
            return {}
        return {
            "losses": torch.stack(self._losses).cpu(),
            "right": torch.stack(self._right).cpu(),
            "counts": list(self._counts),
        }

    def restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Take what another meter's `state` holds in place of all that was added."""
        self.reset()
        if state:
            self._losses = list(state["losses"].to(device).unbind())
            self._right = list(state["right"].to(device).unbind())
            self._counts = list(state["counts"])

    def mean(self) -> tuple[float, float]:
        """Loss and top-1 in [0, 1], each a mean over all processes' images; NaN when there were none."""
        sums = torch.zeros(3, dtype=torch.float64)
        if self._counts:
            weights = torch.tensor(self._counts, dtype=torch.float64)
            losses = torch.stack(self._losses).cpu().double()
            right = torch.stack(self._right).sum().cpu()
            sums = torch.stack(((losses * weights).sum(), right.double(), weights.sum()))
        loss, top1, total = global_sum(sums).tolist()
        return (loss / total, top1 / total) if total else (float("nan"), float("nan"))
