"""Forward pass and training step of this project beside its peers, interleaved in one run.

    python benchmarks/forward.py [--image-size 224] [--batch 1 16] [--rounds 7]

Prints the median of each, and the ratio to timm, with versions and machine; writes the same as JSON to
benchmarks/results/. Weights are random: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import timm
import torch
import torchvision
from torch import Tensor, nn

import phiscale

RESULTS = Path(__file__).parent / "results"


def networks() -> dict[str, nn.Module]:
    """B0 of each library, as it comes."""
    return {
        "timm": timm.create_model("efficientnet_b0"),
        "torchvision": torchvision.models.efficientnet_b0(),
        "phiscale": phiscale.create_model("efficientnet_b0"),
    }


def forward(net: nn.Module, images: Tensor) -> Callable[[], None]:
    net.eval()

    def call() -> None:
        with torch.inference_mode():
            net(images)

    return call


def training_step(net: nn.Module, images: Tensor) -> Callable[[], None]:
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    labels = torch.zeros(len(images), dtype=torch.long)

    def call() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return call


def measure(calls: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each; every round calls each once, so noise hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(rounds + 2):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if round_ >= 2:
                times[name].append(1000 * (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--allocator", action="store_true", help="keep freed memory, as `phiscale fit` does")
    args = parser.parse_args()
    if args.allocator:
        from phiscale.training.allocator import keep_freed_memory

        keep_freed_memory()
    torch.manual_seed(0)
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, {platform.system()}"
    versions = {name: version(name) for name in ("torch", "timm", "torchvision")}
    report = {
        "machine": machine,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "versions": {**versions, "phiscale": phiscale.__version__},
        "image_size": args.image_size,
        "allocator": args.allocator,
        "rows": [],
    }
    print(machine, report["cpu"], report["versions"])
    print(f"{'B0, ' + str(args.image_size) + ' px':24}{'ms':>10}{'img/s':>10}{'× timm':>10}")
    for what, build in (("forward", forward), ("training step", training_step)):
        for batch in args.batch:
            if what == "training step" and batch == 1:
                continue
            images = torch.rand(batch, 3, args.image_size, args.image_size)
            medians = measure({name: build(net, images) for name, net in networks().items()}, args.rounds)
            print(f"{what}, batch {batch}")
            for name, ms in medians.items():
                print(f"  {name:22}{ms:10.1f}{1000 * batch / ms:10.1f}{medians['timm'] / ms:10.2f}")
                report["rows"].append({"what": what, "batch": batch, "library": name, "median_ms": ms})
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "forward.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
