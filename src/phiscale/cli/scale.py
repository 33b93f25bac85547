"""`phiscale scale`: from φ, factors or a budget to a network."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phiscale.cli.options import (
    FileSize,
    Fresh,
    ImagesPerSecond,
    InferenceMemory,
    JsonOutput,
    LatencyMs,
    Macs,
    Network,
    Params,
    Precision,
    Rule,
    Runtime,
    Threads,
    TrainingMemory,
    make_budget,
)
from phiscale.cli.output import console, print_json, print_table
from phiscale.cli.timing import latency_limit, make_meter, print_timing
from phiscale.cli.units import format_bytes, format_count
from phiscale.errors import BudgetError, SpecError
from phiscale.families import get_spec
from phiscale.scaling.budget import LIMITS, Budget, BudgetFit, solve_budget
from phiscale.scaling.complexity import complexity
from phiscale.scaling.compound import RULES, CompoundRule, Scaling, get_rule
from phiscale.scaling.compound import compound_scale as compound_scale_spec
from phiscale.scaling.compound import scale as scale_spec
from phiscale.spec import NetworkSpec

if TYPE_CHECKING:
    from phiscale.deploy.latency import LatencyMeter


def scale(
    network: Network,
    macs: Macs = None,
    params: Params = None,
    inference_memory: InferenceMemory = None,
    training_memory: TrainingMemory = None,
    file_size: FileSize = None,
    latency_ms: LatencyMs = None,
    images_per_second: ImagesPerSecond = None,
    runtime: Runtime = None,
    precision: Precision = "fp32",
    threads: Threads = None,
    fresh: Fresh = False,
    batch_size: Annotated[
        int, typer.Option(help="Images per batch, for the limits on memory and time.", min=1)
    ] = 1,
    phi: Annotated[float | None, typer.Option(help="Scale by this compound coefficient.")] = None,
    depth: Annotated[float | None, typer.Option(help="Scale the layers by this factor.")] = None,
    width: Annotated[float | None, typer.Option(help="Scale the channels by this factor.")] = None,
    resolution: Annotated[float | None, typer.Option(help="Scale the image side by this factor.")] = None,
    rule: Rule = "paper",
    output: Annotated[
        Path | None, typer.Option(help="Write the network's spec to this JSON file.", dir_okay=False)
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the networks to this PNG or SVG file.", dir_okay=False)
    ] = None,
    json: JsonOutput = False,
) -> None:
    """Scale a network by a budget, by PHI, or by three factors.

    With a budget, the largest network within it is shown beside what the other rules give for it.

    With a limit on time, exported networks along the rule are measured, at most twelve.
    """
    spec, chosen_rule = get_spec(network), get_rule(rule)
    limit = latency_limit(latency_ms, images_per_second, batch_size)
    budget = make_budget(macs, params, inference_memory, training_memory, file_size, limit)
    factors = {"depth": depth, "width": width, "resolution": resolution}
    given = {name: value for name, value in factors.items() if value is not None}
    if sum((budget is not None, phi is not None, bool(given))) != 1:
        raise SpecError(
            "say what to scale to in one way: a limit (--macs 1G), --phi 1.5, "
            "or factors (--depth 1.4 --width 1.2 --resolution 1.3)"
        )
    fits: dict[str, BudgetFit | str] = {}
    if budget is not None:
        if limit is None:
            fits = _solve_all(spec, budget, rule, chosen_rule, batch_size)
        else:
            meter = make_meter(runtime, precision, threads, batch_size, fresh=fresh, show=not json)
            fits = {rule: _solve_latency(spec, budget, chosen_rule, batch_size, meter)}
        best = fits[rule]
        assert isinstance(best, BudgetFit)
        scaled, scaling, phi = best.spec, best.scaling, best.phi
    elif phi is not None:
        scaled, scaling = compound_scale_spec(spec, phi=phi, rule=chosen_rule), chosen_rule.at(phi)
    else:
        scaling = Scaling(**given)
        scaled = scale_spec(spec, **given)
    complexity(scaled, batch_size)  # What is too large to be counted stops here, before anything is written.
    _write(spec, scaled, fits, output, plot)
    if json:
        print_json(_as_dict(scaled, scaling, phi, fits, batch_size))
        return
    _print(spec, scaled, scaling, phi, fits, rule, batch_size)
    for path in (output, plot):
        if path is not None:
            console().print(f"wrote {path}", soft_wrap=True)


def _write(
    spec: NetworkSpec,
    scaled: NetworkSpec,
    fits: Mapping[str, BudgetFit | str],
    output: Path | None,
    plot: Path | None,
) -> None:
    """Write the spec and the picture, where they are asked for."""
    if output is None and plot is None:
        return
    from phiscale.cli.plots import plot_networks, writing

    if output is not None:
        with writing(output):
            output.write_text(scaled.to_json() + "\n", encoding="utf-8")
    if plot is not None:
        shown = {f"rule {name}": fit.spec for name, fit in fits.items() if isinstance(fit, BudgetFit)}
        with writing(plot):
            plot_networks({spec.name: spec, **(shown or {scaled.name: scaled})}, plot)


def _solve_all(
    spec: NetworkSpec, budget: Budget, name: str, rule: CompoundRule, batch_size: int
) -> dict[str, BudgetFit | str]:
    """The wanted rule first (its failure is the command's), then the others or why they cannot."""
    fits: dict[str, BudgetFit | str] = {name: solve_budget(spec, budget, rule=rule, batch_size=batch_size)}
    for other in ("paper", "dWr", "depth", "width", "resolution"):
        if other in fits:
            continue
        try:
            fits[other] = solve_budget(spec, budget, rule=RULES[other], batch_size=batch_size)
        except BudgetError as error:
            fits[other] = str(error)
    return fits


def _solve_latency(
    spec: NetworkSpec, budget: Budget, rule: CompoundRule, batch_size: int, meter: LatencyMeter
) -> BudgetFit:
    from phiscale.deploy.latency_budget import solve_latency

    return solve_latency(spec, budget, meter=meter, rule=rule, batch_size=batch_size)


def _timing(fits: Mapping[str, BudgetFit | str]) -> dict[str, Any] | None:
    """What was measured; None where nothing was."""
    timed = [fit for fit in fits.values() if isinstance(fit, BudgetFit) and "latency_ms" in fit.costs]
    if not timed:
        return None  # without importing what measures
    from phiscale.deploy.latency_budget import LatencyFit

    return next(fit.timing() for fit in timed if isinstance(fit, LatencyFit))


def _as_dict(
    scaled: NetworkSpec,
    scaling: Scaling,
    phi: float | None,
    fits: dict[str, BudgetFit | str],
    batch_size: int,
) -> dict[str, Any]:
    return {
        "phi": phi,
        "scaling": dataclasses.asdict(scaling),
        "spec": scaled.to_dict(),
        "complexity": dataclasses.asdict(complexity(scaled, batch_size)),
        "timing": _timing(fits),
        "rules": {
            name: {"error": fit}
            if isinstance(fit, str)
            else {
                "phi": fit.phi,
                "scaling": dataclasses.asdict(fit.scaling),
                "image_size": fit.spec.image_size,
                "costs": dict(fit.costs),
                "utilization": dict(fit.utilization),
                "binding": fit.binding,
            }
            for name, fit in fits.items()
        },
    }


def _print(
    spec: NetworkSpec,
    scaled: NetworkSpec,
    scaling: Scaling,
    phi: float | None,
    fits: dict[str, BudgetFit | str],
    rule: str,
    batch_size: int,
) -> None:
    out = console()
    power = f"φ = {phi:g}: " if phi is not None else ""
    out.print(
        f"{spec.name} → {power}depth × {scaling.depth:.3g}, width × {scaling.width:.3g}, "
        f"resolution × {scaling.resolution:.3g}"
    )
    best = fits.get(rule)
    if isinstance(best, BudgetFit):
        for limit, share in best.utilization.items():
            binds = ", binds" if limit in best.binding else ""
            amount = (format_bytes if limit.endswith("bytes") else format_count)(best.costs[limit])
            out.print(f"  uses {share:.1%} of the {LIMITS[limit]} ({amount}{binds})")
    if (timing := _timing(fits)) is not None:
        print_timing(timing)
    rows = [("baseline", "", _row(spec, Scaling(), batch_size))]
    if fits:
        for name, fit in fits.items():
            if isinstance(fit, BudgetFit):
                rows.append((name, f"{fit.phi:g}", _row(fit.spec, fit.scaling, batch_size)))
    else:
        rows.append(("scaled", "" if phi is None else f"{phi:g}", _row(scaled, scaling, batch_size)))
    headers = ("rule", "φ", "d", "w", "r", "image", "layers", "parameters", "multiply-adds", "activations")
    print_table(
        (*headers, "inference", "training", "weights"), [(name, p, *cells) for name, p, cells in rows]
    )
    for name, fit in fits.items():
        if isinstance(fit, str):
            out.print(f"{name}: {fit}")


def _row(spec: NetworkSpec, scaling: Scaling, batch_size: int) -> tuple[str, ...]:
    cost = complexity(spec, batch_size)
    return (
        f"{scaling.depth:.3g}",
        f"{scaling.width:.3g}",
        f"{scaling.resolution:.3g}",
        f"{spec.image_size[0]}×{spec.image_size[1]}",
        str(spec.num_blocks),
        format_count(cost.params),
        format_count(cost.macs),
        format_count(cost.activations),
        format_bytes(cost.inference_bytes),
        format_bytes(cost.training_bytes),
        format_bytes(cost.file_bytes),
    )
