"""Contenders timed in turn, with their share of the machine's limit and how far their answers are off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.contender import Contender, centred_logits
from benchmarks.measure import Timing, interleave
from benchmarks.networks import Subject
from benchmarks.roofline import Roofline

__all__ = ["show", "table"]

Row = dict[str, Any]
# A reference is sure where its first class is so many times as likely as its second.
SURE = 2.0


def table(
    subject: Subject,
    contenders: Sequence[Contender],
    *,
    roofline: Roofline,
    batch: int,
    rounds: int,
    images: NDArray[np.uint8],
) -> list[Row]:
    """A row per contender.

    Args:
        subject: The network that all of them run.
        contenders: timm as it comes is the first: it gives the answers that others are compared with.
        roofline: Of the machine, in the same run.
        batch: Images per run.
        rounds: Of timing.
        images: To be answered, (N, H, W, 3) with N a multiple of `batch`; the first are those of the timing.
    """
    timings = _times(contenders, images[:batch], rounds, f"{subject.name}, batch {batch}")
    answers = {one.name: one.answers(images, batch) for one in contenders}
    references = {contenders[0].padding: answers[contenders[0].name]}
    rows = []
    for one in contenders:
        if one.padding not in references:
            references[one.padding] = _ours_in_fp32(subject, one.padding, images)
        timing = timings[one.name]
        limit = roofline.limit_ms(batch * subject.macs, one.precision)
        rows.append(
            {
                "network": subject.name,
                "image_size": list(subject.spec.image_size),
                "batch": batch,
                "name": one.name,
                "library": one.library,
                "engine": one.engine,
                "precision": one.precision,
                "padding": one.padding,
                "median_ms": timing.median_ms,
                "p90_ms": timing.p90_ms,
                "images_per_second": 1000 * batch / timing.median_ms,
                "limit_ms": limit,
                "share_of_limit": limit / timing.median_ms,
                "images": len(images),
                **_compare(answers[one.name], references[one.padding]),
                "rounds_ms": [round(value, 4) for value in timing.rounds_ms],
            }
        )
    return rows


def _times(
    contenders: Sequence[Contender], images: NDArray[np.uint8], rounds: int, title: str
) -> dict[str, Timing]:
    calls = {}
    for one in contenders:
        assert one.name not in calls, f"two contenders are called {one.name}"
        prepared = one.prepare(images)
        calls[one.name] = lambda one=one, prepared=prepared: one.run(prepared)
    return interleave(calls, rounds=rounds, title=title)


@torch.inference_mode()
def _ours_in_fp32(subject: Subject, padding: str, images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The reference for libraries with a padding that timm's network does not have."""
    net = subject.of_padding(padding)
    outputs = [net(subject.input_of(image[None])).numpy() for image in images]
    return centred_logits(np.concatenate(outputs), probabilities=False)


def _compare(answers: NDArray[np.float64], reference: NDArray[np.float64]) -> dict[str, float | None]:
    same = answers.argmax(1) == reference.argmax(1)
    second, first = np.sort(reference, axis=1)[:, -2:].T
    sure = first - second >= np.log(SURE)
    return {
        "difference": float(np.abs(answers - reference).max() / np.abs(reference).max()),
        "agreement": float(same.mean()),
        "sure": float(sure.mean()),
        "agreement_sure": float(same[sure].mean()) if sure.any() else None,
    }


def show(rows: Sequence[Row]) -> None:
    """Print a table, times against the first row's."""
    first = rows[0]
    sides = "×".join(str(side) for side in first["image_size"])
    print(f"\n{first['network']}, {sides} px, batch {first['batch']}")
    speed = f"{'ms':>9}{'p90':>9}{'img/s':>9}{'×':>7}{'of limit':>10}"
    print(f"  {'':42}{speed}{'difference':>12}{'same top-1':>12}{'where sure':>12}")
    for row in rows:
        faster = first["median_ms"] / row["median_ms"]
        print(
            f"  {row['name']:42}{row['median_ms']:9.2f}{row['p90_ms']:9.2f}{row['images_per_second']:9.1f}"
            f"{faster:7.2f}{row['share_of_limit']:10.0%}{row['difference']:12.1e}{row['agreement']:12.1%}"
            f"{_share(row['agreement_sure']):>12}"
        )


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
