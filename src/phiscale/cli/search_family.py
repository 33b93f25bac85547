"""`phiscale search family`: baseline, coefficients, scaling and training in one command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phiscale.cli import baseline_plan, options
from phiscale.cli.output import console, print_json, print_table
from phiscale.cli.searching import Place, stage, stoppable
from phiscale.cli.units import format_count, parse_count
from phiscale.errors import BudgetError

if TYPE_CHECKING:
    from phiscale.search.family import Family


def family(
    images: options.Images,
    macs: options.Macs = None,
    budgets: Annotated[
        str, typer.Option(metavar="N,N,…", help="Multiply-adds of the larger members, like 40M,80M,160M.")
    ] = "",
    template: baseline_plan.Template = "efficientnet_b0",
    out: Annotated[
        Path, typer.Option(help="Folder for searches and models; it is gone on with.", file_okay=False)
    ] = Path("family"),
    sampler: baseline_plan.Sampler = "nsga2",
    trials: baseline_plan.Trials = 64,
    generation: baseline_plan.Generation = 8,
    proxy_epochs: baseline_plan.ProxyEpochs = None,
    proxy_image_size: baseline_plan.ProxyImageSize = None,
    finalists: baseline_plan.Finalists = 8,
    seeds: baseline_plan.FinalSeeds = 1,
    exponent: baseline_plan.Exponent = -0.07,
    name: baseline_plan.Name = "searched_baseline",
    step: options.GridStep = "0.05",
    tolerance: Annotated[
        str, typer.Option(metavar="NUMBER", help="Largest distance of α·β²·γ² from 2.")
    ] = "0.1",
    cost_tolerance: Annotated[
        float, typer.Option(help="Largest distance of the counted growth from 2, as a share of it.")
    ] = 0.2,
    rule_seeds: Annotated[
        int, typer.Option(help="Trainings of each network of the grid in each rung.", min=1)
    ] = 3,
    confirm_seeds: Annotated[
        int, typer.Option(help="Further trainings of the winning rule and of the paper's.", min=0)
    ] = 5,
    min_epochs: options.MinEpochs = 3,
    image_size: options.ImageSize = None,
    resize: options.Resize = "crop",
    recipe: options.RecipeName = "fast",
    settings: options.Settings = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    seed: options.Seed = 0,
    val_fraction: options.ValFraction = 0.2,
    train_images: options.TrainImages = None,
    split_file: options.SplitFile = None,
    workers: options.Workers = None,
    ray: options.Ray = None,
    cpus_per_trial: options.CpusPerTrial = 1,
    gpus_per_trial: options.GpusPerTrial = 0.0,
    storage: options.Storage = None,
    study: options.StudyName = "phiscale",
    json: options.JsonOutput = False,
) -> None:
    """Make a family of networks for your images, as EfficientNet was made for ImageNet.

    Searches a baseline of at most --macs, then α, β and γ on it, scales it to every budget, and trains all
    of them. The same command goes on with a run that was stopped at any moment.
    """
    from phiscale.pipeline.family import FamilyRun, run_family
    from phiscale.search.family import check_budgets

    members = _parse_budgets(budgets)
    if macs is None:
        raise BudgetError("say what the baseline may cost: --macs 20M")
    check_budgets(members, baseline=macs)
    place = Place(workers=workers, ray=ray, cpus_per_trial=cpus_per_trial, gpus_per_trial=gpus_per_trial)
    plan, effort = baseline_plan.make_plan(
        images,
        limits={"macs": macs},
        effort={
            "sampler": sampler,
            "trials": trials,
            "generation": generation,
            "proxy_epochs": proxy_epochs,
            "proxy_image_size": proxy_image_size,
            "finalists": finalists,
        },
        seeds=seeds,
        seed=seed,
        overrides=options.make_overrides(
            settings, {"epochs": epochs, "batch_size": batch_size, "seed": seed}
        ),
        template=template,
        exponent=exponent,
        image_size=image_size,
        resize=resize,
        recipe=recipe,
        val_fraction=val_fraction,
        train_images=train_images,
        split_file=split_file,
        out=out,
        place=place,
        quiet=json,
    )
    run = FamilyRun(
        plan=plan,
        effort=effort,
        coefficients={
            "step": step,
            "tolerance": tolerance,
            "cost_tolerance": cost_tolerance,
            "seeds": tuple(range(seed, seed + rule_seeds)),
            "confirm_seeds": confirm_seeds,
            "min_epochs": min_epochs,
        },
        budgets=members,
        name=name,
    )
    if not json:
        baseline_plan.print_plan(plan, effort)
    with stoppable(), place.open() as (backend, at_a_time):
        made = run_family(
            run,
            out,
            storage=storage,
            study=study,
            workers=at_a_time,
            stage=stage,
            tell=lambda line: console(stderr=True).print(line, soft_wrap=True),
            progress=not json,
            backend=backend,
        )
    if json:
        print_json({"directory": str(out), **made.to_dict()})
    else:
        _print_result(made, out)


def _parse_budgets(text: str) -> list[float]:
    return [parse_count(part) for part in text.split(",") if part.strip()]


def _print_result(made: Family, out: Path) -> None:
    from phiscale.scaling.complexity import complexity

    rows = []
    for member in made.members:
        cost, side = complexity(member.spec), member.spec.image_size
        rows.append(
            (
                member.name,
                f"{member.phi:g}",
                str(member.spec.num_blocks),
                f"{side[0]}×{side[1]}",
                format_count(cost.params),
                format_count(cost.macs),
                f"{100 * member.measured['top1']:.2f}",
                f"{member.measured['images']} {member.measured['split']}",
            )
        )
    headers = ("model", "φ", "layers", "image", "parameters", "multiply-adds", "top-1, %", "on images")
    print_table(headers, rows)
    rule = made.rule
    console().print(f"rule     α = {rule.alpha:g}, β = {rule.beta:g}, γ = {rule.gamma:g}")
    console().print(f"models   {out}/s0 to {out}/s{len(made.members) - 1}", soft_wrap=True)
