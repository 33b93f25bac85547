"""The search for an int8 network that loses little enough, with networks that are made up."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from phiscale.deploy.export_store import Loss, Quantization
from phiscale.deploy.gate import Gate
from phiscale.deploy.quantize import quantize
from phiscale.deploy.runtimes.base import Runtime
from phiscale.deploy.samples import Images
from phiscale.errors import ModelDirError

GROUPS = ("stem", "middle", "head", "classifier")


def make_images(count: int, *, labelled: bool = True, classes: int = 4) -> Images:
    """Images of one pixel, whose value is the class that fp32 sees in them."""
    values = np.arange(count, dtype=np.uint8) % classes
    return Images(
        pixels=values.reshape(-1, 1, 1, 1),
        labels=values.astype(np.int64) if labelled else None,
        source="made up",
    )


def exact(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.eye(4, dtype=np.float32)[images.reshape(-1)]


def wrong_on(share: float) -> Runtime:
    """A network that takes the first images for another class."""

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        scores = exact(images)
        lost = round(share * len(images))
        scores[:lost] = np.roll(scores[:lost], 1, axis=1)
        return scores

    return run


class MadeUp:
    """Every group that is quantised costs its own share of the answers."""

    packages = ("made-up",)
    groups = GROUPS

    def __init__(self, costs: Mapping[str, float]) -> None:
        self.costs = costs
        self.asked: list[tuple[str, ...]] = []

    def __call__(
        self,
        path: Path,
        images: NDArray[np.uint8],
        *,
        kept: tuple[str, ...] = (),
        on_image: Callable[[int], None] | None = None,
    ) -> None:
        self.asked.append(kept)
        if on_image is not None:
            on_image(len(images))
        path.write_text(json.dumps(sum(cost for group, cost in self.costs.items() if group not in kept)))


def search(quantizer: MadeUp, folder: Path, *, max_drop: float = 0.5) -> tuple[Quantization, Loss]:
    return quantize(
        quantizer,
        folder / "model.x",
        open_file=lambda path: wrong_on(json.loads(path.read_text())),
        calibration=make_images(300),
        validation=make_images(1000),
        reference=exact,
        max_drop=max_drop,
    )


@pytest.fixture(autouse=True)
def whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that `wrong_on` sees all images at once."""
    monkeypatch.setattr(Gate.__init__, "__kwdefaults__", {"batch": 1000})


def test_all_of_it_is_quantised_where_that_loses_little(tmp_path: Path) -> None:
    quantizer = MadeUp({"stem": 0.002, "head": 0.003})
    result, loss = search(quantizer, tmp_path)
    assert (result.kept, result.sensitivities, result.tried) == ((), {}, ((0, 0.5),))
    assert (loss.drop, loss.top1, loss.measure) == (0.5, 0.995, "accuracy")
    assert quantizer.asked == [()]
    assert [path.name for path in tmp_path.iterdir()] == ["model.x"]


def test_the_most_sensitive_groups_are_kept(tmp_path: Path) -> None:
    quantizer = MadeUp({"stem": 0.01, "middle": 0.001, "head": 0.02, "classifier": 0.003})
    result, loss = search(quantizer, tmp_path)
    assert result.kept == ("head", "stem")
    assert result.tried == ((0, 3.4), (1, 1.4), (2, 0.4))
    assert loss.drop == 0.4
    assert sorted(result.sensitivities, key=result.sensitivities.__getitem__)[-2:] == ["stem", "head"]
    # One probe per group, with all others in floating point.
    assert [kept for kept in quantizer.asked if len(kept) == 3] == [
        tuple(other for other in GROUPS if other != group) for group in GROUPS
    ]
    # The file is that of the attempt that was taken.
    assert json.loads((tmp_path / "model.x").read_text()) == pytest.approx(0.004)
    assert [path.name for path in tmp_path.iterdir()] == ["model.x"]


def test_the_best_is_kept_where_nothing_is_good_enough(tmp_path: Path) -> None:
    result, loss = search(MadeUp(dict.fromkeys(GROUPS, 0.05)), tmp_path)
    assert [kept for kept, _ in result.tried] == [0, 1, 2]
    assert (len(result.kept), loss.drop) == (2, 10.0)
    assert json.loads((tmp_path / "model.x").read_text()) == pytest.approx(0.1)


def test_progress_says_what_is_done(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    quantize(
        MadeUp({"stem": 0.1}),
        tmp_path / "model.x",
        open_file=lambda path: wrong_on(json.loads(path.read_text())),
        calibration=make_images(10),
        validation=make_images(1000),
        reference=exact,
        max_drop=0.5,
        progress=lambda *state: told.append(state),
    )
    assert all(0 <= done <= total for _, done, total in told)
    assert [what for what, done, _ in told if done == 0] == [
        "quantising",
        "measuring what that loses",
        "finding sensitive layers",
        "quantising all but 1 group",
        "measuring what that loses",
    ]


def test_without_labels_changed_answers_count() -> None:
    gate = Gate(make_images(100, labelled=False), exact)
    loss = gate.measure(wrong_on(0.07))
    assert (loss.measure, loss.drop, loss.top1, loss.agreement) == ("agreement", 7.0, None, 0.93)


def test_an_image_gained_makes_up_for_one_lost() -> None:
    reference = wrong_on(0.05)  # sees the first five wrong

    def other(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return exact(images[::-1])[::-1].copy()

    loss = Gate(make_images(100), reference).measure(other)
    assert (loss.drop, loss.top1, loss.agreement) == (-5.0, 1.0, 0.95)


def test_views_of_an_image_are_one_image() -> None:
    images = make_images(50).shifted(2000)
    loss = Gate(images, exact).measure(wrong_on(0.02))
    assert (len(images), loss.images, loss.views) == (450, 50, 9)
    # Nine answers are lost, all of them of images as they are.
    assert loss.drop == pytest.approx(18.0)
    assert loss.agreement == pytest.approx(0.98)

    def wrong_elsewhere(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return wrong_on(0.02)(images[::-1])[::-1]

    assert Gate(images, exact).measure(wrong_elsewhere).drop == pytest.approx(2.0)


def test_an_engine_that_dies_or_gives_nan_is_one_line() -> None:
    def dies(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        raise RuntimeError("out of memory\n  at line 3\n")

    def nan(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.full((len(images), 4), np.nan, np.float32)

    gate = Gate(make_images(4), exact)
    with pytest.raises(ModelDirError, match=r"failed while the export was checked: out of memory$"):
        gate.measure(dies)
    with pytest.raises(ModelDirError, match="gives NaN"):
        gate.measure(nan)


def test_a_full_disk_is_an_os_error(tmp_path: Path) -> None:
    class Full(MadeUp):
        def __call__(self, *_: object, **__: object) -> None:
            raise OSError(28, os.strerror(28))

    with pytest.raises(OSError, match="No space left"):
        search(Full({}), tmp_path)
