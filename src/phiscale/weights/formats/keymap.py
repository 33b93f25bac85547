"""What a publisher's layout is: the names that it gives to the tensors of a network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from phiscale.errors import ModelDirError
from phiscale.spec import BlockSpec, NetworkSpec

__all__ = ["KeyMap", "kind_of"]


@dataclass(frozen=True, kw_only=True)
class KeyMap:
    """A two-way map between our module names and a publisher's, for every spec of MBConv blocks.

    Names hold placeholders: ``{stage}`` and ``{stage1}`` count stages from 0 and 1, ``{layer}`` and
    ``{letter}`` blocks within a stage from 0 and from ``a``, ``{block}`` all blocks from 0, ``{end}`` is
    one more than the number of stages.

    Attributes:
        name: What users call the layout.
        publisher: Whose it is.
        signature: A tensor that every file of this layout has, and no file of another.
        outer: Our module outside of the blocks -> theirs.
        block: Their prefix of a block.
        plain: Our module in a block without expansion -> theirs, without the prefix.
        expanded: The same for a block with expansion.
        needs_se: Whether blocks without squeeze-excite have no names here.
        needs_skip: Whether networks with an MBConv that lacks its skip have no names here. No tensor shows
            it, so a file in such a layout is one of a network with all skips.
        leaves: Tensor of a kind of module (``conv``, ``depthwise``, ``norm``, ``linear``) by our name, such
            as ``norm.weight`` -> theirs, where it is not ours; None where theirs has no such tensor.
        axes: Kind of module -> the order in which their axes make ours, where it is not the same.
        separator: Between a module's name and its tensor's.
        optional_prefix: A prefix of all but the classifier that files of the bare body lack.
    """

    name: str
    publisher: str
    signature: str
    outer: Mapping[str, str]
    block: str
    plain: Mapping[str, str]
    expanded: Mapping[str, str]
    needs_se: bool = False
    needs_skip: bool = True
    leaves: Mapping[str, str | None] = field(default_factory=dict)
    axes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    separator: str = "."
    optional_prefix: str = ""

    def modules(self, spec: NetworkSpec) -> dict[str, str]:
        """Every module that holds tensors: our name -> theirs, in the order of the network.

        Raises:
            ModelDirError: The layout has no names for such a network.
        """
        self._check(spec)
        end = len(spec.stages) + 1
        outer = {ours: theirs.format(end=end) for ours, theirs in self.outer.items()}
        names = {ours: outer[ours] for ours in ("stem.conv", "stem.norm")}
        for index, block in enumerate(spec.blocks()):
            names.update(self._block(index, block))
        names.update({ours: outer[ours] for ours in ("head.conv", "head.norm")})
        if spec.num_classes:
            names["classifier"] = outer["classifier"]
        return names

    def tensors(self, spec: NetworkSpec) -> dict[str, str]:
        """Every tensor that the layout has: our name -> theirs, in the order of the network.

        Raises:
            ModelDirError: The layout has no names for such a network.
        """
        return {
            f"{ours}.{leaf}": f"{theirs}{self.separator}{their_leaf}"
            for ours, theirs in self.modules(spec).items()
            for leaf in _leaves(ours, conv_bias=spec.conv_bias)
            if (their_leaf := self._leaf(ours, leaf)) is not None
        }

    def _leaf(self, module: str, leaf: str) -> str | None:
        return self.leaves.get(f"{kind_of(module)}.{leaf}", leaf)

    def _block(self, index: int, block: BlockSpec) -> Iterator[tuple[str, str]]:
        prefix = self.block.format(
            stage=block.stage_index,
            stage1=block.stage_index + 1,
            layer=block.layer_index,
            letter=_letters(block.layer_index),
            block=index,
        )
        parts = self.expanded if block.stage.expand_ratio != 1 else self.plain
        for ours, theirs in parts.items():
            if block.se_channels or not ours.startswith("se."):
                yield f"stages.{block.stage_index}.{block.layer_index}.{ours}", prefix + theirs

    def _check(self, spec: NetworkSpec) -> None:
        others = sorted({stage.block for stage in spec.stages if stage.block != "mbconv"})
        if others or spec.head is None:
            what = f"{others[0]} blocks" if others else "networks without a head"
            raise ModelDirError(f"the {self.name} layout of EfficientNets has no names for {what}")
        if self.needs_skip and any(block.fits_skip and not block.stage.skip for block in spec.blocks()):
            raise ModelDirError(
                f"in the {self.name} layout every MBConv has a skip, and {spec.name} is without some; "
                "keep its weights in the phiscale layout"
            )
        if self.needs_se and not all(block.se_channels for block in spec.blocks()):
            raise ModelDirError(
                f"{self.publisher} has no EfficientNet without squeeze-excite, so {spec.name} has no names "
                f"in the {self.name} layout; use timm or lukemelas"
            )


def _leaves(module: str, *, conv_bias: bool) -> tuple[str, ...]:
    if module.endswith(".norm"):
        return ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    has_bias = conv_bias or not module.endswith(".conv")
    return ("weight", "bias") if has_bias else ("weight",)


def kind_of(module: str) -> str:
    """The kind of a module by our name: ``conv``, ``depthwise``, ``norm`` or ``linear``."""
    if module.endswith("depthwise.conv"):
        return "depthwise"
    if module.endswith(".norm"):
        return "norm"
    return "linear" if module == "classifier" else "conv"


def _letters(index: int) -> str:
    """``a``, ``b``, …, ``z``, ``aa``, …: what follows a stage's number where blocks have letters."""
    if index < 26:
        return chr(ord("a") + index)
    return _letters(index // 26 - 1) + _letters(index % 26)
