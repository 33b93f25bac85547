"""This project and its peers in one run: speed, answers, memory and size, held against what must be.

    python -m benchmarks.inference [--only SECTION ...] [--quick] [--rounds 11] [--threads 2] [--output FILE]

Prints tables and a PASS or FAIL for each bar, and puts the sections that it measured into
`benchmarks/results/inference.json`, in place of older ones, as soon as each is done. From that file
`tools/make_benchmark_page.py` makes a page of the documentation.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import logging
import os
import statistics
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from benchmarks import folder, gpu, ours, peers, tables
from benchmarks.bars import Bar
from benchmarks.contender import OURS, Contender
from benchmarks.forward import measure, networks, training_step
from benchmarks.measure import limit_threads, machine, versions
from benchmarks.networks import LITE, MAX_DROP, Subject, lite, make_subject, scratch
from benchmarks.report import Report
from benchmarks.roofline import Roofline, measure_roofline
from benchmarks.scripts import batch as alone
from phiscale.deploy.export_store import Format, Precision
from phiscale.spec import Padding

__all__ = ["SECTIONS", "Run", "main"]

OUTPUT = Path(__file__).parent / "results" / "inference.json"
B0, B4 = "efficientnet_b0", "efficientnet_b4"
PADDINGS: tuple[Padding, ...] = ("symmetric", "same")
# int8 would take minutes to find the layers that an untrained network needs in floating point.
EXPORTS_OF_FOLDER: tuple[tuple[Format, Precision], ...] = (("openvino", "fp32"), ("openvino", "bf16"))


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is measured.

    Attributes:
        rounds: Of timing one image; larger batches have half as many, at least three.
        sizes: Side of each network in pixels.
        batch: Of throughput.
        answers: Images whose answers are compared, by network.
        emoji: How many of the demo's emoji Lite0 answers besides.
        calibration: Images that int8 is calibrated and measured with, by network.
        fitting: Images that a classifier is fitted to, by network.
        compiled: Whether torch.compile is measured.
        jpegs: In the folder.
        processes: How often each program runs on the folder.
        cold_starts: How often each program is started for one image.
    """

    rounds: int = 11
    sizes: dict[str, int] = field(default_factory=lambda: {B0: 224, B4: 380})
    batch: int = 32
    answers: dict[str, int] = field(default_factory=lambda: {B0: 16, B4: 4, LITE: 300})
    emoji: int = 100
    calibration: dict[str, int] = field(default_factory=lambda: {B0: 64, B4: 16, LITE: 128})
    fitting: dict[str, int] = field(default_factory=lambda: {B0: 200, B4: 60})
    compiled: bool = True
    jpegs: int = 500
    processes: int = 2
    cold_starts: int = 5

    @property
    def few_rounds(self) -> int:
        """For what takes long."""
        return max(3, self.rounds // 2) if self.rounds > 3 else self.rounds


# Where int8 of the untrained networks answers at random, the export refuses it, and a line says so.
QUICK = Effort(
    rounds=2,
    sizes={B0: 64, B4: 96},
    batch=8,
    answers={B0: 2, B4: 2, LITE: 16},
    emoji=4,
    calibration={B0: 8, B4: 8, LITE: 8},
    fitting={B0: 60, B4: 20},
    compiled=False,
    jpegs=24,
    processes=1,
    cold_starts=1,
)


class Run:
    """One run: what its sections share is made when the first of them asks.

    Args:
        folder: For models and images.
        effort: How much is measured.
        threads: Of every engine.
    """

    def __init__(self, folder: Path, effort: Effort, *, threads: int) -> None:
        self.folder, self.effort, self.threads = folder, effort, threads

    @cached_property
    def roofline(self) -> Roofline:
        """Of the machine."""
        return measure_roofline()

    @cached_property
    def b0(self) -> Subject:
        """B0 with filters of Lite0."""
        return self._random(B0)

    @cached_property
    def b4(self) -> Subject:
        """B4 with random weights."""
        return self._random(B4)

    @cached_property
    def lite(self) -> Subject:
        """Lite0 with its authors' weights."""
        return lite(self.folder, calibration_images=self.effort.calibration[LITE])

    @cached_property
    def programs(self) -> list[folder.Program]:
        """Everybody's programs for a folder of images, with B0."""
        found = []
        for padding in PADDINGS:
            made = make_subject(
                B0, self.folder / "programs", padding=padding, fitting_images=self.effort.fitting[B0]
            )
            # The gate of `phiscale export` is as users have it.
            found.append(replace(made, exports=EXPORTS_OF_FOLDER, max_drop=MAX_DROP))
        first, second = found
        return folder.programs(first, self.folder, tf_padded=second)

    def _random(self, name: str) -> Subject:
        effort = self.effort
        return make_subject(
            name,
            self.folder,
            image_size=effort.sizes[name],
            calibration_images=effort.calibration[name],
            fitting_images=effort.fitting[name],
        )


def limits(run: Run) -> dict[str, Any]:
    """The machine's limits."""
    found = run.roofline
    print(
        f"  products of matrices, 1e9 operations/s: {found.fp32:.0f} fp32, {found.bf16:.0f} bf16, "
        f"{found.int8:.0f} int8; memory {found.gigabytes:.0f} GB/s"
    )
    return found.to_dict()


def latency(run: Run) -> dict[str, Any]:
    """One image at a time: B0, B4 and Lite0."""
    effort, rows = run.effort, []
    for subject, everybody in ((run.b0, True), (run.b4, False), (run.lite, True)):
        contenders = [
            *peers.libraries(subject, all_of_them=everybody),
            *peers.timm_tuned(subject, batch=1, compiled=effort.compiled and subject is run.b0),
            *peers.engines(subject, threads=run.threads, batch=1),
            *ours.latency(subject),
        ]
        emoji = effort.emoji if subject is run.lite else 0
        images = subject.images(effort.answers[subject.name], emoji=emoji)
        rows += _table(run, subject, contenders, images=images, batch=1, rounds=effort.rounds)
        gc.collect()
    return {"roofline": run.roofline.to_dict(), "rows": rows}


def throughput(run: Run) -> dict[str, Any]:
    """Many images: B0, a batch at a time, or as many at once as the engine likes."""
    subject, batch = run.b0, run.effort.batch
    contenders = [
        *peers.libraries(subject),
        *peers.timm_tuned(subject, batch=batch, compiled=run.effort.compiled),
        *peers.engines(subject, threads=run.threads, batch=batch),
        *peers.throughput_engines(subject, threads=run.threads),
        *ours.throughput(subject),
    ]
    images = subject.images(batch)
    rows = _table(run, subject, contenders, images=images, batch=batch, rounds=run.effort.few_rounds)
    return {"roofline": run.roofline.to_dict(), "rows": rows, "alone": _alone(run, subject)}


def _alone(run: Run, subject: Subject) -> list[dict[str, Any]]:
    """A batch in a process that has done nothing else, the programs in turn.

    There PyTorch gives every large activation back to the system and faults it in again; in the large process
    of the table above it does not, for a reason that is not known.
    """
    side, batch = subject.spec.image_size[0], run.effort.batch
    ways = [(key, name, "timm" if "timm" in key else key) for key, (name, _) in alone.WAYS.items()]
    ways += [
        (f"{format_}-{precision}", f"phiscale, {ours.ENGINES[format_]} {precision}", OURS)
        for format_, precision in subject.export()
        if format_ == "openvino"
    ]
    times: dict[str, list[float]] = {name: [] for _, name, _ in ways}
    for _ in range(run.effort.processes + 1):
        for key, name, _ in ways:
            arguments = [key, str(batch), str(side), str(run.threads), str(subject.directory)]
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.scripts.batch", *arguments],
                capture_output=True,
                text=True,
                check=True,
            )
            times[name].append(float(done.stdout))
    print(f"\n  {'each in a process of its own':42}{'ms':>9}{'img/s':>9}{'×':>7}")
    rows = []
    for _, name, library in ways:
        ms = statistics.median(times[name])
        faster = statistics.median(times["timm, eager"]) / ms
        print(f"  {name:42}{ms:9.2f}{1000 * batch / ms:9.1f}{faster:7.2f}")
        rows.append(
            {
                "network": subject.name,
                "name": name,
                "library": library,
                "engine": "OpenVINO" if library == OURS else "PyTorch",
                "batch": batch,
                "median_ms": ms,
                "images_per_second": 1000 * batch / ms,
                "rounds_ms": times[name],
            }
        )
    return rows


def _table(
    run: Run, subject: Subject, contenders: Sequence[Contender], *, images: Any, batch: int, rounds: int
) -> list[dict[str, Any]]:
    rows = tables.table(subject, contenders, roofline=run.roofline, batch=batch, rounds=rounds, images=images)
    tables.show(rows)
    return rows


def from_folder(run: Run) -> dict[str, Any]:
    """A folder of JPEGs to labels, every library in its own process."""
    effort = run.effort
    rows = folder.run_folder(run.programs, run.folder, count=effort.jpegs, rounds=effort.processes)
    # Labels of ImageNet, which crops of photographs leave in doubt more often than the photographs of B0.
    lite_programs = [
        program for program in folder.programs(run.lite, run.folder) if "loader" not in program.name
    ]
    lite_rows = folder.run_folder(lite_programs, run.folder, count=effort.jpegs, rounds=1, photographs=False)
    for title, found in (("B0", rows), ("Lite0", lite_rows)):
        print(f"\n  {title:40}{'s':>8}{'img/s':>8}{'MiB':>8}{'same labels':>13}")
        for row in found:
            print(
                f"  {row['name']:40}{row['seconds']:8.2f}{row['images_per_second']:8.1f}"
                f"{row['max_rss_bytes'] / 2**20:8.0f}{row['same_labels']:13.1%}"
            )
    return {"rows": rows, "lite_rows": lite_rows}


def cold_start(run: Run) -> dict[str, Any]:
    """One image, from the start of the process."""
    rows = folder.run_cold_start(run.programs, run.folder, rounds=run.effort.cold_starts)
    for row in rows:
        print(f"  {row['name']:40}{row['seconds']:8.2f} s{row['max_rss_bytes'] / 2**20:8.0f} MiB")
    return {"rows": rows}


def packages(run: Run) -> dict[str, Any]:
    """Bytes on disk of what a program imports."""
    rows = folder.run_packages(run.programs, run.folder)
    for row in rows:
        largest = ", ".join(list(row["packages"])[:4])
        print(f"  {row['name']:40}{row['bytes'] / 2**20:8.0f} MiB: {largest}, …")
    return {"rows": rows}


def training(run: Run) -> dict[str, Any]:
    """A step of SGD, each library as it comes."""
    size, batch = run.effort.sizes[B0], max(2, run.effort.batch // 2)
    images = torch.rand(batch, 3, size, size)
    calls = {name: training_step(net, images) for name, net in networks().items()}
    medians = measure(calls, run.effort.few_rounds)
    rows = []
    for name, ms in medians.items():
        print(f"  {name:40}{ms:9.1f} ms{1000 * batch / ms:8.1f} img/s{medians['timm'] / ms:7.2f} ×")
        rows.append({"name": name, "batch": batch, "image_size": [size, size], "median_ms": ms})
    return {"rows": rows}


def on_gpu(run: Run) -> dict[str, Any]:
    """B0 on a GPU, where there is one."""
    if not torch.cuda.is_available():
        print("  no GPU here: left out")
        return {}
    rows = gpu.measure_gpu(run.b0, rounds=run.effort.few_rounds)
    return {"gpu": gpu.describe(), "weights": run.b0.start or "random", "rows": rows}


SECTIONS: dict[str, Callable[[Run], dict[str, Any]]] = {
    "roofline": limits,
    "latency": latency,
    "throughput": throughput,
    "folder": from_folder,
    "cold_start": cold_start,
    "packages": packages,
    "training": training,
    "gpu": on_gpu,
}


@dataclass(kw_only=True)
class _Ended:
    """How the sections of a run came out.

    Attributes:
        failed: Those that did.
        stopped: Whether somebody pressed Ctrl-C.
    """

    failed: list[str] = field(default_factory=list)
    stopped: bool = False


def _measure(run: Run, names: Sequence[str], keep: Callable[[str, dict[str, Any], float], None]) -> _Ended:
    """Run sections one after the other; one that fails is shown and left out.

    Args:
        run: What they share.
        names: Of the sections.
        keep: Called with the name, the results and the seconds of a section that is done.
    """
    ended = _Ended()
    for name in names:
        print(f"\n## {name}", flush=True)
        began = time.monotonic()
        try:
            found = SECTIONS[name](run)
        except KeyboardInterrupt:
            print(f"\nstopped in {name}; what was done before is kept")
            ended.stopped = True
            break
        except Exception:  # a peer's fault, or ours: the other sections are worth having
            traceback.print_exc()
            ended.failed.append(name)
            continue
        seconds = round(time.monotonic() - began, 1)
        print(f"\n{name}: {seconds} s", flush=True)
        keep(name, found, seconds)
    return ended


def _print(bars: Sequence[Bar]) -> None:
    print("\n## What must hold")
    for bar in bars:
        print(f"{bar.verdict:12} {bar.what}: {bar.found or '–'} (wanted {bar.wanted})")


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.inference", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--quick", action="store_true", help="small and few: shows that all of it runs")
    parser.add_argument("--rounds", type=int, help="of timing one image (11)")
    parser.add_argument("--threads", type=int, default=2, help="of every engine (2)")
    parser.add_argument(
        "--output", type=Path, help="JSON to update (results/inference.json; none with --quick)"
    )
    parser.add_argument(
        "--take", type=Path, metavar="FILE", help="measure nothing, and put another machine's --output in"
    )
    parsed = parser.parse_args(arguments)
    if parsed.threads < 1 or (parsed.rounds is not None and parsed.rounds < 1):
        parser.error("--threads and --rounds must be at least 1")
    if parsed.output is not None and not parsed.output.absolute().parent.is_dir():
        parser.error(f"the folder of {parsed.output} does not exist; make it first")
    if parsed.take is not None and not parsed.take.is_file():
        parser.error(f"there is no file {parsed.take}")
    return parsed


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; returns 0, 1 when a bar or a section failed, 2 for a mistake, or 130 when it was stopped."""
    options = _arguments(arguments)
    output: Path | None = options.output or (None if options.quick else OUTPUT)
    try:
        report = Report() if output is None else Report.read(output)
        taken = Report() if options.take is None else Report.read(options.take)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    report.take(taken)
    ended = _run(options, report, output) if options.take is None else _Ended()
    bars = report.bars()
    _print(bars)
    if output is not None:
        report.write(output, SECTIONS)
        print(f"\nwritten to {output.name}")
    if ended.stopped:
        return 130
    if ended.failed:
        print(f"failed: {', '.join(ended.failed)}")
    return int(bool(ended.failed) or any(bar.verdict == "FAIL" for bar in bars))


def _run(options: argparse.Namespace, report: Report, output: Path | None) -> _Ended:
    effort = QUICK if options.quick else Effort()
    if options.rounds is not None:
        effort = replace(effort, rounds=options.rounds)
    limit_threads(options.threads)
    _be_quiet()
    here: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(options.threads),
        "versions": versions(),
        "effort": asdict(effort),
    }
    print(here["machine"], here["versions"], sep="\n")

    def keep(name: str, found: dict[str, Any], seconds: float) -> None:
        report.add(name, found, **here, seconds=seconds)
        if output is not None:  # now: who ends a long run keeps what is done
            report.write(output, SECTIONS)

    with scratch() as place:
        run = Run(Path(place), effort, threads=options.threads)
        return _measure(run, options.only or list(SECTIONS), keep)


def _be_quiet() -> None:
    """Without other packages' remarks between the lines of a table."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # nncf reports its use to its makers otherwise.
    os.environ.setdefault("NNCF_CI", "1")
    warnings.simplefilter("ignore")
    logging.getLogger("torch").setLevel(logging.ERROR)


if __name__ == "__main__":
    raise SystemExit(main())
