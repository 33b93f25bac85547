"""`phiscale.export`: a model for another engine, checked on real images at once."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import statistics
import time
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from phiscale.deploy.export_store import RECORD, Check, Export, Format, Precision, storing
from phiscale.deploy.exporters.toolchain import Toolchain, get_toolchain
from phiscale.deploy.inputs import images_in
from phiscale.deploy.reading import read_exactly
from phiscale.deploy.runtimes.base import Runtime, open_export
from phiscale.errors import DataError, ModelDirError
from phiscale.weights.config import ModelDir, read_config

__all__ = ["export"]

CHECKED_IMAGES = 64
CHECK_BATCH = 16
# Same most likely class on this share of the images, and largest difference of a probability.
LIMITS: dict[Precision, tuple[float, float]] = {"fp32": (1.0, 1e-3), "bf16": (0.95, 0.25)}
TIMED_RUNS = 15
DEMO_DATA = Path(__file__).parent.parent / "demo_data"


def export(
    directory: str | Path,
    format: Format,  # noqa: A002
    *,
    precision: Precision = "fp32",
    images: str | Path | None = None,
    dynamic_size: bool = False,
) -> Path:
    """Export a model, from uint8 images to probabilities, and check it against the network.

    Norms are folded and TensorFlow's padding is the convolutions' own; the normalisation is in the graph.
    The batch is dynamic. Both networks see the same real images; an export that answers differently is
    an error and leaves nothing behind.

    Args:
        directory: A model directory.
        format: ``"onnx"`` or ``"openvino"``.
        precision: ``"fp32"``, or ``"bf16"`` for OpenVINO on a processor that has it.
        images: Folder of images to check with; by default those that the model was trained on, where they
            still are, else the emoji that ship with this package.
        dynamic_size: Whether height and width may vary; the model's preprocessing still makes one size.

    Returns:
        The folder of the export in the model directory.

    Raises:
        ModelDirError: No model directory, no such format or precision, or the export answers differently.
        DataError: There are no images to check with.
        MissingDependencyError: The toolchain is not installed.
    """
    toolchain = get_toolchain(format)
    _check_precision(format, precision, toolchain)
    model = read_config(directory)
    if not model.classes:
        raise ModelDirError(f"{model.path} has no classifier; train one before exporting")
    pixels, source = _real_images(model, images)
    with storing(model, f"{format}-{precision}") as folder:
        _write(model, toolchain, folder, dynamic_size=dynamic_size)
        unchecked = Export(
            path=folder,
            format=format,
            precision=precision,
            file=toolchain.file,
            image_size=None if dynamic_size else model.spec.image_size,
            weights_sha256=model.weights_sha256,
            check=None,
            latency_ms={},
            versions=_versions(toolchain),
        )
        theirs, ours = open_export(unchecked), _eager(model)
        check = _compare(theirs, ours, pixels, source, toolchain.check_batch or CHECK_BATCH)
        _require_agreement(check, f"{format} in {precision}", precision)
        latencies = _latencies({"export": theirs, "eager": ours}, pixels[:1])
        record = replace(unchecked, check=check, latency_ms=latencies)
        (folder / RECORD).write_text(record.to_json(), encoding="utf-8")
    return model.path / "exports" / f"{format}-{precision}"


def _check_precision(format: str, precision: str, toolchain: Toolchain) -> None:  # noqa: A002
    if precision not in get_args(Precision):
        raise ModelDirError(f"precision must be one of {', '.join(get_args(Precision))}; got {precision!r}")
    if precision not in toolchain.precisions:
        raise ModelDirError(
            f"{format} is exported in {' or '.join(toolchain.precisions)}, not in {precision}; "
            "openvino has them all"
        )


def _write(model: ModelDir, toolchain: Toolchain, folder: Path, *, dynamic_size: bool) -> None:
    from safetensors.numpy import load_file

    metadata = {
        "name": model.spec.name,
        "classes": json.dumps(model.classes),
        "preprocess": json.dumps(model.preprocess.to_dict()),
        "weights_sha256": model.weights_sha256,
        "phiscale": importlib.metadata.version("phiscale"),
    }
    tensors = load_file(model.weights_path)
    toolchain.write(model, tensors, folder / toolchain.file, dynamic_size=dynamic_size, metadata=metadata)


def _eager(model: ModelDir) -> Runtime:
    from phiscale.deploy.runtimes.torch import TorchRuntime
    from phiscale.weights.model_dir import load_network

    return TorchRuntime(load_network(model), model.preprocess)


def _real_images(model: ModelDir, images: str | Path | None) -> tuple[NDArray[np.uint8], str]:
    """Some prepared images (N, H, W, C), and where they came from."""
    trained_on = model.provenance.get("data")
    location = trained_on.get("location") if isinstance(trained_on, dict) else None
    candidates = [images] if images is not None else [location, DEMO_DATA]
    for candidate in candidates:
        if isinstance(candidate, str | Path) and Path(candidate).is_dir():
            found = list(_prepared(model, images_in(candidate)))
            if found:
                return np.stack(found), str(candidate)
    raise DataError(f"no images to check the export with in {images}; give a folder of images")


def _prepared(model: ModelDir, paths: Iterable[str]) -> Iterable[NDArray[np.uint8]]:
    every = list(islice(paths, 10_000))
    for path in every[:: max(1, len(every) // CHECKED_IMAGES)][:CHECKED_IMAGES]:
        with contextlib.suppress(DataError):
            yield read_exactly(path, model.preprocess)


def _compare(theirs: Runtime, ours: Runtime, pixels: NDArray[np.uint8], source: str, size: int) -> Check:
    batches = [pixels[start : start + size] for start in range(0, len(pixels), size)]
    found = np.concatenate([theirs(batch) for batch in batches])
    wanted = np.concatenate([ours(batch) for batch in batches])
    return Check(
        images=len(pixels),
        source=source,
        max_difference=float(np.abs(found - wanted).max()),
        agreement=float((found.argmax(1) == wanted.argmax(1)).mean()),
    )


def _require_agreement(check: Check, what: str, precision: Precision) -> None:
    agreement, difference = LIMITS[precision]
    # Written so that a NaN fails too.
    if not (check.agreement >= agreement and check.max_difference <= difference):
        raise ModelDirError(
            f"{what} answers differently from the network on {check.images} images of {check.source}: "
            f"{check.agreement:.1%} the same class, probabilities up to {check.max_difference:.2g} apart; "
            "nothing was exported"
        )


def _latencies(runtimes: dict[str, Runtime], image: NDArray[np.uint8]) -> dict[str, float]:
    """Median milliseconds of one image, the runtimes in turn, so that all see the same machine."""
    times: dict[str, list[float]] = {name: [] for name in runtimes}
    for _ in range(TIMED_RUNS):
        for name, runtime in runtimes.items():
            began = time.perf_counter()
            runtime(image)
            times[name].append(1000 * (time.perf_counter() - began))
    return {name: statistics.median(values[2:]) for name, values in times.items()}


def _versions(toolchain: Toolchain) -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("phiscale", *toolchain.packages, "torch")}
