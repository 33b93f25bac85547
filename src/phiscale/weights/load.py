"""Weights in this project's own layout, into a network that exists: warm starts and fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from phiscale.errors import ModelDirError
from phiscale.weights.tensors import network_of

__all__ = ["LoadReport", "Mismatch", "compare", "copy_into", "load_weights"]

_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Mismatch:
    """A tensor that the file has in another shape than the network.

    Attributes:
        name: Its name.
        expected: Shape in the network.
        found: Shape in the file.
    """

    name: str
    expected: tuple[int, ...]
    found: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} (needs {list(self.expected)}, found {list(self.found)})"


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What loading did to every tensor.

    Attributes:
        kept: Names of the tensors that were taken from the file.
        new: Names of those that the file does not have; they stay as they were.
        skipped: Those of another shape in the file; they stay as they were.
        unused: Names that the file has and the network does not.
    """

    kept: tuple[str, ...]
    new: tuple[str, ...] = ()
    skipped: tuple[Mismatch, ...] = ()
    unused: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether file and network have the same tensors."""
        return not (self.new or self.skipped or self.unused)

    def require_all(self, source: str | Path) -> None:
        """Raise `ModelDirError` that names what is missing, unexpected or of another shape."""
        if not self.complete:
            problems = "; ".join(f"{label}: {_names(names)}" for label, names in self._problems())
            raise ModelDirError(f"{source} does not fit the network: {problems}")

    def __str__(self) -> str:
        """A small table, one line per outcome."""
        rows = [("kept", self.kept), *self._problems()]
        return "\n".join(f"{label:<12}{len(names):>5}  {_names(names)}".rstrip() for label, names in rows)

    def _problems(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        if self.new:
            yield "missing", self.new
        if self.skipped:
            yield "other shape", tuple(map(str, self.skipped))
        if self.unused:
            yield "unexpected", self.unused


def load_weights(net: nn.Module, source: str | Path, *, strict: bool = True) -> LoadReport:
    """Load weights in this project's own layout into a network, in place.

    Args:
        net: A network from `phiscale.create_model`.
        source: A model directory, a ``.safetensors`` file, or a ``.pt`` / ``.pth`` file.
        strict: Whether every tensor must fit. Without, those that do not (the classifier of another
            number of classes, the stem of other channels) stay as they were.

    Returns:
        What happened to each tensor.

    Raises:
        ModelDirError: The source cannot be read, does not fit (`strict`), or not one tensor fits.
            The network is then untouched.
    """
    from phiscale.weights.model_dir import load_state

    net = network_of(net)
    state = load_state(source)
    report = compare(net.state_dict(), state)
    if strict:
        report.require_all(source)
    if not report.kept:
        raise ModelDirError(
            f"not one tensor of {source} fits the network {net.spec.name}; "
            "is it of another network, or in another library's layout?"
        )
    copy_into(net, {name: state[name] for name in report.kept})
    return report


def compare(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> LoadReport:
    """Compare names and shapes of a network's tensors with those of a file."""
    common = [name for name in expected if name in found]
    return LoadReport(
        kept=tuple(name for name in common if expected[name].shape == found[name].shape),
        new=tuple(name for name in expected if name not in found),
        skipped=tuple(
            Mismatch(name=name, expected=tuple(expected[name].shape), found=tuple(found[name].shape))
            for name in common
            if expected[name].shape != found[name].shape
        ),
        unused=tuple(name for name in found if name not in expected),
    )


def copy_into(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy tensors into a network, converted to its types and devices; others stay as they were."""
    own = net.state_dict()
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)


def _names(names: tuple[str, ...]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
