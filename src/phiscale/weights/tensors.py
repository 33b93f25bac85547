"""Weights as named tensors: out of a network, into a file, and back. No code runs from a file."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from phiscale.errors import ModelDirError
from phiscale.nn.network import Network

__all__ = ["checksum", "network_of", "read_pickle", "read_tensors", "state_of", "write_tensors"]


def network_of(net: nn.Module) -> Network:
    """The network inside `torch.compile` and data-parallel wrappers, whose names would differ.

    Raises:
        ModelDirError: There is no phiscale network in it.
    """
    while not isinstance(net, Network):
        inner = getattr(net, "_orig_mod", None) or getattr(net, "module", None)
        if not isinstance(inner, nn.Module):
            raise ModelDirError(
                f"a network from phiscale.create_model is needed, got {type(net).__name__}; "
                "a model directory stores its spec"
            )
        net = inner
    return net


def state_of(net: Network) -> dict[str, Tensor]:
    """Parameters and buffers by name, contiguous and on the CPU, as a file holds them."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}


def checksum(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values, as 64 hexadecimal digits; order does not matter."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}\n".encode())
        # numpy has no bfloat16; bytes are the same whatever the type. A scalar has no last dimension to view.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_tensors(state: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file.

    Raises:
        OSError: It cannot be written.
    """
    try:
        save_file(dict(state), path, metadata=dict(metadata))
    except SafetensorError as error:
        raise OSError(str(error)) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        ModelDirError: No such file, or it is truncated or damaged.
    """
    if not path.is_file():
        raise ModelDirError(f"{path} does not exist; give a model directory or a file of weights")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ModelDirError(f"{path} is truncated or damaged ({error}); copy or download it again") from None
    except OSError as error:
        raise ModelDirError(f"cannot read {path}: {error}") from None


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Read a ``.pt`` or ``.pth`` file of tensors, plain or under the key ``state_dict``.

    Raises:
        ModelDirError: It is damaged, or holds anything but tensors and plain values.
    """
    try:
        with warnings.catch_warnings():
            # Old files make torch warn about storage types of its own; nothing that a user can act on.
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ModelDirError(
            f"{path} is damaged, or holds Python objects, which could run code and are not loaded; "
            "store its state_dict alone with torch.save, or as .safetensors"
        ) from None
    except Exception as error:
        # A damaged pickle fails with whatever its first wrong byte leads to: IndexError, KeyError, ...
        line = str(error).partition("\n")[0] or type(error).__name__
        raise ModelDirError(f"cannot read {path}: {line}; copy or download it again") from None
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ModelDirError(f"{path} holds no state_dict; store one with torch.save(net.state_dict(), ...)")
    return {str(name): tensor for name, tensor in content.items()}
