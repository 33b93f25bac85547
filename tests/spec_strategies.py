"""Random valid networks, for tests that must hold for every spec."""

from __future__ import annotations

from hypothesis import strategies as st

from phiscale.spec import HeadSpec, NetworkSpec, StageSpec, StemSpec

__all__ = ["network_specs", "stage_specs"]


@st.composite
def stage_specs(draw: st.DrawFn, *, max_channels: int = 40) -> StageSpec:
    block = draw(st.sampled_from(["mbconv", "depthwise_separable", "bottleneck", "basic"]))
    channels = draw(st.integers(1, max_channels // 4)) * 4
    inverted = block == "mbconv"
    return StageSpec(
        block=block,  # type: ignore[arg-type]
        num_layers=draw(st.integers(1, 3)),
        kernel_size=draw(st.sampled_from([1, 3, 5, 7])),
        stride=draw(st.integers(1, 3)),
        expand_ratio=draw(st.integers(1, 6)) if inverted else 1,
        out_channels=channels,
        se_ratio=draw(st.sampled_from([0.0, 0.05, 0.25, 1.0])) if inverted else 0.0,
        skip=draw(st.booleans()) if inverted else True,
        scale_width=draw(st.booleans()),
        scale_depth=draw(st.booleans()),
    )


@st.composite
def network_specs(draw: st.DrawFn, *, max_channels: int = 40, max_stages: int = 4) -> NetworkSpec:
    heads = st.builds(HeadSpec, out_channels=st.integers(1, max_channels), scale_width=st.booleans())
    return NetworkSpec(
        name=draw(st.text(min_size=1, max_size=20)),
        stem=StemSpec(
            out_channels=draw(st.integers(1, max_channels)),
            kernel_size=draw(st.sampled_from([1, 3, 5, 7])),
            stride=draw(st.integers(1, 3)),
            max_pool=draw(st.booleans()),
            scale_width=draw(st.booleans()),
        ),
        stages=tuple(draw(st.lists(stage_specs(max_channels=max_channels), min_size=1, max_size=max_stages))),
        head=draw(st.none() | heads),
        image_size=(draw(st.integers(1, 500)), draw(st.integers(1, 500))),
        in_channels=draw(st.integers(1, 5)),
        num_classes=draw(st.integers(0, 50)),
        activation=draw(st.sampled_from(["swish", "relu", "relu6", "hard_swish"])),
        padding=draw(st.sampled_from(["same", "symmetric"])),
        norm_eps=draw(st.floats(1e-9, 0.1)),
        norm_momentum=draw(st.floats(0, 1, exclude_min=True)),
        conv_bias=draw(st.booleans()),
        dropout=draw(st.floats(0, 1, exclude_max=True)),
        drop_path=draw(st.floats(0, 1, exclude_max=True)),
    )
