"""From a folder of JPEGs to labels, each library in a process of its own: time, memory and packages."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import track
from safetensors.torch import save_file

from benchmarks.networks import FOLDER, Subject
from benchmarks.pictures import JPEG_SIZE, PHOTOGRAPHS, write_jpegs

__all__ = ["Program", "programs", "run_cold_start", "run_folder", "run_packages"]

HERE = Path(__file__).parent
SECONDS = 600
Row = dict[str, Any]
T = TypeVar("T")


class ProgramError(RuntimeError):
    """A peer's program failed."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program that writes the labels of a folder's images.

    Attributes:
        name: What the line says.
        library: Whose it is.
        command: Images and file for the labels -> script and arguments, to be run by Python.
        read: The text that it wrote -> a class index per image, in the order of the files' names.
    """

    name: str
    library: str
    command: Callable[[Path, Path], list[str]]
    read: Callable[[str], list[int]]


def programs(subject: Subject, folder: Path, *, tf_padded: Subject | None = None) -> list[Program]:
    """Every library's program with the same weights; the first of ours has timm's padding.

    Args:
        subject: The network.
        folder: For the libraries' files.
        tf_padded: The network for transformers, which has no other padding; None leaves out the
            libraries that have no such network.
    """
    found = [
        _script("timm, image by image", "timm", "timm_loop.py", subject, folder),
        _script("timm, its loader, batch 32", "timm", "timm_loader.py", subject, folder),
    ]
    other = tf_padded
    if other is not None:
        found.append(
            _script("torchvision, image by image", "torchvision", "torchvision_loop.py", subject, folder)
        )
        found.append(_pipeline(other, folder))
    found.append(_ours(subject, "phiscale predict"))
    if other is not None:
        found.append(_ours(other, "phiscale predict, TensorFlow's padding"))
    return found


def run_folder(
    found: Sequence[Program], folder: Path, *, count: int, rounds: int, photographs: bool = True
) -> list[Row]:
    """Classify the same images with every program, in turn.

    Args:
        found: From `programs`.
        folder: For images and labels.
        count: Images.
        rounds: How often each runs.
        photographs: Whether the first classes of the network are the photographs.

    Returns:
        A row per program: seconds of the whole process, images per second, peak of resident memory, and how
        many labels are those of `phiscale predict` and, where the network knows them, of the photographs.
    """
    images = folder / f"images-{count}"
    shown = write_jpegs(images, count, seed=FOLDER)
    truth = [list(PHOTOGRAPHS).index(name) for name in shown] if photographs else None
    runs: dict[str, list[Row]] = {program.name: [] for program in found}
    labels: dict[str, list[int]] = {}
    for round_ in _progress(range(rounds), "folder"):
        first = round_ % len(found)
        for program in [*found[first:], *found[:first]]:
            ran, labels[program.name] = run_program(program, images, folder)
            runs[program.name].append(ran)
    return [_row(program, runs[program.name], labels, truth, found) for program in found]


def run_cold_start(found: Sequence[Program], folder: Path, *, rounds: int) -> list[Row]:
    """Classify one image with every program, in turn: what somebody waits for who asks once."""
    images = folder / "images-1"
    write_jpegs(images, 1, seed=FOLDER)
    runs: dict[str, list[Row]] = {program.name: [] for program in found}
    for _ in _progress(range(rounds), "cold start"):
        for program in found:
            runs[program.name].append(run_program(program, images, folder)[0])
    return [
        {
            "name": program.name,
            "library": program.library,
            "seconds": statistics.median(run["seconds"] for run in runs[program.name]),
            "rounds_seconds": [round(run["seconds"], 4) for run in runs[program.name]],
            "max_rss_bytes": int(statistics.median(run["max_rss_bytes"] for run in runs[program.name])),
        }
        for program in found
    ]


def run_packages(found: Sequence[Program], folder: Path) -> list[Row]:
    """What each program imports to classify one image, in bytes on disk."""
    images = folder / "images-1"
    write_jpegs(images, 1, seed=FOLDER)
    rows = []
    for program in _progress(found, "packages"):
        report = folder / "packages.json"
        command = program.command(images, folder / "labels.json")
        _run([str(HERE / "closure.py"), str(report), *command], program.name)
        packages: dict[str, int] = json.loads(report.read_text(encoding="utf-8"))
        rows.append(
            {
                "name": program.name,
                "library": program.library,
                "bytes": sum(packages.values()),
                "packages": dict(sorted(packages.items(), key=lambda item: -item[1])),
                "imports_torch": "torch" in packages,
            }
        )
    return rows


def run_program(program: Program, images: Path, folder: Path) -> tuple[Row, list[int]]:
    """Run once.

    Returns:
        Seconds and peak of resident memory, and the labels.

    Raises:
        ProgramError: It failed; its last line says why.
    """
    report, labels = folder / "report.json", folder / "labels.json"
    labels.unlink(missing_ok=True)
    command = program.command(images, labels)
    _run([str(HERE / "launch.py"), str(report), sys.executable, *command], program.name)
    ran: Row = json.loads(report.read_text(encoding="utf-8"))
    return ran, program.read(labels.read_text(encoding="utf-8"))


def _run(arguments: Sequence[str], name: str) -> None:
    done = subprocess.run(
        [sys.executable, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ProgramError(f"{name} failed: {last}")


def _script(name: str, layout: str, script: str, subject: Subject, folder: Path) -> Program:
    weights = folder / f"{subject.folder.name}-{layout}.safetensors"
    if not weights.exists():
        save_file(subject.tensors(layout), weights)
    network = f"tf_{subject.name}" if layout == "timm" and subject.spec.padding == "same" else subject.name
    arguments = [str(HERE / "scripts" / script), network, str(len(subject.classes)), str(weights)]
    return Program(
        name=name,
        library=layout,
        command=lambda images, labels: [*arguments, str(images), str(labels)],
        read=json.loads,
    )


def _pipeline(subject: Subject, folder: Path) -> Program:
    from transformers import EfficientNetImageProcessor
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]

    target = folder / "transformers"
    reference = subject.in_library("huggingface")
    network: Any = reference.get_submodule("network")
    network.save_pretrained(target)
    height, width = subject.preprocess.resize_size
    # It resizes to a size, not to a shorter side: this one keeps the aspect of the images.
    processor = EfficientNetImageProcessor(
        size={"height": height, "width": int(width * JPEG_SIZE[0] / JPEG_SIZE[1])},
        resample=3,
        do_center_crop=True,
        crop_size={"height": subject.preprocess.size[0], "width": subject.preprocess.size[1]},
        image_mean=list(subject.preprocess.mean),
        image_std=list(subject.preprocess.std),
        # Otherwise it divides by the standard deviation twice.
        include_top=False,
    )
    processor.save_pretrained(target)
    script = str(HERE / "scripts" / "transformers_pipeline.py")
    return Program(
        name="transformers, pipeline",
        library="transformers",
        command=lambda images, labels: [script, str(target), str(images), str(labels)],
        read=json.loads,
    )


def _ours(subject: Subject, name: str) -> Program:
    subject.export()
    program, directory = str(Path(sys.executable).parent / "phiscale"), str(subject.directory)
    indices = {label: index for index, label in enumerate(subject.classes)}

    def read(text: str) -> list[int]:
        rows = sorted(json.loads(text), key=lambda row: str(row["source"]))
        return [indices[row["labels"][0]] for row in rows]

    return Program(
        name=name,
        library="phiscale",
        command=lambda images, labels: [
            *(program, "predict", directory, str(images)),
            *("--top-k", "1", "--format", "json", "--output", str(labels)),
        ],
        read=read,
    )


def _row(
    program: Program,
    runs: Sequence[Row],
    labels: dict[str, list[int]],
    truth: Sequence[int] | None,
    found: Sequence[Program],
) -> Row:
    seconds = statistics.median(run["seconds"] for run in runs)
    own = labels[program.name]
    ours = labels[_beside(program, found).name]
    row: Row = {
        "name": program.name,
        "library": program.library,
        "images": len(own),
        "seconds": seconds,
        "rounds_seconds": [round(run["seconds"], 3) for run in runs],
        "images_per_second": len(own) / seconds,
        "cpu_seconds": statistics.median(run["cpu_seconds"] for run in runs),
        "max_rss_bytes": int(statistics.median(run["max_rss_bytes"] for run in runs)),
        "same_labels": sum(a == b for a, b in zip(own, ours, strict=True)) / len(own),
    }
    if truth is not None:
        row["right_labels"] = sum(a == b for a, b in zip(own, truth, strict=True)) / len(own)
    return row


def _beside(program: Program, found: Sequence[Program]) -> Program:
    """Our program with the same padding as another's."""
    ours = [one for one in found if one.library == "phiscale"]
    return ours[-1] if program.library == "transformers" else program if program in ours else ours[0]


def _progress(items: Sequence[T], title: str) -> Iterable[T]:
    return track(items, description=title, console=Console(stderr=True), transient=True)
