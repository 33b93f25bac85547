"""Weights of any publisher as a network that predicts: with classes, preprocessing and settings."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phiscale.errors import ModelDirError
from phiscale.families import get_spec, list_specs
from phiscale.preprocess import Preprocess
from phiscale.spec import NetworkSpec
from phiscale.weights.config import CONFIG, FORMAT, WEIGHTS, ModelDir, header_config

if TYPE_CHECKING:
    from phiscale.nn.network import Network
    from phiscale.weights.checkpoint import Checkpoint

__all__ = ["is_model_dir", "open_pretrained"]


def is_model_dir(path: str | Path) -> bool:
    """Whether a folder is a model directory, whole or not, rather than a repository of somebody else."""
    config, weights = Path(path) / CONFIG, Path(path) / WEIGHTS
    try:
        if config.is_file():
            return FORMAT in config.read_text(encoding="utf-8", errors="replace")
        return header_config(weights) is not None
    except (OSError, ValueError):  # may not be read, or has a name that no file can have
        return False


def open_pretrained(
    weights: str | Path,
    *,
    model: str | Path | NetworkSpec | None = None,
    classes: Sequence[str] | None = None,
    preprocess: Preprocess | None = None,
    name: str | None = None,
) -> tuple[ModelDir, Network]:
    """Load weights of any publisher, with all that is needed to predict with them.

    Args:
        weights: As for `phiscale.load_weights`.
        model: The network that they are for; None takes the one that they are recognised as. Padding and
            norm of a spec count where nothing says with what the weights were trained.
        classes: Name of each class in the order of the logits; None takes the publisher's, and ``class_0``,
            ``class_1``, … where nothing says them.
        preprocess: How images are prepared; None takes the publisher's.
        name: What messages and provenance call the weights.

    Returns:
        What `Predictor.model` says, and the network in eval mode. Nothing is written: the path is that of
        the weights.

    Raises:
        ModelDirError: The weights cannot be had or read, are of another network or no network of their
            own, or do not say how images are prepared.
        MissingDependencyError: The package with the weights is not installed.
    """
    import torch

    from phiscale.nn.network import Network
    from phiscale.weights.checkpoint import open_checkpoint
    from phiscale.weights.load import load_checkpoint
    from phiscale.weights.tensors import checksum, state_of
    from phiscale.weights.warm_start import WARM_STARTS

    if str(weights) in WARM_STARTS:
        raise ModelDirError(
            f"{weights} is a start for training and no trained network; run `phiscale fit` with it first"
        )
    wanted = None if model is None else get_spec(model)
    checkpoint = replace(open_checkpoint(weights, model=wanted), source=name or str(weights))
    if not checkpoint.spec.num_classes:
        raise ModelDirError(f"{checkpoint.source} has no classifier; train one before predicting")
    prepared = preprocess or checkpoint.preprocess.value
    if prepared is None:
        raise ModelDirError(
            f"nothing says how images are prepared for {checkpoint.source} "
            f"({checkpoint.preprocess.source}); give preprocess"
        )
    if wanted is None or model in list_specs():
        _warn_of_open_settings(checkpoint, wanted or checkpoint.spec)
    with torch.random.fork_rng(devices=[]):
        net = Network(_with_ends(wanted or checkpoint.spec, checkpoint))
    try:
        # All of it: a new classifier, or half a one, would answer at random.
        load_checkpoint(net, checkpoint).require_all(checkpoint.source)
    except ModelDirError:
        if not checkpoint.complete or wanted is None:
            raise
        raise ModelDirError(
            f"{checkpoint.source} holds {checkpoint.spec.name} and the network is {wanted.name}; "
            f"name {checkpoint.spec.name}"
        ) from None
    described = ModelDir(
        path=checkpoint.path,
        spec=net.spec,
        classes=tuple(classes or checkpoint.classes.value or _numbered(net.spec.num_classes)),
        preprocess=prepared,
        provenance=_provenance(checkpoint, preprocess=preprocess, classes=classes),
        weights_sha256=checksum(state_of(net)),
    )
    return described, net.eval()


def _with_ends(spec: NetworkSpec, checkpoint: Checkpoint) -> NetworkSpec:
    """The spec with the classes and the input channels of the weights."""
    return replace(spec, num_classes=checkpoint.spec.num_classes, in_channels=checkpoint.spec.in_channels)


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"class_{index}" for index in range(count))


def _warn_of_open_settings(checkpoint: Checkpoint, spec: NetworkSpec) -> None:
    if {"padding", "norm_eps"} & set(checkpoint.open_settings):
        warnings.warn(
            f"{checkpoint.source} does not say with what padding and norm_eps it was trained; "
            f"{spec.padding!r} and {spec.norm_eps:g} are taken, as TensorFlow and timm's tf_ networks have "
            "them; if the labels make no sense, try a spec with padding 'symmetric' and norm_eps 1e-5",
            stacklevel=4,
        )


def _provenance(
    checkpoint: Checkpoint, *, preprocess: Preprocess | None, classes: Sequence[str] | None
) -> dict[str, Any]:
    """Where everything is from; plain texts, which the model card shows."""
    record, given = checkpoint.record, "given by the user"
    facts = {
        "weights": record.name if record else checkpoint.source,
        "publisher": checkpoint.layout.publisher,
        "preprocess_from": given if preprocess else checkpoint.preprocess.source,
        "classes_from": given if classes else checkpoint.classes.source,
    }
    if record is None:
        return facts
    return {**facts, "weights_trained_on": record.training, "weights_license": record.license or "not stated"}
