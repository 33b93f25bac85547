"""The space in which a baseline is searched: MnasNet's, factorised over the stages of a network.

Every stage has its own operator, kernel, expansion, squeeze-excite, layers and channels (Tan et al. 2019,
"MnasNet", section 4.1), so layers differ from stage to stage and not within one. Strides, stem, head and
image size are those of a template. The skip follows the block: an MBConv has the identity, a separable
convolution has none.

Examples:
    >>> from phiscale import get_spec
    >>> space = SearchSpace.around(get_spec("efficientnet_b0"))
    >>> space.encode(space.template)["stages[2].kernel_size"]
    5
    >>> space.decode(space.encode(space.template)) == space.template
    True
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from phiscale.errors import SpecError
from phiscale.scaling.rounding import round_channels
from phiscale.spec import BlockKind, NetworkSpec, StageSpec

__all__ = ["BLOCKS", "Point", "SearchSpace", "StageSpace", "Value"]

Value = int | float | str
Point = Mapping[str, Value]
"""A choice for every name in `SearchSpace.choices`."""

BLOCKS: tuple[BlockKind, ...] = ("depthwise_separable", "mbconv")
KERNELS, EXPANSIONS, SE_RATIOS = (3, 5), (1, 3, 4, 6), (0.0, 0.25)
# MnasNet, section 4.1: filters of 0.75, 1 and 1.25 times, layers of one less and one more.
CHANNEL_FACTORS = (0.75, 1.25)
CHANNEL_STEP, LAYER_STEP = 8, 1
ONLY_MBCONV = ("expand_ratio", "se_ratio")


@dataclass(frozen=True, kw_only=True)
class StageSpace:
    """What one stage can be: the values of each field of `StageSpec`, in order of cost.

    A separable stage has no expansion and no squeeze-excite, whatever is chosen for them.

    Raises:
        SpecError: A field has no value, one twice, one out of order, or one that no stage can have.
    """

    block: tuple[BlockKind, ...] = BLOCKS
    kernel_size: tuple[int, ...] = KERNELS
    expand_ratio: tuple[int, ...] = EXPANSIONS
    se_ratio: tuple[float, ...] = SE_RATIOS
    num_layers: tuple[int, ...]
    out_channels: tuple[int, ...]

    def __post_init__(self) -> None:
        for name, values in self.choices().items():
            if not values or list(values) != sorted(set(values)):
                raise SpecError(f"{name} must list different values, the smallest first; got {values!r}")
        if not set(self.block) <= set(BLOCKS):
            raise SpecError(f"block must be of {', '.join(BLOCKS)}; got {', '.join(self.block)}")
        for name in ("kernel_size", "expand_ratio", "se_ratio", "num_layers", "out_channels"):
            for value in getattr(self, name):
                StageSpec(**{"block": "mbconv", "out_channels": 8, name: value})

    def choices(self) -> dict[str, tuple[Value, ...]]:
        """Field → its values."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def size(self) -> int:
        """How many different stages there are."""
        shared = len(self.kernel_size) * len(self.num_layers) * len(self.out_channels)
        of_block = {"mbconv": len(self.expand_ratio) * len(self.se_ratio)}
        return shared * sum(of_block.get(block, 1) for block in self.block)

    @classmethod
    def around(cls, stage: StageSpec) -> StageSpace:
        """MnasNet's choices about a stage, and the stage's own values.

        Raises:
            SpecError: The stage is of another kind of block.
        """
        if stage.block not in BLOCKS:
            raise SpecError(
                f"a baseline is searched among {' and '.join(BLOCKS)}, and the template has {stage.block}; "
                "take one of `phiscale models`' EfficientNets or MobileNets"
            )
        low, high = (round_channels(stage.out_channels, factor) for factor in CHANNEL_FACTORS)
        channels = {
            # Rounding gives few channels back as they are, and a choice is to make a difference.
            max(CHANNEL_STEP, min(low, stage.out_channels - CHANNEL_STEP)),
            stage.out_channels,
            max(high, stage.out_channels + CHANNEL_STEP),
        }
        layers = {max(1, stage.num_layers - LAYER_STEP), stage.num_layers, stage.num_layers + LAYER_STEP}
        return cls(
            kernel_size=_ordered({*KERNELS, stage.kernel_size}),
            expand_ratio=_ordered({*EXPANSIONS, stage.expand_ratio}),
            se_ratio=_ordered({*SE_RATIOS, stage.se_ratio}),
            num_layers=_ordered(layers),
            out_channels=_ordered(channels),
        )


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """Networks that differ from a template in what their stages are.

    Attributes:
        template: Gives strides, stem, head, image size, classes and everything else that is not chosen.
        stages: What each stage can be.

    Raises:
        SpecError: There are not as many as the template has stages.
    """

    template: NetworkSpec
    stages: tuple[StageSpace, ...]

    def __post_init__(self) -> None:
        if len(self.stages) != len(self.template.stages):
            raise SpecError(
                f"{self.template.name} has {len(self.template.stages)} stages, got choices for "
                f"{len(self.stages)}"
            )

    @classmethod
    def around(cls, template: NetworkSpec) -> SearchSpace:
        """MnasNet's space about a template, which is itself in it.

        Args:
            template: A network of the cost that is wanted, or a little more.

        Raises:
            SpecError: It has blocks of another kind than MBConv and depthwise separable.
        """
        return cls(template=template, stages=tuple(StageSpace.around(stage) for stage in template.stages))

    @property
    def size(self) -> int:
        """How many different networks there are."""
        return math.prod(stage.size for stage in self.stages)

    def choices(self) -> dict[str, tuple[Value, ...]]:
        """Name, such as ``"stages[2].kernel_size"`` → its values, the smallest first."""
        return {
            _name(index, field): values
            for index, stage in enumerate(self.stages)
            for field, values in stage.choices().items()
        }

    def decode(self, point: Point) -> NetworkSpec:
        """The network of a point.

        Args:
            point: One of its values for every name in `choices`.

        Raises:
            SpecError: A name is missing or unknown, or a value is not among the choices.
        """
        self._check(point)
        stages = tuple(
            replace(stage, **self._stage_values(index, point))
            for index, stage in enumerate(self.template.stages)
        )
        return replace(self.template, stages=stages)

    def encode(self, spec: NetworkSpec) -> dict[str, Value]:
        """The point of a network; `decode` gives an equal network back, but for its name.

        What a separable stage does not have is set to the first choice.

        Raises:
            SpecError: The network is not in the space; the message says in what.
        """
        if len(spec.stages) != len(self.stages):
            raise SpecError(f"{spec.name} has {len(spec.stages)} stages, and the space {len(self.stages)}")
        point = {
            _name(index, field): values[0] if _absent(stage, field) else getattr(stage, field)
            for index, (stage, space) in enumerate(zip(spec.stages, self.stages, strict=True))
            for field, values in space.choices().items()
        }
        if replace(self.decode(point), name=spec.name) != spec:
            raise SpecError(
                f"{spec.name} is not in the space: strides, stem, head and image size must be those of "
                f"{self.template.name}"
            )
        return point

    def smallest(self) -> NetworkSpec:
        """The network of fewest multiply-adds and parameters."""
        # A separable convolution does without the expansion; BLOCKS is ordered accordingly.
        return self.decode({name: values[0] for name, values in self.choices().items()})

    def _check(self, point: Point) -> None:
        choices = self.choices()
        for name in (*choices, *point):
            if name not in choices:
                raise SpecError(f"{name} is not in the space, which has {', '.join(choices)}")
            if name not in point:
                raise SpecError(f"{name} is missing; it is one of {choices[name]}")
            if point[name] not in choices[name]:
                raise SpecError(f"{name} must be one of {choices[name]}, got {point[name]!r}")

    def _stage_values(self, index: int, point: Point) -> dict[str, Any]:
        values: dict[str, Any] = {field: point[_name(index, field)] for field in self.stages[index].choices()}
        if values["block"] != "mbconv":
            values |= {"expand_ratio": 1, "se_ratio": 0.0}
        return values


def _name(index: int, field: str) -> str:
    return f"stages[{index}].{field}"


def _absent(stage: StageSpec, field: str) -> bool:
    return stage.block != "mbconv" and field in ONLY_MBCONV


def _ordered(values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(sorted(values))
