"""``phiscale evaluate``: how good a model is on labelled images."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from phiscale.cli.options import JsonOutput
from phiscale.cli.output import console, print_json

if TYPE_CHECKING:
    from phiscale.evaluation.results import Evaluation

__all__ = ["evaluate"]

_STYLE: dict[str, Any] = {"title_justify": "left", "box": box.SIMPLE_HEAD}
_SHOWN_CLASSES = 20
_SHOWN_SKIPPED = 10


class Split(StrEnum):
    """Which images to measure on."""

    AUTO = "auto"
    TRAIN = "train"
    VAL = "val"
    TEST = "test"
    ALL = "all"


def evaluate(
    model_dir: Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="A model directory.")],
    images: Annotated[
        str, typer.Argument(metavar="IMAGES", help="A folder, manifest or torchvision data set with labels.")
    ],
    split: Annotated[
        Split, typer.Option(help="auto takes test where there is one, else val, else all images.")
    ] = Split.AUTO,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per run of the network.")] = 32,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode; 0 decodes in this one.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, or another name that torch knows.")] = "cpu",
    strict: Annotated[bool, typer.Option("--strict", help="Stop at an image that cannot be read.")] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Most images to take, spread evenly over the split.")
    ] = None,
    all_classes: Annotated[bool, typer.Option("--all", help="Show every class in the table.")] = False,
    json: JsonOutput = False,
) -> None:
    """Measure a model on labelled images; writes metrics.json into the model directory."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from phiscale.evaluation.evaluate import evaluate as run

    errors = console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        task = progress.add_task("evaluate", total=None)
        result = run(
            model_dir,
            images,
            split=split.value,
            batch_size=batch_size,
            workers=workers,
            device=device,
            strict=strict,
            limit=limit,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    if json:
        print_json(result.to_dict())
    else:
        _show(result, all_classes=all_classes)
    if not json and result.path is not None and result.path.name != "metrics.json":
        console().print(f"these are not the images that it was trained on: written to {result.path}")
    if result.path is None:
        errors.print(f"metrics.json was not written: {model_dir} is not writable", markup=False)


def _show(result: Evaluation, *, all_classes: bool) -> None:
    from phiscale.data.decode import printable

    out = console()
    out.print(_summary(result))
    out.print(_class_table(result, limit=None if all_classes else _SHOWN_CLASSES))
    if len(result.classes) <= _SHOWN_CLASSES:
        out.print(_matrix(result))
    for item in result.skipped[:_SHOWN_SKIPPED]:
        out.print(Text(f"skipped {printable(item.id)}: {item.reason}", style="yellow"))
    if len(result.skipped) > _SHOWN_SKIPPED:
        rest = len(result.skipped) - _SHOWN_SKIPPED
        where = f", all in {result.path}" if result.path else ""
        out.print(Text(f"and {rest} more skipped{where}", style="yellow"))


def _summary(result: Evaluation) -> Table:
    split = result.data["split"]
    table = Table(
        title=f"{result.num_images} images, split {split}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_header=False,
    )
    rows = (
        ("top-1", f"{result.top1:.2%}"),
        *([] if result.top5 is None else [("top-5", f"{result.top5:.2%}")]),
        ("balanced accuracy", f"{result.balanced_accuracy:.2%}"),
        ("macro F1", f"{result.macro_f1:.4f}"),
        ("negative log-likelihood", f"{result.nll:.4f}"),
        ("calibration error (ECE)", f"{result.ece:.4f}"),
        ("images/s, from file to logits", f"{result.images_per_second:.1f}"),
        ("images/s, network alone", f"{result.network_images_per_second:.1f}"),
        ("skipped", str(len(result.skipped))),
    )
    for row in rows:
        table.add_row(*row)
    return table


def _class_table(result: Evaluation, *, limit: int | None) -> Table:
    """Classes with images, worst F1 first."""
    from phiscale.data.decode import printable

    ranked = sorted((item for item in result.per_class if item.support), key=lambda item: item.f1)
    shown = ranked[:limit]
    title = "worst classes first" + (f", {len(shown)} of {len(ranked)}" if len(shown) < len(ranked) else "")
    table = Table(title=title, **_STYLE)
    table.add_column("class")
    for name in ("precision", "recall", "F1", "images"):
        table.add_column(name, justify="right")
    for item in shown:
        scores = (f"{value:.3f}" for value in (item.precision, item.recall, item.f1))
        table.add_row(Text(printable(item.name)), *scores, str(item.support))
    return table


def _matrix(result: Evaluation) -> Table:
    from phiscale.data.decode import printable

    table = Table(
        title="confusion matrix: row is, column was taken for", title_justify="left", box=box.SIMPLE_HEAD
    )
    table.add_column("")
    for index in range(len(result.classes)):
        table.add_column(str(index), justify="right", no_wrap=True)
    for index, (name, row) in enumerate(zip(result.classes, result.confusion_matrix, strict=True)):
        cells = (
            Text(str(count), style="bold" if place == index else "red" if count else "dim")
            for place, count in enumerate(row)
        )
        table.add_row(Text(f"{index} {printable(name)}"), *cells)
    return table
