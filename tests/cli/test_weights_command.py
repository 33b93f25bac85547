from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner, Result

from phiscale.cli.weights import Layout, default_output, weights
from phiscale.errors import ModelDirError, PhiscaleError, SpecError
from phiscale.families import get_spec
from phiscale.nn.network import Network
from phiscale.spec import HeadSpec, NetworkSpec, StageSpec, StemSpec
from phiscale.weights.catalog import best, records
from phiscale.weights.checkpoint import open_checkpoint
from phiscale.weights.formats import FORMATS
from phiscale.weights.recognise import to_layout

LITE0 = "pypi/efficientnet_lite0.imagenet"
OWN = NetworkSpec(
    name="own",
    stem=StemSpec(out_channels=8),
    stages=(StageSpec(block="mbconv", out_channels=8, se_ratio=0.25),),
    head=HeadSpec(out_channels=16),
    image_size=(32, 32),
    num_classes=3,
)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(weights, [str(argument) for argument in arguments])


def output(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def error(*arguments: object) -> PhiscaleError:
    """What `main` prints as one line, with exit code 2."""
    result = run(*arguments)
    assert isinstance(result.exception, PhiscaleError), result.output
    assert str(result.exception).isprintable()
    assert result.stdout == ""
    return result.exception


@pytest.fixture
def own(tmp_path: Path) -> tuple[Path, Path]:
    """A file in timm's layout, and the spec of its network as JSON."""
    torch.manual_seed(0)
    state = to_layout(FORMATS["timm"], OWN, Network(OWN).state_dict())
    torch.save(state, tmp_path / "own.pth")
    (tmp_path / "own.json").write_text(OWN.to_json(), encoding="utf-8")
    return tmp_path / "own.pth", tmp_path / "own.json"


# ---- inspect ----


def test_inspect_a_published_file() -> None:
    lines = output("inspect", LITE0, "--no-parity").splitlines()
    assert lines[0].endswith("efficientnet-lite0-57934424.pth")
    assert any(line.startswith("  network        efficientnet_lite0, in the lukemelas") for line in lines)
    assert max(len(line) for line in lines[1:]) <= 96
    assert "  parity         not measured: it was not asked for" in lines


def test_inspect_compares_with_the_publishers_library() -> None:
    text = " ".join(output("inspect", LITE0).split())
    assert "equals efficientnet-lite0 with same padding and epsilon 0.001" in text


def test_inspect_as_json() -> None:
    report = json.loads(output("inspect", LITE0, "--no-parity", "--json"))
    assert report["record"] == LITE0
    assert report["network"] == "efficientnet_lite0"
    assert report["settings"]["padding"]["value"] == "same"
    assert report["healthy"] is True


def test_inspect_a_network_of_ones_own(own: tuple[Path, Path]) -> None:
    file, spec = own
    assert "no known network has these shapes" in str(error("inspect", file))
    report = json.loads(output("inspect", file, "--model", spec, "--json"))
    assert (report["network"], report["layout"], report["is_wanted"]) == ("own", "timm", True)
    assert report["parity"]["reason"] == "timm has no network own to compare with"


def test_inspect_either_entry(own: tuple[Path, Path], tmp_path: Path) -> None:
    file, spec = own
    state = torch.load(file, weights_only=True)
    torch.save({"state_dict": state, "state_dict_ema": state}, tmp_path / "last.pth.tar")
    for entry in ("ema", "plain"):
        report = json.loads(
            output("inspect", tmp_path / "last.pth.tar", "--model", spec, "--entry", entry, "--json")
        )
        assert (report["entry"], report["entries"]) == (entry, ["ema", "plain"])
    assert "no averaged weights" in str(error("inspect", file, "--model", spec, "--entry", "ema"))


# ---- convert ----


def tensors_of(path: Path, spec: NetworkSpec | None = None) -> dict[str, Tensor]:
    return dict(open_checkpoint(path, model=spec).tensors)


def test_convert_there_and_back(own: tuple[Path, Path]) -> None:
    file, spec = own
    text = output("convert", file, "--to", "torchvision", "--model", spec)
    middle = file.with_name("own.torchvision.pth")
    assert text.startswith(f"{middle}: own, ")
    assert "\nnote: padding and norm_eps are not in the file" in text
    back = file.with_name("back.pth")
    output("convert", middle, "--to", "timm", "--model", spec, "--output", back)
    first, last = torch.load(file, weights_only=True), torch.load(back, weights_only=True)
    assert list(first) == list(last)
    assert all(torch.equal(first[name], last[name]) for name in first)


def test_convert_as_json_and_its_notes(tmp_path: Path) -> None:
    path = tmp_path / "lite0.safetensors"
    result = json.loads(output("convert", LITE0, "--to", "timm", "--output", path, "--json"))
    assert (result["output"], result["layout"], result["network"]) == (
        str(path),
        "timm",
        "efficientnet_lite0",
    )
    assert NetworkSpec.from_dict(result["spec"]).padding == "same"
    assert result["notes"] == ["load it into timm's tf_efficientnet_lite0"]
    assert set(tensors_of(path)) == set(open_checkpoint(LITE0).tensors)


def test_convert_does_not_overwrite_by_itself(own: tuple[Path, Path]) -> None:
    file, spec = own
    arguments = ("convert", file, "--to", "phiscale", "--model", spec)
    output(*arguments)
    assert "exists; give another name, or overwrite" in str(error(*arguments))
    output(*arguments, "--overwrite")


@pytest.mark.parametrize(
    ("file", "layout", "expected"),
    [
        ("a/net.pth", "timm", "a/net.timm.pth"),
        ("net.safetensors", "huggingface", "net.huggingface.safetensors"),
        ("net.pt", "keras", "net.keras.weights.h5"),
        ("net.weights.h5", "timm", "net.timm.safetensors"),
        ("runs/best.pth.tar", "article", "runs/best.pth.article.safetensors"),
        ("pypi/efficientnet_lite0.imagenet", "timm", "efficientnet_lite0.imagenet.timm.safetensors"),
        ("timm/tf_efficientnet_b0.in1k", "phiscale", "tf_efficientnet_b0.in1k.phiscale.safetensors"),
        ("hf://google/efficientnet-b0", "timm", "efficientnet-b0.timm.safetensors"),
    ],
)
def test_default_output(
    file: str, layout: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if file.endswith((".h5", ".tar")):
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).touch()
    assert default_output(file, Layout(layout)) == Path(expected)


def test_a_folder_is_converted_beside_where_we_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "best.v2").mkdir(parents=True)
    assert default_output("models/best.v2", Layout.TIMM) == Path("best.v2.timm.safetensors")


def test_every_layout_can_be_named() -> None:
    assert [layout.value for layout in Layout] == list(FORMATS)


# ---- list ----


def test_list_one_network() -> None:
    lines = output("list", "efficientnet_b0").splitlines()
    for record in records("efficientnet_b0"):
        (row,) = [line.split() for line in lines if line.split()[:1] == [record.name]]
        assert str(record.image_size[0]) in row
        assert (row[-1] == "best") == (record.name == best("efficientnet_b0").name)
        if record.top1 is not None:
            assert f"{record.top1:.1f}" in row
    assert not any("lite0" in line for line in lines)


def test_the_list_fits_100_columns() -> None:
    lines = output("list").splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 100
    assert len([line for line in lines if "/" in line]) >= len(records())


def test_list_as_json() -> None:
    rows = json.loads(output("list", "--json"))
    assert [row["name"] for row in rows] == [record.name for record in records()]
    chosen = {row["model"]: row["name"] for row in rows if row["best"]}
    assert chosen["efficientnet_lite0"] == LITE0
    for model, name in chosen.items():
        assert best(model).name == name
    assert all(row["sources"] for row in rows)


# ---- mistakes ----


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (("inspect", "nowhere.pth"), ModelDirError, "nowhere.pth does not exist"),
        (("inspect", "timm/tf_efficientnet_b0.in1"), ModelDirError, "did you mean"),
        (("inspect", LITE0, "--model", "efficientnet_bo"), SpecError, "did you mean"),
        (("convert", "nowhere.pth", "--to", "timm"), ModelDirError, "does not exist"),
        (("convert", LITE0, "--to", "torchvision"), ModelDirError, "no EfficientNet without squeeze-excite"),
        (("convert", LITE0, "--to", "timm", "--output", "no/folder.pth"), ModelDirError, "make it first"),
        (("list", "efficientnet_b77"), SpecError, "efficientnet_b77"),
        (("list", "resnet18"), ModelDirError, "no published weights of resnet18"),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: tuple[str, ...],
    kind: type[PhiscaleError],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    found = error(*arguments)
    assert isinstance(found, kind)
    assert message in str(found)
    assert not list(tmp_path.iterdir())


def test_a_layout_that_does_not_exist() -> None:
    result = run("convert", LITE0, "--to", "onnx")
    assert result.exit_code == 2
    assert "'timm'" in result.stderr


def test_no_records_have_networks_that_are_not_there() -> None:
    for record in records():
        assert get_spec(record.model).name == record.model
