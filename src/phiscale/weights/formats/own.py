"""This project's own layout: the names of `phiscale.Network`."""

from phiscale.weights.formats.keymap import KeyMap

_PARTS = {
    "expand.conv": "expand.conv",
    "expand.norm": "expand.norm",
    "depthwise.conv": "depthwise.conv",
    "depthwise.norm": "depthwise.norm",
    "se.reduce": "se.reduce",
    "se.expand": "se.expand",
    "project.conv": "project.conv",
    "project.norm": "project.norm",
}

OWN = KeyMap(
    name="phiscale",
    publisher="phiscale",
    signature="stages.0.0.depthwise.conv.weight",
    outer={
        "stem.conv": "stem.conv",
        "stem.norm": "stem.norm",
        "head.conv": "head.conv",
        "head.norm": "head.norm",
        "classifier": "classifier",
    },
    block="stages.{stage}.{layer}.",
    plain={ours: theirs for ours, theirs in _PARTS.items() if not ours.startswith("expand.")},
    expanded=_PARTS,
    needs_skip=False,
)
