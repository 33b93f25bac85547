"""MobileNetV1 (Howard et al. 2017, Table 1) and MobileNetV2 (Sandler et al. 2018, Table 2).

Both are baselines that the paper scales (Table 3). Activations and padding as in their published
code: ReLU6; V2 with symmetric padding, like torchvision's.
"""

from __future__ import annotations

from phiscale.spec import HeadSpec, NetworkSpec, StageSpec, StemSpec

__all__ = ["MOBILENET"]


def _separable(channels: int, layers: int, stride: int) -> StageSpec:
    return StageSpec(block="depthwise_separable", out_channels=channels, num_layers=layers, stride=stride)


def _inverted(expand_ratio: int, channels: int, layers: int, stride: int) -> StageSpec:
    return StageSpec(
        block="mbconv",
        expand_ratio=expand_ratio,
        out_channels=channels,
        num_layers=layers,
        stride=stride,
    )


MOBILENET: dict[str, NetworkSpec] = {
    spec.name: spec
    for spec in (
        NetworkSpec(
            name="mobilenet_v1",
            stem=StemSpec(out_channels=32),
            stages=(
                _separable(64, 1, 1),
                _separable(128, 2, 2),
                _separable(256, 2, 2),
                _separable(512, 6, 2),
                _separable(1024, 2, 2),
            ),
            activation="relu6",
            padding="symmetric",
            norm_eps=1e-5,
            norm_momentum=0.1,
            dropout=0.2,
        ),
        NetworkSpec(
            name="mobilenet_v2",
            stem=StemSpec(out_channels=32),
            stages=(
                _inverted(1, 16, 1, 1),
                _inverted(6, 24, 2, 2),
                _inverted(6, 32, 3, 2),
                _inverted(6, 64, 4, 2),
                _inverted(6, 96, 3, 1),
                _inverted(6, 160, 3, 2),
                _inverted(6, 320, 1, 1),
            ),
            head=HeadSpec(out_channels=1280),
            activation="relu6",
            padding="symmetric",
            norm_eps=1e-5,
            norm_momentum=0.1,
            dropout=0.2,
        ),
    )
}
