"""EfficientNet-Lite0–4 (the authors' code): B0–B4 made easy for integer hardware.

No squeeze-excite, ReLU6 for Swish, stem and head not widened, first and last stage not deepened.
"""

from __future__ import annotations

from dataclasses import replace

from phiscale.families.efficientnet import B0
from phiscale.scaling.compound import scale
from phiscale.spec import NetworkSpec

__all__ = ["EFFICIENTNET_LITE"]


def _lite_baseline() -> NetworkSpec:
    assert B0.head is not None
    last = len(B0.stages) - 1
    return replace(
        B0,
        name="efficientnet_lite0",
        activation="relu6",
        stem=replace(B0.stem, scale_width=False),
        head=replace(B0.head, scale_width=False),
        stages=tuple(
            replace(stage, se_ratio=0.0, scale_depth=index not in (0, last))
            for index, stage in enumerate(B0.stages)
        ),
    )


LITE0 = _lite_baseline()


def _published(name: str, width: float, depth: float, resolution: int, dropout: float) -> NetworkSpec:
    scaled = scale(LITE0, depth=depth, width=width)
    return replace(scaled, name=name, image_size=(resolution, resolution), dropout=dropout)


EFFICIENTNET_LITE: dict[str, NetworkSpec] = {
    spec.name: spec
    for spec in (
        LITE0,
        _published("efficientnet_lite1", 1.0, 1.1, 240, 0.2),
        _published("efficientnet_lite2", 1.1, 1.2, 260, 0.3),
        _published("efficientnet_lite3", 1.2, 1.4, 280, 0.3),
        _published("efficientnet_lite4", 1.4, 1.8, 300, 0.3),
    )
}
