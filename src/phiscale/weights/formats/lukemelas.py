"""efficientnet_pytorch by Luke Melas-Kyriazi, and the Lite packages on PyPI, which share its names."""

from phiscale.weights.formats.keymap import KeyMap

_PLAIN = {
    "depthwise.conv": "_depthwise_conv",
    "depthwise.norm": "_bn1",
    "se.reduce": "_se_reduce",
    "se.expand": "_se_expand",
    "project.conv": "_project_conv",
    "project.norm": "_bn2",
}

LUKEMELAS = KeyMap(
    name="lukemelas",
    publisher="efficientnet_pytorch",
    signature="_blocks.0._depthwise_conv.weight",
    outer={
        "stem.conv": "_conv_stem",
        "stem.norm": "_bn0",
        "head.conv": "_conv_head",
        "head.norm": "_bn1",
        "classifier": "_fc",
    },
    block="_blocks.{block}.",
    plain=_PLAIN,
    expanded={"expand.conv": "_expand_conv", "expand.norm": "_bn0", **_PLAIN},
)
