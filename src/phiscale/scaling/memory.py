"""How many numbers are alive at the worst moment of a forward pass and of a training step.

Both walk the operations in order and keep the tensors that PyTorch keeps. They count elements, not
bytes, and leave out weights and input images, which are there all the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from phiscale.scaling.tape import OpCost

__all__ = ["checkpointed_peak", "inference_peak", "training_peak"]


def inference_peak(ops: Sequence[OpCost]) -> int:
    """Elements alive at the peak of a forward pass without gradients, for one image.

    While an operation runs, its input and output are alive, and so are the inputs of the layer, the
    block and the stage that it is part of: their callers hold them.
    """
    peak = stage_entry = stage_input = block_input = layer_input = 0
    previous: OpCost | None = None
    for op in ops:
        opens_layer = op.kind in ("pad", "mean") or (
            op.kind == "conv" and (previous is None or previous.kind != "pad")
        )
        if previous is not None and op.block != previous.block:
            block_input, layer_input = previous.out_elements, 0
            if op.row != previous.row:
                # The first block reads the stage's input itself: one tensor, not two.
                stage_entry, stage_input = previous.out_elements, 0
            else:
                stage_input = stage_entry
        elif previous is not None and opens_layer:
            layer_input = previous.out_elements
        own_input = 0 if opens_layer else op.in_elements
        # Activations overwrite the norm's output.
        output = 0 if op.kind == "act" else op.out_elements
        peak = max(peak, stage_input + block_input + layer_input + own_input + output)
        previous = op
    return peak


def training_peak(ops: Sequence[OpCost], activation: str, *, batch_size: int) -> int:
    """Elements alive at the peak of a training step: saved activations and all gradients.

    Convolutions save their input; norms save theirs; Swish saves its input and ReLU, which
    overwrites, its output; squeeze-excite saves both factors. The backward pass frees them from the
    last to the first, while the gradients of the parameters accumulate.
    """
    overwrites = activation == "relu"
    saved = [_saved_output(op, after, overwrites) for op, after in zip(ops, [*ops[1:], None], strict=True)]
    alive = batch_size * sum(saved)
    gradients, peak = 0, alive
    shortcut = 0
    for index in range(len(ops) - 1, -1, -1):
        op = ops[index]
        if op.kind == "add":
            shortcut = op.out_elements
        gradients += op.params
        transient = op.in_elements + op.out_elements + shortcut
        peak = max(peak, alive + batch_size * transient + op.scratch + gradients)
        alive -= batch_size * saved[index]
        if index and ops[index - 1].block != op.block:
            shortcut = 0
    # The optimiser's step comes when all activations are gone.
    return max(peak, gradients)


def checkpointed_peak(ops: Sequence[OpCost], activation: str, *, batch_size: int) -> int:
    """`training_peak` where each block keeps its input alone and runs again in the backward pass.

    Stem and head keep all they need. While a block is run backwards, the inputs of the blocks before it
    are alive, and the gradients of the parameters behind it.
    """
    parts = [list(part) for _, part in groupby(ops, key=lambda op: op.block)]
    blocks = range(1, len(parts) - 1)  # between the stem and the head
    overwrites = activation == "relu"
    kept = [
        part[0].in_elements
        if index in blocks
        else sum(
            _saved_output(op, after, overwrites) for op, after in zip(part, [*part[1:], None], strict=True)
        )
        for index, part in enumerate(parts)
    ]
    gradients = peak = 0
    for index in range(len(parts) - 1, -1, -1):
        before = kept[: index + 1] if index in blocks else kept[:index]
        own = training_peak(parts[index], activation, batch_size=batch_size)
        peak = max(peak, batch_size * sum(before) + own + gradients)
        gradients += sum(op.params for op in parts[index])
    return max(peak, gradients)


def _saved_output(op: OpCost, after: OpCost | None, overwrites: bool) -> int:
    """Elements of an operation's output that the backward pass needs, for one image.

    A tensor is kept when its consumer saves it: pads, sums and means do not.
    """
    if op.kind == "act" and overwrites:
        return op.out_elements
    if after is None or after.kind in ("pad", "add"):
        return 0
    if after.kind == "act" and overwrites:
        return 0
    if after.kind == "mean":
        # The mean of a squeeze-excite is followed by the product, which saves the map.
        return op.out_elements if after.block == op.block and op.kind == "act" and after.row else 0
    is_side_branch = op.kind == "norm" and after.block == op.block and after.kind == "conv"
    return 0 if is_side_branch else op.out_elements
