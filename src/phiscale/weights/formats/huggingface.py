"""Hugging Face transformers: ``EfficientNetForImageClassification``."""

from phiscale.weights.formats.keymap import KeyMap

_PLAIN = {
    "depthwise.conv": "depthwise_conv.depthwise_conv",
    "depthwise.norm": "depthwise_conv.depthwise_norm",
    "se.reduce": "squeeze_excite.reduce",
    "se.expand": "squeeze_excite.expand",
    "project.conv": "projection.project_conv",
    "project.norm": "projection.project_bn",
}

HUGGINGFACE = KeyMap(
    name="huggingface",
    publisher="transformers",
    signature="efficientnet.encoder.blocks.0.depthwise_conv.depthwise_conv.weight",
    outer={
        "stem.conv": "efficientnet.embeddings.convolution",
        "stem.norm": "efficientnet.embeddings.batchnorm",
        "head.conv": "efficientnet.encoder.top_conv",
        "head.norm": "efficientnet.encoder.top_bn",
        "classifier": "classifier",
    },
    block="efficientnet.encoder.blocks.{block}.",
    plain=_PLAIN,
    expanded={"expand.conv": "expansion.expand_conv", "expand.norm": "expansion.expand_bn", **_PLAIN},
    needs_se=True,
    optional_prefix="efficientnet.",
)
