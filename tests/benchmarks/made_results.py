"""Results of a run that never was."""

from __future__ import annotations

import copy
from typing import Any

B0, B4, LITE = "efficientnet_b0", "efficientnet_b4", "efficientnet_lite0"
MIB = 2**20
ROOFLINE = {"fp32": 200.0, "bf16": 400.0, "int8": 800.0, "gigabytes": 30.0}


def row(
    network: str, library: str, engine: str, precision: str, ms: float, *, batch: int = 1
) -> dict[str, Any]:
    return {
        "network": network,
        "library": library,
        "engine": engine,
        "precision": precision,
        "name": f"{library}, {engine} {precision}",
        "image_size": [224, 224],
        "batch": batch,
        "images": 300,
        "median_ms": ms,
        "p90_ms": 1.1 * ms,
        "share_of_limit": 0.5,
        "images_per_second": 1000 * batch / ms,
        "rounds_ms": [ms] * 5,
        "difference": 1e-6 if precision == "fp32" else 1e-2,
        "agreement": 1.0,
        "agreement_sure": 1.0,
    }


def network_rows(network: str) -> list[dict[str, Any]]:
    rows = [row(network, "timm", "PyTorch", "fp32", 20.0)]
    for precision, ms in (("fp32", 7.0), ("bf16", 5.0), ("int8", 4.0)):
        rows.append(row(network, "timm", "OpenVINO", precision, ms))
        rows.append(row(network, "phiscale", "OpenVINO", precision, ms))
    return rows


def program(name: str, library: str, seconds: float, mib: int) -> dict[str, Any]:
    return {
        "name": name,
        "library": library,
        "seconds": seconds,
        "rounds_seconds": [seconds, seconds],
        "images": 500,
        "images_per_second": 500 / seconds,
        "max_rss_bytes": mib * MIB,
        "same_labels": 1.0,
    }


def package_row() -> dict[str, Any]:
    sizes = {"openvino": 150 * MIB, "numpy": 60 * MIB}
    return {
        "name": "phiscale predict",
        "library": "phiscale",
        "bytes": sum(sizes.values()),
        "packages": sizes,
        "imports_torch": False,
    }


def good() -> dict[str, Any]:
    folder = [
        program("timm, image by image", "timm", 20.0, 900),
        program("transformers, pipeline", "transformers", 19.0, 900),
        program("phiscale predict", "phiscale", 3.0, 200),
        program("phiscale predict, TensorFlow's padding", "phiscale", 9.0, 900),
    ]
    batches = [
        row(B0, "timm", "PyTorch", "fp32", 1000.0, batch=32),
        row(B0, "timm", "PyTorch", "bf16", 250.0, batch=32),
        row(B0, "phiscale", "OpenVINO", "int8", 130.0, batch=32),
    ]
    return {
        "latency": {
            "roofline": ROOFLINE,
            "rows": [item for name in (B0, B4, LITE) for item in network_rows(name)],
        },
        "throughput": {"roofline": ROOFLINE, "rows": batches, "alone": copy.deepcopy(batches)},
        "folder": {"rows": folder, "lite_rows": [program("timm, image by image", "timm", 9.0, 900)]},
        "cold_start": {"rows": [program("phiscale predict", "phiscale", 0.9, 200)]},
        "packages": {"rows": [package_row()]},
    }
