"""Measure a model directory on images."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from phiscale.data.decode import printable
from phiscale.data.sources import ImageRecord, ImageSource, Split, open_source
from phiscale.errors import DataError, ModelDirError
from phiscale.evaluation.inference import Progress, Run, run_network
from phiscale.evaluation.metrics import Metrics, compute_metrics
from phiscale.evaluation.results import Evaluation
from phiscale.weights.model_dir import ModelDir, load_network, read_config, versions, write_metrics

__all__ = ["SplitChoice", "evaluate"]

SplitChoice = Literal["auto", "train", "val", "test", "all"]

_SPLIT_KEYS = ("val_fraction", "seed", "split_file", "hold_out")


def evaluate(
    directory: str | Path,
    images: str | Path,
    *,
    split: SplitChoice = "auto",
    batch_size: int = 32,
    workers: int = 0,
    device: str = "cpu",
    strict: bool = False,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a model on labelled images, and write ``metrics.json`` into its directory.

    Images at another place than those that the model was trained on are written beside it, in
    ``metrics-PLACE-SPLIT.json``; `Evaluation.path` says where.

    Classes of the data are matched with the model's by name; the data may have fewer. An image that
    cannot be read is listed in `Evaluation.skipped` and counts in no metric.

    Args:
        directory: A model directory.
        images: A folder, manifest or torchvision data set, as `phiscale.data.sources.open_source` takes.
        split: ``"auto"`` takes test where there is one, else val, else all images. At the location that
            the model was trained on, val is the very split that training held out. Elsewhere none is
            carved out, unless ``"val"`` or ``"train"`` is asked for by name.
        batch_size: Images per run of the network.
        workers: Processes that decode; 0 decodes in this one.
        device: ``"cpu"``, ``"cuda"``, or any other name that torch knows.
        strict: Whether an image that cannot be read is an error.
        limit: Most images to take, spread evenly over the split.
        progress: Called with images done and images in all, after every batch.

    Returns:
        Metrics, throughput, skipped images and the answer for every image.

    Raises:
        DataError: The images cannot be used, have a class that the model does not know, or not one of
            them can be read.
        ModelDirError: The model directory cannot be used, or the network gives NaN.
    """
    _check_arguments(split, batch_size, workers, limit)
    target = _device(device)
    model = read_config(directory)
    source, name, rule = _open(images, split, model)
    to_model = _match_classes(source, model)
    records = _choose(source, name, limit)
    network = load_network(model, device=target).to(memory_format=torch.channels_last)
    run = run_network(
        network,
        source,
        records,
        model.preprocess,
        batch_size=batch_size,
        workers=workers,
        device=target,
        strict=strict,
        progress=progress,
    )
    if not run.indices:
        first = run.skipped[0]
        raise DataError(
            f"none of the {len(records)} images could be read, such as {printable(first.id)}: {first.reason}"
        )
    settings = {"batch_size": batch_size, "workers": workers, "device": device, "limit": limit}
    data = {"location": source.location, "split": name, **rule}
    file = _file_beside(images, name, model)
    return _write(_result(run, records, to_model, model, data, settings), model, file)


def _check_arguments(split: str, batch_size: int, workers: int, limit: int | None) -> None:
    if split not in get_args(SplitChoice):
        raise DataError(f"split must be one of {', '.join(get_args(SplitChoice))}; got {split!r}")
    for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0), ("limit", limit, 1)):
        if value is not None and value < least:
            raise DataError(f"{name} must be at least {least}, got {value}")


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        # torch names an unknown device and one that is not there in three different exceptions.
        raise DataError(f"device {name!r} cannot be used on this machine; try cpu") from None
    return device


def _open(
    images: str | Path, split: SplitChoice, model: ModelDir
) -> tuple[ImageSource, Split | Literal["all"], dict[str, Any]]:
    """The source, the split to take, and the rule that settled the splits."""
    trained_on = model.provenance.get("data")
    rule = dict.fromkeys(_SPLIT_KEYS)
    known = isinstance(trained_on, Mapping) and _same_place(images, trained_on.get("location"))
    # By name a split is wanted as in training, even where the data has moved since.
    if isinstance(trained_on, Mapping) and (known or split in ("train", "val")):
        rule = {key: trained_on.get(key) for key in _SPLIT_KEYS}
    source = open_source(
        images,
        val_fraction=rule["val_fraction"] or 0.0,
        seed=rule["seed"] or 0,
        split_file=Path(rule["split_file"]) if rule["split_file"] else None,
        hold_out=rule["hold_out"] or 0,
    )
    if split != "auto":
        return source, split, rule
    if source.split("test"):
        return source, "test", rule
    return source, "val" if source.split("val") else "all", rule


def _same_place(images: str | Path, trained_on: object) -> bool:
    if str(images) == str(trained_on):
        return True
    with contextlib.suppress(OSError, ValueError):
        return isinstance(trained_on, str) and Path(images).samefile(trained_on)
    return False


def _match_classes(source: ImageSource, model: ModelDir) -> list[int]:
    """For each class of the data, its place among the model's."""
    places = {name: index for index, name in enumerate(model.classes)}
    unknown = [printable(name) for name in source.classes if name not in places]
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise DataError(
            f"the model does not know the class{'es' if len(unknown) > 1 else ''} "
            f"{', '.join(unknown[:5])}{more}; it knows {_some(model.classes)}"
        )
    return [places[name] for name in source.classes]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(map(printable, names[:5])) + more


def _choose(source: ImageSource, split: Split | Literal["all"], limit: int | None) -> tuple[ImageRecord, ...]:
    records = source.records if split == "all" else source.split(split)
    if not records:
        raise DataError(f"{printable(source.location)} has no {split} split; evaluate with split all")
    if limit is None or limit >= len(records):
        return records
    # Records are sorted by class: the first ones would be a single class.
    chosen = np.linspace(0, len(records) - 1, limit).round().astype(int)
    return tuple(records[index] for index in chosen)


def _result(
    run: Run,
    records: Sequence[ImageRecord],
    to_model: Sequence[int],
    model: ModelDir,
    data: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> Evaluation:
    logits = torch.cat(run.logits)
    read = [records[index] for index in run.indices]
    labels = torch.tensor([to_model[record.label] for record in read])
    metrics: Metrics = compute_metrics(logits, labels, model.classes)
    return Evaluation(
        **vars(metrics),
        data=data,
        settings=settings,
        skipped=tuple(run.skipped),
        images_per_second=run.images_per_second,
        network_images_per_second=run.network_images_per_second,
        ids=tuple(record.id for record in read),
        labels=labels.numpy(),
        probabilities=logits.softmax(dim=1).numpy(),
    )


def _file_beside(images: str | Path, split: str, model: ModelDir) -> str | None:
    """Name of the file for images that the model was not trained on; None is ``metrics.json``."""
    trained_on = model.provenance.get("data")
    place = trained_on.get("location") if isinstance(trained_on, Mapping) else None
    if place is None or _same_place(images, place):
        return None
    stem = re.sub(r"[^\w.-]+", "-", Path(images).name).strip("-.") or "images"
    return f"metrics-{stem[:60]}-{split}.json"


def _write(result: Evaluation, model: ModelDir, file: str | None) -> Evaluation:
    content = {
        **result.to_dict(),
        # The weights that were measured; the directory may have got others in the meantime.
        "weights_sha256": model.weights_sha256,
        **versions(),
    }
    try:
        return replace(result, path=write_metrics(model.path, content, name=file))
    except ModelDirError:
        # A directory that cannot be written to is no reason to lose the measurement.
        return result
