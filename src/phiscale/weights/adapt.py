"""Weights for another number of input channels, or for some of the classes."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from phiscale.errors import ModelDirError

__all__ = ["for_channels", "pick_classes"]


def for_channels(kernel: Tensor, channels: int) -> Tensor:
    """A stem's kernel for another number of input channels.

    An image whose channels are all equal gets the same response as before, whatever the numbers: one
    channel gets the sum over the old ones; more than there were repeat the old ones in turn, each divided
    by how often it comes; fewer keep their own and share the rest.

    Args:
        kernel: (out_channels, old channels, k, k).
        channels: New number of channels.

    Returns:
        (out_channels, channels, k, k).

    Examples:
        >>> kernel = torch.tensor([1.0, 2.0, 6.0]).reshape(1, 3, 1, 1)
        >>> for_channels(kernel, 5).flatten().tolist()
        [0.5, 1.0, 6.0, 0.5, 1.0]
        >>> for_channels(kernel, 2).flatten().tolist()
        [4.0, 5.0]
    """
    old = kernel.shape[1]
    mixing = torch.zeros(channels, old, dtype=torch.float64)
    for index in range(max(channels, old)):
        if index < old:
            mixing[index % channels, index] = 1.0
        else:
            mixing[index, index % old] = 1.0
    if channels < old:  # what no new channel of its own has is shared by all
        mixing[:, channels:] = 1.0 / channels
    mixing /= mixing.sum(dim=0, keepdim=True)
    # In float64, so that a sum of kernels is rounded once.
    return torch.einsum("no,kohw->knhw", mixing, kernel.double()).to(kernel.dtype)


def pick_classes(
    state: Mapping[str, Tensor], known: Sequence[str], wanted: Sequence[str]
) -> list[int | None]:
    """The row of the classifier that has each wanted class; None where the file does not know it.

    Names are compared without case, with ``_`` and ``-`` as spaces, and a class with several names
    (ImageNet's "Egyptian cat", or "tiger cat, tabby") is found by each of them.

    Args:
        state: Tensors of the file by our names.
        known: The file's classes, one per row.
        wanted: The new classes.

    Raises:
        ModelDirError: The file has no classifier, or knows not one of the wanted classes.
    """
    weight = state.get("classifier.weight")
    if weight is None or weight.dim() != 2 or weight.shape[0] != len(known):
        raise ModelDirError("classes cannot be picked: the file's own class names are not known; give none")
    rows: dict[str, int] = {}
    for index, name in enumerate(known):
        for alias in (name, *name.split(",")):
            rows.setdefault(_plain(alias), index)
    picked = [rows.get(_plain(name)) for name in wanted]
    if not any(row is not None for row in picked):
        close = difflib.get_close_matches(_plain(wanted[0]), rows, n=3) if wanted else []
        hint = f"; close to {wanted[0]!r} are {', '.join(close)}" if close else ""
        raise ModelDirError(f"the file knows not one of the {len(wanted)} classes{hint}")
    return picked


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").replace("-", " ").lower().split())
