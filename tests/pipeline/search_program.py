"""`phiscale search coefficients` as a program of its own, which may be stopped."""

from __future__ import annotations

import typer

from phiscale.cli.search_coefficients import coefficients

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(coefficients)

if __name__ == "__main__":
    app()
