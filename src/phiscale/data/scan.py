"""Read every image once, and say what is wrong with it before training starts.

Examples:
    >>> from phiscale.data.sources import open_source
    >>> source = open_source("images/")                     # doctest: +SKIP
    >>> report = scan(source)                               # doctest: +SKIP
    >>> clean = report.usable(source)                       # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np

from phiscale.data.decode import DEFAULT_MAX_PIXELS, printable
from phiscale.data.duplicates import Fingerprint, group_exact, group_near
from phiscale.data.probe import Probe, probe
from phiscale.data.quiet import QUIET_PILLOW
from phiscale.data.sources import ImageRecord, ImageSource
from phiscale.errors import DataError

__all__ = ["Finding", "ScanReport", "Severity", "SizeStats", "scan"]

Severity = Literal["error", "warning", "note"]

# Above this ratio of the largest to the smallest class, the small one is easily never predicted.
_IMBALANCE = 10
_FEW_IMAGES = 10

_TRAITS = {
    "cmyk": "CMYK; converted to RGB",
    "palette": "a palette; converted to RGB",
    "sixteen_bit": "more than 8 bits per value; scaled to 8 bits",
    "alpha": "transparency; laid over the background colour",
    "animated": "more than one frame; the first is used",
    "exif_rotated": "rotated by EXIF; turned upright",
    "grey": "grey",
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something to know about some images.

    Attributes:
        kind: A short name, such as ``"truncated"`` or ``"duplicate_leak"``; docs/concepts/data.md
            lists all of them.
        severity: ``"error"``: the images cannot be used. ``"warning"``: results may mislead.
            ``"note"``: handled, good to know.
        ids: The images, or none where the finding is about a class.
        message: One sentence.
    """

    kind: str
    severity: Severity
    ids: tuple[str, ...] = ()
    message: str


@dataclass(frozen=True, kw_only=True)
class SizeStats:
    """Heights and widths of the usable images, in pixels, upright."""

    min_height: int
    median_height: int
    max_height: int
    min_width: int
    median_width: int
    max_width: int


@dataclass(frozen=True, kw_only=True)
class ScanReport:
    """What a scan found.

    Attributes:
        location: The source's location.
        classes: The source's classes.
        images: Images scanned.
        counts: Usable images: split → class → number.
        sizes: Sizes of the usable images; None where there are none.
        decoded_bytes: Bytes of all usable images, decoded as RGB at full size.
        grey: Whether every usable image is stored in grey, so that one channel is enough.
        findings: Errors first, then warnings, then notes.
    """

    location: str
    classes: tuple[str, ...]
    images: int
    counts: Mapping[str, Mapping[str, int]]
    sizes: SizeStats | None
    decoded_bytes: int
    grey: bool
    findings: tuple[Finding, ...]

    @cached_property
    def unusable(self) -> frozenset[str]:
        """Ids of the images that cannot be used."""
        return frozenset(id_ for f in self.findings if f.severity == "error" for id_ in f.ids)

    def usable(self, source: ImageSource) -> ImageSource:
        """The source without the images that cannot be used.

        Raises:
            DataError: None is left.
        """
        clean = source.without(self.unusable)
        if not clean.records:
            raise DataError(f"none of the {self.images} images in {printable(self.location)} can be read")
        return clean

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        kinds = Counter(finding.kind for finding in self.findings)
        return {
            "location": self.location,
            "classes": list(self.classes),
            "images": self.images,
            "usable": self.images - len(self.unusable),
            "counts": {split: dict(classes) for split, classes in self.counts.items()},
            "sizes": dataclasses.asdict(self.sizes) if self.sizes else None,
            "decoded_bytes": self.decoded_bytes,
            "grey": self.grey,
            "kinds": dict(kinds),
            "findings": [{**dataclasses.asdict(f), "ids": list(f.ids)} for f in self.findings],
        }


def scan(
    source: ImageSource,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    near_duplicates: bool = True,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ScanReport:
    """Read every image of a source once. No file, however broken, makes this raise.

    Args:
        source: The images.
        max_pixels: Images of more pixels are reported as oversized, by their header; they are not
            decoded. Each worker holds one decoded image at a time.
        near_duplicates: Whether to look for pictures that are nearly the same, too.
        workers: Threads; None takes one per core, at most eight.
        progress: Called as ``progress(done, total)`` in the calling thread, now and then.

    Returns:
        The findings, and what training needs to know: counts, sizes, bytes.
    """
    records = source.records
    probes: list[Probe] = []
    look = partial(probe, source=source, max_pixels=max_pixels)
    # Entered once here, so that the thousands of entries in the threads only count.
    with QUIET_PILLOW:
        for item in _in_threads(look, records, workers or min(8, _cores())):
            probes.append(item)
            if progress is not None and (len(probes) % 16 == 0 or len(probes) == len(records)):
                progress(len(probes), len(records))
    usable = [i for i, item in enumerate(probes) if item.problem is None]
    findings = [
        *_problem_findings(records, probes),
        *_duplicate_findings(
            [records[i] for i in usable], [probes[i] for i in usable], source, near_duplicates
        ),
        *_class_findings(source, [records[i] for i in usable]),
        *_trait_findings(records, probes),
    ]
    order: dict[Severity, int] = {"error": 0, "warning": 1, "note": 2}
    sizes = [size for i in usable if (size := probes[i].size) is not None]
    return ScanReport(
        location=source.location,
        classes=source.classes,
        images=len(records),
        counts=_count(source, [records[i] for i in usable]),
        sizes=_size_stats(sizes),
        decoded_bytes=sum(3 * height * width for height, width in sizes),
        grey=bool(usable) and all("grey" in probes[i].traits for i in usable),
        findings=tuple(sorted(findings, key=lambda finding: order[finding.severity])),
    )


def _in_threads(
    look: Callable[[ImageRecord], Probe], records: Sequence[ImageRecord], workers: int
) -> Iterator[Probe]:
    pool = ThreadPoolExecutor(max_workers=workers)
    step = 32 * workers
    try:
        # In portions: a future for every image of a large set would itself fill the memory.
        for start in range(0, len(records), step):
            yield from pool.map(look, records[start : start + step])
    finally:
        pool.shutdown(cancel_futures=True)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _problem_findings(records: Sequence[ImageRecord], probes: Sequence[Probe]) -> Iterator[Finding]:
    for record, item in zip(records, probes, strict=True):
        if item.problem is not None:
            yield Finding(kind=item.problem, severity="error", ids=(record.id,), message=item.reason)


def _trait_findings(records: Sequence[ImageRecord], probes: Sequence[Probe]) -> Iterator[Finding]:
    traits: dict[str, list[str]] = defaultdict(list)
    extensions: dict[str, list[str]] = defaultdict(list)
    for record, item in zip(records, probes, strict=True):
        for name in item.traits:
            traits[name].append(record.id)
        if item.wrong_extension:
            extensions[item.wrong_extension].append(record.id)
    for message, ids in extensions.items():
        yield Finding(kind="wrong_extension", severity="warning", ids=tuple(ids), message=message)
    for name, text in _TRAITS.items():
        if traits[name]:
            yield Finding(kind=name, severity="note", ids=tuple(traits[name]), message=text)


def _duplicate_findings(
    records: Sequence[ImageRecord], probes: Sequence[Probe], source: ImageSource, near: bool
) -> Iterator[Finding]:
    prints: list[Fingerprint] = [item.fingerprint for item in probes if item.fingerprint is not None]
    for group in group_exact(prints):
        yield from _duplicates([records[i] for i in group], source, "duplicate", "the same picture")
    if near:
        for group in group_near(prints):
            yield from _duplicates(
                [records[i] for i in group], source, "near_duplicate", "nearly the same picture"
            )


def _duplicates(group: Sequence[ImageRecord], source: ImageSource, kind: str, what: str) -> Iterator[Finding]:
    ids = tuple(record.id for record in group)
    splits = sorted({record.split for record in group})
    labels = [printable(source.classes[label]) for label in sorted({record.label for record in group})]
    if len(splits) > 1:
        message = f"{what} in {' and '.join(splits)}; results will look better than they are"
        yield Finding(kind=f"{kind}_leak", severity="warning", ids=ids, message=message)
    if len(labels) > 1:
        message = f"{what} with different labels: {', '.join(labels)}"
        yield Finding(kind=f"{kind}_conflict", severity="warning", ids=ids, message=message)
    if len(splits) == len(labels) == 1:
        yield Finding(kind=kind, severity="note", ids=ids, message=f"{what}, {len(ids)} times")


def _class_findings(source: ImageSource, usable: Sequence[ImageRecord]) -> Iterator[Finding]:
    for name in source.empty_classes:
        message = f"the class folder {printable(name)} holds no image; it is left out"
        yield Finding(kind="empty_class", severity="warning", message=message)
    split = "train" if any(record.split == "train" for record in source.records) else "test"
    counts = _count(source, usable).get(split, {})
    for name, number in counts.items():
        if number == 0:
            message = f"class {printable(name)} has no usable image in {split}"
            yield Finding(kind="empty_class", severity="warning", message=message)
        elif number < _FEW_IMAGES and split == "train":
            message = f"class {printable(name)} has {number} train images; its result will be a guess"
            yield Finding(kind="few_images", severity="note", message=message)
    filled = {name: number for name, number in counts.items() if number}
    if filled and split == "train":
        large, small = max(filled, key=filled.__getitem__), min(filled, key=filled.__getitem__)
        if filled[large] >= _IMBALANCE * filled[small]:
            message = (
                f"class {printable(large)} has {filled[large]} train images, {printable(small)} has "
                f"{filled[small]}; accuracy will say little about {printable(small)}"
            )
            yield Finding(kind="imbalance", severity="warning", message=message)
    if source.ignored:
        message = f"{source.ignored} files passed over: hidden, or no images by their name"
        yield Finding(kind="ignored_files", severity="note", message=message)


def _count(source: ImageSource, usable: Sequence[ImageRecord]) -> dict[str, dict[str, int]]:
    numbers = Counter((record.split, record.label) for record in usable)
    present = {record.split for record in source.records}
    return {
        split: {name: numbers[split, label] for label, name in enumerate(source.classes)}
        for split in ("train", "val", "test")
        if split in present
    }


def _size_stats(sizes: Sequence[tuple[int, int]]) -> SizeStats | None:
    if not sizes:
        return None
    low, middle, high = np.quantile(np.array(sizes), [0.0, 0.5, 1.0], axis=0).round().astype(int).tolist()
    return SizeStats(
        min_height=low[0],
        median_height=middle[0],
        max_height=high[0],
        min_width=low[1],
        median_width=middle[1],
        max_width=high[1],
    )
