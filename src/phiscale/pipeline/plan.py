"""What a `fit` is going to do, decided before anything is trained.

The plan is written to ``plan.json`` in the model directory, so that a resumed run does the same thing
even when defaults or the images on disk have changed since.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from phiscale.data.scan import ScanReport, scan
from phiscale.data.shards import PREFIX
from phiscale.data.sources import ImageSource, open_source
from phiscale.deploy.latency import LatencyMeter, Meter
from phiscale.deploy.latency_budget import LatencyFit, solve_latency
from phiscale.deploy.setting import Setting
from phiscale.errors import BudgetError, DataError, SpecError, TrainingError
from phiscale.families import get_spec
from phiscale.pipeline.start import default_start, open_start
from phiscale.preprocess import Preprocess, ResizeMode
from phiscale.scaling.budget import Budget, BudgetFit, solve_budget
from phiscale.scaling.compound import RULES, CompoundRule, get_rule
from phiscale.scaling.small_images import for_image_size
from phiscale.spec import NetworkSpec, as_size
from phiscale.training.recipe import Recipe, get_recipe
from phiscale.weights.files import write_text
from phiscale.weights.warm_start import WARM_STARTS

__all__ = ["PLAN", "FitPlan", "choose_network", "plan_fit", "read_plan"]

PLAN = "plan.json"
PLAN_KEYS = {
    "images", "spec", "preprocess", "recipe", "weights", "notes", "data", "classes", "unusable",
}  # fmt: skip
SIDE_STEP = 8
LEAST_MAP = 3  # pixels of the last feature map below which strides are lowered
LAST_MAPS = (4, 2, 1)
LEAST_STEPS_PER_EPOCH = 16
LEAST_BATCH = 8
WARM_START_CHANGES: Mapping[str, Any] = {"learning_rate": 8e-3, "layer_decay": 0.9}

ScanProgress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class FitPlan:
    """Everything that decides a run.

    Attributes:
        images: Location of the images.
        source: The usable images with their splits.
        spec: The network, with the data's classes and channels.
        preprocess: How images are prepared.
        recipe: How to train.
        solved: How the budget was solved; None without a budget, and where a stored plan is resumed.
        budget: The same as plain values, stored with the plan and with the model, so that a resumed run
            measures nothing again.
        weights: Where training starts from; None is from scratch.
        report: The scan; None where a stored plan is resumed.
        notes: What was chosen and why, a sentence each.
        data: The split rule, as stored with the model.
        unusable: Ids of the images that are left out.
    """

    images: str
    source: ImageSource
    spec: NetworkSpec
    preprocess: Preprocess
    recipe: Recipe
    solved: BudgetFit | None
    budget: Mapping[str, Any] | None
    weights: str | None
    report: ScanReport | None
    notes: tuple[str, ...]
    data: Mapping[str, Any]
    unusable: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON: what `read_plan` reads."""
        return {
            "images": self.images,
            "spec": self.spec.to_dict(),
            "preprocess": self.preprocess.to_dict(),
            "recipe": self.recipe.to_dict(),
            "budget": None if self.budget is None else dict(self.budget),
            "weights": self.weights,
            "notes": list(self.notes),
            "data": dict(self.data),
            "classes": list(self.source.classes),
            "unusable": list(self.unusable),
        }

    def write(self, directory: Path) -> None:
        """Store what a resumed run needs.

        Raises:
            TrainingError: The directory cannot be written.
        """
        try:
            directory.mkdir(parents=True, exist_ok=True)
            write_text(directory / PLAN, json.dumps(self.to_dict(), indent=2) + "\n")
        except OSError as error:
            raise TrainingError(f"cannot write to {directory}: {error.strerror or error}") from None


def plan_fit(
    images: str | Path,
    *,
    model: str | Path | NetworkSpec = "efficientnet_b0",
    budget: Budget | None = None,
    meter: Meter | None = None,
    rule: str | Path | CompoundRule = RULES["paper"],
    recipe: str | Path | Recipe | None = None,
    overrides: Mapping[str, Any] | None = None,
    weights: str | Path | None = None,
    image_size: int | tuple[int, int] | None = None,
    resize: ResizeMode = "crop",
    val_fraction: float = 0.2,
    split_file: Path | None = None,
    strict: bool = False,
    keep_strides: bool = False,
    hold_out: float = 0,
    progress: ScanProgress | None = None,
) -> FitPlan:
    """Look at the images, solve the budget, and settle every choice of a run.

    The arguments are those of `phiscale.fit`.
    """
    if weights is None and recipe == "finetune" and budget is None:
        weights = default_start(get_spec(model))
    chosen = _recipe(recipe, overrides, weights=None if weights is None else str(weights))
    source = open_source(
        images, val_fraction=val_fraction, seed=chosen.seed, split_file=split_file, hold_out=hold_out
    )
    report = scan(source, progress=progress)
    if strict and report.unusable:
        raise DataError(
            f"{len(report.unusable)} of {report.images} images cannot be used, such as "
            f"{min(report.unusable)}; `phiscale scan {images}` lists them; mend them or leave out strict"
        )
    source = report.usable(source)
    if not source.split("train"):
        raise DataError(
            f"{images} has no training images; put them under train/, or leave out the split folders"
        )
    notes: list[str] = []
    chosen = _fit_recipe(chosen, len(source.split("train")), overrides, notes)
    if weights is not None and budget is not None:
        raise SpecError("weights fix the network, so a budget cannot be solved too; give one of the two")
    start = None if weights is None else open_start(weights, get_spec(model))
    solved = None
    if start is not None and start.is_model_dir:
        assert start.preprocess is not None
        spec, preprocess = start.spec, start.preprocess
    else:
        # Before the budget is solved: classes and channels cost parameters and multiply-adds.
        baseline = _for_data(get_spec(model) if start is None else start.spec, report, notes)
        solve = None
        if budget is not None:
            solve = _solver(budget, meter, chosen.batch_size)
        spec, solved, is_native = choose_network(
            baseline, solve, get_rule(rule), image_size, report, notes, keep_strides=keep_strides
        )
        preprocess = replace(Preprocess.for_size(spec.image_size, channels=spec.in_channels), resize=resize)
        if is_native:  # images at the network's own size have no border to spare
            preprocess = replace(preprocess, crop_fraction=1.0)
        if start is not None:
            preprocess = start.normalized(preprocess)
    if start is not None:
        notes.append(start.note)
    spec = chosen.apply_to(replace(spec, num_classes=len(source.classes)))
    return FitPlan(
        images=_location(images),
        source=source,
        spec=spec,
        preprocess=preprocess,
        recipe=chosen,
        solved=solved,
        budget=None if solved is None else _budget_record(solved),
        weights=None if start is None else start.source,
        report=report,
        notes=tuple(notes),
        data={
            "location": _location(images),
            "val_fraction": val_fraction,
            "seed": chosen.seed,
            "split_file": None if split_file is None else str(split_file),
            "hold_out": hold_out,
        },
        unusable=tuple(sorted(report.unusable)),
    )


def read_plan(directory: Path) -> FitPlan:
    """The plan of a run that was begun in a directory.

    Raises:
        TrainingError: No run was begun there, or its plan is damaged.
        DataError: The images are no longer those of the plan.
    """
    try:
        content = json.loads((directory / PLAN).read_text(encoding="utf-8"))
        missing = PLAN_KEYS - content.keys()
        if missing:
            raise ValueError(f"{min(missing)} is missing")
    except FileNotFoundError:
        raise TrainingError(
            f"nothing to resume: no {PLAN} in {directory}; start without resume (--resume)"
        ) from None
    except (OSError, ValueError, AttributeError) as error:
        raise TrainingError(
            f"cannot read {directory / PLAN}: {error}; start again without resume (--resume)"
        ) from None
    data = content["data"]
    split_file = data["split_file"]
    source = open_source(
        content["images"],
        val_fraction=data["val_fraction"],
        seed=data["seed"],
        split_file=None if split_file is None else Path(split_file),
        hold_out=data.get("hold_out", 0),  # plans of version 0.1 have none
    ).without(content["unusable"])
    if list(source.classes) != content["classes"]:
        raise DataError(
            f"the classes in {content['images']} are no longer those that the run began with; "
            "put the images back, or start again in another directory"
        )
    return FitPlan(
        images=content["images"],
        source=source,
        spec=NetworkSpec.from_dict(content["spec"]),
        preprocess=Preprocess.from_dict(content["preprocess"]),
        recipe=Recipe.from_dict(content["recipe"]),
        solved=None,
        budget=content.get("budget"),  # plans of version 0.1 have none
        weights=content["weights"],
        report=None,
        notes=tuple(content["notes"]),
        data=data,
        unusable=tuple(content["unusable"]),
    )


def _location(images: str | Path) -> str:
    """Where the images are, so that it is found from any working directory."""
    text = str(images)
    if text.startswith(PREFIX):
        return PREFIX + str(Path(text.removeprefix(PREFIX)).absolute())
    path = Path(images)
    return str(path.resolve()) if path.exists() else text


def _recipe(
    recipe: str | Path | Recipe | None, overrides: Mapping[str, Any] | None, *, weights: str | None
) -> Recipe:
    default = "fast" if weights is None else "finetune"
    if isinstance(recipe, Recipe):
        chosen = recipe
    elif recipe is None:
        chosen = get_recipe(default)
    elif str(recipe).endswith((".yaml", ".yml")):
        chosen = Recipe.from_yaml(recipe, get_recipe(default))
    else:
        chosen = get_recipe(str(recipe))
    if weights in WARM_STARTS and chosen == get_recipe("finetune"):
        # A warm start has more to learn than weights that were trained as they are; docs/log.md has the runs.
        chosen = chosen.override(WARM_START_CHANGES)
    if not overrides:
        return chosen
    return chosen.override({**phases_within(chosen, overrides.get("epochs")), **overrides})


def phases_within(recipe: Recipe, epochs: Any) -> dict[str, Any]:
    """Warm-up and freezing for another number of epochs, where they would not leave enough of it."""
    try:
        number = int(epochs)
    except (TypeError, ValueError):
        return {}  # not given; or no number, which the recipe itself reports
    warmup, freeze = min(recipe.warmup_epochs, number / 5), min(recipe.freeze_epochs, number // 2)
    return {"warmup_epochs": warmup, "freeze_epochs": freeze} if number > 0 else {}


def _solver(budget: Budget, meter: Meter | None, training_batch_size: int) -> Callable[..., BudgetFit]:
    """What solves a budget from a baseline along a rule."""
    if budget.latency_ms is None:
        return partial(solve_budget, budget=budget, training_batch_size=training_batch_size)
    clock = LatencyMeter(Setting()) if meter is None else meter
    return partial(solve_latency, budget=budget, meter=clock, training_batch_size=training_batch_size)


def _budget_record(solved: BudgetFit) -> dict[str, Any]:
    """How a budget was solved, as plain values."""
    record: dict[str, Any] = {
        "phi": solved.phi,
        "depth": solved.scaling.depth,
        "width": solved.scaling.width,
        "resolution": solved.scaling.resolution,
        "utilization": dict(solved.utilization),
        "binding": list(solved.binding),
    }
    if isinstance(solved, LatencyFit):
        record["timing"] = solved.timing()
    return record


def _for_data(baseline: NetworkSpec, report: ScanReport, notes: list[str]) -> NetworkSpec:
    """The baseline with the classes of the data and, where all images are grey, one channel."""
    channels = baseline.in_channels
    if report.grey and channels == 3:
        channels = 1
        notes.append("all images are grey, so the network takes one channel")
    return replace(baseline, num_classes=len(report.classes), in_channels=channels)


def choose_network(
    baseline: NetworkSpec,
    solve: Callable[..., BudgetFit] | None,
    rule: CompoundRule,
    image_size: int | tuple[int, int] | None,
    report: ScanReport,
    notes: list[str],
    *,
    keep_strides: bool = False,
) -> tuple[NetworkSpec, BudgetFit | None, bool]:
    """The network for some images, how the budget was solved, and whether it sees images at their own size.

    Args:
        baseline: With the classes and channels of the images.
        solve: Solves the budget from a baseline along a `rule`; None takes the baseline as it is.
        rule: The direction to scale in.
        image_size: Side or (height, width) in pixels; None chooses it.
        report: The scan of the images.
        notes: Gets a sentence for each choice.
        keep_strides: Leave the strides as they are, however small the images.
    """
    native = _native_side(report)
    solved = None if solve is None else solve(baseline, rule=rule)
    spec = baseline if solved is None else solved.spec
    fixed = None if image_size is None else as_size(image_size)
    is_native = fixed is None and native is not None and min(spec.image_size) > native
    if is_native:
        assert native is not None
        fixed = (native, native)
        notes.append(f"the images are about {native} px, so the network takes {native} px and not more")
    elif fixed is None and not keep_strides and -(-min(spec.image_size) // spec.output_stride) < LEAST_MAP:
        fixed = spec.image_size
    if fixed is not None:
        maps = (0,) if keep_strides else LAST_MAPS
        spec, solved = _at_image_size(baseline, fixed, solve, rule, maps)
        if spec.output_stride != baseline.output_stride:
            notes.append(
                f"strides lowered from {baseline.output_stride} to {spec.output_stride}, so that the last "
                f"map is {-(-fixed[0] // spec.output_stride)} px and not "
                f"{-(-fixed[0] // baseline.output_stride)}"
            )
    if solved is not None:
        notes.append(
            f"the largest network within the budget is {baseline.name} at φ = {solved.phi:g} (depth × "
            f"{solved.scaling.depth:.3g}, width × {solved.scaling.width:.3g}, {spec.image_size[0]}×"
            f"{spec.image_size[1]} px); {' and '.join(solved.binding)} binds"
        )
    if isinstance(solved, LatencyFit):
        notes.append(f"it takes {solved.latency_ms:.3g} ms (p90 {solved.p90_ms:.3g} ms) with {solved.where}")
    return spec, solved, is_native


def _at_image_size(
    baseline: NetworkSpec,
    size: tuple[int, int],
    solve: Callable[..., BudgetFit] | None,
    rule: CompoundRule,
    maps: tuple[int, ...],
) -> tuple[NetworkSpec, BudgetFit | None]:
    """The network at a fixed image size, its last map as many pixels of `maps` as the budget allows."""
    if solve is None:
        return for_image_size(baseline, size, min_map=maps[0]), None
    fixed_rule = rule.without_resolution()
    for min_map in maps[:-1]:
        try:
            solved = solve(for_image_size(baseline, size, min_map=min_map), rule=fixed_rule)
        except BudgetError:
            continue  # lower strides cost multiply-adds and memory
        return solved.spec, solved
    solved = solve(for_image_size(baseline, size, min_map=maps[-1]), rule=fixed_rule)
    return solved.spec, solved


def _native_side(report: ScanReport) -> int | None:
    """The typical side of the images in pixels, up to the next multiple of 8."""
    if report.sizes is None:
        return None
    side = min(report.sizes.median_height, report.sizes.median_width)
    return max(SIDE_STEP, -(-side // SIDE_STEP) * SIDE_STEP)


def _fit_recipe(recipe: Recipe, images: int, overrides: Mapping[str, Any] | None, notes: list[str]) -> Recipe:
    """Smaller batches where few images would make only a handful of steps in an epoch.

    A recipe's learning rate shrinks in proportion to the batch, which is too much for small batches of
    an adaptive optimiser; it is raised again so that in all it shrinks with the square root.
    """
    batch = recipe.batch_size
    while batch > LEAST_BATCH and images < LEAST_STEPS_PER_EPOCH * batch:
        batch //= 2
    if batch == recipe.batch_size or "batch_size" in (overrides or {}):
        return recipe
    notes.append(f"batches of {batch} instead of {recipe.batch_size}, as there are {images} training images")
    changes: dict[str, Any] = {"batch_size": batch}
    if "learning_rate" not in (overrides or {}) and recipe.optimizer == "adamw":
        changes["learning_rate"] = recipe.learning_rate * math.sqrt(recipe.batch_size / batch)
    return recipe.override(changes)
