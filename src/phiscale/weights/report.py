"""What the doctor says of a file, as values, as JSON and as text."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phiscale.preprocess import Preprocess
from phiscale.spec import NetworkSpec
from phiscale.weights.catalog import Record
from phiscale.weights.containers import Entry
from phiscale.weights.conventions import Fact
from phiscale.weights.evidence import Evidence, Finding
from phiscale.weights.parity import ParityResult
from phiscale.weights.shapes import Shape
from phiscale.weights.traps import Trap

__all__ = ["WeightsReport"]

_WIDTH, _LABEL = 96, 15
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class WeightsReport:
    """What a file of weights is, whether it is sound, and what must be known to use it.

    Attributes:
        source: What the user named.
        path: The file that it led to.
        size_bytes: Its size.
        sha256: Its checksum.
        name_has_checksum: Whether the digits at the end of the file's name are the first ones of its
            checksum, as torch.hub wants it; None where the name has no such digits.
        record: The catalog's record, where it is a published file.
        kind: How it is written: ``"safetensors"``, ``"pickle"``, ``"keras"`` or ``"hdf5"``.
        layout: Whose names its tensors have.
        publisher: Whose layout that is.
        spec: The network; padding and norm as in `settings`, and where open as in the family.
        wanted: The network that it should be, where that was asked.
        num_tensors: Tensors of the network in the file.
        num_parameters: Their elements, without batch norm's statistics.
        precision: Type of floating-point tensors -> how many.
        missing: Our names of tensors that the network needs and the file lacks.
        wrong_shape: Our name -> (needed, found).
        unexpected: The file's names of tensors that the network does not have.
        entries: ``"ema"`` and ``"plain"``, as far as a training checkpoint has them.
        entry: Which of them was read.
        settings: ``padding``, ``norm_eps`` and ``norm_momentum``, each with its source; None is open.
        must_set: Open setting -> the choices there are.
        evidence: Signs of settings in the tensors; shown beside a setting, never taken for it.
        preprocess: A `Preprocess` and its source.
        classes: Names of the classes and their source.
        findings: Values that are broken or odd.
        parity: Whether the publisher's library gives the same answers.
        traps: What files of this kind are known for.
    """

    source: str
    path: Path
    size_bytes: int
    sha256: str
    name_has_checksum: bool | None
    record: Record | None
    kind: str
    layout: str
    publisher: str
    spec: NetworkSpec
    wanted: NetworkSpec | None
    num_tensors: int
    num_parameters: int
    precision: Mapping[str, int]
    missing: tuple[str, ...]
    wrong_shape: Mapping[str, tuple[Shape, Shape]]
    unexpected: tuple[str, ...]
    entries: tuple[Entry, ...]
    entry: Entry | None
    settings: Mapping[str, Fact]
    must_set: Mapping[str, str]
    evidence: tuple[Evidence, ...]
    preprocess: Fact
    classes: Fact
    findings: tuple[Finding, ...]
    parity: ParityResult
    traps: tuple[Trap, ...]

    @property
    def complete(self) -> bool:
        """Whether the file has just the tensors of the network."""
        return not (self.missing or self.wrong_shape or self.unexpected)

    @property
    def healthy(self) -> bool:
        """Whether the network can be used as it is: nothing missing, nothing broken, no parity lost."""
        broken = any(finding.broken for finding in self.findings)
        return not (self.missing or self.wrong_shape or broken) and self.parity.equal is not False

    @property
    def is_wanted(self) -> bool | None:
        """Whether it holds the network that was asked for; None where nothing was asked."""
        if self.wanted is None:
            return None
        blocks = [(spec.stem, spec.stages, spec.head) for spec in (self.spec, self.wanted)]
        return blocks[0] == blocks[1] and not (self.missing or self.wrong_shape)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        values = {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}
        return {
            **values,
            "record": self.record.name if self.record else None,
            "wanted": self.wanted.name if self.wanted else None,
            "network": self.spec.name,
            "complete": self.complete,
            "healthy": self.healthy,
            "is_wanted": self.is_wanted,
        }

    def __str__(self) -> str:
        """A table of two columns, 96 characters wide."""
        lines = [printable(str(self.path))]
        for label, text in _rows(self):
            lines += _wrapped(label, text)
        if self.traps:
            lines += ["", "Known for such files"]
            for trap in self.traps:
                lines += _wrapped("", f"{trap.text} [{trap.name}]", label_width=2, bullet="- ")
        return "\n".join(lines)


def printable(text: str) -> str:
    """Text of a file, which may hold control characters, for a terminal."""
    return "".join(char if char.isprintable() else "�" for char in text)


def _wrapped(label: str, text: str, *, label_width: int = _LABEL, bullet: str = "") -> list[str]:
    indent = " " * (2 + label_width)
    return textwrap.wrap(
        printable(text),
        _WIDTH,
        initial_indent=f"  {bullet or label:<{label_width}}",
        subsequent_indent=indent,
        break_on_hyphens=False,
    )


def _rows(report: WeightsReport) -> Iterator[tuple[str, str]]:
    yield from _file_rows(report)
    yield from _tensor_rows(report)
    yield "input", f"{report.spec.in_channels} channels; {_preprocess(report.preprocess)}"
    yield "classes", _classes(report)
    for name, fact in report.settings.items():
        open_ = f"NOT IN THE FILE; {report.must_set.get(name)}"
        yield name, open_ if fact.value is None else f"{fact.value}; {fact.source}"
    for sign in report.evidence:
        fact = report.settings[sign.setting]
        if sign.points_to is not None or fact.value is None:
            yield "evidence", f"{sign.setting}{_verdict(sign, fact)}: {sign.text}"
    for finding in report.findings:
        yield "BROKEN" if finding.broken else "note", finding.text
    yield "parity", _parity(report.parity)


def _file_rows(report: WeightsReport) -> Iterator[tuple[str, str]]:
    size, unit = (
        (report.size_bytes / 1e6, "MB") if report.size_bytes >= 1e6 else (report.size_bytes / 1e3, "KB")
    )
    yield "file", f"{size:.1f} {unit}, {report.kind}"
    yield "sha256", report.sha256
    if report.record is not None:
        yield "published as", f"{report.record.name} ({report.record.training})"
    if report.name_has_checksum is False:
        yield "note", "the digits in the file's name are not those of its checksum: it was changed or renamed"
    names = f"in the {report.layout} layout"
    yield (
        "network",
        f"{report.spec.name}, {names}"
        + (f" ({report.publisher})" if report.publisher != report.layout else ""),
    )
    if report.wanted is not None:
        yield "asked for", f"{report.wanted.name}: {'it is' if report.is_wanted else 'it is NOT'}"
    if report.entries:
        yield "entries", f"{' and '.join(report.entries)}; {report.entry} is described here"


def _tensor_rows(report: WeightsReport) -> Iterator[tuple[str, str]]:
    precision = ", ".join(
        name if len(report.precision) == 1 else f"{count} {name}" for name, count in report.precision.items()
    )
    mixed = "; MIXED precision" if len(report.precision) > 1 else ""
    whole = "all that the network has" if report.complete else "not just those of the network"
    yield (
        "tensors",
        f"{report.num_tensors}, {whole}; {report.num_parameters:,} parameters, {precision}{mixed}",
    )
    shapes = [
        f"{name} (needs {list(need)}, has {list(found)})"
        for name, (need, found) in report.wrong_shape.items()
    ]
    for label, names in (
        ("MISSING", report.missing),
        ("WRONG SHAPE", shapes),
        ("unexpected", report.unexpected),
    ):
        if names:
            yield label, _some(names)


def _some(names: Iterable[str]) -> str:
    names = list(names)
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _classes(report: WeightsReport) -> str:
    names, source = report.classes.value, report.classes.source
    count = report.spec.num_classes
    if not count:
        return "none; a body without a classifier"
    return f"{count}: {_some(names)}; {source}" if names else f"{count}, names unknown: {source}"


def _preprocess(fact: Fact) -> str:
    value = fact.value
    if not isinstance(value, Preprocess):
        return f"preprocessing unknown: {fact.source}"
    height, width = value.size
    how = {"squash": "squashed to", "pad": "padded to"}.get(value.resize, "")
    if value.resize == "crop":
        shorter = min(value.resize_size)
        how = f"shorter side to {shorter}, centre of" if value.crop_fraction < 1 else "centre of"
    mean, std = (", ".join(f"{number:.3g}" for number in numbers) for numbers in (value.mean, value.std))
    return f"{how} {height}×{width} px, {value.interpolation}, mean {mean}, std {std}; {fact.source}"


def _verdict(sign: Evidence, fact: Fact) -> str:
    if sign.points_to is None:
        return ""
    if fact.value is None:
        return f", likely {sign.points_to}"
    return " agrees" if sign.points_to == fact.value else f" SPEAKS FOR {sign.points_to}"


def _parity(result: ParityResult) -> str:
    if not result.comparisons:
        return f"not measured: {result.reason}"
    assert result.image_size is not None
    size = f"{result.image_size[0]}×{result.image_size[1]} px"
    each = [
        f"{'equals' if item.equal else 'DIFFERS FROM'} {item.network} with {item.settings['padding']} "
        f"padding and epsilon {item.settings['norm_eps']:g} (difference {item.difference:.1e})"
        for item in result.comparisons
    ]
    open_ = "; parity does not tell which of them it was trained as" if len(each) > 1 else ""
    return f"{result.library} at {size}: {'; '.join(each)}{open_}"


def _plain(value: Any) -> Any:
    """Values that JSON has."""
    if isinstance(value, NetworkSpec | Preprocess):
        return value.to_dict()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        extra = {"equal": value.equal} if hasattr(value, "equal") else {}
        return {**fields, **extra}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
