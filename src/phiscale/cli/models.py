"""`phiscale models`: the networks that are known by name."""

from __future__ import annotations

from typing import Annotated

import typer

from phiscale.cli.options import JsonOutput
from phiscale.cli.output import print_json, print_table
from phiscale.cli.units import format_count
from phiscale.families import get_spec, list_specs
from phiscale.scaling.complexity import complexity


def models(
    family: Annotated[
        str | None,
        typer.Argument(help="efficientnet, efficientnet_lite, mobilenet or resnet; all if left out."),
    ] = None,
    json: JsonOutput = False,
) -> None:
    """List the networks that are known by name, with their cost."""
    rows = []
    for name in list_specs(family):
        spec = get_spec(name)
        cost = complexity(spec)
        rows.append((name, spec.image_size, cost.params, cost.macs, cost.activations))
    if json:
        keys = ("name", "image_size", "params", "macs", "activations")
        print_json([dict(zip(keys, row, strict=True)) for row in rows])
        return
    print_table(
        ("network", "image", "parameters", "multiply-adds", "activations"),
        [
            (name, f"{h}×{w}", format_count(params), format_count(macs), format_count(activations))
            for name, (h, w), params, macs, activations in rows
        ],
    )
