"""Networks as data: what a ConvNet is, before anything is built or counted.

A network is a stem, a chain of stages of repeated blocks, and a head (Tan & Le 2019, section 3.1:
N = F_s^{L_s} ∘ … ∘ F_1^{L_1}). A spec stores only what cannot be derived: a stage does not know its
input channels or resolution; `NetworkSpec.blocks` threads them.

Examples:
    >>> from phiscale import get_spec
    >>> b0 = get_spec("efficientnet_b0")
    >>> b0.stages[2].kernel_size, b0.stages[2].out_channels
    (5, 40)
    >>> NetworkSpec.from_json(b0.to_json()) == b0
    True
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from phiscale.errors import SpecError

__all__ = [
    "Activation",
    "BlockKind",
    "BlockSpec",
    "HeadSpec",
    "NetworkSpec",
    "Padding",
    "StageSpec",
    "StemSpec",
    "as_size",
]

BlockKind = Literal["mbconv", "depthwise_separable", "bottleneck", "basic"]
Activation = Literal["swish", "relu", "relu6", "hard_swish"]
Padding = Literal["same", "symmetric"]

FORMAT = "phiscale-spec-1"
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class StemSpec:
    """The first convolution, with its norm and activation, and the max pool of ResNets.

    Attributes:
        out_channels: Channels it makes.
        kernel_size: Odd side of the kernel, in pixels.
        stride: Stride of the convolution.
        max_pool: Whether a 3×3 max pool of stride 2 follows.
        scale_width: Whether width scaling changes `out_channels` (EfficientNet-Lite: no).
    """

    out_channels: int
    kernel_size: int = 3
    stride: int = 2
    max_pool: bool = False
    scale_width: bool = True

    def __post_init__(self) -> None:
        _check_positive(self, "out_channels", "stride")
        _check_odd(self, "kernel_size")


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """One stage: `num_layers` blocks of one kind; the first has the stride and changes the channels.

    Attributes:
        block: ``"mbconv"`` (inverted bottleneck, linear projection, skip), ``"depthwise_separable"``
            (MobileNetV1: depthwise and pointwise, both activated, no skip), ``"bottleneck"`` (ResNet-50:
            1×1, 3×3, 1×1 on a quarter of the channels) or ``"basic"`` (ResNet-18: two k×k).
        num_layers: Blocks in the stage, the L_i of the paper.
        kernel_size: Odd side of the spatial kernel, in pixels.
        stride: Stride of the first block.
        expand_ratio: Widening inside an MBConv; 1 leaves the expansion out. Other blocks: 1.
        out_channels: Channels the stage makes, the C_i of the paper.
        se_ratio: Squeeze-excite width as a fraction of the block's input channels; 0 leaves it out.
        skip: Whether an MBConv adds its input where stride and channels allow it. Other blocks: True, which
            leaves it to the kind of block.
        scale_width: Whether width scaling changes `out_channels`.
        scale_depth: Whether depth scaling changes `num_layers` (EfficientNet-Lite: not in the first
            and last stage).
    """

    block: BlockKind
    num_layers: int = 1
    kernel_size: int = 3
    stride: int = 1
    expand_ratio: int = 1
    out_channels: int
    se_ratio: float = 0.0
    skip: bool = True
    scale_width: bool = True
    scale_depth: bool = True

    def __post_init__(self) -> None:
        _check_choice(self, "block", BlockKind)
        _check_positive(self, "num_layers", "stride", "expand_ratio", "out_channels")
        _check_odd(self, "kernel_size")
        _check_range(self, "se_ratio", 0.0, 1.0, closed=True)
        if self.block != "mbconv" and self.expand_ratio != 1:
            raise SpecError(f"expand_ratio belongs to mbconv; for block {self.block!r} it must be 1")
        if self.block != "mbconv" and self.se_ratio != 0.0:
            raise SpecError(f"se_ratio belongs to mbconv; for block {self.block!r} it must be 0")
        if self.block != "mbconv" and not self.skip:
            raise SpecError(f"skip belongs to mbconv; for block {self.block!r} it must be true")
        if self.block == "bottleneck" and self.out_channels % 4:
            raise SpecError(f"out_channels of a bottleneck must be a multiple of 4, got {self.out_channels}")


@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """The 1×1 convolution, with norm and activation, before pooling and classifier."""

    out_channels: int
    scale_width: bool = True

    def __post_init__(self) -> None:
        _check_positive(self, "out_channels")


@dataclass(frozen=True, kw_only=True)
class BlockSpec:
    """One block of a network, with everything that its place in the chain decides.

    Attributes:
        stage: The stage that it repeats.
        stage_index: Index of the stage, from 0.
        layer_index: Index of the block in the stage, from 0.
        in_channels: Channels that it receives.
        out_channels: Channels that it makes.
        stride: The stage's stride in its first block, then 1.
        drop_path: Probability of dropping the block's branch, per sample.
    """

    stage: StageSpec
    stage_index: int
    layer_index: int
    in_channels: int
    out_channels: int
    stride: int
    drop_path: float

    @property
    def expanded_channels(self) -> int:
        """Channels of the depthwise convolution of an MBConv."""
        return self.in_channels * self.stage.expand_ratio

    @property
    def se_channels(self) -> int:
        """Width of the squeeze; 0 means no squeeze-excite. Authors' code: max(1, int(in · ratio))."""
        ratio = self.stage.se_ratio
        return max(1, int(self.in_channels * ratio)) if ratio > 0 else 0

    @property
    def fits_skip(self) -> bool:
        """Whether input and output have one shape, so that they could be added."""
        return self.stride == 1 and self.in_channels == self.out_channels

    @property
    def has_skip(self) -> bool:
        """Whether input and output are added without a projection."""
        return self.fits_skip and self.stage.skip and self.stage.block != "depthwise_separable"


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """A whole network. Frozen: scaling and every other change give a new spec.

    Attributes:
        name: What to call it; a label, never parsed.
        stem: First convolution.
        stages: The repeated stages, in order.
        head: Last 1×1 convolution, or None (ResNet, MobileNetV1).
        image_size: Native (height, width) in pixels.
        in_channels: Channels of the image.
        num_classes: Width of the classifier; 0 leaves it out.
        activation: Activation after every normalised convolution that has one.
        padding: ``"same"`` (TensorFlow's, asymmetric at stride 2) or ``"symmetric"`` (k // 2).
        norm_eps: Epsilon of batch normalisation.
        norm_momentum: Momentum of batch normalisation in PyTorch's sense (weight of the new batch).
        conv_bias: Whether convolutions that a norm follows have a bias too.
        dropout: Dropout rate before the classifier.
        drop_path: Drop path rate of the last block; block i of n has drop_path · i / n.

    Raises:
        SpecError: A field has a value that no network can have; the message names field and fix.
    """

    name: str
    stem: StemSpec
    stages: tuple[StageSpec, ...]
    head: HeadSpec | None = None
    image_size: tuple[int, int] = (224, 224)
    in_channels: int = 3
    num_classes: int = 1000
    activation: Activation = "swish"
    padding: Padding = "same"
    norm_eps: float = 1e-3
    norm_momentum: float = 0.01
    conv_bias: bool = False
    dropout: float = 0.0
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise SpecError("name must be a text of at least one character")
        if not self.stages:
            raise SpecError("stages must hold at least one stage")
        object.__setattr__(self, "stages", tuple(self.stages))
        object.__setattr__(self, "image_size", as_size(self.image_size))
        _check_positive(self, "in_channels")
        if _not_int(self.num_classes) or self.num_classes < 0:
            raise SpecError(f"num_classes must be an integer of at least 0, got {self.num_classes!r}")
        _check_choice(self, "activation", Activation)
        _check_choice(self, "padding", Padding)
        if not _is_number(self.norm_eps) or not 0 < self.norm_eps < 1:
            raise SpecError(f"norm_eps must lie between 0 and 1, got {self.norm_eps!r}; try 1e-3")
        if not _is_number(self.norm_momentum) or not 0 < self.norm_momentum <= 1:
            raise SpecError(
                f"norm_momentum must lie in (0, 1], got {self.norm_momentum!r}; "
                "TensorFlow's 0.99 is 0.01 here"
            )
        _check_range(self, "dropout", 0.0, 1.0)
        _check_range(self, "drop_path", 0.0, 1.0)

    # -- derived -------------------------------------------------------------------------------

    @property
    def num_blocks(self) -> int:
        """Blocks in all stages."""
        return sum(stage.num_layers for stage in self.stages)

    @property
    def output_stride(self) -> int:
        """Input pixels per pixel of the last feature map, along one side."""
        stride = self.stem.stride * (2 if self.stem.max_pool else 1)
        for stage in self.stages:
            stride *= stage.stride
        return stride

    @property
    def num_features(self) -> int:
        """Channels of the last feature map, which the classifier reads."""
        return self.head.out_channels if self.head else self.stages[-1].out_channels

    def blocks(self) -> Iterator[BlockSpec]:
        """Every block in order, with its channels, stride and drop path rate."""
        channels, index = self.stem.out_channels, 0
        for stage_index, stage in enumerate(self.stages):
            for layer_index in range(stage.num_layers):
                yield BlockSpec(
                    stage=stage,
                    stage_index=stage_index,
                    layer_index=layer_index,
                    in_channels=channels,
                    out_channels=stage.out_channels,
                    stride=stage.stride if layer_index == 0 else 1,
                    # The authors' code divides by n, not n - 1: the last block stays below the rate.
                    drop_path=self.drop_path * index / self.num_blocks,
                )
                channels, index = stage.out_channels, index + 1

    # -- JSON ----------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """The spec as plain values, ready for JSON.

        `skip` is there only where it is false: files and keys from before it was a choice stay as they are.
        """
        fields = dataclasses.asdict(self)
        for stage in fields["stages"]:
            if stage["skip"]:
                del stage["skip"]
        return {"format": FORMAT, **fields}

    def to_json(self) -> str:
        """The spec as indented JSON; `from_json` gives an equal spec back."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NetworkSpec:
        """Inverse of `to_dict`.

        Raises:
            SpecError: A field is missing, unknown, of the wrong type or out of range; the message
                names it by its path, such as ``stages[3].kernel_size``.
        """
        if not isinstance(data, Mapping):
            raise SpecError(f"a network spec must be a JSON object, got {type(data).__name__}")
        fields = dict(data)
        found = fields.pop("format", FORMAT)
        if found != FORMAT:
            raise SpecError(f"format {found!r} is not known; this version reads {FORMAT!r}")
        return _parse(cls, fields, path="")

    @classmethod
    def from_json(cls, text: str) -> NetworkSpec:
        """Inverse of `to_json`.

        Raises:
            SpecError: The text is no JSON, or not a valid spec.
        """
        try:
            data = json.loads(text)
        # A number of thousands of digits is a plain ValueError.
        except (ValueError, RecursionError) as error:
            raise SpecError(f"not valid JSON: {error}") from None
        return cls.from_dict(data)

    @classmethod
    def read(cls, path: str | Path) -> NetworkSpec:
        """Read a spec from a JSON file.

        Raises:
            SpecError: The file cannot be read, or holds no valid spec.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SpecError(f"cannot read the spec {path}: {error}") from None
        try:
            return cls.from_json(text)
        except SpecError as error:
            raise SpecError(f"{path}: {error}") from None


def as_size(value: int | tuple[int, int] | list[int], *, name: str = "image_size") -> tuple[int, int]:
    """An image size as (height, width) in pixels, from one side or both.

    Args:
        value: Side, or height and width.
        name: What the error calls it.

    Raises:
        SpecError: Not one or two positive integers.
    """
    sides = (value, value) if isinstance(value, int) else tuple(value) if _is_pair(value) else ()
    if len(sides) != 2 or any(_not_int(side) or side < 1 for side in sides):
        raise SpecError(
            f"{name} must be one or two positive integers (height, width), got {value!r}; try 224"
        )
    return (sides[0], sides[1])


def _is_pair(value: object) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2


def _not_int(value: object) -> bool:
    return not isinstance(value, int) or isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_positive(spec: object, *names: str) -> None:
    for name in names:
        value = getattr(spec, name)
        if _not_int(value) or value < 1:
            raise SpecError(f"{name} must be an integer of at least 1, got {value!r}")


def _check_odd(spec: object, name: str) -> None:
    value = getattr(spec, name)
    if _not_int(value) or value < 1 or value % 2 == 0:
        raise SpecError(f"{name} must be an odd integer of at least 1, got {value!r}; try 3 or 5")


def _check_range(spec: object, name: str, low: float, high: float, *, closed: bool = False) -> None:
    value = getattr(spec, name)
    if not _is_number(value) or not (low <= value < high or (closed and value == high)):
        bracket = "]" if closed else ")"
        raise SpecError(f"{name} must lie in [{low:g}, {high:g}{bracket}, got {value!r}")


def _check_choice(spec: object, name: str, literal: Any) -> None:
    value, choices = getattr(spec, name), typing.get_args(literal)
    if value not in choices:
        raise SpecError(f"{name} must be one of {', '.join(choices)}; got {value!r}")


def _parse(cls: type[T], data: Mapping[str, Any], *, path: str) -> T:
    """Build a spec dataclass from plain values; `path` leads to `data` in the whole document."""
    dot = f"{path}." if path else ""
    hints = typing.get_type_hints(cls)
    known = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in data:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
            raise SpecError(f"{dot}{key} is not a field; {hint}")
    for name, field in known.items():
        if name not in data and field.default is dataclasses.MISSING:
            raise SpecError(f"{dot}{name} is missing; add it")
    values = {name: _value(hints[name], value, path=f"{dot}{name}") for name, value in data.items()}
    try:
        return cls(**values)
    except SpecError as error:
        raise SpecError(f"{dot}{error}") from None


def _value(hint: Any, value: Any, *, path: str) -> Any:
    """Convert one JSON value to the annotated type of its field."""
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(arg for arg in typing.get_args(hint) if arg is not types.NoneType)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise SpecError(f"{path} must be an object, got {value!r}")
        return _parse(hint, value, path=path)
    if hint == tuple[StageSpec, ...]:
        if not isinstance(value, list | tuple):
            raise SpecError(f"{path} must be a list of stages, got {value!r}")
        return tuple(_value(StageSpec, item, path=f"{path}[{i}]") for i, item in enumerate(value))
    if hint is bool and not isinstance(value, bool):
        raise SpecError(f"{path} must be true or false, got {value!r}")
    return value
