"""ResNet-18, 34, 50 and 101 (He et al. 2016, Table 1), stride in the 3×3 as in torchvision (V1.5)."""

from __future__ import annotations

from phiscale.spec import BlockKind, NetworkSpec, StageSpec, StemSpec

__all__ = ["RESNET"]


def _resnet(name: str, block: BlockKind, layers: tuple[int, int, int, int]) -> NetworkSpec:
    channels = (256, 512, 1024, 2048) if block == "bottleneck" else (64, 128, 256, 512)
    return NetworkSpec(
        name=name,
        stem=StemSpec(out_channels=64, kernel_size=7, max_pool=True),
        stages=tuple(
            StageSpec(block=block, out_channels=c, num_layers=n, stride=1 if i == 0 else 2)
            for i, (c, n) in enumerate(zip(channels, layers, strict=True))
        ),
        activation="relu",
        padding="symmetric",
        norm_eps=1e-5,
        norm_momentum=0.1,
    )


RESNET: dict[str, NetworkSpec] = {
    spec.name: spec
    for spec in (
        _resnet("resnet18", "basic", (2, 2, 2, 2)),
        _resnet("resnet34", "basic", (3, 4, 6, 3)),
        _resnet("resnet50", "bottleneck", (3, 4, 6, 3)),
        _resnet("resnet101", "bottleneck", (3, 4, 23, 3)),
    )
}
