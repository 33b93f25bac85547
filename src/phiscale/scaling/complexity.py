"""What a network costs, counted from its spec: no network is built, no torch is needed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from phiscale.errors import SpecError
from phiscale.scaling.memory import checkpointed_peak, inference_peak, training_peak
from phiscale.scaling.tape import OpCost, tape
from phiscale.spec import NetworkSpec, as_size

__all__ = ["MAX_BLOCKS", "Complexity", "StageComplexity", "complexity"]

FLOAT_BYTES = 4
# A safetensors header has a line of JSON per tensor: name, type, shape and offsets.
HEADER_BYTES_PER_TENSOR = 105
# Counting walks every block; past this no device has the memory anyway.
MAX_BLOCKS = 10_000


@dataclass(frozen=True, kw_only=True)
class StageComplexity:
    """One row of the paper's Table 1, with its cost.

    Attributes:
        operator: For example ``"MBConv6, k5x5, se0.25"``.
        input_size: (height, width) of its input in pixels.
        out_channels: Channels it makes.
        num_layers: Blocks in the stage.
        stride: Stride of its first block.
        params: Trainable parameters.
        macs: Multiply-adds for one image.
        activations: Elements of the outputs of its convolutions for one image.
    """

    operator: str
    input_size: tuple[int, int]
    out_channels: int
    num_layers: int
    stride: int
    params: int
    macs: int
    activations: int


@dataclass(frozen=True, kw_only=True)
class Complexity:
    """The cost of a network.

    Attributes:
        params: Trainable parameters.
        macs: Multiply-adds of convolutions and classifier for one image, biases not counted.
        activations: Elements of every convolution's output for one image, as pycls counts them.
        file_bytes: Size of the weights in a safetensors file, float32.
        inference_bytes: Peak of the tensors alive in a float32 forward pass of the batch, weights and
            images included.
        training_bytes: Peak of the tensors alive in a float32 training step of the batch: weights,
            gradients, optimiser state and what the backward pass needs.
        batch_size: Images in the batch of the last two.
        image_size: (height, width) that was counted.
        stages: Stem, every stage and head; params, macs and activations sum to the totals.
    """

    params: int
    macs: int
    activations: int
    file_bytes: int
    inference_bytes: int
    training_bytes: int
    batch_size: int
    image_size: tuple[int, int]
    stages: tuple[StageComplexity, ...]


def complexity(
    spec: NetworkSpec,
    batch_size: int = 1,
    image_size: int | tuple[int, int] | None = None,
    *,
    optimizer_states: int = 2,
    grad_checkpointing: bool = False,
) -> Complexity:
    """Count what a network costs.

    The two memory figures count tensors, as `torch.cuda.max_memory_allocated` would; libraries and
    their scratch space come on top (on CPUs often a fifth more). Measured within 15 %.

    Args:
        spec: The network.
        batch_size: Images per batch, for the memory figures.
        image_size: Side or (height, width) in pixels; None is the spec's own.
        optimizer_states: Numbers that the optimiser keeps per parameter: 0 for plain SGD, 1 with
            momentum, 2 for AdamW and for RMSProp with momentum.
        grad_checkpointing: Whether training keeps the input of each block alone.

    Raises:
        SpecError: `batch_size` or `image_size` is not positive, `optimizer_states` is negative, or the
            network has more than 10,000 blocks.

    Examples:
        >>> from phiscale import get_spec
        >>> complexity(get_spec("efficientnet_b0")).macs
        385814752
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise SpecError(f"batch_size must be an integer of at least 1, got {batch_size!r}")
    if isinstance(optimizer_states, bool) or not isinstance(optimizer_states, int) or optimizer_states < 0:
        raise SpecError(f"optimizer_states must be an integer of at least 0, got {optimizer_states!r}")
    if spec.num_blocks > MAX_BLOCKS:
        raise SpecError(
            f"{spec.name} has {spec.num_blocks:,} blocks; at most {MAX_BLOCKS:,} are counted: scale it less"
        )
    size = spec.image_size if image_size is None else as_size(image_size)
    return _complexity(spec, batch_size, size, optimizer_states, grad_checkpointing)


@lru_cache(maxsize=4096)
def _complexity(
    spec: NetworkSpec,
    batch_size: int,
    size: tuple[int, int],
    optimizer_states: int,
    grad_checkpointing: bool,
) -> Complexity:
    ops = list(tape(spec, size))
    params = sum(op.params for op in ops)
    stored = params + sum(op.buffers for op in ops)
    norms = sum(op.kind == "norm" for op in ops)
    counters = 8 * norms  # num_batches_tracked, int64
    peak = checkpointed_peak if grad_checkpointing else training_peak
    images = spec.in_channels * size[0] * size[1] * batch_size
    return Complexity(
        params=params,
        macs=sum(op.macs for op in ops),
        activations=sum(_activations(op) for op in ops),
        file_bytes=FLOAT_BYTES * stored + counters + HEADER_BYTES_PER_TENSOR * sum(op.tensors for op in ops),
        inference_bytes=FLOAT_BYTES * (stored + images + batch_size * inference_peak(ops)),
        training_bytes=FLOAT_BYTES
        * (stored + params * optimizer_states + images + peak(ops, spec.activation, batch_size=batch_size)),
        batch_size=batch_size,
        image_size=size,
        stages=_stages(spec, ops, size),
    )


def _activations(op: OpCost) -> int:
    return op.out_elements if op.kind in ("conv", "se_gate") else 0


def _stages(spec: NetworkSpec, ops: list[OpCost], size: tuple[int, int]) -> tuple[StageComplexity, ...]:
    stem, rows = spec.stem, []
    pool = ", max pool" if stem.max_pool else ""
    labels = [(f"Conv{stem.kernel_size}x{stem.kernel_size}{pool}", stem.out_channels, 1, stem.stride)]
    labels += [
        (_operator(spec, i), s.out_channels, s.num_layers, s.stride) for i, s in enumerate(spec.stages)
    ]
    head = "Conv1x1, pool, FC" if spec.head else "pool, FC"
    labels.append((head.removesuffix(", FC") if not spec.num_classes else head, spec.num_features, 1, 1))
    for row, (operator, channels, layers, stride) in enumerate(labels):
        own = [op for op in ops if op.row == row]
        rows.append(
            StageComplexity(
                operator=operator,
                input_size=size,
                out_channels=channels,
                num_layers=layers,
                stride=stride * (2 if row == 0 and stem.max_pool else 1),
                params=sum(op.params for op in own),
                macs=sum(op.macs for op in own),
                activations=sum(_activations(op) for op in own),
            )
        )
        size = (-(-size[0] // rows[-1].stride), -(-size[1] // rows[-1].stride))
    return tuple(rows)


def _operator(spec: NetworkSpec, index: int) -> str:
    stage = spec.stages[index]
    kernel = f"k{stage.kernel_size}x{stage.kernel_size}"
    match stage.block:
        case "mbconv":
            se = f", se{stage.se_ratio:g}" if stage.se_ratio else ""
            skip = "" if stage.skip else ", no skip"
            return f"MBConv{stage.expand_ratio}, {kernel}{se}{skip}"
        case "depthwise_separable":
            return f"Separable, {kernel}"
        case "bottleneck":
            return f"Bottleneck, {kernel}"
        case "basic":
            return f"Basic, {kernel}"
