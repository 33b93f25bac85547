"""What `phiscale fit` says a run will need, against what the run took.

    python -m benchmarks.forecast [--networks efficientnet_b0,mobilenet_v2,resnet18] [--batches 8,32]
                                  [--image-size 128] [--images 256] [--epochs 1] [--output FILE]

Each network with each batch size is planned, forecast and trained in a process of its own. Memory is the most
that the kernel saw the process hold; seconds are from its start to its end. Prints a table and JSON.
The exit code is 1 where memory is off by more than 15 %, or a time by more than 25 %. Leave the machine alone
meanwhile.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.measure import machine, versions
from benchmarks.pictures import JPEG_QUALITY, crop, photographs

__all__ = ["main"]

LAUNCH = Path(__file__).parent / "launch.py"
MEMORY_MARGIN, TIME_MARGIN = 0.15, 0.25
CLASSES = 4


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", default="efficientnet_b0,mobilenet_v2,resnet18")
    parser.add_argument("--batches", default="8,32")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--output", type=Path, help="Write the JSON to a file, too.")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.case is not None:
        run_case(**json.loads(options.case))
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "images", options.images)
        rows = [
            measure(folder, network, int(batch), options.image_size, options.epochs)
            for network, batch in product(options.networks.split(","), options.batches.split(","))
        ]
    result = {"rows": rows, "machine": machine(_threads()), "versions": versions()}
    text = json.dumps(result, indent=2)
    if options.output is not None:
        options.output.write_text(text + "\n", encoding="utf-8")
    print(text)
    print(table(rows), file=sys.stderr)
    return 0 if all(within(row) for row in rows) else 1


def write_images(root: Path, number: int) -> None:
    """Crops of photographs, one class for each."""
    rng = random.Random(0)
    for name, photograph in list(photographs().items())[:CLASSES]:
        (root / name).mkdir(parents=True)
        for index in range(number // CLASSES):
            crop(photograph, rng).save(root / name / f"{index}.jpg", quality=JPEG_QUALITY)


def measure(folder: Path, network: str, batch: int, image_size: int, epochs: int) -> dict[str, Any]:
    """Forecast and train in a process of its own. Returns both, in bytes and seconds."""
    found, report = folder / "forecast.json", folder / "process.json"
    case = {
        "images": str(folder / "images"),
        "out": str(folder / f"{network}-{batch}"),
        "network": network,
        "batch": batch,
        "image_size": image_size,
        "epochs": epochs,
        "found": str(found),
    }
    command = [sys.executable, "-m", "benchmarks.forecast", "--case", json.dumps(case)]
    subprocess.run([sys.executable, str(LAUNCH), str(report), *command], check=True)
    process = json.loads(report.read_text(encoding="utf-8"))
    return {
        "network": network,
        "batch": batch,
        **json.loads(found.read_text(encoding="utf-8")),
        "measured_memory": process["max_rss_bytes"],
        "measured_seconds": process["seconds"],
    }


def run_case(
    *, images: str, out: str, network: str, batch: int, image_size: int, epochs: int, found: str
) -> None:
    """What `phiscale fit` does, in this process; the forecast and the epochs' seconds go to a file."""
    began = time.perf_counter()
    from phiscale.pipeline import plan_fit, run
    from phiscale.pipeline.forecast import forecast

    settings = {"epochs": epochs, "batch_size": batch, "warmup_epochs": 0}
    plan = plan_fit(images, model=network, image_size=image_size, overrides=settings)
    expected = forecast(plan, Path(out), spent=time.perf_counter() - began)
    result = run(plan, out, progress=False)
    seconds = [record.seconds for record in result.training.history]
    content = {
        "memory": expected.memory_bytes,
        "epoch_seconds": expected.epoch_seconds,
        "seconds": expected.seconds,
        "measured_epoch_seconds": sum(seconds) / len(seconds),
    }
    Path(found).write_text(json.dumps(content), encoding="utf-8")


def within(row: dict[str, Any]) -> bool:
    """Whether a row keeps the margins."""
    limits = {"memory": MEMORY_MARGIN, "epoch_seconds": TIME_MARGIN, "seconds": TIME_MARGIN}
    return all(abs(row[name] / row[f"measured_{name}"] - 1) <= most for name, most in limits.items())


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Forecast, measured and their ratio, a line each."""
    lines = [f"{'network':18} {'batch':>5}  {'memory MB':>20}  {'s an epoch':>20}  {'s in all':>20}"]
    for row in rows:
        cells = [_cell(row, "memory", 1e6), _cell(row, "epoch_seconds"), _cell(row, "seconds")]
        lines.append(f"{row['network']:18} {row['batch']:5}  " + "  ".join(f"{cell:>20}" for cell in cells))
    return "\n".join(lines)


def _cell(row: dict[str, Any], name: str, unit: float = 1.0) -> str:
    expected, measured = row[name] / unit, row[f"measured_{name}"] / unit
    return f"{expected:7.1f} {measured:7.1f} {expected / measured:4.2f}"


def _threads() -> int:
    import torch

    return torch.get_num_threads()


if __name__ == "__main__":
    sys.exit(main())
