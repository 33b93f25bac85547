"""This project: PyTorch as it comes, and its exports in the runtimes that `phiscale predict` uses."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from benchmarks.contender import OURS, Contender
from benchmarks.networks import Subject
from phiscale.deploy.predictor import BATCH_SIZE
from phiscale.deploy.runtimes.base import Runtime, cores, open_export
from phiscale.deploy.runtimes.torch import TorchRuntime

__all__ = ["in_threads", "latency", "throughput"]

ENGINES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}


def latency(subject: Subject) -> list[Contender]:
    """Every runtime with a batch at a time. All take uint8 and give probabilities: that is in their time."""
    found = [_contender(subject, "phiscale, eager", "PyTorch", "fp32", _eager(subject))]
    for (format_, precision), export in subject.export().items():
        engine = ENGINES[format_]
        found.append(
            _contender(subject, f"phiscale, {engine} {precision}", engine, precision, open_export(export))
        )
    return found


def throughput(subject: Subject) -> list[Contender]:
    """Every runtime as `phiscale predict` uses it for many images: a thread per core, few images each."""
    found = [_contender(subject, "phiscale, eager", "PyTorch", "fp32", _eager(subject))]
    for (format_, precision), export in subject.export().items():
        engine, runtime = ENGINES[format_], open_export(export)
        many = getattr(runtime, "for_throughput", None)
        if many is not None:
            runtime = in_threads(many())
        name = f"phiscale, {engine} {precision}"
        found.append(_contender(subject, name, engine, precision, runtime))
    return found


def _eager(subject: Subject) -> Runtime:
    return TorchRuntime(subject.network, subject.preprocess)


def _contender(subject: Subject, name: str, engine: str, precision: str, runtime: Runtime) -> Contender:
    return Contender(
        name=name,
        library=OURS,
        engine=engine,
        precision=precision,
        padding=subject.spec.padding,
        prepare=np.ascontiguousarray,
        run=runtime,
        probabilities=True,
    )


def in_threads(runtime: Runtime) -> Runtime:
    """A runtime that gives each thread a few images at a time, as `phiscale predict` does."""
    pool = ThreadPoolExecutor(cores())

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        parts = [images[start : start + BATCH_SIZE] for start in range(0, len(images), BATCH_SIZE)]
        return np.concatenate(list(pool.map(runtime, parts)))

    return run
