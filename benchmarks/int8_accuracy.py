"""What int8 and bf16 cost a trained network: accuracy on images that chose nothing, size, and time to export.

    python -m benchmarks.int8_accuracy [--demo DIR] [--fashion-mnist ROOT [--fashion DIR]] [--output FILE]

The networks are that of `phiscale demo`, in DIR/model, and the largest within ten million multiply-adds on
Fashion-MNIST, in DIR; each is trained where it is not there. ROOT has FashionMNIST/raw as torchvision lays it
out. Results go into `benchmarks/results/int8_accuracy.json`; the exit code is 1 where int8 misses a bar.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import phiscale
from benchmarks.measure import machine, versions
from phiscale.data.sources import open_source
from phiscale.deploy.export_store import Export, Precision, list_exports
from phiscale.deploy.runtimes.base import cores
from phiscale.deploy.samples import DEMO_DATA
from phiscale.weights.config import WEIGHTS, read_config

__all__ = ["main", "measure"]

OUTPUT = Path(__file__).parent / "results" / "int8_accuracy.json"
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "int8")
MAX_DROP = 0.5
MAX_SHARE = 0.3  # of fp32's bytes
# As in docs/results.md, but for the epochs.
FASHION = {"epochs": 3, "augment.policy": "none", "augment.crop_scale": (1.0, 1.0), "augment.pad_crop": 2}


def measure(directory: Path, location: str | Path) -> dict[str, Any]:
    """Export a model in every precision of OpenVINO, and measure each on the test split of its images."""
    source = open_source(location, val_fraction=0.0)
    records = source.split("test")
    labels = [source.classes[record.label] for record in records]
    results: dict[str, Any] = {}
    for precision in PRECISIONS:
        began = time.perf_counter()
        phiscale.export(directory, "openvino", precision=precision, max_drop=MAX_DROP)
        seconds = time.perf_counter() - began
        answers = phiscale.load(directory, runtime=f"openvino-{precision}").stream(
            (source.read(record) for record in records), top_k=1
        )
        right = sum(label in answer.labels for label, answer in zip(labels, answers, strict=True))
        results[precision] = {
            "export_seconds": seconds,
            "right": right,
            **_facts(_find(directory, precision)),
        }
    fp32 = results["fp32"]
    for result in results.values():
        result["top1"] = result["right"] / len(records)
        result["drop"] = 100 * (fp32["right"] - result["right"]) / len(records)
        result["share_of_fp32"] = result["size_bytes"] / fp32["size_bytes"]
    return {
        "network": read_config(directory).spec.name,
        "test_images": len(records),
        "weights_bytes": (directory / WEIGHTS).stat().st_size,
        "precisions": results,
    }


def _find(directory: Path, precision: Precision) -> Export:
    [export] = [
        export
        for export in list_exports(read_config(directory))
        if (export.format, export.precision) == ("openvino", precision)
    ]
    return export


def _facts(export: Export) -> dict[str, Any]:
    """What the export itself says: size, the loss that the gate saw, and what stayed in floating point."""
    record = json.loads(export.to_json())
    wanted = ("size_bytes", "loss", "quantization", "latency_ms", "is_within_max_drop")
    facts = {name: record[name] for name in wanted}
    for part in ("loss", "quantization"):
        if facts[part] is not None:
            del facts[part]["source"]  # a place on this machine
    return facts


def _train_demo(folder: Path) -> Path:
    if not (folder / "model").is_dir():
        program = Path(sys.executable).with_name("phiscale")
        subprocess.run([program, "demo", "--out", folder], check=True)
    return folder / "model"


def _train_fashion(location: str, folder: Path) -> Path:
    if folder.is_dir():
        return folder
    return phiscale.fit(
        location, folder, budget=phiscale.Budget(macs=10e6), overrides=FASHION, val_fraction=0.1
    )


def _show(name: str, result: dict[str, Any]) -> bool:
    print(f"{name}: {result['network']}, {result['test_images']} test images")
    for precision, row in result["precisions"].items():
        kept = "" if not row["quantization"] else f", kept: {row['quantization']['kept'] or 'nothing'}"
        print(
            f"  {precision}: top-1 {row['top1']:.2%}, drop {row['drop']:.2f} points, "
            f"{row['size_bytes'] / 1e6:.2f} MB ({row['share_of_fp32']:.1%} of fp32), "
            f"exported in {row['export_seconds']:.0f} s{kept}"
        )
    int8 = result["precisions"]["int8"]
    passed: bool = int8["drop"] <= MAX_DROP and int8["share_of_fp32"] <= MAX_SHARE
    print(f"  {'PASS' if passed else 'FAIL'}: int8 within {MAX_DROP} points and {MAX_SHARE:.0%} of the bytes")
    return passed


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write the results; 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--demo", type=Path)
    parser.add_argument("--fashion-mnist", type=Path)
    parser.add_argument("--fashion", type=Path)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args(arguments)
    results = {}
    with tempfile.TemporaryDirectory(prefix="phiscale-") as name:
        folder = Path(name)
        results["demo"] = measure(_train_demo(options.demo or folder / "demo"), DEMO_DATA)
        if options.fashion_mnist is not None:
            location = f"torchvision:FashionMNIST:{options.fashion_mnist}"
            model = _train_fashion(location, options.fashion or folder / "fashion")
            results["fashion_mnist"] = measure(model, location)
    passed = [_show(*item) for item in results.items()]
    content = {
        "machine": machine(cores()),
        "versions": versions(),
        "results": results,
    }
    options.output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
