"""`phiscale.fit`: images and a budget in, a trained and measured model directory out."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from phiscale.data.augment import TrainTransform
from phiscale.data.loading import make_loader
from phiscale.data.transforms import EvalTransform, normalize
from phiscale.deploy.latency import Meter
from phiscale.errors import TrainingError
from phiscale.evaluation.evaluate import evaluate
from phiscale.evaluation.results import Evaluation
from phiscale.nn.network import Network, build_network
from phiscale.nn.recalibrate import recalibrate_norms
from phiscale.pipeline.plan import PLAN, FitPlan, plan_fit, read_plan
from phiscale.preprocess import ResizeMode
from phiscale.scaling.budget import Budget
from phiscale.scaling.compound import RULES, CompoundRule
from phiscale.spec import NetworkSpec
from phiscale.training import checkpoints
from phiscale.training.history import HISTORY, EpochRecord, best_epoch, read_history
from phiscale.training.progress import describe
from phiscale.training.ranks import my_share
from phiscale.training.recipe import Recipe
from phiscale.training.train import TrainResult, train
from phiscale.training.tune import tune, worth_tuning
from phiscale.weights.load import load_weights
from phiscale.weights.warm_start import WARM_STARTS

__all__ = ["FitResult", "OnEpoch", "Together", "fit", "run", "tune_plan"]

RECALIBRATION_IMAGES = 512
RECALIBRATION_BATCH = 64

OnEpoch = Callable[[EpochRecord], None]


class Together(Protocol):
    """Has several processes do one training, such as `phiscale.cluster.RayTraining`."""

    def __call__(
        self, work: Callable[[OnEpoch], TrainResult], *, out: Path, on_epoch: OnEpoch
    ) -> TrainResult:
        """Call `work` in each process of one group of `torch.distributed`, and again in all after a loss.

        Args:
            work: Gets what is to be called after each epoch.
            out: The model directory.
            on_epoch: Called in this process after each epoch.

        Returns:
            What `work` gave in the first process.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """What a run came to.

    Attributes:
        directory: The model directory.
        training: What training came to.
        evaluation: The metrics, on the test images where there are some, else on the val images; None
            where the run was interrupted or there are neither.
    """

    directory: Path
    training: TrainResult
    evaluation: Evaluation | None


def fit(
    images: str | Path,
    out: str | Path,
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
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    together: Together | None = None,
) -> Path:
    """Train the network that fits your images and your budget.

    The images are scanned, the budget is solved from `model` along `rule`, the network is trained by
    `recipe` and measured. `out` is a model directory from the first epoch on.

    Args:
        images: A folder with one folder per class (also under train/, val/, test/), a CSV or Parquet
            manifest, or ``torchvision:NAME:ROOT``.
        out: The model directory to make.
        model: The baseline: a name, a JSON file or a spec. Without a budget it is taken as it is.
        budget: Limits that the network must satisfy.
        meter: What measures `latency_ms` of the budget. The default is this machine, one image at a time, in
            the fastest engine that is installed, in float32.
        rule: The direction to scale in: a name, ``"alpha,beta,gamma"``, a JSON file or a rule.
        recipe: ``"fast"``, ``"finetune"``, ``"paper"``, a YAML file or a recipe. The default is
            ``"finetune"`` with `weights`, else ``"fast"``.
        overrides: Settings of the recipe to change: dotted name → value.
        weights: What to start from: a model directory, whose network is taken; or weights of any publisher
            that fit `model`: a file, a folder, a name of the catalog, ``"imagenet"``, or
            ``"lite0-warm-start"`` for a B0. The classifier is made anew where classes differ. The
            ``"finetune"`` recipe without weights takes those that come with pip, and says so.
        image_size: Side or (height, width) in pixels. By default the network's own, or the images' own
            where that is smaller.
        resize: How images are brought to the size: ``"crop"``, ``"squash"`` or ``"pad"``.
        val_fraction: Share of the training images held out to choose the best epoch, where the data
            has no val split.
        split_file: CSV with `path` and `split` that decides the splits.
        strict: Whether an image that cannot be used is an error instead of being left out.
        keep_strides: Leave the network's strides as they are. By default small images lower them, so that
            the last feature map keeps 4 px; the weights fit either way.
        hold_out: Training images (a number, or a share below 1) to hold out for choosing the best epoch even
            where there is a val split; that is then the test split.
        resume: Go on with the run in `out`; the other arguments are then those it was begun with.
        overwrite: Whether a run in `out` may be thrown away.
        progress: Whether to draw a progress bar.
        together: Trains on several processes, which all see `images` and `out`; None trains in this one. A
            run goes on with any number of them.

    Returns:
        The model directory. After Ctrl-C it holds the best network so far; `resume` goes on.

    Raises:
        DataError: The images cannot be used.
        BudgetError: No network on the rule fits the budget.
        SpecError: The model, rule or size is not valid.
        RecipeError: The recipe is not valid.
        TrainingError: Training cannot start, go on, or be resumed.
    """
    if resume:
        plan = read_plan(Path(out))
    else:
        plan = plan_fit(
            images,
            model=model,
            budget=budget,
            meter=meter,
            rule=rule,
            recipe=recipe,
            overrides=overrides,
            weights=weights,
            image_size=image_size,
            resize=resize,
            val_fraction=val_fraction,
            split_file=split_file,
            strict=strict,
            keep_strides=keep_strides,
            hold_out=hold_out,
        )
    return run(
        plan,
        out,
        resume=resume,
        overwrite=overwrite,
        strict=strict,
        progress=progress,
        together=together,
    ).directory


def run(
    plan: FitPlan,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    strict: bool = False,
    progress: bool = True,
    on_epoch: OnEpoch | None = None,
    together: Together | None = None,
) -> FitResult:
    """Train and measure what a plan says.

    Args:
        plan: From `plan_fit`, or from `read_plan` with `resume`.
        out: The model directory.
        resume: Go on with the run in `out`.
        overwrite: Whether a run in `out` may be thrown away.
        strict: Whether an image that fails during training is an error.
        progress: Whether to draw a progress bar.
        on_epoch: Called after each epoch.
        together: Trains on several processes; None trains in this one.

    Raises:
        TrainingError: Training cannot start, go on, or be resumed.
    """
    directory, source = Path(out), plan.source
    if not resume:
        if checkpoints.exist(directory) and not overwrite:
            raise TrainingError(
                f"{directory} holds a run already; go on with resume (--resume), or choose another directory"
            )
        if together:
            # Here, and not where workers begin: they may begin again in the midst of the run.
            checkpoints.clear(directory)
        plan = tune_plan(plan, together=together is not None)
        plan.write(directory)  # as tuned, so that a resumed run goes on as it began
    if together:
        trained = _train_together(
            together, plan, directory.absolute(), strict=strict, progress=progress, on_epoch=on_epoch
        )
    else:
        trained = _train(
            plan,
            directory,
            _network(plan),
            resume=resume,
            overwrite=overwrite,
            strict=strict,
            progress=progress,
            on_epoch=on_epoch,
        )
    measurable = not trained.interrupted and (source.split("val") or source.split("test"))
    evaluation = (
        evaluate(directory, plan.images, batch_size=plan.recipe.batch_size, strict=strict)
        if measurable
        else None
    )
    return FitResult(directory=directory, training=trained, evaluation=evaluation)


def _train(plan: FitPlan, directory: Path, net: Network, *, strict: bool, **options: Any) -> TrainResult:
    """Train in this process, alone or with the others of its group; options go to `train`."""
    source, recipe = plan.source, plan.recipe
    loading: dict[str, Any] = {
        "batch_size": recipe.batch_size,
        "seed": recipe.seed,
        "workers": recipe.workers,
        "cache": recipe.cache,
        "exact_decode": recipe.exact_decode,
        "on_error": "raise" if strict else "skip",
        "share": my_share(),
    }
    train_loader = make_loader(
        source,
        source.split("train"),
        TrainTransform(plan.preprocess, recipe.augment),
        shuffle=True,
        drop_last=True,
        **loading,
    )
    val = source.split("val")
    val_loader = (
        make_loader(source, val, EvalTransform(plan.preprocess), shuffle=False, **loading) if val else None
    )
    return train(
        net,
        train_loader,
        val_loader,
        recipe=recipe,
        out=directory,
        classes=source.classes,
        preprocess=plan.preprocess,
        provenance=_provenance(plan),
        **options,
    )


def _train_together(
    together: Together,
    plan: FitPlan,
    directory: Path,
    *,
    strict: bool,
    progress: bool,
    on_epoch: OnEpoch | None,
) -> TrainResult:
    """Train in several processes, and say in this one how far they are."""
    resumed = checkpoints.exist(directory) and (directory / HISTORY).exists()
    history = list(read_history(directory)) if resumed else []

    def say(record: EpochRecord) -> None:
        # After a loss, epochs since the last checkpoint come again.
        history[record.epoch - 1 :] = [record]
        if progress:
            best = best_epoch(history) is record
            print(describe(record, epochs=plan.recipe.epochs, best=best), file=sys.stderr, flush=True)
        if on_epoch:
            on_epoch(record)

    def report(record: EpochRecord) -> None:
        # A worker may be lost between its checkpoint and its report.
        if record.epoch - 1 > len(history):
            for missed in read_history(directory)[len(history) : record.epoch - 1]:
                say(missed)
        say(record)

    work = partial(_take_part, plan, directory, _network(plan), strict=strict)
    trained = together(work, out=directory, on_epoch=report)
    for missed in trained.history[len(history) :]:
        say(missed)
    return trained


def _take_part(
    plan: FitPlan, directory: Path, net: Network, on_epoch: OnEpoch, *, strict: bool
) -> TrainResult:
    """One process's part in a training; goes on from the last checkpoint where there is one."""
    if not (directory / PLAN).exists():
        raise TrainingError(
            f"{socket.gethostname()} does not see {directory}; put the model directory into a folder that "
            "all machines share at the same path"
        )
    resume = checkpoints.exist(directory)
    return _train(plan, directory, net, strict=strict, resume=resume, progress=False, on_epoch=on_epoch)


def tune_plan(plan: FitPlan, *, together: bool = False) -> FitPlan:
    """Settle precision and layers, where the recipe leaves it to a measurement.

    A run that is too short to pay for one, one on a device that nothing is known of, and one of several
    processes keep what the recipe says.

    Args:
        plan: What to train.
        together: Whether several processes train, on machines that may differ from this one.

    Returns:
        The plan with `tune` off, and a note on what was chosen and how much faster it is.
    """
    recipe = plan.recipe
    if recipe.tune == "off":
        return plan
    device, images = _device(), len(plan.source.split("train"))
    if together or not worth_tuning(recipe, plan.spec.image_size, images=images, device=device):
        return replace(plan, recipe=replace(recipe, tune="off"))
    with torch.random.fork_rng():
        net = build_network(plan.spec)
    tuning = tune(net, recipe, device=device)
    return replace(plan, recipe=tuning.recipe, notes=(*plan.notes, str(tuning)))


def _device() -> torch.device:
    """What Lightning will take."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _network(plan: FitPlan) -> Network:
    # The seed decides the initial weights too, and the caller's random state is left alone.
    with torch.random.fork_rng():
        torch.manual_seed(plan.recipe.seed)
        net = build_network(plan.spec)
    if plan.weights is None:
        return net
    # The plan has settled padding and norm already, by the weights and by the recipe.
    report = load_weights(net, plan.weights, adjust=False)
    if isinstance(net.classifier, nn.Linear) and "classifier.weight" not in report.kept:
        # The authors' random classifier is meant for a thousand classes: with a few, its first answers are
        # so sure and so wrong that their gradient harms what the weights know.
        nn.init.zeros_(net.classifier.weight)
    if plan.weights in WARM_STARTS:
        _recalibrate(net, plan)
    return net


def _recalibrate(net: Network, plan: FitPlan) -> None:
    """Measure the norms' statistics on some training images.

    A warm start has other activations than the network that its tensors come from, so the stored
    statistics are not those of its own layers: a first frozen epoch would see features ten times too large.
    """
    records = plan.source.split("train")
    some = records[:: max(1, len(records) // RECALIBRATION_IMAGES)]
    loader = make_loader(
        plan.source, some, EvalTransform(plan.preprocess), batch_size=RECALIBRATION_BATCH, shuffle=False
    )
    recalibrate_norms(net, (normalize(images, plan.preprocess) for images, _ in loader if len(images) > 1))


def _provenance(plan: FitPlan) -> dict[str, Any]:
    return {
        "data": {**plan.data, "images": {s: len(plan.source.split(s)) for s in ("train", "val", "test")}},
        "weights": plan.weights,
        "chosen": list(plan.notes),
        "budget": None if plan.budget is None else dict(plan.budget),
    }
