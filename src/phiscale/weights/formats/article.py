"""The layout of the files ``efficientnet-b0-d86f8792.pth`` to ``efficientnet-b7-86e8e374.pth``."""

from phiscale.weights.formats.keymap import KeyMap

# Convolutions of more than one pixel are wrapped once more, for their padding.
_PLAIN = {
    "depthwise.conv": "dp_conv.conv.conv",
    "depthwise.norm": "dp_conv.bn",
    "se.reduce": "se.dim_reduce",
    "se.expand": "se.dim_restore",
    "project.conv": "project_conv.conv",
    "project.norm": "project_conv.bn",
}

ARTICLE = KeyMap(
    name="article",
    publisher="article",
    signature="stages.0.layers.0.dp_conv.conv.conv.weight",
    outer={
        "stem.conv": "init_conv.conv.conv",
        "stem.norm": "init_conv.bn",
        "head.conv": "head_conv.conv",
        "head.norm": "head_conv.bn",
        "classifier": "fc",
    },
    block="stages.{stage}.layers.{layer}.",
    plain=_PLAIN,
    expanded={"expand.conv": "expand_conv.conv", "expand.norm": "expand_conv.bn", **_PLAIN},
)
