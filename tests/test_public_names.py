"""Names that code outside of the repository calls: changing one here is a breaking change."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import phiscale as ps

NAMES = {
    "Budget",
    "BudgetFit",
    "CompoundRule",
    "Network",
    "NetworkSpec",
    "Prediction",
    "Predictor",
    "Preprocess",
    "Recipe",
    "Scaling",
    "StageSpec",
    "__version__",
    "complexity",
    "compound_scale",
    "convert_weights",
    "create_model",
    "evaluate",
    "export",
    "fit",
    "get_spec",
    "inspect_weights",
    "list_specs",
    "load",
    "load_weights",
    "open_source",
    "save",
    "scale",
    "scan",
    "solve_budget",
}

# Parameters in their order; those after "*" by keyword only.
PARAMETERS = {
    "Budget": ["*", "macs", "params", "inference_bytes", "training_bytes", "file_bytes", "latency_ms"],
    "CompoundRule": ["*", "alpha", "beta", "gamma"],
    "Scaling": ["*", "depth", "width", "resolution"],
    "complexity": ["spec", "batch_size", "image_size", "*", "optimizer_states", "grad_checkpointing"],
    "compound_scale": ["spec", "*", "phi", "rule"],
    "create_model": [
        "spec",
        "*",
        "num_classes",
        "in_channels",
        "image_size",
        "weights",
        "classes",
        "padding",
        "dropout",
        "drop_path",
        "activation",
        "bias",
        "norm_eps",
        "norm_momentum",
    ],
    "get_spec": ["name"],
    "list_specs": ["family"],
    "scale": ["spec", "*", "depth", "width", "resolution"],
    "solve_budget": [
        "spec",
        "budget",
        "*",
        "rule",
        "measure",
        "batch_size",
        "training_batch_size",
        "optimizer_states",
    ],
}

# What the architecture calls by position or by these keywords.
ACCEPTED: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "convert_weights": (("file",), {"to": "timm", "output": "file"}),
    "evaluate": (("dir", "images/"), {}),
    "export": (("dir", "onnx"), {"precision": "fp32"}),
    "fit": (("images/", "out/"), {"model": "efficientnet_b0", "budget": None, "recipe": None}),
    "load": (("dir",), {"runtime": "auto"}),
    "inspect_weights": (("file",), {}),
    "load_weights": (("net", "file"), {}),
    "save": (("net", "dir"), {"classes": ["a"], "preprocess": None}),
}

ATTRIBUTES = {
    "phiscale.nn.network.Network": [
        "features",
        "forward",
        "forward_features",
        "forward_head",
        "num_features",
        "reset_classifier",
        "set_grad_checkpointing",
    ],
    "phiscale.spec.NetworkSpec": [
        "blocks",
        "from_dict",
        "from_json",
        "num_blocks",
        "num_features",
        "output_stride",
        "read",
        "to_dict",
        "to_json",
    ],
}

FIELDS = {
    "phiscale.scaling.budget.BudgetFit": [
        "spec",
        "phi",
        "scaling",
        "rule",
        "complexity",
        "costs",
        "utilization",
        "binding",
        "next_costs",
    ],
    "phiscale.scaling.complexity.Complexity": [
        "params",
        "macs",
        "activations",
        "file_bytes",
        "inference_bytes",
        "training_bytes",
        "batch_size",
        "image_size",
        "stages",
    ],
}


def test_all() -> None:
    assert set(ps.__all__) == NAMES
    assert len(ps.__all__) == len(NAMES)
    assert set(ps.__all__) <= set(dir(ps))


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_name_can_be_had(name: str) -> None:
    value = getattr(ps, name)
    assert value is getattr(ps, name)
    if name != "__version__":
        assert value.__name__ == name
        assert value.__doc__


def test_no_other_name() -> None:
    with pytest.raises(AttributeError, match="module 'phiscale' has no attribute 'nonsense'"):
        _ = ps.nonsense


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_parameters(name: str) -> None:
    found: list[str] = []
    for parameter in inspect.signature(getattr(ps, name)).parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and "*" not in found:
            found.append("*")
        found.append(parameter.name)
    assert found == PARAMETERS[name]


@pytest.mark.parametrize("name", sorted(ACCEPTED))
def test_calls_of_the_architecture_bind(name: str) -> None:
    arguments, keywords = ACCEPTED[name]
    inspect.signature(getattr(ps, name)).bind(*arguments, **keywords)


@pytest.mark.parametrize("path", sorted(ATTRIBUTES))
def test_methods(path: str) -> None:
    module, _, name = path.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    assert [attribute for attribute in ATTRIBUTES[path] if not hasattr(found, attribute)] == []


@pytest.mark.parametrize("path", sorted(FIELDS))
def test_fields(path: str) -> None:
    module, _, name = path.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    assert list(inspect.signature(found).parameters) == FIELDS[path]


HEAVY = ["torch", "torchvision", "lightning", "timm", "matplotlib", "torchmetrics"]
LIGHT = ["numpy", "typer", "rich", "PIL", "yaml"]


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import phiscale", [*HEAVY, *LIGHT]),
        (
            "import phiscale as ps; "
            "ps.solve_budget(ps.get_spec('efficientnet_b0'), ps.Budget(macs=1e9)); "
            "ps.complexity(ps.compound_scale(ps.get_spec('resnet18'), phi=1.0)); ps.Preprocess()",
            [*HEAVY, *LIGHT],
        ),
        ("import phiscale.cli.main", [*HEAVY, "numpy", "PIL"]),
    ],
    ids=["package", "arithmetic", "command line"],
)
def test_what_an_import_does_not_load(statement: str, unwanted: list[str], tmp_path: Path) -> None:
    code = f"{statement}\nimport sys\nprint([name for name in {unwanted!r} if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert (result.stdout.strip(), result.stderr) == ("[]", "")


def test_every_module_has_a_docstring_and_its_names() -> None:
    folder = Path(ps.__file__).parent
    for part in ("spec", "errors", "preprocess", "families", "scaling", "nn"):
        paths = (
            [folder / f"{part}.py"]
            if (folder / f"{part}.py").exists()
            else sorted((folder / part).glob("*.py"))
        )
        for path in paths:
            dotted = ".".join(path.relative_to(folder.parent).with_suffix("").parts).removesuffix(".__init__")
            module = importlib.import_module(dotted)
            assert module.__doc__, dotted
            for name in getattr(module, "__all__", []):
                assert hasattr(module, name), f"{dotted}.{name}"
