"""Everything that phiscale raises on purpose.

    PhiscaleError
    ├── SpecError (ValueError)           a spec, a factor or an argument of a network is not valid
    ├── BudgetError (ValueError)         no network on the rule satisfies the budget
    ├── ShapeError (ValueError)          a tensor or image size that the network cannot take
    ├── DataError (ValueError)           images, folders, manifests
    ├── ModelDirError (ValueError)       a model directory or weight file that cannot be read or used
    ├── RecipeError (ValueError)         a training recipe that is not valid
    ├── TrainingError (RuntimeError)     training cannot go on (a loss of NaN, no checkpoint to resume)
    └── MissingDependencyError (ImportError)   an optional package; the message has the pip command

Every message is one sentence or two: what is wrong, and what to do. The command line prints it
as it is and exits with code 2.
"""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = [
    "BudgetError",
    "DataError",
    "MissingDependencyError",
    "ModelDirError",
    "PhiscaleError",
    "RecipeError",
    "ShapeError",
    "SpecError",
    "TrainingError",
    "require",
]


class PhiscaleError(Exception):
    """Base of all errors that phiscale raises on purpose."""


class SpecError(PhiscaleError, ValueError):
    """A spec, a scaling factor or an argument of a network is not valid."""


class BudgetError(PhiscaleError, ValueError):
    """No network on the scaling rule satisfies the budget."""


class ShapeError(PhiscaleError, ValueError):
    """A tensor or an image size that the network cannot take."""


class DataError(PhiscaleError, ValueError):
    """Images, folders or manifests that cannot be used."""


class ModelDirError(PhiscaleError, ValueError):
    """A model directory or a weight file that cannot be read or does not fit."""


class RecipeError(PhiscaleError, ValueError):
    """A training recipe that is not valid."""


class TrainingError(PhiscaleError, RuntimeError):
    """Training cannot go on."""


class MissingDependencyError(PhiscaleError, ImportError):
    """An optional package is not installed."""


def require(module: str, *, extra: str) -> ModuleType:
    """Import an optional dependency, or say how to install it.

    Args:
        module: Dotted module name, for example ``"pyarrow.parquet"``.
        extra: The extra of phiscale that brings it, for example ``"data"``.

    Raises:
        MissingDependencyError: The module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # A module that is there but fails on an import of its own is a fault to show, not to hide.
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        package = module.partition(".")[0]
        raise MissingDependencyError(
            f"{package} is not installed; run: pip install 'phiscale[{extra}]'"
        ) from None
