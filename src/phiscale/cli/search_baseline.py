"""`phiscale search baseline`: the small network that suits some images best, for `scale` to grow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from phiscale.cli import baseline_plan, options
from phiscale.cli.output import console, print_json, print_table
from phiscale.cli.searching import Place, format_interval, print_forecast, stage, stoppable
from phiscale.cli.units import format_count

if TYPE_CHECKING:
    from phiscale.pipeline.baseline import BaselinePlan
    from phiscale.search.baseline import BaselineSearch, Effort, Finalist


def baseline(
    images: options.Images,
    macs: options.Macs = None,
    params: options.Params = None,
    latency_ms: options.LatencyMs = None,
    template: baseline_plan.Template = "efficientnet_b0",
    out: options.RunFolder = Path("baseline"),
    sampler: baseline_plan.Sampler = "nsga2",
    trials: baseline_plan.Trials = 64,
    generation: baseline_plan.Generation = 8,
    proxy_epochs: baseline_plan.ProxyEpochs = None,
    proxy_image_size: baseline_plan.ProxyImageSize = None,
    finalists: baseline_plan.Finalists = 8,
    seeds: baseline_plan.FinalSeeds = 1,
    exponent: baseline_plan.Exponent = -0.07,
    name: baseline_plan.Name = "searched_baseline",
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
    dry_run: options.DryRun = False,
    json: options.JsonOutput = False,
) -> None:
    """Find the network within your limits that suits your images best.

    Searches MnasNet's space, in which every stage has an operator, kernel, expansion, squeeze-excite, layers
    and channels of its own. Many networks are trained a little, the best in full, with the template beside
    them. The reward's target is --latency-ms where it is given, else --macs. The same command goes on with a
    search that was stopped at any moment.
    """
    from phiscale.pipeline.baseline import run_baseline

    place = Place(workers=workers, ray=ray, cpus_per_trial=cpus_per_trial, gpus_per_trial=gpus_per_trial)
    plan, effort = baseline_plan.make_plan(
        images,
        limits={"macs": macs, "params": params, "latency_ms": latency_ms},
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
    with stoppable(), place.open() as (backend, at_a_time):
        if dry_run:
            _show_plan(plan, effort, at_a_time, as_json=json)
            return
        if not json:
            baseline_plan.print_plan(plan, effort)
        search = run_baseline(
            plan,
            out,
            effort=effort,
            name=name,
            storage=storage,
            study=study,
            workers=at_a_time,
            stage=stage,
            backend=backend,
        )
    if json:
        from phiscale.search.baseline_report import search_to_dict

        print_json({"directory": str(out), **search_to_dict(search)})
    else:
        _print_result(search, out)


def _show_plan(plan: BaselinePlan, effort: Effort, workers: int, *, as_json: bool) -> None:
    import dataclasses

    from phiscale.pipeline.baseline import forecast_seconds

    seconds = forecast_seconds(plan, effort, workers=workers)
    if as_json:
        print_json(
            {
                "template": plan.space.template.to_dict(),
                "networks": plan.space.size,
                "choices": plan.space.choices(),
                "limits": plan.goal.limits.limits(),
                "effort": dataclasses.asdict(effort),
                "workers": workers,
                "forecast_seconds": seconds,
            }
        )
        return
    baseline_plan.print_plan(plan, effort)
    fields = ("block", "kernel_size", "expand_ratio", "se_ratio", "skip", "num_layers", "out_channels")
    print_table(
        ("stage", "stride", *(field.replace("_", " ") for field in fields)),
        [
            (
                str(index + 1),
                str(plan.space.template.stages[index].stride),
                *(", ".join(f"{value}" for value in stage.choices()[field]) for field in fields),
            )
            for index, stage in enumerate(plan.space.stages)
        ],
    )
    print_forecast(seconds, workers)


def _print_result(search: BaselineSearch, out: Path) -> None:
    front = search.front
    headers = ("network", "layers", "parameters", "multiply-adds", "cost", "top-1, %", "reward", "")
    print_table(headers, [_cells(one, search, on_front=one in front) for one in search.finalists])
    rejected = f"{search.rejected} proposals were beyond a limit and not trained"
    console().print(f"searched {len(search.proxies)} networks; {rejected}")
    verdict = {
        True: "a finalist beats the template in accuracy or cost, and is behind it in neither",
        False: "no finalist beats the template without being behind it in accuracy or cost",
        None: "the template is beyond the limits, so there is nothing to compare with",
    }[search.dominates_template]
    console().print(f"         {verdict}", soft_wrap=True)
    where = out / "baseline.json"
    console().print(
        f"baseline {where}: phiscale search coefficients IMAGES --baseline {where}", soft_wrap=True
    )


def _cells(one: Finalist, search: BaselineSearch, *, on_front: bool) -> tuple[str, ...]:
    from phiscale.scaling.complexity import complexity

    cost = complexity(one.spec)
    marks = {"chosen": one is search.best, "template": one.is_template, "front": on_front}
    return (
        one.spec.name,
        str(one.spec.num_blocks),
        format_count(cost.params),
        format_count(cost.macs),
        f"{one.cost / search.goal.target:.0%}",
        format_interval(one.top1),
        f"{one.reward:.4f}",
        ", ".join(name for name, is_so in marks.items() if is_so),
    )
