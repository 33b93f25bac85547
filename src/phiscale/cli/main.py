"""The `phiscale` program.

Exit codes: 0 done, 2 the user's mistake (one line that says what to do), 1 ours.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from phiscale.cli.benchmark import benchmark
from phiscale.cli.data_pack import data
from phiscale.cli.demo import demo
from phiscale.cli.evaluate import evaluate
from phiscale.cli.export import export
from phiscale.cli.fit import fit
from phiscale.cli.models import models
from phiscale.cli.predict import predict
from phiscale.cli.scale import scale
from phiscale.cli.scan import scan
from phiscale.cli.search_baseline import baseline
from phiscale.cli.search_coefficients import coefficients
from phiscale.cli.search_family import family
from phiscale.cli.study import study
from phiscale.cli.summary import summary
from phiscale.cli.weights import weights
from phiscale.errors import PhiscaleError

__all__ = ["app", "main"]

app = typer.Typer(
    name="phiscale",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Your images and your budget: the EfficientNet that fits, trained, measured and explained.",
)


def _print_version(value: bool) -> None:
    if value:
        from phiscale import __version__

        typer.echo(f"phiscale {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Your images and your budget: the EfficientNet that fits, trained, measured and explained."""


for command in (models, summary, scale, scan, fit, evaluate, predict, export, benchmark, study, demo):
    app.command()(command)
app.add_typer(weights)
app.add_typer(data)
search = typer.Typer(name="search", no_args_is_help=True, help="Search for what scales best on your images.")
for searching in (coefficients, baseline, family):
    search.command()(searching)
app.add_typer(search)


def main() -> None:
    """Run the program; a `PhiscaleError` becomes one line and exit code 2."""
    try:
        app()
    except PhiscaleError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except BrokenPipeError:
        # The reader of a pipe (head, less) has seen enough. Nothing must be flushed to it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
