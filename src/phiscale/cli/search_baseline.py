"""`phiscale search baseline`: the small network that suits some images best, for `scale` to grow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phiscale.cli.options import JsonOutput, LatencyMs, Macs, Params, make_overrides
from phiscale.cli.output import INTERRUPTED, console, print_json, print_table
from phiscale.cli.progress import counting
from phiscale.cli.search_coefficients import _default_workers, _percent, _stage
from phiscale.cli.units import format_count, format_duration
from phiscale.errors import BudgetError, SpecError
from phiscale.scaling.budget import LIMITS, Budget

if TYPE_CHECKING:
    from phiscale.pipeline.baseline import BaselinePlan
    from phiscale.search.baseline import BaselineSearch, Effort, Finalist
    from phiscale.spec import NetworkSpec

Images = Annotated[
    str,
    typer.Argument(
        help="Folder with one folder per class, a CSV or Parquet manifest, or torchvision:NAME:ROOT."
    ),
]
Template = Annotated[
    str,
    typer.Option(
        help="The space is laid around this network: a name from `phiscale models`, scaled to the limits and "
        "the images' size; or a JSON file, taken as it is."
    ),
]
Sampler = Annotated[str, typer.Option(help="nsga2 (evolution), tpe, or random to compare with.")]
Trials = Annotated[int, typer.Option(help="Networks that are trained a little.", min=1)]
Generation = Annotated[
    int, typer.Option(help="Networks that are proposed at once, on the scores of those before.", min=2)
]
ProxyEpochs = Annotated[
    int | None, typer.Option(help="Epochs of a short training; by default a fifth of --epochs.", min=1)
]
ProxyImageSize = Annotated[
    int | None,
    typer.Option(help="Image side of a short training; by default three quarters of the whole.", min=8),
]
Finalists = Annotated[
    int, typer.Option(help="Networks of the front that are trained in full, at most.", min=1)
]
FinalSeeds = Annotated[int, typer.Option("--seeds", help="Full trainings of each finalist.", min=1)]
Exponent = Annotated[
    float, typer.Option(help="w of the reward, accuracy × (cost / target)^w; 0 counts accuracy alone.")
]
Name = Annotated[str, typer.Option(help="What to call the network that is found.")]
ImageSize = Annotated[int | None, typer.Option(help="Image side of the networks.", min=8)]
Resize = Annotated[
    str, typer.Option(help="crop (the centre), squash (the whole image) or pad (the whole image).")
]
RecipeName = Annotated[str, typer.Option(help="fast, paper or a YAML file.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Change a setting of the recipe, like --set augment.policy=none."
    ),
]
Epochs = Annotated[int | None, typer.Option(help="Epochs of a full training.")]
BatchSize = Annotated[int | None, typer.Option(help="Images per step.")]
Seed = Annotated[int, typer.Option(help="First seed; the split of the images is by it too.", min=0)]
ValFraction = Annotated[
    float, typer.Option(help="Share held out to compare on, where there is no val split.")
]
SplitFile = Annotated[
    Path | None, typer.Option(help="CSV with path and split (train, val, test) that decides the splits.")
]
Workers = Annotated[
    int | None,
    typer.Option(help="Processes that train, each with one thread; by default one per core.", min=1),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only show the space, its template, and how long it takes.")
]


def baseline(
    images: Images,
    macs: Macs = None,
    params: Params = None,
    latency_ms: LatencyMs = None,
    template: Template = "efficientnet_b0",
    out: Annotated[
        Path, typer.Option(help="Folder for trainings and results; it is gone on with.", file_okay=False)
    ] = Path("baseline"),
    sampler: Sampler = "nsga2",
    trials: Trials = 64,
    generation: Generation = 8,
    proxy_epochs: ProxyEpochs = None,
    proxy_image_size: ProxyImageSize = None,
    finalists: Finalists = 8,
    seeds: FinalSeeds = 1,
    exponent: Exponent = -0.07,
    name: Name = "searched_baseline",
    image_size: ImageSize = None,
    resize: Resize = "crop",
    recipe: RecipeName = "fast",
    settings: Settings = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    seed: Seed = 0,
    val_fraction: ValFraction = 0.2,
    split_file: SplitFile = None,
    workers: Workers = None,
    storage: Annotated[
        str | None,
        typer.Option(help="Keep the trainings in this database, like postgresql://USER@HOST/NAME."),
    ] = None,
    study: Annotated[str, typer.Option(help="Name of the search in --storage.")] = "phiscale",
    dry_run: DryRun = False,
    json: JsonOutput = False,
) -> None:
    """Find the network within your limits that suits your images best.

    Searches MnasNet's space, in which every stage has an operator, kernel, expansion, squeeze-excite, layers
    and channels of its own. Many networks are trained a little, the best in full, with the template beside
    them. The reward's target is --latency-ms where it is given, else --macs. The same command goes on with a
    search that was stopped at any moment.
    """
    from phiscale.pipeline.baseline import run_baseline

    plan, effort = make_plan(
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
        overrides=make_overrides(settings, {"epochs": epochs, "batch_size": batch_size, "seed": seed}),
        template=template,
        exponent=exponent,
        image_size=image_size,
        resize=resize,
        recipe=recipe,
        val_fraction=val_fraction,
        split_file=split_file,
        out=out,
        quiet=json,
    )
    workers = workers or _default_workers()
    if dry_run:
        _show_plan(plan, effort, workers, as_json=json)
        return
    if not json:
        print_plan(plan, effort)
    try:
        search = run_baseline(
            plan, out, effort=effort, name=name, storage=storage, study=study, workers=workers, stage=_stage
        )
    except KeyboardInterrupt:
        console(stderr=True).print("stopped; the finished trainings are kept: the same command goes on")
        raise typer.Exit(INTERRUPTED) from None
    if json:
        from phiscale.search.baseline_report import search_to_dict

        print_json({"directory": str(out), **search_to_dict(search)})
    else:
        _print_result(search, out)


def make_plan(
    images: str,
    *,
    limits: Mapping[str, float | None],
    effort: Mapping[str, Any],
    seeds: int,
    seed: int,
    out: Path,
    quiet: bool,
    **settings: Any,
) -> tuple[BaselinePlan, Effort]:
    """The search that the options ask for.

    Raises:
        BudgetError: Neither multiply-adds nor milliseconds are limited.
        SpecError: An option is not valid.
    """
    from phiscale.pipeline.baseline import default_effort, plan_baseline
    from phiscale.pipeline.coefficients import SCRATCH

    if settings["resize"] not in ("crop", "squash", "pad"):
        raise SpecError(f"resize must be crop, squash or pad; got {settings['resize']!r}")
    given = {name: value for name, value in limits.items() if value is not None}
    if not {"macs", "latency_ms"} & given.keys():
        raise BudgetError("say what a network may cost: --macs 20M or --latency-ms 3")
    timed = "latency_ms" in given
    with counting("scanning", show=not quiet) as progress:
        plan = plan_baseline(
            images,
            limits=Budget(**given),
            cost="latency_ms" if timed else "macs",
            measure=_milliseconds(show=not quiet) if timed else None,
            scratch=out.absolute() / SCRATCH,
            progress=progress,
            **settings,
        )
    return plan, default_effort(plan, **effort, seed=seed, final_seeds=tuple(range(seed, seed + seeds)))


def _milliseconds(*, show: bool) -> Callable[[NetworkSpec], float]:
    """Median of one image on this machine, in the engine that is fastest here; remembered on disk."""
    from phiscale.cli.timing import make_meter

    meter = make_meter(None, "fp32", None, 1, show=show)
    return lambda spec: meter([spec])[0].median_ms


def print_plan(plan: BaselinePlan, effort: Effort) -> None:
    """Print the images, what was chosen, the template and the space."""
    from phiscale.scaling.complexity import complexity

    out, source, template = console(), plan.trials.objective.source, plan.space.template
    counts = ", ".join(f"{len(source.split(split))} {split}" for split in ("train", "val"))
    out.print(f"images   {source.location}: {len(source.classes)} classes, {counts}", soft_wrap=True)
    for note in plan.notes:
        out.print(f"chosen   {note}", soft_wrap=True)
    cost = complexity(template)
    out.print(
        f"template {template.name}: {format_count(cost.macs)} multiply-adds, {format_count(cost.params)} "
        f"parameters, {template.image_size[0]}×{template.image_size[1]} px"
    )
    limits = ", ".join(
        f"at most {format_count(limit)} {LIMITS[name]}" for name, limit in plan.goal.limits.limits().items()
    )
    out.print(f"space    {plan.space.size:.2g} networks; {limits}", soft_wrap=True)
    side = effort.proxy(template).spec.image_size
    out.print(
        f"effort   {_many(effort.trials, 'network')} for {_many(effort.proxy_epochs or 0, 'epoch')} at "
        f"{side[0]}×{side[1]} px, then at most {effort.finalists} and the template in full, "
        f"{_many(len(effort.final_seeds), 'seed')} each",
        soft_wrap=True,
    )


def _many(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


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
    print_plan(plan, effort)
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
    console().print(f"time     about {format_duration(seconds)} with {workers} workers")


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
        _percent(one.top1),
        f"{one.reward:.4f}",
        ", ".join(name for name, is_so in marks.items() if is_so),
    )
