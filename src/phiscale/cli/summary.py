"""`phiscale summary`: the paper's Table 1 for any network."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from phiscale.cli.options import JsonOutput, Network
from phiscale.cli.output import console, print_json, print_table
from phiscale.cli.units import format_bytes, format_count
from phiscale.families import get_spec
from phiscale.scaling.complexity import complexity


def summary(
    network: Network,
    image_size: Annotated[
        tuple[int, int] | None,
        typer.Option(help="Height and width in pixels, if not the network's own.", metavar="HEIGHT WIDTH"),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images per batch, for the memory.", min=1)] = 1,
    layers: Annotated[bool, typer.Option("--layers", help="Print every layer of the built network.")] = False,
    json: JsonOutput = False,
) -> None:
    """Show a network stage by stage, as Table 1 of the paper does, with what each stage costs."""
    spec = get_spec(network)
    cost = complexity(spec, batch_size, image_size)
    if json:
        print_json({"spec": spec.to_dict(), "complexity": dataclasses.asdict(cost)})
        return
    if layers:
        from phiscale.nn.summary import layer_table

        console().print(layer_table(spec, batch_size=batch_size, image_size=cost.image_size))
        return
    rows = [
        (
            index,
            stage.operator,
            f"{stage.input_size[0]}×{stage.input_size[1]}",
            stage.out_channels,
            stage.num_layers,
            stage.stride,
            format_count(stage.params),
            f"{format_count(stage.macs)} ({stage.macs / cost.macs:.0%})",
            format_count(stage.activations),
        )
        for index, stage in enumerate(cost.stages, start=1)
    ]
    headers = ("stage", "operator", "input", "channels", "layers", "stride")
    print_table((*headers, "parameters", "multiply-adds", "activations"), rows, title=spec.name, left=2)
    console().print(
        f"{cost.params:,} parameters, {format_count(cost.macs)} multiply-adds, weights "
        f"{format_bytes(cost.file_bytes)}; batch of {batch_size}: inference "
        f"{format_bytes(cost.inference_bytes)}, training {format_bytes(cost.training_bytes)}"
    )
