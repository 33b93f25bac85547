"""Keras: ``keras.applications.EfficientNetB0`` to ``B7``, without the layers before the stem."""

from phiscale.weights.formats.keymap import KeyMap

_PLAIN = {
    "depthwise.conv": "dwconv",
    "depthwise.norm": "bn",
    "se.reduce": "se_reduce",
    "se.expand": "se_expand",
    "project.conv": "project_conv",
    "project.norm": "project_bn",
}

KERAS = KeyMap(
    name="keras",
    publisher="Keras",
    signature="block1a_dwconv/kernel",
    outer={
        "stem.conv": "stem_conv",
        "stem.norm": "stem_bn",
        "head.conv": "top_conv",
        "head.norm": "top_bn",
        "classifier": "predictions",
    },
    block="block{stage1}{letter}_",
    plain=_PLAIN,
    expanded={"expand.conv": "expand_conv", "expand.norm": "expand_bn", **_PLAIN},
    needs_se=True,
    leaves={
        "conv.weight": "kernel",
        "depthwise.weight": "kernel",
        "linear.weight": "kernel",
        "norm.weight": "gamma",
        "norm.bias": "beta",
        "norm.running_mean": "moving_mean",
        "norm.running_var": "moving_variance",
        "norm.num_batches_tracked": None,
    },
    # Height, width, input and output channels; a depthwise kernel has its channels and a one last.
    axes={"conv": (3, 2, 0, 1), "depthwise": (2, 3, 0, 1), "linear": (1, 0)},
    separator="/",
)
