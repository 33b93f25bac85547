"""The same weights give the same logits and features as timm's and torchvision's networks."""

from __future__ import annotations

import pytest
import torch
from parity import difference, images, ours_like, reference, run_with_stages, stages_of
from torch import Tensor, nn

from phiscale.nn.network import Network
from phiscale.spec import Padding

TOLERANCE = 1e-5
SMALL = [f"b{i}" for i in range(5)]
LARGE = [f"b{i}" for i in range(5, 8)]

Case = tuple[str, str, str, Padding]
CASES: list[Case] = [
    *(("timm", f"tf_efficientnet_{b}", f"efficientnet_{b}", "same") for b in SMALL),
    *(("timm", f"efficientnet_{b}", f"efficientnet_{b}", "symmetric") for b in SMALL),
    *(("torchvision", f"efficientnet_{b}", f"efficientnet_{b}", "symmetric") for b in SMALL),
    ("timm", "tf_efficientnet_lite0", "efficientnet_lite0", "same"),
    ("timm", "tf_efficientnet_lite4", "efficientnet_lite4", "same"),
    ("timm", "efficientnet_lite0", "efficientnet_lite0", "symmetric"),
    ("timm", "mobilenetv1_100", "mobilenet_v1", "symmetric"),
    ("timm", "mobilenetv2_100", "mobilenet_v2", "symmetric"),
    ("torchvision", "mobilenet_v2", "mobilenet_v2", "symmetric"),
    ("torchvision", "resnet18", "resnet18", "symmetric"),
    ("torchvision", "resnet50", "resnet50", "symmetric"),
]
SLOW: list[Case] = [
    *(("timm", f"tf_efficientnet_{b}", f"efficientnet_{b}", "same") for b in LARGE),
    *(("timm", f"efficientnet_{b}", f"efficientnet_{b}", "symmetric") for b in LARGE),
    *(("torchvision", f"efficientnet_{b}", f"efficientnet_{b}", "symmetric") for b in LARGE),
    ("torchvision", "resnet34", "resnet34", "symmetric"),
    ("torchvision", "resnet101", "resnet101", "symmetric"),
]


def compare(case: Case, *sizes: tuple[int, int]) -> None:
    library, their_name, our_name, padding = case
    theirs = reference(library, their_name, *sizes)
    ours = ours_like(theirs, our_name, padding=padding)
    if our_name.startswith("resnet"):
        # Residual sums of random weights amplify what another order of summation rounds to over 1e-5.
        theirs = theirs.to(memory_format=torch.channels_last)
    for size in sizes:
        compare_at(theirs, ours, images(2, size), tolerance=TOLERANCE)
    # In double precision nothing but the arithmetic is left.
    compare_at(theirs.double(), ours.double(), images(2, sizes[-1]).double(), tolerance=1e-12)


def compare_at(theirs: nn.Module, ours: Network, x: Tensor, *, tolerance: float) -> None:
    logits, features = run_with_stages(theirs, stages_of(theirs, ours), x)
    # Two images must not look alike, or nothing is compared.
    assert difference(logits[:1], logits[1:]) > 0.01
    with torch.no_grad():
        ours_logits, ours_features = ours(x), ours.features(x)
    assert len(ours_features) == len(features)
    for index, (our, their) in enumerate(zip(ours_features, features, strict=True)):
        assert difference(our, their) < tolerance, f"stage {index} at {tuple(x.shape)}"
    assert difference(ours_logits, logits) < tolerance, f"logits at {tuple(x.shape)}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def test_parity(case: Case) -> None:
    compare(case, (64, 64), (97, 131))


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW, ids=lambda case: f"{case[0]}-{case[1]}")
def test_parity_of_the_large_ones(case: Case) -> None:
    compare(case, (128, 128), (97, 131))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES[:15], ids=lambda case: f"{case[0]}-{case[1]}")
def test_parity_at_the_published_size(case: Case) -> None:
    side = {"b0": 224, "b1": 240, "b2": 260, "b3": 300, "b4": 380}[case[1][-2:]]
    compare(case, (side, side))


def test_the_wrong_padding_would_be_seen() -> None:
    theirs = reference("timm", "tf_efficientnet_b0", (64, 64))
    ours = ours_like(theirs, "efficientnet_b0", padding="symmetric")
    x = images(1, (64, 64))
    with torch.no_grad():
        assert difference(ours(x), theirs(x)) > 0.01


def test_the_wrong_epsilon_would_be_seen() -> None:
    theirs = reference("timm", "tf_efficientnet_b0", (64, 64))
    ours = ours_like(theirs, "efficientnet_b0", padding="same")
    for module in ours.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 1e-5
    x = images(1, (64, 64))
    with torch.no_grad():
        assert difference(ours(x), theirs(x)) > 10 * TOLERANCE
