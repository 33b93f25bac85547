"""`phiscale scale`: from φ, factors or a budget to a network."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from phiscale.cli.options import (
    FileSize,
    InferenceMemory,
    JsonOutput,
    Macs,
    Network,
    Params,
    Rule,
    TrainingMemory,
    make_budget,
)
from phiscale.cli.output import console, print_json, print_table
from phiscale.cli.units import format_bytes, format_count
from phiscale.errors import BudgetError, SpecError
from phiscale.families import get_spec
from phiscale.scaling.budget import LIMITS, Budget, BudgetFit, solve_budget
from phiscale.scaling.complexity import complexity
from phiscale.scaling.compound import RULES, CompoundRule, Scaling, get_rule
from phiscale.scaling.compound import compound_scale as compound_scale_spec
from phiscale.scaling.compound import scale as scale_spec
from phiscale.spec import NetworkSpec


def scale(
    network: Network,
    macs: Macs = None,
    params: Params = None,
    inference_memory: InferenceMemory = None,
    training_memory: TrainingMemory = None,
    file_size: FileSize = None,
    batch_size: Annotated[int, typer.Option(help="Images per batch, for the memory limits.", min=1)] = 1,
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
    """
    spec, chosen_rule = get_spec(network), get_rule(rule)
    budget = make_budget(macs, params, inference_memory, training_memory, file_size)
    factors = {"depth": depth, "width": width, "resolution": resolution}
    given = {name: value for name, value in factors.items() if value is not None}
    if sum((budget is not None, phi is not None, bool(given))) != 1:
        raise SpecError(
            "say what to scale to in one way: a limit (--macs 1G), --phi 1.5, "
            "or factors (--depth 1.4 --width 1.2 --resolution 1.3)"
        )
    fits: dict[str, BudgetFit | str] = {}
    if budget is not None:
        fits = _solve_all(spec, budget, rule, chosen_rule, batch_size)
        best = fits[rule]
        assert isinstance(best, BudgetFit)
        scaled, scaling, phi = best.spec, best.scaling, best.phi
    elif phi is not None:
        scaled, scaling = compound_scale_spec(spec, phi=phi, rule=chosen_rule), chosen_rule.at(phi)
    else:
        scaling = Scaling(**given)
        scaled = scale_spec(spec, **given)
    complexity(scaled, batch_size)  # What is too large to be counted stops here, before anything is written.
    if output is not None:
        with _writing(output):
            output.write_text(scaled.to_json() + "\n", encoding="utf-8")
    if plot is not None:
        from phiscale.cli.plots import plot_networks

        shown = {f"rule {name}": fit.spec for name, fit in fits.items() if isinstance(fit, BudgetFit)}
        with _writing(plot):
            plot_networks({spec.name: spec, **(shown or {scaled.name: scaled})}, plot)
    if json:
        print_json(_as_dict(scaled, scaling, phi, fits, batch_size))
        return
    _print(spec, scaled, scaling, phi, fits, rule, batch_size)
    for path in (output, plot):
        if path is not None:
            console().print(f"wrote {path}", soft_wrap=True)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SpecError(f"cannot write {path}: {error.strerror}; give another path") from None


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
