"""``phiscale predict``: labels for images."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phiscale.cli.output import console
from phiscale.errors import DataError

if TYPE_CHECKING:
    from typing import TextIO

    from phiscale.deploy.predictor import Prediction, Predictor

__all__ = ["predict"]

_HUB = "hf://"


class Format(StrEnum):
    """How rows are written."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


class _Count:
    """Counts predictions on their way through, and shows how far it is."""

    def __init__(self, *, show: bool) -> None:
        self.total = 0
        self.failed = 0
        self._show = show

    def over(self, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TextColumn("{task.completed} images"), TimeElapsedColumn())
        errors = console(stderr=True)
        with Progress(*columns, console=errors, transient=True, disable=not self._show) as progress:
            task = progress.add_task("predict", total=None)
            for prediction in predictions:
                self.total += 1
                self.failed += prediction.error is not None
                yield prediction
                progress.advance(task)


def predict(
    model_dir: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL_DIR",
            help="A model directory, or hf://user/repository; left out with --model or --weights.",
        ),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUTS",
            help="Images, folders (searched through), quoted patterns such as 'photos/**/*.jpg', or - for "
            "paths from standard input, one per line.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="A network in place of MODEL_DIR: a name from `phiscale models` or a JSON file."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Published or anybody's weights: imagenet (what --model takes by itself), a name from "
            "`phiscale weights list`, a file, a folder, or hf://user/repository. Without --model, the "
            "network is recognised.",
        ),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Classes per image.")] = 5,
    format: Annotated[  # noqa: A002
        Format | None, typer.Option(help="How to write the rows; without it, by the suffix of --output.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write here and not to standard output.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per run of the network.")] = 16,
    runtime: Annotated[str, typer.Option(help="What runs the network: auto or torch.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:
    """Say what is in images, row by row. An image that cannot be read has its error in its row.

    Exits with 0 when at least one image could be read, otherwise with 2.
    """
    from phiscale.deploy.inputs import expand
    from phiscale.deploy.rows import FORMATS

    chosen = Format.JSON if json else format or _by_suffix(output)
    arguments = [item for item in (model_dir, *(inputs or ())) if item is not None]
    directory, images = _split(arguments, named=model or weights)
    paths = expand(images, stdin=sys.stdin.buffer)
    predictor = _open(directory, model, weights, runtime)
    count = _Count(show=sys.stderr.isatty() and not (output is None and sys.stdout.isatty()))
    predictions = count.over(predictor.stream(paths, top_k=top_k, batch_size=batch_size))
    with _destination(output) as file:
        for text in FORMATS[chosen.value](predictions, min(top_k, len(predictor.classes))):
            file.write(text)
            file.flush()
    _conclude(count, output)


def _split(arguments: list[str], *, named: str | None) -> tuple[str | None, list[str]]:
    """The model directory, unless an option names the model, and the images."""
    from phiscale.deploy.pretrained import is_model_dir

    first = arguments[0] if arguments else ""
    if named is not None:
        if first and is_model_dir(first):
            raise DataError(f"{first} is a model directory, and {named} is named too; leave out one of them")
        directory, images = None, arguments
    elif first.startswith(_HUB) or _is_folder(first):
        directory, images = first, arguments[1:]
    else:
        problem = f"{first} is no model directory" if first else "no model is named"
        raise DataError(
            f"{problem}; give one before the images, or name a network, such as --model efficientnet_lite0"
        )
    if not images:
        raise DataError("no images were named; give paths, folders or patterns")
    return directory, images


def _is_folder(name: str) -> bool:
    try:
        # An empty name is the present folder to pathlib; nobody means that.
        return bool(name) and Path(name).is_dir()
    except (OSError, ValueError):  # no name that a file can have
        return False


def _open(model_dir: str | None, model: str | None, weights: str | None, runtime: str) -> Predictor:
    from phiscale.deploy.predictor import Predictor, load

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        if model_dir is not None:
            predictor = load(model_dir, runtime=runtime)
        else:
            predictor = Predictor.from_weights(model, weights or "imagenet", runtime=runtime)
    for warning in caught:
        typer.echo(f"warning: {warning.message}", err=True)
    return predictor


def _by_suffix(output: Path | None) -> Format:
    suffix = output.suffix.lower().lstrip(".") if output else ""
    return Format(suffix) if suffix in ("json", "csv") else Format.TABLE


@contextlib.contextmanager
def _destination(output: Path | None) -> Iterator[TextIO]:
    if output is None:
        yield sys.stdout
        return
    from phiscale.weights.files import replacing

    if not output.absolute().parent.is_dir():
        raise DataError(f"cannot write {output}: the folder {output.parent} does not exist; make it first")
    try:
        with replacing(output) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            yield file
    except OSError as error:
        raise DataError(f"cannot write {output}: {error}") from None


def _conclude(count: _Count, output: Path | None) -> None:
    if output is not None:
        typer.echo(f"{count.total} rows in {output}", err=True)
    if count.total == 0:
        raise DataError("no images were named; give paths, folders or patterns")
    if count.failed:
        typer.echo(f"{count.failed} of {count.total} images could not be read", err=True)
    if count.failed == count.total:
        raise typer.Exit(2)
