"""Training recipes: every choice of a run as one frozen value.

Examples:
    >>> recipe = RECIPES["fast"].override({"learning_rate": "0.002", "augment.policy": "none"})
    >>> recipe.learning_rate, recipe.augment.policy
    (0.002, 'none')
    >>> Recipe.from_dict(recipe.to_dict()) == recipe
    True
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from phiscale.data.augment import Augment
from phiscale.data.cache import CacheMode
from phiscale.errors import RecipeError
from phiscale.spec import NetworkSpec
from phiscale.training.convert import flatten, replace, unflatten

__all__ = ["RECIPES", "Optimizer", "Precision", "Recipe", "Schedule", "Tune", "get_recipe"]

Optimizer = Literal["adamw", "sgd", "rmsprop_tf"]
Schedule = Literal["cosine", "exponential"]
Precision = Literal["32-true", "bf16-mixed"]
Tune = Literal["auto", "off"]

_AUGMENT = Augment()
# field: (lowest, highest, whether the highest itself is allowed)
_RANGES: dict[str, tuple[float, float, bool]] = {
    "epochs": (1, math.inf, True),
    "batch_size": (1, math.inf, True),
    "accumulate": (1, math.inf, True),
    "learning_rate": (0.0, math.inf, True),
    "learning_rate_batch": (0, math.inf, True),
    "momentum": (0.0, 1.0, False),
    "weight_decay": (0.0, math.inf, True),
    "layer_decay": (0.0, 1.0, True),
    "clip_grad_norm": (0.0, math.inf, True),
    "warmup_epochs": (0.0, math.inf, True),
    "decay_rate": (0.0, 1.0, True),
    "decay_epochs": (0.0, math.inf, True),
    "ema_decay": (0.0, 1.0, False),
    "label_smoothing": (0.0, 1.0, False),
    "mixup_alpha": (0.0, math.inf, True),
    "dropout": (0.0, 1.0, False),
    "drop_path": (0.0, 1.0, False),
    "norm_momentum": (0.0, 1.0, True),
    "freeze_epochs": (0, math.inf, True),
    "early_stopping_patience": (0, math.inf, True),
    "checkpoint_minutes": (0.0, math.inf, True),
    "workers": (0, math.inf, True),
    "seed": (0, 2**63 - 1, True),
}
_ABOVE_ZERO = ("learning_rate", "layer_decay", "decay_rate", "decay_epochs", "norm_momentum")
_TUNED = ("precision", "fast_layers")
_OF_THE_NETWORK = ("dropout", "drop_path", "norm_momentum")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train. Each field is explained by the text in its annotation; `Recipe.help` gives them all.

    Raises:
        RecipeError: A field has a value that no run can have; the message names field and fix.
    """

    epochs: Annotated[int, "Passes over the training images."] = 30
    batch_size: Annotated[int, "Images per step, those of all workers together."] = 128
    accumulate: Annotated[int, "Batches whose gradients are added up for one step of the optimizer."] = 1

    optimizer: Annotated[Optimizer, "adamw, sgd, or rmsprop_tf: TensorFlow's RMSProp, the paper's."] = "adamw"
    learning_rate: Annotated[float, "Peak learning rate for a batch of `learning_rate_batch` images."] = 4e-3
    learning_rate_batch: Annotated[
        int, "The rate used is learning_rate · batch_size · accumulate / this; 0 uses it as it is."
    ] = 256
    momentum: Annotated[float, "Momentum of sgd and rmsprop_tf; β₁ of adamw."] = 0.9
    weight_decay: Annotated[
        float, "Weight decay, never on norms and biases; decoupled from the gradient in adamw only."
    ] = 0.05
    layer_decay: Annotated[float, "Each part of the network learns at this times the rate of the next."] = 1.0
    clip_grad_norm: Annotated[float, "Longest gradient, as a norm over all parameters; 0 = any."] = 0.0

    schedule: Annotated[Schedule, "cosine (to zero), or exponential: a staircase, the paper's."] = "cosine"
    warmup_epochs: Annotated[float, "Epochs over which the learning rate rises linearly to its peak."] = 2.0
    decay_rate: Annotated[float, "exponential: factor of every decay."] = 0.97
    decay_epochs: Annotated[float, "exponential: epochs between two decays."] = 2.4

    ema_decay: Annotated[
        float, "Decay of the moving average that is validated and saved, warmed up; 0 = no average."
    ] = 0.999
    label_smoothing: Annotated[float, "Share of the target that is spread over all classes."] = 0.1
    mixup_alpha: Annotated[float, "Mixes pairs of images with weight Beta(alpha, alpha); 0 = off."] = 0.0
    augment: Annotated[Augment, "Random changes of the training images."] = _AUGMENT
    dropout: Annotated[float | None, "Dropout before the classifier; none = the network's own."] = None
    drop_path: Annotated[float | None, "Drop path rate of the last block; none = the network's own."] = None
    norm_momentum: Annotated[
        float | None, "Weight of a new batch in the norms' running statistics; none = the network's own."
    ] = None
    sync_batch_norm: Annotated[
        bool, "With several workers: norms see the whole batch, as one worker does; false is faster."
    ] = True

    freeze_epochs: Annotated[int, "First epochs, in which only the classifier trains (fine-tuning)."] = 0
    early_stopping_patience: Annotated[
        int, "Stop after this many epochs without a better validation top-1; 0 = never."
    ] = 0
    checkpoint_minutes: Annotated[
        float, "Store a checkpoint within an epoch, too, after so many minutes; 0 = after epochs only."
    ] = 10.0

    tune: Annotated[
        Tune,
        "auto: `fit` measures which precision and layers are fastest here, and sets them; off: it does not.",
    ] = "off"
    precision: Annotated[
        Precision, "32-true, or bf16-mixed: faster on GPUs, and with `fast_layers` on CPUs that know bf16."
    ] = "32-true"
    fast_layers: Annotated[
        bool, "Compute norms, Swish, squeeze-excite and depthwise convolutions as is fastest on CPUs."
    ] = False
    grad_checkpointing: Annotated[bool, "Compute activations twice to save memory; slower."] = False
    channels_last: Annotated[bool, "Keep images as NHWC in memory, the layout that CPUs prefer."] = True
    workers: Annotated[int, "Processes that load images; 0 loads in the training process."] = 0
    cache: Annotated[CacheMode, "Where decoded images are kept: auto, memory, disk, or off."] = "auto"
    exact_decode: Annotated[
        bool, "Decode JPEGs whole where there is no cache: slower, and under a grey level closer to it."
    ] = False
    seed: Annotated[int, "Seed of everything random; the same seed gives the same weights on a CPU."] = 0

    def __post_init__(self) -> None:
        for name, (low, high, closed) in _RANGES.items():
            value = getattr(self, name)
            if value is None and name in _OF_THE_NETWORK:
                continue
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise RecipeError(f"{name} must be a number, got {value!r}")
            inside = low <= value <= high if closed else low <= value < high
            if not inside or not math.isfinite(value) or (name in _ABOVE_ZERO and value == 0):
                raise RecipeError(f"{name} must {_describe(low, high, closed, name)}, got {value!r}")
        self._check_epochs()

    def _check_epochs(self) -> None:
        """Phases that would not fit into the run."""
        if self.freeze_epochs >= self.epochs and self.freeze_epochs > 0:
            raise RecipeError(
                f"freeze_epochs {self.freeze_epochs} leaves none of the {self.epochs} epochs to train the "
                f"whole network; set freeze_epochs below {self.epochs}"
            )
        if self.warmup_epochs >= self.epochs:
            raise RecipeError(
                f"warmup_epochs {self.warmup_epochs:g} must be less than epochs {self.epochs}; "
                f"try warmup_epochs {self.epochs / 10:g}"
            )

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate at the end of the warm-up, scaled to the batch of this recipe."""
        if self.learning_rate_batch == 0:
            return self.learning_rate
        return self.learning_rate * self.batch_size * self.accumulate / self.learning_rate_batch

    @classmethod
    def help(cls) -> dict[str, str]:
        """The explanation of every field, by its name."""
        hints = typing.get_type_hints(cls, include_extras=True)
        return {field.name: hints[field.name].__metadata__[0] for field in dataclasses.fields(cls)}

    def override(self, changes: Mapping[str, Any]) -> Recipe:
        """A copy with some settings changed.

        Whoever gives a precision or layers means them: `tune` is off then, unless it is given too.

        Args:
            changes: Dotted name -> value, as in ``{"learning_rate": "0.1", "augment.policy": "none"}``;
                texts are converted to the type of the field.

        Raises:
            RecipeError: A name is unknown, or a value is not valid.
        """
        pinned = {"tune": "off"} if any(name in changes for name in _TUNED) else {}
        return replace(self, unflatten({**pinned, **changes}))

    def apply_to(self, spec: NetworkSpec) -> NetworkSpec:
        """A network with the dropout, drop path and norm momentum that the recipe sets; the rest stays."""
        given = {name: getattr(self, name) for name in _OF_THE_NETWORK}
        changes = {name: value for name, value in given.items() if value is not None}
        return dataclasses.replace(spec, **changes)

    @classmethod
    def from_yaml(cls, path: str | Path, base: Recipe | None = None) -> Recipe:
        """The settings of a YAML file laid over `base` (the defaults when None).

        Raises:
            RecipeError: The file cannot be read, is not a mapping, or has a setting that is not valid.
        """
        try:
            data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"cannot read the recipe {path}: {error}") from None
        except yaml.YAMLError as error:
            raise RecipeError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
        if data is None:
            data = {}
        if not isinstance(data, dict):
            raise RecipeError(f"{path} must hold settings as NAME: VALUE, one a line")
        try:
            return (base or cls()).override(data)
        except RecipeError as error:
            raise RecipeError(f"{path}: {error}") from None

    def to_yaml(self) -> str:
        """The recipe as YAML; `from_yaml` gives an equal recipe back."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain values, ready for JSON."""
        data = dataclasses.asdict(self)
        return {name: _plain(value) for name, value in data.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """Inverse of `to_dict`; fields that are missing take their defaults.

        Raises:
            RecipeError: A field is unknown or not valid.
        """
        return cls().override(data)

    def differences(self, other: Recipe) -> dict[str, tuple[Any, Any]]:
        """Settings in which two recipes differ: dotted name -> (own value, other's value)."""
        own, others = flatten(self), flatten(other)
        return {name: (own[name], others[name]) for name in own if own[name] != others[name]}


def _describe(low: float, high: float, closed: bool, name: str) -> str:
    if high == math.inf:
        return "be above 0" if name in _ABOVE_ZERO else f"be at least {low:g}"
    left = "(" if name in _ABOVE_ZERO else "["
    return f"lie in {left}{low:g}, {high:g}{']' if closed else ')'}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def get_recipe(name: str) -> Recipe:
    """One of `RECIPES` by its name.

    Raises:
        RecipeError: There is no recipe of that name.
    """
    if name not in RECIPES:
        raise RecipeError(f"no recipe {name!r}; known: {', '.join(RECIPES)}, or a YAML file")
    return RECIPES[name]


RECIPES: dict[str, Recipe] = {
    # From scratch, on small data and small networks: minutes on a CPU. AdamW with one cosine. The
    # paper's norm momentum of 0.01 would leave the running statistics behind in a few hundred steps.
    "fast": Recipe(
        tune="auto",
        norm_momentum=0.1,
        augment=Augment(policy="trivial", crop_scale=(0.35, 1.0)),
    ),
    # From scratch, on ImageNet-sized data: section 5.2 of the paper and the authors' code, 350 epochs.
    "paper": Recipe(
        tune="auto",
        epochs=350,
        batch_size=256,
        optimizer="rmsprop_tf",
        learning_rate=0.016,
        weight_decay=1e-5,
        schedule="exponential",
        warmup_epochs=5.0,
        ema_decay=0.9999,
        augment=Augment(policy="autoaugment"),
        workers=8,
    ),
    # From trained weights: the classifier alone for an epoch, then all of it, slower towards the stem.
    "finetune": Recipe(
        tune="auto",
        epochs=15,
        batch_size=64,
        learning_rate=2e-3,
        layer_decay=0.8,
        clip_grad_norm=1.0,
        warmup_epochs=1.0,
        freeze_epochs=1,
        early_stopping_patience=5,
        norm_momentum=0.1,
        augment=Augment(policy="trivial", crop_scale=(0.35, 1.0)),
    ),
}
