"""`phiscale demo`: the whole chain on the emoji that ship with the package."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phiscale.cli.fit import print_forecast, print_plan, print_result
from phiscale.cli.options import Macs
from phiscale.cli.output import INTERRUPTED, console, print_table
from phiscale.cli.progress import counting

if TYPE_CHECKING:
    from phiscale.data.sources import ImageSource
    from phiscale.evaluation.results import Evaluation
    from phiscale.pipeline import FitResult

DEMO_DATA = Path(__file__).parent.parent / "demo_data"
DEMO_SIDE = 128
DEMO_EPOCHS = 16
DEMO_WEIGHTS = "lite0-warm-start"
SHOWN = 18


def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for model, figures and pictures.", file_okay=False)
    ] = Path("demo"),
    macs: Macs = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Start from random weights, all else being equal.")
    ] = False,
    image_size: Annotated[int, typer.Option(help="Image side in pixels.", min=32)] = DEMO_SIDE,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.", min=1)] = DEMO_EPOCHS,
    seed: Annotated[int, typer.Option(help="Seed of everything random.", min=0)] = 0,
) -> None:
    """Train, measure and use a network on 1,319 emoji in six categories.

    EfficientNet-B0 is fine-tuned from a warm start: the tensors of EfficientNet-Lite0, which the authors
    trained on ImageNet, that fit it. With --macs the largest network within them is trained from scratch.
    The images are Noto Emoji, Copyright Google LLC and contributors, Apache License 2.0.
    """
    from phiscale.pipeline import plan_fit, run
    from phiscale.pipeline.forecast import forecast
    from phiscale.scaling.budget import Budget

    began, out_console, model = time.perf_counter(), console(), out / "model"
    out_console.print("phiscale demo: which category is an emoji of? Noto Emoji, Apache License 2.0\n")
    with counting("scanning") as progress:
        plan = plan_fit(
            DEMO_DATA,
            budget=Budget(macs=macs) if macs else None,
            weights=None if macs or from_scratch else DEMO_WEIGHTS,
            image_size=None if macs else image_size,
            overrides={
                "epochs": epochs,
                "seed": seed,
                "early_stopping_patience": 0,
                "tune": "off",  # so that the same seed gives the same network
                "augment.crop_scale": (0.6, 1.0),  # a third of an emoji seldom shows what it is
            },
            val_fraction=0,  # nothing is chosen by validation: the last epoch counts, and is tested once
            progress=progress,
        )
    print_plan(plan)
    print_forecast(forecast(plan, model, spent=time.perf_counter() - began))
    result = run(plan, model, overwrite=True)
    if result.training.interrupted or result.evaluation is None:
        print_result(result)
        raise typer.Exit(INTERRUPTED)
    _print_classes(result.evaluation)
    figures = _draw(result, result.evaluation, plan.source, out)
    print_result(result)
    for path in figures:
        out_console.print(f"picture  {path}")
    out_console.print(f"in all   {time.perf_counter() - began:.0f} s")
    out_console.print(f"\nnext     phiscale predict {model} YOUR_IMAGES")


def _print_classes(evaluation: Evaluation) -> None:
    print_table(
        ("class", "images", "precision", "recall", "F1"),
        [
            (entry.name, entry.support, f"{entry.precision:.1%}", f"{entry.recall:.1%}", f"{entry.f1:.1%}")
            for entry in evaluation.per_class
        ],
        title="held-out emoji",
    )


def _draw(result: FitResult, evaluation: Evaluation, source: ImageSource, out: Path) -> list[Path]:
    """Predict some held-out emoji, and draw them, the curves and the confusion matrix."""
    from phiscale.deploy.predictor import load
    from phiscale.evaluation.plots import plot_confusion, plot_history, plot_predictions

    figures = out / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    test = source.split("test")
    chosen = test[:: max(1, len(test) // SHOWN)][:SHOWN]
    paths = [DEMO_DATA / record.id for record in chosen]
    predictions = load(result.directory).predict(paths, top_k=1)
    names = [figures / name for name in ("training.png", "confusion.png", "predictions.png")]
    plot_history([record.to_dict() for record in result.training.history], names[0])
    plot_confusion(evaluation.confusion_matrix, evaluation.classes, names[1])
    plot_predictions(
        [source.read(record) for record in chosen],
        [prediction.labels[0] for prediction in predictions],
        [prediction.scores[0] for prediction in predictions],
        [source.classes[record.label] for record in chosen],
        names[2],
    )
    return names
