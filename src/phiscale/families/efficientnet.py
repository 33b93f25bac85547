"""EfficientNet B0–B8 and L2 (Tan & Le 2019, Table 1; coefficients from the authors' code)."""

from __future__ import annotations

from dataclasses import replace

from phiscale.scaling.compound import scale
from phiscale.spec import HeadSpec, NetworkSpec, StageSpec, StemSpec

__all__ = ["EFFICIENTNET"]


def _mbconv(expand_ratio: int, kernel_size: int, channels: int, layers: int, stride: int) -> StageSpec:
    return StageSpec(
        block="mbconv",
        num_layers=layers,
        kernel_size=kernel_size,
        stride=stride,
        expand_ratio=expand_ratio,
        out_channels=channels,
        se_ratio=0.25,
    )


B0 = NetworkSpec(
    name="efficientnet_b0",
    stem=StemSpec(out_channels=32, kernel_size=3, stride=2),
    stages=(
        _mbconv(1, 3, 16, 1, 1),
        _mbconv(6, 3, 24, 2, 2),
        _mbconv(6, 5, 40, 2, 2),
        _mbconv(6, 3, 80, 3, 2),
        _mbconv(6, 5, 112, 3, 1),
        _mbconv(6, 5, 192, 4, 2),
        _mbconv(6, 3, 320, 1, 1),
    ),
    head=HeadSpec(out_channels=1280),
    image_size=(224, 224),
    activation="swish",
    padding="same",
    dropout=0.2,
    drop_path=0.2,
)


def _published(name: str, width: float, depth: float, resolution: int, dropout: float) -> NetworkSpec:
    # The published networks are data: no φ gives their coefficients, and the sides are not 224 · γ^φ.
    scaled = scale(B0, depth=depth, width=width)
    return replace(scaled, name=name, image_size=(resolution, resolution), dropout=dropout)


EFFICIENTNET: dict[str, NetworkSpec] = {
    spec.name: spec
    for spec in (
        B0,
        _published("efficientnet_b1", 1.0, 1.1, 240, 0.2),
        _published("efficientnet_b2", 1.1, 1.2, 260, 0.3),
        _published("efficientnet_b3", 1.2, 1.4, 300, 0.3),
        _published("efficientnet_b4", 1.4, 1.8, 380, 0.4),
        _published("efficientnet_b5", 1.6, 2.2, 456, 0.4),
        _published("efficientnet_b6", 1.8, 2.6, 528, 0.5),
        _published("efficientnet_b7", 2.0, 3.1, 600, 0.5),
        _published("efficientnet_b8", 2.2, 3.6, 672, 0.5),
        _published("efficientnet_l2", 4.3, 5.3, 800, 0.5),
    )
}
