"""`phiscale.export`: a model for another engine, checked on real images at once."""

from __future__ import annotations

import importlib.metadata
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
from numpy.typing import NDArray

from phiscale.deploy.export_store import RECORD, Check, Export, Format, Precision, storing
from phiscale.deploy.exporters.toolchain import Toolchain, get_toolchain
from phiscale.deploy.gate import BATCH, Gate, answers
from phiscale.deploy.quantize import Progress, quantize
from phiscale.deploy.runtimes.base import open_export
from phiscale.deploy.samples import CHECKED_IMAGES, Images, calibration_and_validation, images_to_check
from phiscale.errors import DataError, ModelDirError
from phiscale.weights.config import ModelDir, read_config
from phiscale.weights.files import write_text

if TYPE_CHECKING:
    from phiscale.deploy.runtimes.base import Runtime

__all__ = ["export"]

# Same most likely class on this share of the images, and largest difference of a probability. What a lower
# precision costs is measured beside; these say that the network is still the same.
LIMITS: dict[Precision, tuple[float, float]] = {"fp32": (1.0, 1e-3), "bf16": (0.9, 0.5), "int8": (0.5, 1.0)}
STREAMS_DIFFERENCE = 0.01
TIMED_RUNS = 15


def export(
    directory: str | Path,
    format: Format,  # noqa: A002
    *,
    precision: Precision = "fp32",
    images: str | Path | None = None,
    max_drop: float = 0.5,
    dynamic_size: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Export a model, from uint8 images to probabilities, and check it against the network.

    Norms are folded and TensorFlow's padding is the convolutions' own; the normalisation is in the graph.
    The batch is dynamic. Both networks see the same real images; an export that answers differently is
    an error and leaves nothing behind.

    In a lower precision, the loss of top-1 accuracy is measured on held-out images. int8 is calibrated on
    others of the same source; the layers that cost the most are left in floating point until the loss is at
    most `max_drop`. Where no setting comes so far, the best one is kept, and ``export.json`` says so:
    `phiscale.load` then takes it by its name only.

    Args:
        directory: A model directory.
        format: ``"onnx"``, ``"openvino"`` or another of `Format`.
        precision: ``"fp32"``; for OpenVINO also ``"int8"``, and ``"bf16"`` on a processor that has it.
        images: Images to calibrate, to measure and to check with: a folder, a manifest or a torchvision data
            set. Without labels, or with other classes than the model's, the share of answers that change
            counts instead of accuracy. By default the images that the model was trained on, in the splits of
            its training. Where those are gone, int8 is an error, and otherwise the emoji that ship with this
            package take their place in the check.
        max_drop: Points of top-1 accuracy that a lower precision may cost.
        dynamic_size: Whether height and width may vary; the model's preprocessing still makes one size.
        progress: Called with what is being done, how much of it is done, and how much there is.

    Returns:
        The folder of the export in the model directory.

    Raises:
        ModelDirError: No model directory, or a damaged one; no such format or precision; the export answers
            differently, or it cannot be written.
        DataError: There are no images to check with.
        MissingDependencyError: The toolchain is not installed.
    """
    toolchain = get_toolchain(format)
    _check_arguments(format, precision, toolchain, max_drop)
    model = read_config(directory)
    if not model.classes:
        raise ModelDirError(f"{model.path} has no classifier; train one before exporting")
    samples = _samples(model, precision, images)
    with storing(model, f"{format}-{precision}") as folder:
        unchecked = Export(
            path=folder,
            format=format,
            precision="fp32",
            file=toolchain.file,
            image_size=None if dynamic_size else model.spec.image_size,
            weights_sha256=model.weights_sha256,
            check=None,
            latency_ms={},
            versions={},
        )
        job = _Job(model, toolchain, samples, progress)
        made = job.write(unchecked, timed=precision == "fp32")
        if precision != "fp32":
            made = job.lower(made, precision, max_drop)
        write_text(folder / RECORD, made.sealed().to_json())
    return model.path / "exports" / f"{format}-{precision}"


@dataclass(frozen=True, kw_only=True)
class _Samples:
    """What an export is checked with; and, for a lower precision, calibrated and measured with."""

    checked: Images
    calibration: Images | None = None
    validation: Images | None = None


@dataclass(frozen=True)
class _Job:
    """One export on its way."""

    model: ModelDir
    toolchain: Toolchain
    samples: _Samples
    progress: Progress | None

    def write(self, export: Export, *, timed: bool) -> Export:
        """Write the network in fp32, and check it where its engine runs here."""
        self._tell(f"writing {export.file}")
        _write(self.model, self.toolchain, export)
        # Asked for only now: a toolchain that is not installed has said so itself.
        export = replace(export, versions=_versions(("phiscale", *self.toolchain.packages, "torch")))
        reason = self.toolchain.why_not_here()
        if reason is not None:
            return replace(export, unchecked=reason)
        self._tell("checking the answers")
        return self.check(export, timed=timed)

    def lower(self, export: Export, precision: Precision, max_drop: float) -> Export:
        """Bring a checked network to a lower precision, measure what that costs, and check it again."""
        lowered, samples = replace(export, precision=precision, max_drop=max_drop), self.samples
        if self.toolchain.quantizer is not None and precision == "int8":
            assert samples.calibration is not None
            assert samples.validation is not None
            quantizer = self.toolchain.quantizer(export.model_path)
            quantization, loss = quantize(
                quantizer,
                export.model_path,
                open_file=lambda path: open_export(replace(lowered, path=path.parent)),
                calibration=samples.calibration,
                validation=samples.validation,
                reference=open_export(export),
                max_drop=max_drop,
                progress=self.progress,
            )
            versions = {**export.versions, **_versions(quantizer.packages)}
            lowered = self.toolchain.pack(lowered)
            return self.check(replace(lowered, quantization=quantization, loss=loss, versions=versions))
        if samples.validation is not None:
            self._tell("measuring the loss")
            gate = Gate(samples.validation, open_export(export))
            lowered = replace(lowered, loss=gate.measure(open_export(lowered)))
        return self.check(lowered)

    def check(self, export: Export, *, timed: bool = True) -> Export:
        """Compare with the network in PyTorch and, unless it goes on to change, measure the time of both."""
        theirs, checked = open_export(export), self.samples.checked
        check = _compare(answers(theirs, checked.pixels, batch=self._batch), self._expected, checked.source)
        _require_agreement(check, export)
        _require_same_in_streams(theirs, checked, self._batch)
        export = replace(export, check=check)
        if not timed:
            return export
        latencies = _latencies({"export": theirs, "eager": self._eager}, checked.pixels[:1])
        return replace(export, latency_ms=latencies)

    @property
    def _batch(self) -> int:
        return self.toolchain.check_batch or BATCH

    @cached_property
    def _eager(self) -> Runtime:
        from phiscale.deploy.runtimes.torch import TorchRuntime
        from phiscale.weights.model_dir import load_network

        return TorchRuntime(load_network(self.model), self.model.preprocess)

    @cached_property
    def _expected(self) -> NDArray[np.float32]:
        """What the network in PyTorch answers on the images of the check."""
        return answers(self._eager, self.samples.checked.pixels, batch=self._batch)

    def _tell(self, what: str) -> None:
        if self.progress is not None:
            self.progress(what, 0, 1)


def _check_arguments(format: str, precision: str, toolchain: Toolchain, max_drop: float) -> None:  # noqa: A002
    if precision not in get_args(Precision):
        raise ModelDirError(f"precision must be one of {', '.join(get_args(Precision))}; got {precision!r}")
    if precision not in toolchain.precisions:
        raise ModelDirError(
            f"{format} is exported in {' or '.join(toolchain.precisions)}, not in {precision}; "
            "openvino has them all"
        )
    if not 0 <= max_drop <= 100:  # which a NaN is not
        raise ModelDirError(f"max_drop is in points of accuracy, from 0 to 100; got {max_drop}")


def _samples(model: ModelDir, precision: Precision, images: str | Path | None) -> _Samples:
    if precision == "fp32":
        return _Samples(checked=images_to_check(model, images))
    try:
        calibration, validation = calibration_and_validation(model, images)
    except DataError as error:
        if images is not None:
            raise
        if precision == "int8":
            raise DataError(
                f"int8 is calibrated and measured on images of the model's own: {error}"
            ) from None
        return _Samples(checked=images_to_check(model, None))
    return _Samples(checked=validation.some(CHECKED_IMAGES), calibration=calibration, validation=validation)


def _write(model: ModelDir, toolchain: Toolchain, export: Export) -> None:
    from phiscale.weights.model_dir import load_state

    metadata = {
        "name": model.spec.name,
        "classes": json.dumps(model.classes),
        "preprocess": json.dumps(model.preprocess.to_dict()),
        "weights_sha256": model.weights_sha256,
        "phiscale": importlib.metadata.version("phiscale"),
    }
    # With their checksum looked at: without a check, nothing else would see that they are damaged.
    tensors = {name: tensor.numpy() for name, tensor in load_state(model.path).items()}
    dynamic_size = export.image_size is None
    toolchain.write(model, tensors, export.model_path, dynamic_size=dynamic_size, metadata=metadata)


def _compare(found: NDArray[np.float32], wanted: NDArray[np.float32], source: str) -> Check:
    return Check(
        images=len(found),
        source=source,
        max_difference=float(np.abs(found - wanted).max()),
        agreement=float((found.argmax(1) == wanted.argmax(1)).mean()),
    )


def _require_agreement(check: Check, export: Export) -> None:
    agreement, difference = LIMITS[export.precision]
    if check.agreement < agreement or check.max_difference > difference:
        raise ModelDirError(
            f"{export.format} in {export.precision} answers differently from the network on {check.images} "
            f"images of {check.source}: {check.agreement:.1%} the same class, probabilities up to "
            f"{check.max_difference:.2g} apart; nothing was exported"
        )


def _require_same_in_streams(runtime: Runtime, images: Images, batch: int) -> None:
    """Look whether an engine answers alike when it is set up for many images, which predicting does.

    It should go without saying, but OpenVINO has been found to be wrong in the one way only.
    """
    for_throughput = getattr(runtime, "for_throughput", None)
    if for_throughput is None:
        return
    one, many = (answers(way, images.pixels, batch=batch) for way in (runtime, for_throughput()))
    difference = float(np.abs(one - many).max())
    if difference > STREAMS_DIFFERENCE:
        raise ModelDirError(
            f"the engine's answers change by up to {difference:.2g} when it works on several images at once; "
            "nothing was exported"
        )


def _latencies(runtimes: dict[str, Runtime], image: NDArray[np.uint8]) -> dict[str, float]:
    """Median milliseconds of one image, the runtimes in turn, so that all see the same machine."""
    times: dict[str, list[float]] = {name: [] for name in runtimes}
    for _ in range(TIMED_RUNS):
        for name, runtime in runtimes.items():
            began = time.perf_counter()
            answers(runtime, image)
            times[name].append(1000 * (time.perf_counter() - began))
    return {name: statistics.median(values[2:]) for name, values in times.items()}


def _versions(packages: Sequence[str]) -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in packages}
