"""Networks of keras.applications that take what the networks of all others here take."""

from __future__ import annotations

import importlib
import re
import tempfile
from types import ModuleType
from typing import Any

import pytest
import torch
from parity import images
from torch import Tensor, nn

__all__ = ["KerasNet"]


class KerasNet(nn.Module):
    """An EfficientNet of keras.applications, on the torch backend.

    Args:
        number: 0 to 7.
        side: Of the images, in pixels.
    """

    def __init__(self, number: int, side: int) -> None:
        super().__init__()
        self.keras = _keras()
        # Its initial weights come from a generator of its own.
        self.keras.utils.set_random_seed(torch.initial_seed() % 2**32)
        build = getattr(self.keras.applications, f"EfficientNetB{number}")
        with self.keras.device("cpu"):
            self.model = build(weights=None, classifier_activation=None, input_shape=(side, side, 3))

    @property
    def norms(self) -> list[Any]:
        """Its layers of batch normalisation."""
        kind = self.keras.layers.BatchNormalization
        return [layer for layer in self.model.layers if isinstance(layer, kind)]

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by layer and name; Keras counts the layers of a process in some of the names."""
        return {
            f"{re.sub('_[0-9]+$', '', layer.name)}/{variable.name}": variable.value.detach()
            for layer in self.model.layers
            for variable in layer.weights
        }

    def forward(self, x: Tensor, *, training: bool = False) -> Tensor:
        """x: (N, 3, H, W). Returns logits (N, 1000)."""
        # Its first layers divide by 255; then comes a normalisation, which does nothing until it is adapted.
        with self.keras.device("cpu"):
            logits: Tensor = self.model(255 * x.permute(0, 2, 3, 1), training=training)
        return logits

    def perturb(self, side: int) -> None:
        """What `parity.perturb` does to the networks of others."""
        for norm in self.norms:
            norm.gamma.assign(torch.empty(norm.gamma.shape).uniform_(0.7, 1.3))
            norm.beta.assign(0.2 * torch.randn(norm.beta.shape))
            norm.momentum = 0.0
        for layer in self.model.layers:
            if layer not in self.norms and getattr(layer, "bias", None) is not None:
                layer.bias.assign(0.1 * torch.randn(layer.bias.shape))
        with torch.no_grad():
            self(images(8, (side, side)), training=True)
        for norm in self.norms:
            mean, variance = norm.moving_mean.value.detach(), norm.moving_variance.value.detach()
            norm.moving_mean.assign(mean + 0.05 * variance.sqrt() * torch.randn_like(mean))
            norm.moving_variance.assign(variance * torch.empty_like(variance).uniform_(0.9, 1.2))


def _keras() -> ModuleType:
    """Keras on its torch backend; its settings are written into a folder that is thrown away."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as home:
        patch.setenv("KERAS_BACKEND", "torch")
        patch.setenv("KERAS_HOME", home)
        module = importlib.import_module("keras")
    assert module.backend.backend() == "torch"
    return module
