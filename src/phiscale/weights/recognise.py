"""Whose layout a file has and which network it holds, by names and shapes alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from torch import Tensor

from phiscale.errors import ModelDirError
from phiscale.families import FAMILIES
from phiscale.spec import NetworkSpec
from phiscale.weights.formats import FORMATS
from phiscale.weights.formats.keymap import KeyMap, kind_of
from phiscale.weights.formats.own import OWN
from phiscale.weights.shapes import Shape, tensor_shapes

__all__ = ["Match", "from_layout", "recognise", "tensor_names", "to_layout"]

# Prefixes of wrappers: data parallel, torch.compile, Lightning modules, timm's and others' scripts.
_WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "encoder_q.", "student.")
# A file with less than this share of a network's tensors is not called one of it.
_LEAST_OVERLAP = 0.5
_COUNTER = ".num_batches_tracked"
# A tensor that every network of MBConv blocks has, whatever its layout.
_FIRST = "stages.0.0.depthwise.conv.weight"
# One that every network here has.
_OWN_STEM = "stem.conv.weight"


@dataclass(frozen=True, kw_only=True)
class Match:
    """What was recognised.

    Attributes:
        layout: Whose names the file has.
        spec: The network, with the file's classes and channels; padding and norm are not in a file's
            names and shapes, and are as in `families`.
        tensors: The file's tensors by our names, in our order of axes.
        missing: Our names of tensors that the network needs and the file does not have.
        wrong_shape: Our name -> (shape that the network needs, shape in the file).
        unexpected: The file's names of tensors that the network does not have.
    """

    layout: KeyMap
    spec: NetworkSpec
    tensors: dict[str, Tensor]
    missing: tuple[str, ...]
    wrong_shape: Mapping[str, tuple[Shape, Shape]]
    unexpected: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether the file has just what the network needs."""
        return not (self.missing or self.wrong_shape or self.unexpected)


def recognise(tensors: Mapping[str, Tensor], *, also: Iterable[NetworkSpec] = ()) -> Match:
    """Find layout and network of a file's tensors.

    Every layout is compared with every published EfficientNet, and the pair with the largest overlap
    of names and shapes is taken. The classifier's rows and the stem's input channels are free.

    Args:
        tensors: Names and tensors of a file.
        also: Further networks that it may be; they go first where two overlap alike.

    Raises:
        ModelDirError: The names are of no known layout, or the shapes of no known network.
    """
    also = tuple(also)
    prefix = _prefix_before(_OWN_STEM, tensors)
    if prefix is not None:
        bare = _without_prefix(tensors, prefix)
        for spec in also:
            if _is_other(spec) and _own_overlap(spec, bare) >= _LEAST_OVERLAP:
                return _match(OWN, spec, bare)
    own = [spec for spec in also if not _is_other(spec)]
    layout, tensors = _find_layout(tensors, own)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    candidates = [spec for spec in (*own, *_published()) if _has_names(layout, spec)]
    overlaps = [_overlap(layout, spec, shapes) for spec in candidates]
    best = max(range(len(candidates)), key=lambda index: overlaps[index])
    if overlaps[best] < _LEAST_OVERLAP:
        raise ModelDirError(
            f"the names are those of the {layout.name} layout, but no known network has these shapes; "
            f"nearest is {candidates[best].name} with {overlaps[best]:.0%} of the tensors; "
            "give the spec of the network"
        )
    return _match(layout, candidates[best], tensors)


def from_layout(layout: KeyMap, spec: NetworkSpec, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A file's tensors by our names, in our order of axes; those that `spec` has no name for are left out.

    Args:
        layout: Whose names the file has.
        spec: The network in the file.
        tensors: By the file's names.
    """
    names = tensor_names(layout, spec)
    return {
        ours: _permuted(tensors[theirs], layout, ours) for ours, theirs in names.items() if theirs in tensors
    }


def to_layout(layout: KeyMap, spec: NetworkSpec, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `from_layout`; tensors that the layout does not have are left out.

    Raises:
        ModelDirError: The layout has no names for such a network.
    """
    names = tensor_names(layout, spec)
    return {
        theirs: _permuted(tensors[ours], layout, ours, back=True).contiguous()
        for ours, theirs in names.items()
        if ours in tensors
    }


def tensor_names(layout: KeyMap, spec: NetworkSpec) -> dict[str, str]:
    """Every tensor that a layout has for a network: our name -> theirs, in the order of the network.

    Raises:
        ModelDirError: The layout has no names for such a network.
    """
    if layout is OWN:  # which has names for networks of every kind
        return {name: name for name in tensor_shapes(spec)}
    return layout.tensors(spec)


def _permuted(tensor: Tensor, layout: KeyMap, ours: str, *, back: bool = False) -> Tensor:
    module, _, leaf = ours.rpartition(".")
    axes = layout.axes.get(kind_of(module)) if leaf == "weight" else None
    if axes is None or tensor.dim() != len(axes):
        return tensor
    order = sorted(range(len(axes)), key=lambda axis: axes[axis]) if back else axes
    return tensor.permute(*order)


def _find_layout(
    tensors: Mapping[str, Tensor], own: Iterable[NetworkSpec]
) -> tuple[KeyMap, dict[str, Tensor]]:
    """The layout, and the tensors without the prefix of a wrapper."""
    for layout, signature in _signatures(own):
        prefix = _prefix_before(signature, tensors)
        if prefix is not None:
            return layout, _without_prefix(tensors, prefix)
        if layout.optional_prefix:
            prefix = _prefix_before(signature.removeprefix(layout.optional_prefix), tensors)
            if prefix is not None:
                bare = _without_prefix(tensors, prefix)
                return layout, {_with_body(name, layout): tensor for name, tensor in bare.items()}
    some = ", ".join(list(tensors)[:3])
    raise ModelDirError(
        f"the names are of no known layout (such as {some}); known are EfficientNets of {', '.join(FORMATS)}"
    )


def _signatures(own: Iterable[NetworkSpec]) -> Iterator[tuple[KeyMap, str]]:
    for layout in FORMATS.values():
        yield layout, layout.signature
    # torchvision numbers the parts of a block, so one with an expansion in front has other names.
    for spec in own:
        for layout in FORMATS.values():
            if _has_names(layout, spec):
                yield layout, tensor_names(layout, spec)[_FIRST]


def _prefix_before(signature: str, names: Iterable[str]) -> str | None:
    """What wrappers put in front of a name, perhaps nothing; None where the name is not there."""
    found = (name.removesuffix(signature) for name in names if name.endswith(signature))
    return next((prefix for prefix in found if _is_wrapper(prefix)), None)


def _is_wrapper(prefix: str) -> bool:
    while prefix:
        wrapper = next((w for w in _WRAPPERS if prefix.startswith(w)), None)
        if wrapper is None:
            return False
        prefix = prefix.removeprefix(wrapper)
    return True


def _without_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Names without a prefix; those of other parts, such as a loss with weights, stay as they are."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _with_body(name: str, layout: KeyMap) -> str:
    return name if name.startswith(layout.outer["classifier"]) else layout.optional_prefix + name


def _is_other(spec: NetworkSpec) -> bool:
    """Whether it is a network that only our own layout has names for, such as a ResNet."""
    return spec.head is None or any(stage.block != "mbconv" for stage in spec.stages)


def _own_overlap(spec: NetworkSpec, tensors: Mapping[str, Tensor]) -> float:
    shapes = tensor_shapes(spec)
    common = sum(name in tensors and tuple(tensors[name].shape) == shape for name, shape in shapes.items())
    return common / len(shapes.keys() | tensors.keys())


def _published() -> list[NetworkSpec]:
    return [*FAMILIES["efficientnet"].values(), *FAMILIES["efficientnet_lite"].values()]


def _has_names(layout: KeyMap, spec: NetworkSpec) -> bool:
    try:
        _their_shapes(layout, spec)
    except ModelDirError:
        return False
    return True


@lru_cache(maxsize=256)
def _their_shapes_cached(layout_name: str, spec: NetworkSpec) -> dict[str, Shape]:
    layout, shapes = FORMATS[layout_name], tensor_shapes(spec)
    found: dict[str, Shape] = {}
    for ours, theirs in tensor_names(layout, spec).items():
        shape = shapes[ours]
        module, _, leaf = ours.rpartition(".")
        axes = layout.axes.get(kind_of(module)) if leaf == "weight" else None
        if axes is not None:
            order = sorted(range(len(axes)), key=lambda axis: axes[axis])
            shape = tuple(shape[axis] for axis in order)
        found[theirs] = shape
    return found


def _their_shapes(layout: KeyMap, spec: NetworkSpec) -> dict[str, Shape]:
    return _their_shapes_cached(layout.name, spec)


def _overlap(layout: KeyMap, spec: NetworkSpec, shapes: Mapping[str, Shape]) -> float:
    """Tensors in common, of those that either has, classifier, stem and counters aside."""
    wanted = _their_shapes(layout, spec)
    free = (layout.outer["classifier"] + layout.separator, layout.outer["stem.conv"] + layout.separator)
    needed = {name for name in wanted if not name.startswith(free) and not name.endswith(_COUNTER)}
    found = {name for name in shapes if not name.startswith(free) and not name.endswith(_COUNTER)}
    common = sum(wanted[name] == shapes[name] for name in needed & found)
    return common / len(needed | found)


def _match(layout: KeyMap, candidate: NetworkSpec, tensors: Mapping[str, Tensor]) -> Match:
    with_classifier = replace(candidate, num_classes=max(1, candidate.num_classes))
    state = from_layout(layout, with_classifier, tensors)
    spec = _with_ends(candidate, state)
    shapes, names = tensor_shapes(spec), tensor_names(layout, spec)
    used = set(tensor_names(layout, with_classifier).values())
    return Match(
        layout=layout,
        spec=spec,
        tensors={name: state[name] for name in shapes if name in state},
        # A counter of batches is of no use to a network; several publishers do not store it.
        missing=tuple(name for name in names if name not in state and not name.endswith(_COUNTER)),
        wrong_shape={
            name: (shape, tuple(state[name].shape))
            for name, shape in shapes.items()
            if name in state and tuple(state[name].shape) != shape
        },
        unexpected=tuple(name for name in tensors if name not in used),
    )


def _with_ends(spec: NetworkSpec, state: Mapping[str, Tensor]) -> NetworkSpec:
    """The spec with the classes and input channels of a file."""
    stem, classifier = state.get("stem.conv.weight"), state.get("classifier.weight")
    channels = stem.shape[1] if stem is not None and stem.dim() == 4 else spec.in_channels
    classes = classifier.shape[0] if classifier is not None and classifier.dim() == 2 else 0
    return replace(spec, in_channels=max(1, channels), num_classes=classes)
