"""Anybody's weights into a network that exists, with an account of what was done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from phiscale.errors import ModelDirError
from phiscale.nn.network import Network
from phiscale.nn.settings import change_settings
from phiscale.spec import NetworkSpec
from phiscale.weights.adapt import for_channels, pick_classes
from phiscale.weights.checkpoint import Checkpoint, open_checkpoint
from phiscale.weights.containers import Entry
from phiscale.weights.conventions import SETTINGS
from phiscale.weights.tensors import network_of

__all__ = ["LoadReport", "Mismatch", "check_fits", "compare", "copy_into", "load_checkpoint", "load_weights"]

STEM = "stem.conv.weight"
CLASSIFIER = ("classifier.weight", "classifier.bias")
_COUNTER = ".num_batches_tracked"
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
    """What loading did to every tensor of the network and to its settings.

    Attributes:
        kept: Names of the tensors that were taken from the file, adapted ones among them.
        new: Names of those that the file does not have; they stay as they were.
        skipped: Those of another shape in the file; they stay as they were.
        unused: Names that the file has and the network does not.
        adapted: Name -> what was done to it on the way: the stem for other channels, picked classes.
        settings: Padding and batch norm of the network afterwards, each with where it comes from.
        source: What was loaded, in a few words: layout, network, file.
    """

    kept: tuple[str, ...]
    new: tuple[str, ...] = ()
    skipped: tuple[Mismatch, ...] = ()
    unused: tuple[str, ...] = ()
    adapted: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    source: str = ""

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
        lines = [self.source] if self.source else []
        lines += [f"{label:<12}{len(names):>5}  {_names(names)}".rstrip() for label, names in rows]
        lines += [f"{'adapted':<12}{name}: {how}" for name, how in self.adapted.items()]
        lines += [f"{name:<14}{value}" for name, value in self.settings.items()]
        return "\n".join(lines)

    def _problems(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        if self.new:
            yield "missing", self.new
        if self.skipped:
            yield "other shape", tuple(map(str, self.skipped))
        if self.unused:
            yield "unexpected", self.unused


def load_weights(
    net: nn.Module,
    source: str | Path,
    *,
    strict: bool = True,
    classes: Sequence[str] | None = None,
    entry: Entry | None = None,
    adjust: bool = True,
    offline: bool = False,
) -> LoadReport:
    """Load weights of any publisher into a network, in place.

    Layout and network of the file are recognised by names and shapes. A stem for another number of input
    channels is adapted, a classifier for another number of classes stays as it is. Padding and batch
    norm are set to those that the weights were trained with, where that is known; a timm file alone does
    not say it, so there the network keeps its own.

    Args:
        net: A network from `phiscale.create_model`.
        source: A file (safetensors, ``.pt``, ``.pth``, Keras); a folder (a model directory, a repository of
            transformers or timm); a name of the catalog; ``"imagenet"``, the catalog's best for this
            network; ``"lite0-warm-start"`` for a B0; or ``hf://user/repository``.
        strict: Whether every tensor must fit, but for a classifier of other classes. Without, those that do
            not stay as they were.
        classes: Names of the network's classes: their rows are picked from the file's classifier, and
            names that it does not know stay new.
        entry: ``"ema"`` or ``"plain"`` weights of a training checkpoint.
        adjust: Whether padding and batch norm follow the weights.
        offline: Whether nothing may be downloaded.

    Returns:
        What happened to each tensor and setting; printed, it is a table.

    Raises:
        ModelDirError: The source cannot be had or read, is of no known layout, or does not fit.
            The network is then untouched.
    """
    from phiscale.weights.warm_start import WARM_STARTS, load_warm_start

    net = network_of(net)
    if str(source) in WARM_STARTS:
        return load_warm_start(net, str(source), adjust=adjust)
    checkpoint = open_checkpoint(source, model=net.spec, entry=entry, offline=offline)
    return load_checkpoint(net, checkpoint, strict=strict, classes=classes, adjust=adjust)


def load_checkpoint(
    net: Network,
    checkpoint: Checkpoint,
    *,
    strict: bool = True,
    classes: Sequence[str] | None = None,
    adjust: bool = True,
) -> LoadReport:
    """Load weights that were opened already; arguments, result and errors as of `load_weights`."""
    state, adapted = _adapted(net, checkpoint, classes)
    report = replace(compare(net.state_dict(), state, also_unused=checkpoint.unexpected), adapted=adapted)
    if strict:
        _require_body(report, checkpoint, net)
    if not any(not name.endswith(_COUNTER) for name in report.kept):
        raise ModelDirError(
            f"not one tensor of {checkpoint.source} ({checkpoint.spec.name}) fits the network {net.spec.name}"
        )
    settings = _settings(net, checkpoint, adjust=adjust)
    copy_into(net, {name: state[name] for name in report.kept})
    source = f"{checkpoint.layout.publisher} {checkpoint.spec.name} from {checkpoint.source}"
    entry = f", {checkpoint.entry} weights" if checkpoint.entry else ""
    return replace(report, settings=settings, source=source + entry)


def check_fits(checkpoint: Checkpoint, spec: NetworkSpec) -> None:
    """Check, without building it, that a network could be loaded strictly.

    Raises:
        ModelDirError: It could not; the message says why.
    """
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        net = Network(spec)
    state, _ = _adapted(net, checkpoint, None)
    _require_body(compare(net.state_dict(), state, also_unused=checkpoint.unexpected), checkpoint, net)


def compare(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], *, also_unused: Sequence[str] = ()
) -> LoadReport:
    """Compare names and shapes of a network's tensors with those of a file.

    Args:
        expected: The network's.
        found: The file's.
        also_unused: Names that the file has besides.
    """
    common = [name for name in expected if name in found]
    return LoadReport(
        kept=tuple(name for name in common if expected[name].shape == found[name].shape),
        new=tuple(name for name in expected if name not in found),
        skipped=tuple(
            Mismatch(name=name, expected=tuple(expected[name].shape), found=tuple(found[name].shape))
            for name in common
            if expected[name].shape != found[name].shape
        ),
        unused=(*(name for name in found if name not in expected), *also_unused),
    )


def copy_into(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy tensors into a network, converted to its types and devices; others stay as they were."""
    own = net.state_dict()
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)


def _adapted(
    net: Network, checkpoint: Checkpoint, classes: Sequence[str] | None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The file's tensors, made to fit stem and classifier of the network, and what was done for that."""
    state, own = dict(checkpoint.tensors), net.state_dict()
    done: dict[str, str] = {}
    for name, counter in own.items():
        # Not every publisher stores how many batches a norm has seen.
        if name.endswith(_COUNTER) and name.removesuffix(_COUNTER) + ".weight" in state:
            state.setdefault(name, torch.zeros_like(counter))
    kernel, wanted = state.get(STEM), own[STEM]
    if kernel is not None and kernel.dim() == 4 and kernel.shape[1] not in (0, wanted.shape[1]):
        state[STEM] = for_channels(kernel, wanted.shape[1])
        done[STEM] = f"{kernel.shape[1]} input channels to {wanted.shape[1]}"
    if classes is not None:
        _pick(net, checkpoint, classes, state, done)
    return state, done


def _pick(
    net: Network,
    checkpoint: Checkpoint,
    classes: Sequence[str],
    state: dict[str, Tensor],
    done: dict[str, str],
) -> None:
    if len(classes) != net.spec.num_classes:
        raise ModelDirError(
            f"{len(classes)} classes for a network of {net.spec.num_classes}; give one name per class"
        )
    known, own = checkpoint.classes.value or (), net.state_dict()
    rows = pick_classes(state, known, classes)
    found = [index for index, row in enumerate(rows) if row is not None]
    picked = [row for row in rows if row is not None]
    for name in CLASSIFIER:
        # One that reads other features is left for the report to tell of.
        if name in state and state[name].shape == (len(known), *own[name].shape[1:]):
            tensor = own[name].clone()
            tensor[found] = state[name][picked].to(tensor)
            state[name] = tensor
    unknown = [name for name, row in zip(classes, rows, strict=True) if row is None]
    new = f"; new: {_names(tuple(unknown))}" if unknown else ""
    done[CLASSIFIER[0]] = f"{len(found)} of {len(classes)} rows picked by class name{new}"


def _require_body(report: LoadReport, checkpoint: Checkpoint, net: Network) -> None:
    """Check that all but a classifier of other classes fits; half a classifier does not."""
    free = () if CLASSIFIER[0] in report.kept else CLASSIFIER
    body = replace(
        report,
        new=tuple(name for name in report.new if name not in free),
        skipped=tuple(item for item in report.skipped if item.name not in free),
        unused=tuple(name for name in report.unused if name not in free),
    )
    if body.complete:
        _require_skips(checkpoint, net)
        return
    if checkpoint.complete and checkpoint.spec.name != net.spec.name:
        raise ModelDirError(
            f"{checkpoint.source} holds {checkpoint.spec.name} and the network is {net.spec.name}; "
            f"build {checkpoint.spec.name}, or give strict=False to take what fits"
        )
    body.require_all(checkpoint.source)


def _require_skips(checkpoint: Checkpoint, net: Network) -> None:
    """Check what no tensor shows: that the network adds where the one in the file did."""
    for found, own in zip(checkpoint.spec.blocks(), net.spec.blocks(), strict=True):
        if own.fits_skip and found.stage.skip != own.stage.skip:
            with_it, without = ("file", "network") if found.stage.skip else ("network", "file")
            raise ModelDirError(
                f"stages[{own.stage_index}] has a skip in the {with_it} and none in the {without} "
                f"({checkpoint.source}); change it, or give strict=False to take the weights as they are"
            )


def _settings(net: Network, checkpoint: Checkpoint, *, adjust: bool) -> dict[str, str]:
    """Set padding and norm as the weights were trained, and say what each is now and why."""
    facts = {name: checkpoint.settings[name] for name in SETTINGS}
    changes: dict[str, Any] = {}
    said: dict[str, str] = {}
    for name, fact in facts.items():
        present = getattr(net.spec, name)
        if fact.value is None:
            said[name] = f"{present}, the network's own; {fact.source}"
        elif fact.value == present:
            said[name] = f"{present}, as {fact.source} has it"
        elif adjust:
            changes[name] = fact.value
            said[name] = f"{fact.value} instead of {present}, as {fact.source} has it"
        else:
            said[name] = f"{present}; the weights were trained with {fact.value}, as {fact.source} has it"
    change_settings(net, **changes)
    return said


def _names(names: tuple[str, ...]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
