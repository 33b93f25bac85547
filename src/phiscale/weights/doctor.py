"""`phiscale.inspect_weights`: what a file of weights is, what it needs, and what is wrong with it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from torch import Tensor

from phiscale.errors import ModelDirError
from phiscale.families import get_spec
from phiscale.spec import NetworkSpec
from phiscale.weights.checkpoint import Checkpoint, file_sha256, open_checkpoint
from phiscale.weights.containers import Entry
from phiscale.weights.evidence import find_broken, gather_evidence
from phiscale.weights.parity import ParityResult
from phiscale.weights.parity import parity as measure_parity
from phiscale.weights.publishers import library_of
from phiscale.weights.report import WeightsReport
from phiscale.weights.traps import traps_for

__all__ = ["WeightsReport", "inspect_weights"]

# torch.hub's rule for names of files: at least eight hexadecimal digits after the last hyphen.
_DIGITS = re.compile(r"-([0-9a-f]{8,64})\.[a-z0-9]+$")
_STATISTICS = (".running_mean", ".running_var", ".num_batches_tracked")


def inspect_weights(
    source: str | Path,
    *,
    model: str | Path | NetworkSpec | None = None,
    entry: Entry | None = None,
    parity: bool | Literal["auto"] = "auto",
    offline: bool = False,
) -> WeightsReport:
    """Say what a file of weights is, whoever published it.

    Nothing in the file is run, and nothing of it is loaded into a network but for the comparison with the
    publisher's library.

    Args:
        source: A file, a folder, a name of the catalog, or ``hf://user/repository``, as for `load_weights`.
        model: The network that it should hold; needed for networks of one's own, whose shapes nobody knows.
        entry: ``"ema"`` or ``"plain"`` weights of a training checkpoint.
        parity: Whether the tensors are run in the publisher's own network too: ``"auto"`` where its library
            is installed, True demands that it is, False leaves it out.
        offline: Whether nothing may be downloaded.

    Returns:
        The report; printed, it is a table.

    Raises:
        ModelDirError: The source cannot be had or read, or is of no known layout or network.
        SpecError: `model` is no network.
        MissingDependencyError: A package for this kind of file, or with `parity` True the publisher's
            library, is not installed.
    """
    wanted = get_spec(model) if model is not None else None
    checkpoint = open_checkpoint(source, model=wanted, entry=entry, offline=offline)
    layout, record = checkpoint.layout, checkpoint.record
    sha256 = file_sha256(checkpoint.path)
    return WeightsReport(
        source=checkpoint.source,
        path=checkpoint.path,
        size_bytes=_size(checkpoint.path),
        sha256=sha256,
        name_has_checksum=_has_checksum(checkpoint.path, sha256),
        record=record,
        kind=checkpoint.kind,
        layout=layout.name,
        publisher=layout.publisher,
        spec=checkpoint.spec,
        wanted=wanted,
        num_tensors=len(checkpoint.tensors),
        num_parameters=_parameters(checkpoint.tensors),
        precision=_precision(checkpoint.tensors),
        missing=checkpoint.missing,
        wrong_shape=checkpoint.wrong_shape,
        unexpected=checkpoint.unexpected,
        entries=checkpoint.entries,
        entry=checkpoint.entry,
        settings=checkpoint.settings,
        must_set={name: _choices(name, checkpoint) for name in checkpoint.open_settings},
        evidence=gather_evidence(
            checkpoint.spec,
            checkpoint.tensors,
            counters=layout.leaves.get("norm.num_batches_tracked", "") is not None,
        ),
        preprocess=checkpoint.preprocess,
        classes=checkpoint.classes,
        findings=find_broken(checkpoint.tensors),
        parity=_parity(checkpoint, parity),
        traps=traps_for(
            layout.name,
            checkpoint.spec.name,
            record=record.name if record else None,
            entries=checkpoint.entries,
        ),
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise ModelDirError(f"cannot read {path}: {error.strerror or error}") from None


def _has_checksum(path: Path, sha256: str) -> bool | None:
    digits = _DIGITS.search(path.name)
    return sha256.startswith(digits.group(1)) if digits else None


def _parameters(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for name, tensor in tensors.items() if not name.endswith(_STATISTICS))


def _precision(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Types of the tensors, the counters of batches aside, the most frequent first."""
    types = [tensor.dtype for name, tensor in tensors.items() if not name.endswith(_STATISTICS[-1])]
    return dict(Counter(str(dtype).removeprefix("torch.") for dtype in types).most_common())


def _choices(name: str, checkpoint: Checkpoint) -> str:
    if name == "norm_momentum":
        return "of use in training only (timm's networks have 0.1, the authors' 0.01)"
    if checkpoint.spec.name.startswith("efficientnet_"):
        values = {"padding": ("same", "symmetric"), "norm_eps": ("0.001", "1e-05")}[name]
        return f"set {values[0]} (TensorFlow, timm's tf_ networks) or {values[1]} (timm's others)"
    return "ask who trained it"


def _parity(checkpoint: Checkpoint, parity: bool | Literal["auto"]) -> ParityResult:
    if parity is False:
        return ParityResult(reason="it was not asked for")
    if parity is True:
        library_of(checkpoint.layout.name, checkpoint.spec)
    return measure_parity(checkpoint)
