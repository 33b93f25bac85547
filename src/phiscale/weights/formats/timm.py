"""timm: ``tf_efficientnet_*``, ``efficientnet_*`` and ``tf_efficientnet_lite*``, which share all names."""

from phiscale.weights.formats.keymap import KeyMap

TIMM = KeyMap(
    name="timm",
    publisher="timm",
    signature="blocks.0.0.conv_dw.weight",
    outer={
        "stem.conv": "conv_stem",
        "stem.norm": "bn1",
        "head.conv": "conv_head",
        "head.norm": "bn2",
        "classifier": "classifier",
    },
    block="blocks.{stage}.{layer}.",
    # Without an expansion timm's block is another class, in which the projection is called conv_pw.
    plain={
        "depthwise.conv": "conv_dw",
        "depthwise.norm": "bn1",
        "se.reduce": "se.conv_reduce",
        "se.expand": "se.conv_expand",
        "project.conv": "conv_pw",
        "project.norm": "bn2",
    },
    expanded={
        "expand.conv": "conv_pw",
        "expand.norm": "bn1",
        "depthwise.conv": "conv_dw",
        "depthwise.norm": "bn2",
        "se.reduce": "se.conv_reduce",
        "se.expand": "se.conv_expand",
        "project.conv": "conv_pwl",
        "project.norm": "bn3",
    },
)
