"""Exponential moving average of weights and BatchNorm statistics.

Built on Lightning's `WeightAveraging`, which swaps the average in for validation and stores raw and
averaged weights in the checkpoint (``current_model_state`` and ``state_dict``). Its ready-made
`EMAWeightAveraging` is not used, for three reasons seen in its source and in runs:

- A constant decay of 0.9999 leaves the average at the random start for thousands of steps, so short
  runs evaluate at chance level. Here the decay is warmed up: min(decay, (1 + t) / (10 + t)), as in
  TensorFlow's `ExponentialMovingAverage(num_updates=t)`, which the authors use.
- It averages `num_batches_tracked`, an integer, with floats and truncates; here integers are copied.
- It makes some thousand small operations a step; here one fused `lerp` per dtype.
"""

from __future__ import annotations

from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from phiscale.nn.network import Network

__all__ = ["EmaCallback", "ema_decay"]


def ema_decay(decay: float, updates: int) -> float:
    """Decay of update number `updates` (from 0): min(decay, (1 + t) / (10 + t)).

    Examples:
        >>> ema_decay(0.9999, 0), ema_decay(0.9999, 90), ema_decay(0.5, 10**6)
        (0.1, 0.91, 0.5)
    """
    return min(decay, (1 + updates) / (10 + updates))


class EmaCallback(WeightAveraging):
    """Keeps the average, validates with it, and leaves it in the network when training ends.

    The first update copies the weights after the first step; update t ≥ 1 then is
    average ← decay_t · average + (1 - decay_t) · weights.

    Args:
        decay: Highest decay, in (0, 1).
    """

    def __init__(self, decay: float) -> None:
        def update(averages: list[Tensor], currents: list[Tensor], updates: Tensor | int) -> None:
            if averages[0].is_floating_point():
                torch._foreach_lerp_(averages, currents, 1.0 - ema_decay(decay, int(updates)))
            else:
                torch._foreach_copy_(averages, currents)

        super().__init__(use_buffers=True, multi_avg_fn=torch.no_grad()(update))

    @property
    def network(self) -> Network:
        """The network that holds the average; during validation, see `WeightAveraging`, the raw one."""
        assert self._average_model is not None, "the average exists from the start of training"
        return cast(Network, cast(pl.LightningModule, self._average_model.module).net)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Undo the swap when validation was cut short, so the network is left with its own weights."""
        if trainer.validating and self._average_model is not None:
            self._swap_models(pl_module)
