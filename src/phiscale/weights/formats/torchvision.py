"""torchvision: ``efficientnet_b0`` to ``efficientnet_b7``."""

from phiscale.weights.formats.keymap import KeyMap

TORCHVISION = KeyMap(
    name="torchvision",
    publisher="torchvision",
    signature="features.1.0.block.1.fc1.weight",
    outer={
        "stem.conv": "features.0.0",
        "stem.norm": "features.0.1",
        "head.conv": "features.{end}.0",
        "head.norm": "features.{end}.1",
        "classifier": "classifier.1",
    },
    block="features.{stage1}.{layer}.block.",
    plain={
        "depthwise.conv": "0.0",
        "depthwise.norm": "0.1",
        "se.reduce": "1.fc1",
        "se.expand": "1.fc2",
        "project.conv": "2.0",
        "project.norm": "2.1",
    },
    expanded={
        "expand.conv": "0.0",
        "expand.norm": "0.1",
        "depthwise.conv": "1.0",
        "depthwise.norm": "1.1",
        "se.reduce": "2.fc1",
        "se.expand": "2.fc2",
        "project.conv": "3.0",
        "project.norm": "3.1",
    },
    needs_se=True,
)
