"""The space in which a baseline is searched: MnasNet's, factorised over the stages of a network.

Every stage has its own operator, kernel, expansion, squeeze-excite, skip, layers and channels (Tan et al.
2019, "MnasNet", section 4.1), so layers differ from stage to stage and not within one. Strides, stem, head
and image size are those of a template.

Examples:
    >>> from phiscale import get_spec
    >>> space = SearchSpace.around(get_spec("efficientnet_b0"))
    >>> space.encode(space.template)["stages[2].kernel_size"]
    5
    >>> space.decode(space.encode(space.template)) == space.template
    True
"""

from __future__ import annotations

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
KERNELS, EXPANSIONS, SE_RATIOS, SKIPS = (3, 5), (1, 3, 4, 6), (0.0, 0.25), (False, True)
# MnasNet, section 4.1: filters of 0.75, 1 and 1.25 times, layers of one less and one more.
CHANNEL_FACTORS = (0.75, 1.25)
CHANNEL_STEP, LAYER_STEP = 8, 1
# What other blocks have in place of a choice.
ONLY_MBCONV: Mapping[str, Value] = {"expand_ratio": 1, "se_ratio": 0.0, "skip": True}


@dataclass(frozen=True, kw_only=True)
class StageSpace:
    """What one stage can be: the values of each field of `StageSpec`, in order of cost.

    A separable stage has no expansion, no squeeze-excite and no skip, whatever is chosen for them.

    Raises:
        SpecError: A field has no value, one twice, one out of order, or one that no stage can have.
    """

    block: tuple[BlockKind, ...] = BLOCKS
    kernel_size: tuple[int, ...] = KERNELS
    expand_ratio: tuple[int, ...] = EXPANSIONS
    se_ratio: tuple[float, ...] = SE_RATIOS
    skip: tuple[bool, ...] = SKIPS
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

    def size(self, *, fits_skip: bool) -> int:
        """How many different stages of some number of output channels there are.

        Args:
            fits_skip: Whether the first block's input has the shape of its output.
        """
        other = len(self.expand_ratio) * len(self.se_ratio)
        sizes = {
            "mbconv": sum(
                other * (len(self.skip) if fits_skip or layers > 1 else 1) for layers in self.num_layers
            ),
            "depthwise_separable": len(self.num_layers),
        }
        return len(self.kernel_size) * sum(sizes[block] for block in self.block)

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
        # By the channels that they end with, which decide whether the next stage can add its input.
        networks = {self.template.stem.out_channels: 1}
        for stage, space in zip(self.template.stages, self.stages, strict=True):
            networks = {
                out: sum(
                    count * space.size(fits_skip=stage.stride == 1 and channels == out)
                    for channels, count in networks.items()
                )
                for out in space.out_channels
            }
        return sum(networks.values())

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
        return self._plain(replace(self.template, stages=stages))

    def encode(self, spec: NetworkSpec) -> dict[str, Value]:
        """The point of a network; `decode` gives an equal network back, but for its name.

        What a stage does not have, such as the expansion of a separable one, is set to the first choice.

        Raises:
            SpecError: The network is not in the space; the message says in what.
        """
        if len(spec.stages) != len(self.stages):
            raise SpecError(f"{spec.name} has {len(spec.stages)} stages, and the space {len(self.stages)}")
        can_skip = _can_skip(spec)
        point = {
            _name(index, field): values[0]
            if _absent(stage, field, can_skip=can_skip[index])
            else getattr(stage, field)
            for index, (stage, space) in enumerate(zip(spec.stages, self.stages, strict=True))
            for field, values in space.choices().items()
        }
        if replace(self.decode(point), name=spec.name) != self._plain(spec):
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
            values |= ONLY_MBCONV
        return values

    def _plain(self, spec: NetworkSpec) -> NetworkSpec:
        """The same network with the template's `skip` where it decides nothing, so that equals are equal."""
        stages = [
            replace(stage, skip=stage.block != "mbconv" or own.skip) if not can_skip else stage
            for stage, own, can_skip in zip(spec.stages, self.template.stages, _can_skip(spec), strict=True)
        ]
        return replace(spec, stages=tuple(stages))


def _name(index: int, field: str) -> str:
    return f"stages[{index}].{field}"


def _can_skip(spec: NetworkSpec) -> list[bool]:
    """Of each stage, whether it has an MBConv whose input could be added to its output."""
    fitting = {block.stage_index for block in spec.blocks() if block.fits_skip}
    return [stage.block == "mbconv" and index in fitting for index, stage in enumerate(spec.stages)]


def _absent(stage: StageSpec, field: str, *, can_skip: bool) -> bool:
    return (stage.block != "mbconv" and field in ONLY_MBCONV) or (field == "skip" and not can_skip)


def _ordered(values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(sorted(values))
