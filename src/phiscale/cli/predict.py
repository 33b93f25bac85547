"""``phiscale predict``: labels for images."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phiscale.cli.output import INTERRUPTED, console
from phiscale.errors import DataError, require

if TYPE_CHECKING:
    from phiscale.deploy.predictor import Prediction, Predictor

__all__ = ["predict"]

Answer = Callable[..., Iterator["Prediction"]]

_HUB = "hf://"


class Format(StrEnum):
    """How rows are written."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"


class _Count:
    """Counts predictions on their way through, and shows how far it is."""

    def __init__(self, *, show: bool, total: int = 0, failed: int = 0) -> None:
        self.total = total
        self.failed = failed
        self._show = show

    def over(self, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        shown = self._shown(predictions) if self._show else predictions
        for prediction in shown:
            self.total += 1
            self.failed += prediction.error is not None
            yield prediction

    def _shown(self, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TextColumn("{task.completed} images"), TimeElapsedColumn())
        with Progress(*columns, console=console(stderr=True), transient=True) as progress:
            task = progress.add_task("predict", total=None, completed=self.total)
            for prediction in predictions:
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
            help="Images, folders (searched through), shards, quoted patterns such as 'photos/**/*.jpg', or "
            "- for paths from standard input, one per line.",
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
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Write here and not to standard output. A broken run goes on with the same command.",
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per run of the network.")] = 4,
    runtime: Annotated[
        str,
        typer.Option(
            help="What runs the network: auto (the fastest export there is), torch, openvino, onnx, or an "
            "export by name, such as openvino-int8."
        ),
    ] = "auto",
    exact: Annotated[
        bool,
        typer.Option(
            "--exact", help="Read JPEGs exactly as in training; otherwise faster, to within a grey level."
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Predict on a Ray cluster: auto for the one this machine is in, HOST:PORT, or local to "
            "start one. Its machines see model and images at the same paths.",
        ),
    ] = None,
) -> None:
    """Say what is in images, row by row. An image that cannot be read has its error in its row.

    Exits with 0 when at least one image could be read, otherwise with 2.
    """
    from phiscale.deploy.inputs import expand

    chosen = _format(Format.JSON if json else format, output)
    arguments = [item for item in (model_dir, *(inputs or ())) if item is not None]
    directory, images = _split(arguments, named=model or weights)
    paths = expand(images, stdin=sys.stdin.buffer)
    # Whoever sends paths one by one waits for each answer, and not for the next path.
    expected, paths = (0, paths) if "-" in images else _look_ahead(paths)
    predictor = _open(directory, model, weights, runtime)
    open_model = partial(_open, _findable(directory), _findable(model), _findable(weights), runtime)
    options = {"top_k": min(top_k, len(predictor.classes)), "batch_size": batch_size, "exact": exact}
    try:
        with _place(ray, predictor, open_model, expected) as answer:
            if output is None:
                count = _print(answer, paths, chosen, options)
            else:
                count = _write(answer, paths, chosen, options, output, run=_describe(predictor, options))
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    _conclude(count, output, predictor)


def _look_ahead(paths: Iterator[str]) -> tuple[int, Iterator[str]]:
    """How many paths there are at least, and all of them."""
    from phiscale.deploy.predictor import FEW

    first = list(islice(paths, FEW + 1))
    return len(first), chain(first, paths)


@contextmanager
def _place(
    ray: str | None, predictor: Predictor, open_model: Callable[[], Predictor], expected: int
) -> Iterator[Answer]:
    """What answers: this process, or a cluster that is connected for the block."""
    if ray is None:
        yield partial(predictor.stream, expected=expected)
        return
    from phiscale.cluster import RayPrediction

    with RayPrediction(ray) as cluster:
        yield partial(cluster.stream, open_model, predictor)


def _findable(name: str | None) -> str | None:
    """A path so that it is found from any working directory; other names stay."""
    return str(Path(name).absolute()) if name and Path(name).exists() else name


def _print(answer: Answer, paths: Iterable[str], chosen: Format, options: dict[str, Any]) -> _Count:
    from phiscale.deploy.rows import FORMATS

    count = _Count(show=sys.stderr.isatty() and not sys.stdout.isatty())
    rows = count.over(answer(paths, **options))
    for text in FORMATS[chosen.value](rows, options["top_k"]):
        sys.stdout.write(text)
        sys.stdout.flush()
    return count


def _write(
    answer: Answer,
    paths: Iterable[str],
    chosen: Format,
    options: dict[str, Any],
    output: Path,
    *,
    run: dict[str, Any],
) -> _Count:
    """Write into a file; go on with a broken run where there is one."""
    from phiscale.deploy.results_file import ResultsFile
    from phiscale.deploy.rows import write_parquet, write_text

    write = write_parquet if chosen is Format.PARQUET else partial(write_text, format=chosen.value)
    with ResultsFile(output, run=run, batch_size=options["batch_size"]) as results:
        remaining = results.remaining(paths)
        if results.total:
            typer.echo(f"going on after {results.total} rows in {results.part}", err=True)
        count = _Count(show=sys.stderr.isatty(), total=results.total, failed=results.failed)
        try:
            for prediction in count.over(answer(remaining, start=results.total, **options)):
                results.add(prediction)
            results.finish(partial(write, top_k=options["top_k"]))
        except KeyboardInterrupt:
            typer.echo(
                f"stopped; {results.total} rows are kept in {results.part}, and the same command goes on",
                err=True,
            )
            raise
    return count


def _describe(predictor: Predictor, options: dict[str, Any]) -> dict[str, Any]:
    """What rows depend on, under names that end the sentence "a broken run with other"."""
    return {
        "weights": predictor.model.weights_sha256,
        "class names": predictor.classes,
        "preprocessing": predictor.model.preprocess.to_dict(),
        "runtime": predictor.runtime,
        **{name.replace("_", " "): value for name, value in options.items()},
    }


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


def _format(chosen: Format | None, output: Path | None) -> Format:
    """The format that is asked for, or that the suffix of a file says.

    Raises:
        DataError: Parquet is to be printed.
        MissingDependencyError: Parquet is to be written, and pyarrow is not installed.
    """
    suffix = output.suffix.lower().lstrip(".") if output else ""
    chosen = chosen or (Format(suffix) if suffix in list(Format) else Format.TABLE)
    if chosen is Format.PARQUET:
        if output is None:
            raise DataError("Parquet is no text to print; give a file: --output results.parquet")
        require("pyarrow", extra="data")  # said now, and not after the last image
    return chosen


def _conclude(count: _Count, output: Path | None, predictor: Predictor) -> None:
    if output is not None:
        typer.echo(f"{count.total} rows in {output}", err=True)
    if (fast := predictor.fast_decoding) is not None:
        typer.echo(
            f"decoding fast: {fast.grey_levels:.2g} grey levels from exact on average, measured on "
            f"{fast.images} images",
            err=True,
        )
    if count.total == 0:
        raise DataError("no images were named; give paths, folders or patterns")
    if count.failed:
        typer.echo(f"{count.failed} of {count.total} images could not be read", err=True)
    if count.failed == count.total:
        raise typer.Exit(2)
