"""Metrics against plain counting in numpy, which knows nothing of torchmetrics."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from phiscale.errors import DataError, ModelDirError
from phiscale.evaluation.metrics import compute_metrics

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def by_hand(logits: Floats, labels: Ints) -> dict[str, float]:
    """Loops over images, as one would do it on paper."""
    count, classes = logits.shape
    hits1 = hits5 = 0
    nll = 0.0
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(15)]
    for row, label in zip(logits, labels, strict=True):
        order = sorted(range(classes), key=lambda k: -row[k])
        hits1 += order[0] == label
        hits5 += label in order[:5]
        odds = np.exp(row - row.max())
        probability = odds / odds.sum()
        nll -= float(np.log(probability[label]))
        confidence = float(probability[order[0]])
        bins[min(int(confidence * 15), 14)].append((confidence, order[0] == label))
    ece = 0.0
    for members in bins:
        if members:
            confidence = sum(c for c, _ in members) / len(members)
            accuracy = sum(hit for _, hit in members) / len(members)
            ece += len(members) / count * abs(confidence - accuracy)
    return {
        "top1": hits1 / count,
        "top5": hits5 / count if logits.shape[1] > 5 else None,
        "nll": nll / count,
        "ece": ece,
    }


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 60), classes=st.integers(2, 12))
def test_against_counting(seed: int, count: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=3.0, size=(count, classes))
    labels = rng.integers(0, classes, size=count)
    names = [f"c{index}" for index in range(classes)]
    metrics = compute_metrics(torch.from_numpy(logits), torch.from_numpy(labels), names)

    assert metrics.num_images == count
    for key, value in by_hand(logits, labels).items():
        assert getattr(metrics, key) == pytest.approx(value, abs=1e-6), key

    predicted = logits.argmax(axis=1)
    recalls = []
    f1s = []
    for index, item in enumerate(metrics.per_class):
        hits = int(((predicted == index) & (labels == index)).sum())
        called, support = int((predicted == index).sum()), int((labels == index).sum())
        assert item.name == names[index]
        assert item.support == support
        assert item.precision == pytest.approx(hits / called if called else 0.0, abs=1e-6)
        assert item.recall == pytest.approx(hits / support if support else 0.0, abs=1e-6)
        assert item.f1 == pytest.approx(2 * hits / max(called + support, 1), abs=1e-6)
        recalls += [item.recall] if support else []
        f1s += [item.f1] if support or called else []
        for other in range(classes):
            both = int(((labels == index) & (predicted == other)).sum())
            assert metrics.confusion_matrix[index, other] == both
    assert metrics.balanced_accuracy == pytest.approx(np.mean(recalls))
    assert metrics.macro_f1 == pytest.approx(np.mean(f1s))


def test_a_case_on_paper() -> None:
    # Probabilities 0.9/0.1, 0.8/0.2, 0.6/0.4 for class a; the second image is of class b.
    shares = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4]])
    metrics = compute_metrics(shares.log(), torch.tensor([0, 1, 0]), ["a", "b"])
    assert metrics.top1 == pytest.approx(2 / 3)
    assert metrics.top5 is None  # of two classes it would always be 1
    assert metrics.nll == pytest.approx(-(np.log(0.9) + np.log(0.2) + np.log(0.6)) / 3)
    # Three bins of one image each: |0.9 - 1|, |0.8 - 0|, |0.6 - 1|.
    assert metrics.ece == pytest.approx((0.1 + 0.8 + 0.4) / 3)
    assert metrics.confusion_matrix.tolist() == [[2, 0], [1, 0]]
    assert metrics.per_class[0].precision == pytest.approx(2 / 3)
    assert metrics.per_class[0].f1 == pytest.approx(0.8)
    assert metrics.per_class[1].recall == 0.0
    assert metrics.balanced_accuracy == 0.5
    [confusion] = metrics.confusions()
    assert (confusion.label, confusion.predicted, confusion.count) == ("b", "a", 1)


def test_to_dict_is_json() -> None:
    metrics = compute_metrics(torch.eye(3), torch.tensor([0, 1, 1]), ["a", "b", "c"])
    content = json.loads(json.dumps(metrics.to_dict(), allow_nan=False))
    assert content["top1"] == pytest.approx(2 / 3)
    assert content["per_class"][1] == {
        "name": "b",
        "precision": 1,
        "recall": 0.5,
        "f1": pytest.approx(2 / 3),
        "support": 2,
    }
    assert content["confusion_matrix"] == [[1, 0, 0], [0, 1, 1], [0, 0, 0]]
    assert content["confusions"] == [{"label": "b", "predicted": "c", "count": 1}]


def test_many_classes_leave_the_matrix_out() -> None:
    metrics = compute_metrics(torch.eye(101), torch.arange(101).flip(0), [str(k) for k in range(101)])
    assert metrics.to_dict()["confusion_matrix"] is None
    assert len(metrics.to_dict()["confusions"]) == 20


def test_input_is_not_changed() -> None:
    logits = torch.randn(4, 3, dtype=torch.float16)
    before = logits.clone()
    compute_metrics(logits, torch.tensor([0, 1, 2, 0]), ["a", "b", "c"])
    assert torch.equal(logits, before)


@pytest.mark.parametrize(
    ("logits", "labels", "classes", "message"),
    [
        (torch.zeros(0, 2), torch.zeros(0), "ab", "there are no images"),
        (torch.zeros(1, 1), torch.zeros(1), "a", "at least two classes"),
        (torch.zeros(2, 3), torch.zeros(2), "ab", r"shape \(N, 2\)"),
        (torch.zeros(2, 2), torch.zeros(3), "ab", r"labels \(N,\)"),
        (torch.zeros(2, 2), torch.tensor([0, 2]), "ab", "between 0 and 1, got 0 to 2"),
    ],
)
def test_what_does_not_fit(logits: torch.Tensor, labels: torch.Tensor, classes: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        compute_metrics(logits, labels, list(classes))


def test_broken_network_is_said() -> None:
    logits = torch.tensor([[0.0, 1.0], [float("nan"), 0.0]])
    with pytest.raises(ModelDirError, match="NaN or infinity for 1 of 2 images"):
        compute_metrics(logits, torch.tensor([0, 1]), ["a", "b"])


@pytest.mark.parametrize(("right", "expected"), [(50, True), (59, True), (61, False), (90, False)])
def test_near_chance_is_within_two_standard_errors_of_the_largest_class(right: int, expected: bool) -> None:
    # Two classes of 50 images: chance is 0.5, its standard error 0.05.
    labels = torch.arange(100) % 2
    logits = torch.nn.functional.one_hot(labels, 2).double()
    logits[right:] = logits[right:].flip(1)
    assert compute_metrics(logits, labels, ("a", "b")).near_chance is expected


def test_no_top5_where_five_are_all() -> None:
    labels = torch.arange(6)
    assert compute_metrics(torch.eye(6), labels, "abcdef").top5 == 1.0
    assert compute_metrics(torch.eye(5), labels[:5], "abcde").top5 is None
