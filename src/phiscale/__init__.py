"""Your images and your budget: the EfficientNet that fits, trained, measured and explained.

The public names are imported on first use, so ``import phiscale`` is quick and loads no torch.

Examples:
    >>> import phiscale as ps
    >>> b0 = ps.get_spec("efficientnet_b0")
    >>> ps.complexity(b0).params
    5288548
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from phiscale.data.scan import scan as scan
    from phiscale.data.sources import open_source as open_source
    from phiscale.deploy.export import export as export
    from phiscale.deploy.predictor import Prediction as Prediction
    from phiscale.deploy.predictor import Predictor as Predictor
    from phiscale.deploy.predictor import load as load
    from phiscale.evaluation.evaluate import evaluate as evaluate
    from phiscale.families import get_spec as get_spec
    from phiscale.families import list_specs as list_specs
    from phiscale.nn.network import Network as Network
    from phiscale.pipeline.fit import fit as fit
    from phiscale.preprocess import Preprocess as Preprocess
    from phiscale.scaling.budget import Budget as Budget
    from phiscale.scaling.budget import BudgetFit as BudgetFit
    from phiscale.scaling.budget import solve_budget as solve_budget
    from phiscale.scaling.complexity import complexity as complexity
    from phiscale.scaling.compound import CompoundRule as CompoundRule
    from phiscale.scaling.compound import Scaling as Scaling
    from phiscale.scaling.compound import compound_scale as compound_scale
    from phiscale.scaling.compound import scale as scale
    from phiscale.spec import NetworkSpec as NetworkSpec
    from phiscale.spec import StageSpec as StageSpec
    from phiscale.training.recipe import Recipe as Recipe
    from phiscale.weights.convert import convert_weights as convert_weights
    from phiscale.weights.create import create_model as create_model
    from phiscale.weights.doctor import inspect_weights as inspect_weights
    from phiscale.weights.load import load_weights as load_weights
    from phiscale.weights.model_dir import save as save

__version__ = "0.1.0"

_EXPORTS = {
    "Budget": "phiscale.scaling.budget",
    "BudgetFit": "phiscale.scaling.budget",
    "CompoundRule": "phiscale.scaling.compound",
    "Network": "phiscale.nn.network",
    "NetworkSpec": "phiscale.spec",
    "Prediction": "phiscale.deploy.predictor",
    "Predictor": "phiscale.deploy.predictor",
    "Preprocess": "phiscale.preprocess",
    "Recipe": "phiscale.training.recipe",
    "Scaling": "phiscale.scaling.compound",
    "StageSpec": "phiscale.spec",
    "complexity": "phiscale.scaling.complexity",
    "compound_scale": "phiscale.scaling.compound",
    "convert_weights": "phiscale.weights.convert",
    "create_model": "phiscale.weights.create",
    "evaluate": "phiscale.evaluation.evaluate",
    "export": "phiscale.deploy.export",
    "fit": "phiscale.pipeline.fit",
    "get_spec": "phiscale.families",
    "inspect_weights": "phiscale.weights.doctor",
    "list_specs": "phiscale.families",
    "load": "phiscale.deploy.predictor",
    "load_weights": "phiscale.weights.load",
    "open_source": "phiscale.data.sources",
    "save": "phiscale.weights.model_dir",
    "scale": "phiscale.scaling.compound",
    "scan": "phiscale.data.scan",
    "solve_budget": "phiscale.scaling.budget",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'phiscale' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
