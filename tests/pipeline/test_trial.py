from __future__ import annotations

import os
import pickle
import shutil
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from smooth_pictures import make_images

import phiscale as ps
from phiscale.errors import DataError, RecipeError, SpecError, TrainingError
from phiscale.nn.network import Network
from phiscale.pipeline.trial import TrialPlan, plan_trials
from phiscale.search.objective import Trial
from phiscale.search.runner import run_trials
from phiscale.search.store import TrialStore
from phiscale.spec import HeadSpec, NetworkSpec, StageSpec, StemSpec
from phiscale.training.recipe import get_recipe
from phiscale.training.resident import train_resident
from phiscale.training.train import TrainResult, train

TINY = NetworkSpec(
    name="tiny",
    stem=StemSpec(out_channels=8),
    stages=(
        StageSpec(block="mbconv", out_channels=8, se_ratio=0.25),
        StageSpec(block="mbconv", out_channels=16, stride=2, expand_ratio=2),
    ),
    head=HeadSpec(out_channels=32),
    image_size=(24, 24),
)
SHORT = {"epochs": 2, "batch_size": 8, "augment.policy": "none"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trial")
    make_images(root / "images")
    return root


@pytest.fixture(scope="module")
def trials(folder: Path) -> TrialPlan:
    return plan_trials(
        folder / "images",
        baseline=TINY,
        overrides=SHORT,
        scratch=folder / "scratch",
        cache_dir=folder / "cache",
    )


def test_a_training_gives_a_score_and_leaves_nothing(trials: TrialPlan, folder: Path) -> None:
    random_state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    score = trials.objective(trials.baseline, seed=0)
    assert score.epochs == 2
    assert score.top1 * 6 == pytest.approx(round(score.top1 * 6))  # of six validation images
    assert score.train_seconds > 0
    assert score.latency_ms is None
    assert list((folder / "scratch").iterdir()) == []
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert torch.get_num_threads() == threads


def test_the_score_is_that_of_the_last_epoch(trials: TrialPlan) -> None:
    told: list[tuple[int, float]] = []

    def report(epoch: int, top1: float) -> bool:
        told.append((epoch, top1))
        return False

    score = trials.objective(trials.baseline, seed=1, epochs=3, report=report)
    assert [epoch for epoch, _ in told] == [1, 2, 3]
    assert score.top1 == told[-1][1]


@pytest.mark.parametrize("moment", [1, 2])
def test_ctrl_c_ends_it_also_in_the_last_epoch(trials: TrialPlan, folder: Path, moment: int) -> None:
    def report(epoch: int, _: float) -> bool:
        if epoch == moment:
            os.kill(os.getpid(), signal.SIGINT)
        return False

    with pytest.raises(KeyboardInterrupt):
        trials.objective(trials.baseline, seed=2, epochs=2, report=report)
    assert list((folder / "scratch").iterdir()) == []


def test_with_a_gpu_the_images_lie_on_it(
    trials: TrialPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same path on the CPU: images of one size are made once, for all trainings."""
    monkeypatch.setattr("phiscale.pipeline.trial.train_resident", partial(train_resident, device="cpu"))
    recipe = trials.objective.recipe.override({"augment.crop_scale": (1.0, 1.0)})
    objective = replace(trials.objective, recipe=recipe, scratch=tmp_path, on_gpu=True)
    first = objective(trials.baseline, seed=0)
    made = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    again = objective(trials.baseline, seed=0)
    assert (first.top1, first.epochs) == (again.top1, again.epochs)
    assert first.epochs == 2
    assert {file.name for file in made} == {"train-24x24.npy", "val-24x24.npy"}
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == made


def test_where_it_trains_is_settled_before(
    trials: TrialPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine without the GPU that the search counts on must not train with other random numbers."""
    recipe = trials.objective.recipe.override({"augment.crop_scale": (1.0, 1.0)})
    with_gpu = replace(trials.objective, recipe=recipe, scratch=tmp_path, on_gpu=True)
    without = replace(with_gpu, on_gpu=False)
    assert with_gpu.identity() != without.identity()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TrainingError, match=r"this machine has none; .* --gpus-per-trial"):
        pickle.loads(pickle.dumps(with_gpu))(trials.baseline, seed=0)


def test_it_stops_when_told(trials: TrialPlan, folder: Path) -> None:
    told: list[float] = []

    def report(epoch: int, top1: float) -> bool:
        told.append(top1)
        return epoch == 2

    score = trials.objective(trials.baseline, seed=0, epochs=5, report=report)
    assert (score.epochs, score.top1) == (2, told[1])
    assert list((folder / "scratch").iterdir()) == []


def test_the_same_here_and_in_other_processes(trials: TrialPlan, tmp_path: Path) -> None:
    wider = replace(trials.baseline, stem=StemSpec(out_channels=16))
    asked = [Trial(spec=spec, seed=seed, epochs=2) for spec in (trials.baseline, wider) for seed in (0, 1)]
    with TrialStore(tmp_path / "here.db") as store:
        here = run_trials(asked, trials.objective, store)
    with TrialStore(tmp_path / "there.db") as store:
        there = run_trials(asked, trials.objective, store, workers=2)
    assert [score.top1 for score in here.values()] == [score.top1 for score in there.values()]


def test_the_seed_decides_the_weights_and_not_the_split(
    trials: TrialPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    stems, batches = [], []

    def spy(net: Network, train_loader: Any, val_loader: Any, **settings: Any) -> TrainResult:
        stems.append(net.stem.conv.weight.detach().clone())
        batches.append(next(iter(val_loader))[0])
        return train(net, train_loader, val_loader, **settings)

    monkeypatch.setattr("phiscale.pipeline.trial.train", spy)
    for seed in (0, 1, 0):
        trials.objective(trials.baseline, seed=seed, epochs=1)
    assert torch.equal(stems[0], stems[2])
    assert not torch.equal(stems[0], stems[1])
    assert torch.equal(batches[0], batches[1])


def test_decoded_images_are_shared(trials: TrialPlan, folder: Path) -> None:
    trials.objective.prepare()
    files = sorted((folder / "cache").iterdir())
    assert len(files) == 2  # train and val
    stamps = [file.stat().st_mtime_ns for file in files]
    copy = pickle.loads(pickle.dumps(trials.objective))
    assert len(pickle.dumps(trials.objective)) < 20_000
    copy(trials.baseline, seed=0, epochs=1)
    assert sorted((folder / "cache").iterdir()) == files
    assert [file.stat().st_mtime_ns for file in files] == stamps


def test_another_machine_needs_the_images_or_their_pixels(
    trials: TrialPlan, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    plan = plan_trials("images", baseline=TINY, overrides=SHORT, cache_dir=tmp_path / "cache")
    plan.objective.prepare()
    sent = pickle.dumps(plan.objective)
    expected = plan.objective(plan.baseline, seed=0, epochs=1).top1
    monkeypatch.chdir(tmp_path)
    (folder / "images").rename(folder / "away")
    try:
        assert pickle.loads(sent)(plan.baseline, seed=0, epochs=1).top1 == expected
        shutil.rmtree(tmp_path / "cache")
        with pytest.raises(DataError, match=r"images/.*\.png"):
            pickle.loads(sent)(plan.baseline, seed=0, epochs=1)
    finally:
        (folder / "away").rename(folder / "images")
    assert pickle.loads(sent)(plan.baseline, seed=0, epochs=1).top1 == expected


def test_a_network_for_other_images_is_fitted_to_these(trials: TrialPlan) -> None:
    assert trials.baseline.num_classes == 3
    for_others = replace(TINY, num_classes=1000, in_channels=1)
    same = trials.objective(for_others, seed=0, epochs=1)
    assert same.top1 == trials.objective(trials.baseline, seed=0, epochs=1).top1


def test_latency_where_it_is_asked_for(trials: TrialPlan) -> None:
    asked: list[NetworkSpec] = []

    def latency(spec: NetworkSpec) -> float:
        asked.append(spec)
        return 1.5

    objective = replace(trials.objective, latency=latency)
    assert objective(TINY, seed=0, epochs=1).latency_ms == 1.5
    assert asked == [trials.baseline]


def test_short_trainings_have_short_phases(trials: TrialPlan) -> None:
    objective = replace(trials.objective, recipe=get_recipe("fast"))
    assert objective._recipe(0, None).warmup_epochs == 2.0
    assert objective._recipe(0, 3).warmup_epochs == pytest.approx(0.6)
    assert objective._recipe(7, 3).seed == 7


def test_a_spec_is_taken_as_it_is_and_a_name_is_fitted(folder: Path) -> None:
    images = folder / "images"  # of 48 × 40 px
    file = folder / "b0.json"
    file.write_text(ps.get_spec("efficientnet_b0").to_json())
    assert plan_trials(images, baseline=file, overrides=SHORT).baseline.image_size == (224, 224)
    fitted = plan_trials(images, baseline="efficientnet_b0", overrides=SHORT)
    assert fitted.baseline.image_size == (40, 40)
    assert fitted.baseline.output_stride < 32
    assert any("40 px" in note for note in fitted.notes)
    assert plan_trials(images, baseline=file, image_size=64, overrides=SHORT).baseline.image_size == (64, 64)


def test_what_decides_scores_is_their_identity(trials: TrialPlan, folder: Path) -> None:
    identity = trials.objective.identity()
    assert plan_trials(folder / "images", baseline=TINY, overrides=SHORT).objective.identity() == identity
    make_images(folder / "elsewhere" / "images")
    moved = plan_trials(folder / "elsewhere" / "images", baseline=TINY, overrides=SHORT)
    assert moved.objective.identity() == identity
    for changes in ({"learning_rate": 0.1}, {"seed": 1}):
        other = plan_trials(folder / "images", baseline=TINY, overrides={**SHORT, **changes})
        assert other.objective.identity() != identity  # another seed is another split


def test_images_that_cannot_be_compared_on(folder: Path) -> None:
    with pytest.raises(DataError, match="needs val images"):
        plan_trials(folder / "images", baseline=TINY, overrides=SHORT, val_fraction=0.0)


def test_fine_tuning_is_no_search(folder: Path) -> None:
    with pytest.raises((DataError, SpecError, RecipeError), match=r"weights|scratch"):
        plan_trials(folder / "images", baseline=TINY, recipe="finetune", overrides=SHORT)


def test_a_search_may_train_on_fewer_images(folder: Path, trials: TrialPlan) -> None:
    plan = plan_trials(
        folder / "images", baseline=TINY, overrides=SHORT, train_images=6, cache_dir=folder / "cache"
    )
    assert len(plan.objective.source.split("train")) == 6 < len(trials.objective.source.split("train"))
    assert plan.objective.source.split("val") == trials.objective.source.split("val")
    assert plan.objective.identity() != trials.objective.identity()
