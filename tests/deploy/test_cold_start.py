"""What a single prediction imports: nothing of PyTorch where there is an export."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import phiscale as ps
from small_model import CLASSES, make_model, make_photos

SCRIPT = """
import sys
from phiscale.cli.main import main
try:
    main()
finally:
    heavy = ("torch", "torchvision", "huggingface_hub", "pandas", "pyarrow", "lightning", "yaml")
    sys.stderr.write(" ".join(name for name in heavy if name in sys.modules))
"""


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_model(tmp_path_factory.mktemp("model"))
    ps.export(folder, "onnx")
    ps.export(folder, "openvino")
    return folder


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_predicting_with_an_export_imports_no_torch(runtime: str, model_dir: Path, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos")
    images = [str(photos / name) for name in ("a.png", "b.jpg")]
    arguments = ["predict", str(model_dir), *images, "--json", "--runtime", runtime]
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=False, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    assert [set(row["labels"]) for row in json.loads(ran.stdout)] == [set(CLASSES)] * 2
    assert ran.stderr == ""
