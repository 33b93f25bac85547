"""`phiscale study` as a program of its own, which may be stopped."""

from __future__ import annotations

import typer

from phiscale.cli.study import study

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(study)

if __name__ == "__main__":
    app()
