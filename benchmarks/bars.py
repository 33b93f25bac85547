"""What must hold, checked on the results of one run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from benchmarks.contender import OURS
from benchmarks.measure import ratio

__all__ = ["Bar", "check"]

Verdict = Literal["PASS", "FAIL", "not measured"]
Row = Mapping[str, Any]
Sections = Mapping[str, Any]

B0, LITE = "efficientnet_b0", "efficientnet_lite0"
LATENCY_RATIO, LATENCY_AGREEMENT = 3.5, 0.995
FP32_RATIO, FP32_DIFFERENCE = 2.5, 1e-4
THROUGHPUT_RATIO, PYTORCH_RATIO = 7.0, 1.8
FOLDER_RATIO, FOLDER_LABELS = 6.0, 0.99
MEMORY_SHARE = 0.25
COLD_START_SECONDS = 1.5
TIMM_PROGRAMS = "timm"


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One thing that must hold.

    Attributes:
        what: In words.
        wanted: The bound, as text.
        found: What was measured, as text.
        verdict: Whether it holds.
    """

    what: str
    wanted: str
    found: str = ""
    verdict: Verdict = "not measured"


def check(sections: Sections) -> list[Bar]:
    """Hold the results of a run against what must be.

    Args:
        sections: Results by section; what is missing gives bars that are not measured.
    """
    latency: Sequence[Row] = sections.get("latency", {}).get("rows", ())
    bars = [_fast(latency), _exact(latency)]
    bars += _beside_engines(latency)
    bars += _throughput(sections.get("throughput", {}).get("rows", ()))
    alone = sections.get("throughput", {}).get("alone", ())
    bars += [replace(bar, what=f"{bar.what}, each in its own process") for bar in _throughput(alone)]
    folder = sections.get("folder", {})
    bars += _folder(folder.get("rows", ()), folder.get("lite_rows", ()))
    cold = sections.get("cold_start", {}).get("rows", ())
    return [*bars, _cold(cold, sections.get("packages", {}).get("rows", ()))]


def _verdict(holds: bool) -> Verdict:
    return "PASS" if holds else "FAIL"


def _of(rows: Sequence[Row], network: str) -> list[Row]:
    return [row for row in rows if row["network"] == network]


def _ours(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["library"] == OURS]


def _fast(rows: Sequence[Row]) -> Bar:
    """The fastest of ours on B0 whose answers, on the trained network, are those of timm."""
    what = "B0, batch 1: times timm eager, among those with the same top-1 on Lite0"
    wanted = f"≥ {LATENCY_RATIO} × with ≥ {LATENCY_AGREEMENT:.1%}"
    mine, trained = _ours(_of(rows, B0)), _ours(_of(rows, LITE))
    agreement = {(row["engine"], row["precision"]): row["agreement"] for row in trained}
    known = [row for row in mine if (row["engine"], row["precision"]) in agreement]
    if not known:
        return Bar(what=what, wanted=wanted)
    timm = _of(rows, B0)[0]["median_ms"]
    same = [row for row in known if agreement[row["engine"], row["precision"]] >= LATENCY_AGREEMENT]
    best = min(same or known, key=lambda row: float(row["median_ms"]))
    times, agrees = timm / best["median_ms"], agreement[best["engine"], best["precision"]]
    return Bar(
        what=what,
        wanted=wanted,
        found=f"{times:.2f} × with {agrees:.1%}, {best['name']}",
        verdict=_verdict(times >= LATENCY_RATIO and agrees >= LATENCY_AGREEMENT),
    )


def _exact(rows: Sequence[Row]) -> Bar:
    what = "B0, batch 1, fp32: times timm eager, and difference of the output"
    wanted = f"≥ {FP32_RATIO} × with ≤ {FP32_DIFFERENCE:.0e} of its scale"
    mine = [row for row in _ours(_of(rows, B0)) if row["precision"] == "fp32"]
    if not mine:
        return Bar(what=what, wanted=wanted)
    best = min(mine, key=lambda row: float(row["median_ms"]))
    times = _of(rows, B0)[0]["median_ms"] / best["median_ms"]
    return Bar(
        what=what,
        wanted=wanted,
        found=f"{times:.2f} × with {best['difference']:.1e}, {best['name']}",
        verdict=_verdict(times >= FP32_RATIO and best["difference"] <= FP32_DIFFERENCE),
    )


def _beside_engines(rows: Sequence[Row]) -> Iterator[Bar]:
    """Not slower than the engines over timm's export: the interval of the ratio must not lie above one."""
    for network in dict.fromkeys((B0, "efficientnet_b4", LITE, *(row["network"] for row in rows))):
        for precision in ("fp32", "bf16", "int8"):
            what = f"{network}, batch 1, {precision}: time against the engines on timm's export"
            own = [row for row in _of(rows, network) if row["precision"] == precision]
            mine = _ours(own)
            theirs = [row for row in own if row["library"] != OURS and row["engine"] != "PyTorch"]
            if not mine or not theirs:
                yield Bar(what=what, wanted="≤ 1.00")
                continue
            best, peer = (min(some, key=lambda row: float(row["median_ms"])) for some in (mine, theirs))
            median, low, high = ratio(best["rounds_ms"], peer["rounds_ms"])
            yield Bar(
                what=what,
                wanted="≤ 1.00 within the noise of the rounds",
                found=f"{median:.3f} ({low:.3f} to {high:.3f}), {best['name']} against {peer['name']}",
                verdict=_verdict(low <= 1),
            )


def _throughput(rows: Sequence[Row]) -> Iterator[Bar]:
    own = _of(rows, B0)
    mine = _ours(own)
    pytorch = [row for row in own if row["library"] != OURS and row["engine"] == "PyTorch"]
    for what, peers, least in (
        ("B0, batch 32: times timm eager", pytorch[:1], THROUGHPUT_RATIO),
        ("B0, batch 32: times the best of PyTorch", pytorch, PYTORCH_RATIO),
    ):
        if not mine or not peers:
            yield Bar(what=what, wanted=f"≥ {least} ×")
            continue
        best = max(mine, key=lambda row: float(row["images_per_second"]))
        peer = max(peers, key=lambda row: float(row["images_per_second"]))
        times = best["images_per_second"] / peer["images_per_second"]
        yield Bar(
            what=what,
            wanted=f"≥ {least} ×",
            found=f"{times:.2f} ×, {best['name']} against {peer['name']}",
            verdict=_verdict(times >= least),
        )


def _folder(rows: Sequence[Row], lite_rows: Sequence[Row]) -> Iterator[Bar]:
    ours = next(iter(_ours(rows)), None)
    wanted = f"≥ {FOLDER_RATIO} ×, {FOLDER_LABELS:.0%} the same labels"
    peers = [row for row in rows if row["library"] != OURS]
    if ours is None:
        yield Bar(what="a folder of JPEGs: times the libraries' programs", wanted=wanted)
    for row in peers if ours is not None else ():
        assert ours is not None
        times = row["seconds"] / ours["seconds"]
        yield Bar(
            what=f"a folder of {row['images']} JPEGs: times {row['name']}",
            wanted=wanted,
            found=f"{times:.2f} ×, {row['same_labels']:.1%}",
            verdict=_verdict(times >= FOLDER_RATIO and row["same_labels"] >= FOLDER_LABELS),
        )
    for row in lite_rows:
        if row["library"] != OURS:
            yield Bar(
                what=f"Lite0 on the same JPEGs: the labels of {row['name']}",
                wanted=f"≥ {FOLDER_LABELS:.0%}",
                found=f"{row['same_labels']:.1%}",
                verdict=_verdict(row["same_labels"] >= FOLDER_LABELS),
            )
    for row in peers if ours is not None else ():
        assert ours is not None
        if row["library"] == TIMM_PROGRAMS:
            share = ours["max_rss_bytes"] / row["max_rss_bytes"]
            yield Bar(
                what=f"a folder of JPEGs: resident memory as a share of {row['name']}",
                wanted=f"≤ {MEMORY_SHARE}",
                found=f"{share:.2f} ({_mib(ours)} of {_mib(row)} MiB)",
                verdict=_verdict(share <= MEMORY_SHARE),
            )


def _cold(rows: Sequence[Row], packages: Sequence[Row]) -> Bar:
    what = "cold start of `phiscale predict` with one image, torch not imported"
    wanted = f"< {COLD_START_SECONDS} s"
    ours, imported = next(iter(_ours(rows)), None), next(iter(_ours(packages)), None)
    if ours is None or imported is None:
        return Bar(what=what, wanted=wanted)
    loads = "torch imported" if imported["imports_torch"] else "torch not imported"
    return Bar(
        what=what,
        wanted=wanted,
        found=f"{ours['seconds']:.2f} s, {loads}",
        verdict=_verdict(ours["seconds"] < COLD_START_SECONDS and not imported["imports_torch"]),
    )


def _mib(row: Row) -> str:
    return f"{row['max_rss_bytes'] / 2**20:.0f}"
