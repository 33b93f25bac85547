"""The model directory: the one durable thing that every stage hands to the next.

    config.json         network spec, class names, preprocessing, provenance
    model.safetensors   weights, with a copy of the configuration in their header
    README.md           model card
    metrics.json        written by `phiscale.evaluate`

A directory opens after a kill at any moment of `save`. Each file is moved into place whole, the
weights before `config.json`, and the weights carry the configuration that they were saved with. So
the move of the weights is the moment at which the new model replaces the old one: before it, both
files are the old ones; after it, `read_config` sees by the checksum that a `config.json` belongs to
other weights and takes the copy in the header. Where there was no model before, `config.json` comes
last, and without it the directory says that it is incomplete.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phiscale.errors import ModelDirError
from phiscale.preprocess import Preprocess
from phiscale.weights import card, files
from phiscale.weights.config import (
    CARD,
    CONFIG,
    FORMAT,
    HEADER_KEY,
    METRICS,
    WEIGHTS,
    ModelDir,
    header_config,
    plain,
    read_config,
)

if TYPE_CHECKING:
    import torch

    from phiscale.nn.network import Network

__all__ = [
    "CARD",
    "CONFIG",
    "METRICS",
    "WEIGHTS",
    "ModelDir",
    "load_network",
    "load_state",
    "read_config",
    "read_metrics",
    "save",
    "versions",
    "write_metrics",
]


def save(
    net: Network,
    directory: str | Path,
    *,
    classes: Sequence[str] | None = None,
    preprocess: Preprocess | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write a network as a model directory; an older model there is replaced, never mixed.

    Args:
        net: A network from `phiscale.create_model`, on any device; compiled or data-parallel ones are
            unwrapped.
        directory: Where to; made if it is not there.
        classes: Name of each class; ``class_0``, ``class_1``, … when left out.
        preprocess: How images were prepared; `Preprocess.for_size` of the spec when left out.
        provenance: Facts to keep with the model, as plain JSON values. Versions and the time are added.

    Returns:
        The directory.

    Raises:
        ModelDirError: Classes or preprocessing do not fit the network, the directory holds somebody
            else's files of the same names, or it cannot be written.
        SpecError: No `preprocess` is given and the network has neither 1 nor 3 input channels.
    """
    from phiscale.weights.tensors import checksum, network_of, state_of, write_tensors

    folder, net = Path(directory), network_of(net)
    spec, state = net.spec, state_of(net)
    if classes is None:
        classes = [f"class_{index}" for index in range(spec.num_classes)]
    model = ModelDir(
        path=folder,
        spec=spec,
        classes=tuple(classes),
        preprocess=preprocess or Preprocess.for_size(spec.image_size, channels=spec.in_channels),
        provenance={**versions(), **(provenance or {})},
        weights_sha256=checksum(state),
    )
    config = model.to_json()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_foreign(folder)
        files.sweep(folder)
        with files.replacing(folder / WEIGHTS) as temporary:
            write_tensors(state, temporary, {"format": "pt", HEADER_KEY: config})
        # They were measured on the model before this one.
        (folder / METRICS).unlink(missing_ok=True)
        _write_card(model, metrics=None)
        files.write_text(folder / CONFIG, config)
        files.sync_folder(folder)
    except OSError as error:
        raise ModelDirError(f"cannot save the model in {folder}: {error}") from None
    return folder


def write_metrics(path: str | Path, metrics: Mapping[str, Any], *, name: str | None = None) -> Path:
    """Write ``metrics.json`` and show the metrics in the model card.

    Args:
        path: A model directory.
        metrics: Plain JSON values. ``weights_sha256`` says which weights were measured; where it is left
            out, it is taken to be the present ones.
        name: Another file in the directory, for metrics that the card does not show; None is
            ``metrics.json``.

    Returns:
        Path of the file.

    Raises:
        ModelDirError: `path` is no model directory, or cannot be written.
    """
    model = read_config(path)
    content = plain({"weights_sha256": model.weights_sha256, **metrics})
    target = model.path / (name or METRICS)
    try:
        files.write_text(target, json.dumps(content, indent=2) + "\n")
        if name is None:
            _write_card(model, metrics=read_metrics(model.path))
    except OSError as error:
        raise ModelDirError(f"cannot write {target}: {error}") from None
    return target


def read_metrics(path: str | Path) -> dict[str, Any] | None:
    """The last metrics of a model directory, or None where its present weights were not measured.

    Raises:
        ModelDirError: `path` is no model directory.
    """
    model = read_config(path)
    try:
        content = json.loads((model.path / METRICS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or content.get("weights_sha256") != model.weights_sha256:
        return None
    return content


def load_network(model: ModelDir | str | Path, *, device: str | torch.device = "cpu") -> Network:
    """Build the network of a model directory, with its weights, in eval mode.

    torch's random state is left as it was.

    Args:
        model: A model directory, or what `read_config` made of one.
        device: Where to put the network.

    Raises:
        ModelDirError: As `read_config`; or the weights are damaged or do not fit the spec.
    """
    import torch

    from phiscale.nn.network import Network
    from phiscale.weights.load import compare, copy_into

    if not isinstance(model, ModelDir):
        model = read_config(model)
    state = _read_weights(model)
    with torch.random.fork_rng(devices=[]):
        net = Network(model.spec)
    compare(net.state_dict(), state).require_all(model.weights_path)
    copy_into(net, state)
    return net.to(device).eval()


def load_state(source: str | Path) -> dict[str, torch.Tensor]:
    """Tensors by name, from a model directory, a ``.safetensors``, or a ``.pt`` / ``.pth`` file.

    Args:
        source: Where they are. Names must be in this project's own layout.

    Raises:
        ModelDirError: It does not exist, is damaged, or holds anything but tensors.
    """
    from phiscale.weights.tensors import read_pickle, read_tensors

    path = Path(source)
    if path.is_dir():
        return _read_weights(read_config(path))
    if path.suffix == ".safetensors":
        return read_tensors(path)
    if path.suffix in (".pt", ".pth"):
        if not path.is_file():
            raise ModelDirError(f"{path} does not exist; give a model directory or a file of weights")
        return read_pickle(path)
    problem = "is of an unknown kind" if path.exists() else "does not exist"
    raise ModelDirError(f"{path} {problem}; give a model directory, a .safetensors, .pt or .pth file")


def _read_weights(model: ModelDir) -> dict[str, torch.Tensor]:
    from phiscale.weights.tensors import checksum, read_tensors

    state = read_tensors(model.weights_path)
    if checksum(state) != model.weights_sha256:
        raise ModelDirError(
            f"{model.weights_path} does not have the checksum in {CONFIG}: it was damaged or exchanged, "
            "or is being saved at this moment; copy the whole directory again"
        )
    return state


def _write_card(model: ModelDir, *, metrics: Mapping[str, Any] | None) -> None:
    """Write the card, keeping what a person wrote around the generated part."""
    path = model.path / CARD
    old = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
    block = card.describe(
        spec=model.spec,
        classes=model.classes,
        preprocess=model.preprocess,
        provenance=model.provenance,
        metrics=metrics,
    )
    files.write_text(path, card.merge(old, block))


def versions() -> dict[str, Any]:
    """Time in UTC, and versions of phiscale, torch and Python, as every stored result has them."""
    import datetime
    import importlib
    import platform

    import torch

    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        # The package names every layer for type checkers; an import statement would depend on them all.
        "phiscale": importlib.import_module("phiscale").__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def _refuse_foreign(folder: Path) -> None:
    """Refuse to write over files of the same names that no phiscale wrote."""
    config, weights, readme = folder / CONFIG, folder / WEIGHTS, folder / CARD
    if config.exists():
        ours = FORMAT in config.read_text(encoding="utf-8", errors="replace")
        culprit = config
    elif weights.exists():
        ours, culprit = header_config(weights) is not None, weights
    else:
        ours = not readme.exists() or card.is_card(readme.read_text(encoding="utf-8", errors="replace"))
        culprit = readme
    if not ours:
        raise ModelDirError(
            f"{culprit} was not written by phiscale and would be overwritten; choose another directory"
        )
