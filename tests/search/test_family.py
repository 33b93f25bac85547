"""Baseline, rule, scaling and training in a row, with stages that do nothing but count."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hidden_optimum import TEMPLATE

from phiscale.errors import BudgetError, TrainingError
from phiscale.scaling.complexity import complexity
from phiscale.scaling.compound import RULES, CompoundRule
from phiscale.search.family import FAMILY, Family, Stages, check_budgets, search_family
from phiscale.spec import NetworkSpec

BASELINE = replace(TEMPLATE, name="mine")
MACS = complexity(BASELINE).macs
BUDGETS = (2.0 * MACS, 4.0 * MACS)
SETTINGS = {"images": "made up", "limits": {"macs": MACS}}
CALLS = ("baseline", "rule", "s0", "s1", "s2")


class Killed(BaseException):
    """Stands for the end of the process."""


class Counted:
    """Stages that note their calls, and die in one of them."""

    def __init__(self, *, dies_in: str | None = None) -> None:
        self.calls: list[str] = []
        self.dies_in = dies_in

    def stages(self) -> Stages:
        return Stages(find_baseline=self._baseline, find_rule=self._rule, train=self._train)

    def _note(self, call: str) -> None:
        self.calls.append(call)
        if call == self.dies_in:
            raise Killed

    def _baseline(self) -> NetworkSpec:
        self._note("baseline")
        return BASELINE

    def _rule(self, baseline: NetworkSpec) -> CompoundRule:
        self._note("rule")
        assert baseline == BASELINE
        return RULES["uniform"]

    def _train(self, name: str, spec: NetworkSpec) -> Mapping[str, Any]:
        self._note(name)
        return {"top1": 1 - 1e5 / complexity(spec).macs}


def make(folder: Path, counted: Counted, **changes: Any) -> Family:
    arguments: dict[str, Any] = {"budgets": BUDGETS, "settings": SETTINGS, **changes}
    return search_family(counted.stages(), arguments.pop("budgets"), folder, **arguments)


def test_members_lie_on_the_rule_and_within_their_budgets(tmp_path: Path) -> None:
    told: list[str] = []
    family = make(tmp_path, Counted(), tell=told.append)
    assert told == ["baseline", "coefficients", "training s0", "training s1", "training s2"]
    assert family.baseline == family.members[0].spec == BASELINE
    assert family.rule == RULES["uniform"]
    assert [member.name for member in family.members] == ["s0", "s1", "s2"]
    for member, budget in zip(family.members[1:], BUDGETS, strict=True):
        macs = complexity(member.spec).macs
        assert 0.8 * budget < macs <= budget == member.budget
        assert member.spec.image_size[0] == round(28 * RULES["uniform"].at(member.phi).resolution)
        assert member.measured == {"top1": 1 - 1e5 / macs}
    phis = [member.phi for member in family.members]
    assert phis == sorted(phis)
    rows = family.to_dict()["members"]
    assert [row["macs"] for row in rows] == [complexity(member.spec).macs for member in family.members]


@pytest.mark.parametrize("dies_in", CALLS)
def test_what_a_stage_came_to_is_not_done_again(tmp_path: Path, dies_in: str) -> None:
    (tmp_path / "whole").mkdir()
    unbroken = make(tmp_path / "whole", Counted())
    dying, again = Counted(dies_in=dies_in), Counted()
    with pytest.raises(Killed):
        make(tmp_path, dying)
    assert make(tmp_path, again) == unbroken
    assert dying.calls[:-1] + again.calls == list(CALLS)
    assert make(tmp_path, nothing := Counted()) == unbroken
    assert nothing.calls == []


def test_other_settings_are_refused(tmp_path: Path) -> None:
    make(tmp_path, Counted())
    before = (tmp_path / FAMILY).read_bytes()
    with pytest.raises(TrainingError, match="was begun with images 'made up', and now it is 'others'"):
        make(tmp_path, Counted(), settings={**SETTINGS, "images": "others"})
    with pytest.raises(TrainingError, match="was begun with budgets"):
        make(tmp_path, Counted(), budgets=(3.0 * MACS,))
    assert (tmp_path / FAMILY).read_bytes() == before


@pytest.mark.parametrize("damage", ["", "[]", '{"settings": {}}', '{"format": "other"}'])
def test_a_damaged_record_is_one_line(tmp_path: Path, damage: str) -> None:
    (tmp_path / FAMILY).write_text(damage)
    with pytest.raises(TrainingError, match="remove it, the trainings are kept"):
        make(tmp_path, Counted())


@pytest.mark.parametrize(("stage", "value"), [("baseline", {"name": "x"}), ("rule", {"alpha": 0.5})])
def test_a_damaged_stage_is_one_line(tmp_path: Path, stage: str, value: object) -> None:
    make(tmp_path, Counted())
    content = json.loads((tmp_path / FAMILY).read_text())
    content["stages"][stage] = value
    (tmp_path / FAMILY).write_text(json.dumps(content))
    with pytest.raises(TrainingError, match="remove it, the trainings are kept"):
        make(tmp_path, Counted())


@pytest.mark.parametrize("budgets", [(), (0.5,), (1.0,), (4.0, 2.0), (2.0, 2.0)])
def test_budgets_must_grow_from_the_baseline_s(budgets: tuple[float, ...]) -> None:
    with pytest.raises(BudgetError, match="must grow"):
        check_budgets(budgets, baseline=1.0)
