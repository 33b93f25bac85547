"""What a user calls weights, as a file or a folder on this machine. No torch here."""

from __future__ import annotations

from pathlib import Path

from phiscale.errors import ModelDirError
from phiscale.spec import NetworkSpec
from phiscale.weights.catalog import Record, best, get_record

__all__ = ["HUB", "IMAGENET", "resolve"]

IMAGENET = "imagenet"
HUB = "hf://"
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".h5", ".keras")


def resolve(
    source: str | Path, *, model: NetworkSpec | None = None, offline: bool = False
) -> tuple[Path, Record | None]:
    """Find the file or folder that a source means; downloads it where it must.

    Args:
        source: As for `open_checkpoint`.
        model: What ``"imagenet"`` is wanted for.
        offline: Whether nothing may be downloaded.

    Returns:
        The path, and the catalog's record where the source is a name of the catalog.

    Raises:
        ModelDirError: Nothing of that name, or it cannot be had.
    """
    from phiscale.weights.download import locate, locate_hub

    text = str(source)
    if text.startswith(HUB):
        return locate_hub(text.removeprefix(HUB), offline=offline), None
    if text == IMAGENET:
        if model is None:
            raise ModelDirError("weights 'imagenet' need a model; name one, such as efficientnet_b0")
        record = best(model.name)
        return locate(record, offline=offline), record
    path = Path(source)
    try:
        if path.exists():
            return path, None
    except OSError as error:
        raise ModelDirError(f"cannot read {path}: {error.strerror or error}") from None
    if isinstance(source, Path) or path.suffix in _SUFFIXES or text.startswith((".", "/", "~")):
        raise ModelDirError(f"{path} does not exist; give a file, a folder or a name of the catalog")
    record = get_record(text)
    return locate(record, offline=offline), record
