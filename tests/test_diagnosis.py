"""Each rule of the diagnosis: it fires, it does not, and at its boundary it does not either; and no finding flickers."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from moe_core import diagnosis
from moe_core.diagnosis import (
    HOLD,
    SOON,
    Evidence,
    Finding,
    diagnose,
    evens,
    named,
    turns,
)
from moe_core.evidence import Memory, holding
from moe_core.remedies import even_again
from moe_core.schema import DEAD_AFTER, STRATEGIES, Config, Knob, Knobs, Values, check, check_knob, describe

E = 16
CONFIG = Config(num_experts=E)
QUIET = Knobs(w_importance=0.1, w_load=0.1)  # where the remedies were measured
N = 400


def knobs_with(**turned: object) -> Knobs:
    """QUIET with some knobs turned."""
    return replace(QUIET, **turned)


def change(step: int | None, name: str, value: float, previous: float, id: int = 1) -> SimpleNamespace:
    return SimpleNamespace(id=id, step=step, name=name, value=value, previous=previous)


def evidence(knobs: Knobs = QUIET, changes=(), config: Config = CONFIG, n: int = N, **stats) -> Evidence:
    """A quiet run of n steps, with what is given in place of its statistics."""
    quiet = {
        "task_loss": 2.0,
        "cv_load": 0.1,
        "dead": 0.0,
        "noise_scale": 0.7,
        "logit_spread": 1.0,
        "dropped": 0.0,
        "grad_norm": 2.0,
        "task_gradient": 0.05,
        "bias_effect": np.nan,
        "unreachable": 0.0,
    }
    values = {f"{name}_n": np.broadcast_to(np.float64(stats.get(name, value)), (n,)) for name, value in quiet.items()}
    counts_nE = np.broadcast_to(stats.get("counts", np.full(config.num_experts, 10.0)), (n, config.num_experts))
    return Evidence(
        describe(config, knobs),
        knobs,
        changes,
        0,
        np.arange(1, n + 1),
        before={},
        now={},
        counts_nE=counts_nE,
        **values,
    )


def from_step(step: int, value: float, before: float = 0.0, n: int = N) -> np.ndarray:
    return np.where(np.arange(1, n + 1) >= step, value, before)


def test_a_quiet_run_has_no_finding() -> None:
    assert [rule(evidence()) for rule in diagnosis.RULES] == [None] * len(diagnosis.RULES)


# When a condition holds


def flags(text: str) -> np.ndarray:
    return np.array([letter == "x" for letter in text])


@pytest.mark.parametrize(
    ("on", "off", "since"),
    [
        ("....", "....", None),
        (".xxx", "....", 2),
        ("..xx", "....", None),  # one step short
        ("xxx....", "...xx..", 1),  # the opposite is one step short
        ("xxx....", "...xxx.", None),
        ("xxx...xxx", "...xx....", 1),  # never ended, so it still counts from its first step
        ("xxx...xxx", "...xxx...", 7),
        ("xx.xx", ".....", None),
    ],
)
def test_a_finding_begins_and_ends_after_so_many_steps(on: str, off: str, since: int | None) -> None:
    assert holding(np.arange(1, len(on) + 1), flags(on), flags(off), hold=3).since == since


def test_what_counts_is_the_span_of_steps_not_of_rows() -> None:
    steps = np.array([1, 10, 20, 30])
    assert holding(steps, flags(".xx."), flags("...."), hold=11).since == 10
    assert holding(steps, flags(".xx."), flags("...."), hold=12).since is None


def test_a_value_that_wavers_about_the_threshold_does_not_make_the_finding_flicker() -> None:
    wavers = 1.0 + 0.15 * np.sin(np.arange(N) / 3)
    wavers[:40] = 2.0
    assert {diagnosis.collapse(evidence(cv_load=wavers[:n], n=n)).since for n in range(HOLD, N)} == {1}


# Collapse


def test_collapse_says_since_when_why_and_what_to_do() -> None:
    finding = diagnosis.collapse(evidence(knobs_with(w_importance=0, w_load=0), cv_load=from_step(101, 1.9)))
    assert (finding.rule, finding.layer, finding.since) == ("collapse", 0, 101)
    assert "1.90" in finding.what
    assert "2.65" in finding.what  # sqrt(16 / 2 - 1)
    assert "No loss asks for balance" in finding.why
    assert finding.remedy == {"w_importance": 0.1, "w_load": 0.1}
    assert "w_importance to 0.1 and w_load to 0.1" in finding.try_this


@pytest.mark.parametrize(
    ("cv", "fires"), [(from_step(N - HOLD + 1, 1.01), True), (from_step(N - HOLD + 2, 1.01), False), (1.0, False)]
)
def test_collapse_at_its_boundary(cv, fires: bool) -> None:
    assert (diagnosis.collapse(evidence(cv_load=cv)) is not None) == fires


def test_collapse_ends_when_the_load_has_been_even_for_a_while() -> None:
    cv = from_step(1, 1.9)
    cv[300 : 300 + HOLD - 1] = 0.3
    assert diagnosis.collapse(evidence(cv_load=cv[: 300 + HOLD - 1], n=300 + HOLD - 1))
    cv[300 : 300 + HOLD] = 0.3
    assert diagnosis.collapse(evidence(cv_load=cv[: 300 + HOLD], n=300 + HOLD)) is None


def test_a_little_below_the_mark_a_collapse_still_holds() -> None:
    assert diagnosis.collapse(evidence(cv_load=from_step(200, 0.81, 1.9)))
    assert diagnosis.collapse(evidence(cv_load=from_step(200, 0.79, 1.9))) is None


def test_where_cv_cannot_pass_1_three_quarters_of_its_ceiling_is_a_collapse() -> None:
    four = Config(num_experts=4)
    assert diagnosis.collapse(evidence(config=four, cv_load=0.76))
    assert diagnosis.collapse(evidence(config=four, cv_load=0.74)) is None
    assert diagnosis.collapse(evidence(knobs_with(k=4), config=four, cv_load=0.0)) is None


def test_what_evens_a_collapsed_gate_depends_on_the_knobs() -> None:
    assert even_again(knobs_with(noise=0, w_importance=0, w_load=0.01)) == {
        "noise": 1.0,
        "w_importance": 0.1,
        "w_load": 0.1,
    }
    assert even_again(knobs_with(w_importance=1, w_load=0)) == {"w_load": 0.1}
    assert even_again(knobs_with()) == {}
    assert not evens(knobs_with(noise=0, w_load=0), {"noise": 1.0})
    assert evens(knobs_with(noise=0), {"noise": 1.0})
    assert turns({"noise": 1.0}) == "noise to 1"
    assert turns({"a": 1.0, "b": 2.0, "c": 3.0}) == "a to 1, b to 2 and c to 3"


def test_a_gate_that_is_being_mended_is_offered_time_not_the_same_again() -> None:
    turned = [change(390, "w_load", 0.1, 0.0)]
    finding = diagnosis.collapse(evidence(cv_load=1.9, changes=turned))
    assert finding.remedy is None
    assert "until step 490" in finding.try_this
    late = diagnosis.collapse(evidence(cv_load=1.9, changes=[change(N - SOON, "w_load", 0.1, 0.0)]))
    assert "learning rate" in late.try_this


def test_a_collapse_that_goes_back_but_is_not_over_is_not_said_to_be_one_now() -> None:
    steps = np.arange(1, N + 1)
    now, back = (diagnosis.collapse(evidence(cv_load=np.where(steps < 200, 1.6, after))) for after in (1.6, 0.9))
    assert now is not None
    assert back is not None
    assert (
        now.what == "The gate has collapsed onto a few experts: CV(load) is 1.60 over the last 20 steps (ceiling 2.65)."
    )
    assert back.what == (
        "The gate collapsed onto a few experts and has not recovered: CV(load) is 0.90 over the last 20 steps (ceiling 2.65, recovered after 20 steps below 0.80)."
    )


def test_a_collapse_without_noise_says_that_the_load_loss_cannot_help() -> None:
    finding = diagnosis.collapse(evidence(knobs_with(noise=0), cv_load=1.9))
    assert "Without noise" in finding.why
    assert finding.remedy == {"noise": 1.0}


def test_without_a_strategy_the_paper_is_offered_and_where_nothing_was_measured_nothing() -> None:
    assert even_again(knobs_with(strategy="none", w_load=0)) == {"strategy": "paper", "w_load": 0.1}
    assert evens(knobs_with(strategy="none"), {"strategy": "paper"})
    free = diagnosis.collapse(evidence(knobs_with(strategy="loss-free"), cv_load=1.9))
    assert free.remedy is None
    assert "loss-free does not keep the load even" in free.try_this
    groups = Config(num_experts=E, groups=4)
    assert diagnosis.collapse(evidence(knobs_with(w_load=0), config=groups, cv_load=1.9)).remedy is None


def test_the_ceiling_is_of_the_experts_that_are_on() -> None:
    """Statistics leave out who is off (tests/runs/test_off.py). Of the seven that are on, two have it all."""
    off = knobs_with(off=",".join(f"1:{expert}" for expert in range(1, 10)))
    finding = diagnosis.collapse(evidence(off, cv_load=np.sqrt(7 / 2 - 1)))
    assert "CV(load) is 1.58 over the last 20 steps (ceiling 1.58)" in finding.what
    assert diagnosis.collapse(evidence(off, cv_load=1.58)._replace(layer=1)).what.endswith("(ceiling 2.65).")


def test_of_two_levels_the_ceiling_counts_the_experts_of_all_the_groups_that_a_token_gets() -> None:
    groups = Config(num_experts=E, groups=4)
    assert (
        "(ceiling 1.73)" in diagnosis.collapse(evidence(knobs_with(k=2, k_primary=2), config=groups, cv_load=1.5)).what
    )
    finding = diagnosis.collapse(evidence(knobs_with(w_load=0), config=groups, cv_load=1.5))
    assert "both levels" in finding.try_this
    assert diagnosis.collapse(evidence(knobs_with(strategy="switch"), config=groups, cv_load=1.5)).try_this.startswith(
        "switch"
    )


def test_time_is_given_for_each_knob_that_the_strategy_reads_and_no_other() -> None:
    free = evidence(knobs_with(strategy="loss-free"), cv_load=1.9)
    turned = lambda name: diagnosis.collapse(free._replace(changes=[change(390, name, 0.01, 0.001)])).try_this
    assert "until step 490" in turned("bias_speed")
    assert "does not keep the load even" in turned("w_switch")


# Dead experts


def test_an_expert_that_is_switched_off_is_not_dead() -> None:
    counts = np.full((N, E), 10.0)
    counts[:, [0, 3]] = 0
    assert diagnosis.dead_experts(evidence(knobs_with(off="1:1,4"), dead=0.0, counts=counts)) is None
    one = diagnosis.dead_experts(evidence(knobs_with(off="1"), dead=1.0, counts=counts))
    assert "expert 4 of the 15 that are on" in one.what


def test_dead_experts_are_named_since_they_were_last_chosen() -> None:
    counts = np.full((N, E), 10.0)
    counts[100:, [3, 8, 10]] = 0
    finding = diagnosis.dead_experts(evidence(dead=from_step(100 + DEAD_AFTER, 3), counts=counts))
    assert finding.since == 100
    assert "experts 4, 9 and 11 of 16" in finding.what
    counts[:, 3], counts[-1, [8, 10]] = 0, 1
    one = diagnosis.dead_experts(evidence(dead=1.0, counts=counts))
    assert one.since == 1
    assert "expert 4 of 16" in one.what


def test_an_expert_that_comes_back_is_not_dead() -> None:
    dead = from_step(1, 1.0)
    dead[-HOLD:] = 0
    assert diagnosis.dead_experts(evidence(dead=dead)) is None
    counts = np.full((N, E), 10.0)
    counts[-DEAD_AFTER + 1 :, 0] = 0  # chosen DEAD_AFTER steps ago
    assert diagnosis.dead_experts(evidence(dead=1.0, counts=counts)) is None


def test_of_many_experts_a_few_are_named() -> None:
    assert named(range(10)) == "1, 2, 3, 4, 5, 6, 7, 8 and 2 more"
    assert named([4]) == "5"


# Noise


# A constant bias, an idle one, and experts that no token can reach

FAVOURITE = np.array([20.0, *[20 / 15] * 15])  # of k = 2 choices of 20 tokens: all choose expert 1


def watched(**stats) -> Evidence:
    """Of a watched model, whose routers choose by a bias that its knob balance moves."""
    balance = Knob("off", choices=("off", "loss-free", "quantile"))
    found = evidence(**stats)
    description = replace(found.description, origin="watched", knobs={"balance": balance})
    return found._replace(description=description, knobs=Values({"balance": "off"}))


def test_an_expert_that_every_token_chooses_is_a_constant_bias() -> None:
    finding = diagnosis.constant_bias(evidence(counts=FAVOURITE, cv_load=from_step(101, 1.4)))
    assert (finding.rule, finding.since) == ("constant_bias", 101)
    assert "100 % of them choose expert 1" in finding.what
    assert "router's own scores" in finding.why
    assert diagnosis.constant_bias(evidence(counts=FAVOURITE, cv_load=0.4)) is None  # nothing to mend
    assert diagnosis.constant_bias(evidence(counts=FAVOURITE * 0.9 + 2 / 3, cv_load=1.2)) is None
    by_expert = knobs_with(strategy="expert-choice")
    assert diagnosis.constant_bias(evidence(by_expert, counts=FAVOURITE, cv_load=1.4)) is None


@pytest.mark.parametrize(("overlap", "to_blame"), [(0.66, True), (0.68, False), (np.nan, False)])
def test_the_selection_bias_is_to_blame_where_the_choice_without_it_is_another(overlap: float, to_blame: bool) -> None:
    finding = diagnosis.constant_bias(watched(counts=FAVOURITE, cv_load=1.4, bias_effect=overlap))
    assert ("selection bias is the same" in finding.why) == to_blame
    assert finding.remedy == {"balance": "quantile"}


def test_a_bias_that_changes_no_choice_is_idle_beside_a_collapse() -> None:
    assert diagnosis.idle_bias(watched(cv_load=1.4, bias_effect=1.0)).rule == "idle_bias"
    assert diagnosis.idle_bias(watched(cv_load=0.9, bias_effect=1.0)) is None
    assert diagnosis.idle_bias(watched(cv_load=1.4, bias_effect=0.99)) is None
    assert diagnosis.idle_bias(watched(cv_load=1.4)) is None  # there is no bias


@pytest.mark.parametrize(
    ("unreachable", "told", "named"),
    [(2.0, {"unreachable"}, "reach experts 4 and 9:"), (1.0, {"unreachable", "dead_experts"}, "reach 1 of the experts 4 and 9:"), (0.0, {"dead_experts"}, ""), (np.nan, {"dead_experts"}, "")],
)  # fmt: skip
def test_dead_experts_that_no_token_comes_near_are_told_apart(unreachable: float, told: set[str], named: str) -> None:
    counts_E = np.full(E, 10.0)
    counts_E[[3, 8]] = 0
    found = evidence(counts=counts_E, dead=from_step(101, 2.0), unreachable=from_step(121, unreachable))
    findings = {rule.__name__: rule(found) for rule in (diagnosis.unreachable, diagnosis.dead_experts)}
    assert {name for name, finding in findings.items() if finding} == told
    if named:
        assert named in findings["unreachable"].what
        assert findings["unreachable"].since == 121


def test_an_expert_that_is_off_is_not_called_unreachable() -> None:
    counts_E = np.full(E, 10.0)
    counts_E[3] = 0
    assert diagnosis.unreachable(evidence(knobs_with(off="4"), counts=counts_E, dead=1.0, unreachable=1.0)) is None


def test_a_gate_that_the_task_teaches_nothing_is_told_with_what_helps() -> None:
    nothing = evidence(knobs_with(k=1), task_gradient=0.0)
    finding = diagnosis.no_gradient(nothing)
    assert (finding.rule, finding.since, finding.remedy) == ("no_gradient", 1, {"weigh": "all"})
    assert finding.what == "The gate learns nothing from the task: the task's gradient on it is 0."
    assert "weighs 1 whatever its logit" in finding.why
    assert finding.try_this == "Turn weigh to all, as in Switch, or k to 2 or more."
    assert diagnosis.no_gradient(evidence(knobs_with(k=1), task_gradient=4e-10)).what.endswith("is 2e-10 of the whole.")
    # Two levels of which one keeps a single choice.
    groups = Config(num_experts=E, groups=4)
    for knobs in (knobs_with(k=1), knobs_with(k_primary=1)):
        assert diagnosis.no_gradient(evidence(knobs, config=groups, task_gradient=0.0)).remedy == {"weigh": "all"}


@pytest.mark.parametrize(
    ("groups", "turned", "raised"),
    [
        (0, {"k": 1}, ", or k"),
        (4, {"k": 1}, ", or k"),
        (4, {"k_primary": 1}, ", or k_primary"),
        (4, {"k": 1, "k_primary": 1}, ", or k and k_primary"),
        (16, {"k": 1, "k_primary": 1}, ", or k_primary"),  # one expert in each group
    ],
)
def test_only_a_k_that_can_be_more_is_offered_to_a_gate_that_keeps_one(groups: int, turned, raised: str) -> None:
    said = diagnosis.no_gradient(
        evidence(knobs_with(**turned), config=Config(num_experts=E, groups=groups), task_gradient=0.0)
    )
    assert said.try_this == f"Turn weigh to all, as in Switch{raised} to 2 or more."


ILL: tuple[dict[str, object], ...] = (
    {"task_gradient": 0.0}, {"cv_load": 1.9}, {"dead": 1.0}, {"noise_scale": 20.0}, {"dropped": 0.5},
    {"logit_spread": 0.0, "task_gradient": np.nan},
)  # fmt: skip


@pytest.mark.parametrize(("experts", "k"), [(1, 1), (2, 1), (2, 2), (16, 1), (16, 16)])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_remedy_offers_only_values_that_the_run_can_have(experts: int, k: int, strategy: str) -> None:
    config = Config(task="plane", num_experts=experts)
    for turned in ({}, {"noise": 0.0}, {"noise": 4.0}, {"w_load": 1.0, "w_importance": 0.0}, {"capacity_factor": 0.5}):
        knobs = Knobs(**{"k": k, "strategy": strategy} | turned)
        for ill in ILL:
            counts_E = np.eye(experts)[0] * 10 * k
            given = evidence(knobs, config=config, n=700, counts=counts_E, **ill)
            given = given._replace(held_out_steps_m=np.array([600, 650]), held_out_cv_m=np.array([0.5, 0.5]))
            found = [finding for rule in diagnosis.rules_for(given) if (finding := rule(given))]
            assert experts > 1 or {finding.rule for finding in found} <= {"dropped_tokens"}
            for finding in found:
                for name, value in (finding.remedy or {}).items():
                    check_knob(config, name, value, knobs)
                check(config, replace(knobs, **finding.remedy or {}))
                most = min([experts, *map(int, re.findall(r"\bk to (\d+)", finding.try_this))])
                assert most > k or " k to " not in finding.try_this


OTHERS = ",".join(map(str, range(2, E + 1)))


def test_of_the_gate_of_one_expert_nothing_is_said() -> None:
    one = evidence(knobs_with(k=1), config=Config(num_experts=1), task_gradient=0.0)
    assert diagnosis.rules_for(one) == (diagnosis.dropped_tokens,)
    others_off = evidence(knobs_with(k=1, off=OTHERS), task_gradient=0.0)
    assert diagnosis.rules_for(others_off) == (diagnosis.dropped_tokens,)
    assert diagnosis.rules_for(evidence(knobs_with(k=1, off=OTHERS[2:]))) == diagnosis.RULES
    told = diagnose(
        Source(knobs_with(k=1, off=OTHERS, noise=0), dead=3.0)
    )  # an idle load loss, if it had more to choose
    assert told == []


def test_it_is_measured_and_not_inferred_from_the_knobs() -> None:
    assert diagnosis.no_gradient(evidence(knobs_with(k=1))) is None
    assert diagnosis.no_gradient(evidence(knobs_with(k=1), task_gradient=np.nan)) is None  # an old run
    for knobs in (knobs_with(k=2), knobs_with(k=1, weigh="all"), knobs_with(k=1, strategy="switch")):
        finding = diagnosis.no_gradient(evidence(knobs, task_gradient=0.0))
        assert finding.remedy is None
        assert "saturated" in finding.why
    control = evidence(knobs_with(strategy="even"), task_gradient=0.0)
    assert diagnosis.no_gradient(control) is None


def test_no_gradient_at_its_boundary_and_over_time() -> None:
    bound = 1e-6 * 2.0
    assert diagnosis.no_gradient(evidence(task_gradient=bound * 0.999))
    assert diagnosis.no_gradient(evidence(task_gradient=bound * 1.001)) is None
    assert diagnosis.no_gradient(evidence(task_gradient=0.0, n=HOLD - 1)) is None
    assert diagnosis.no_gradient(evidence(task_gradient=0.0, n=HOLD)).since == 1
    assert diagnosis.no_gradient(evidence(task_gradient=from_step(301, 0.0, 0.1))).since == 301
    assert diagnosis.no_gradient(evidence(task_gradient=from_step(N, 0.1, 0.0))) is None  # one measurement ends it


def test_after_a_turn_the_next_measurement_is_waited_for() -> None:
    """Measured at 301, held until 401."""
    turned = lambda step, name="weigh": evidence(
        knobs_with(k=1, weigh="all"), [change(step, name, 0, 0)], task_gradient=0.0
    )
    assert diagnosis.no_gradient(turned(302)) is None
    assert diagnosis.no_gradient(turned(301))
    assert diagnosis.no_gradient(turned(302, "w_load"))


def test_what_the_task_teaches_nothing_is_not_drowned() -> None:
    high = np.full(600, 20.0)
    assert diagnosis.noise_drowns(evidence(noise_scale=high, n=600))
    assert diagnosis.noise_drowns(evidence(noise_scale=high, task_gradient=0.0, n=600)) is None
    heavy = knobs_with(w_importance=1.0, w_load=1.0)
    assert diagnosis.large_coefficient(evidence(heavy, noise_scale=high, n=600))
    assert diagnosis.large_coefficient(evidence(heavy, noise_scale=high, task_gradient=0.0, n=600)) is None
    # One that learnt and was drowned before the task stopped to teach it.
    stopped = from_step(570, 0.0, 0.1, n=600)
    assert diagnosis.noise_drowns(evidence(noise_scale=high, task_gradient=stopped, n=600)) is None


def test_noise_drowns_a_gate_only_above_the_ratio_and_once_it_has_settled() -> None:
    high, settled = diagnosis.DROWNED[0] + 0.1, diagnosis.SETTLED
    finding = diagnosis.noise_drowns(evidence(knobs_with(noise=4), noise_scale=high, n=600))
    assert finding.since == settled + 1
    assert finding.remedy == {"noise": 1.0}
    assert diagnosis.noise_drowns(evidence(noise_scale=high, n=600)).remedy is None
    assert diagnosis.noise_drowns(evidence(noise_scale=diagnosis.DROWNED[0], n=600)) is None
    assert diagnosis.noise_drowns(evidence(noise_scale=high, n=settled + HOLD - 1)) is None
    assert diagnosis.noise_drowns(evidence(noise_scale=high, n=settled + HOLD))
    assert diagnosis.noise_drowns(evidence(noise_scale=0.0, logit_spread=0.0, n=600)) is None
    assert diagnosis.noise_drowns(evidence(noise_scale=np.nan, n=600)) is None
    # Between the two thresholds it stays; below the lower one it ends.
    fell = from_step(551, diagnosis.DROWNED[1], high, n=600)
    assert diagnosis.noise_drowns(evidence(noise_scale=fell, n=600))
    assert diagnosis.noise_drowns(evidence(noise_scale=fell - 0.1, n=600)) is None


def test_where_the_task_is_learnt_nothing_is_at_stake() -> None:
    assert diagnosis.noise_drowns(evidence(noise_scale=20.0, task_loss=0.06, n=600))
    assert diagnosis.noise_drowns(evidence(noise_scale=20.0, task_loss=0.04, n=600)) is None


def test_a_gate_that_grows_out_of_the_noise_is_not_drowned() -> None:
    """It is drowned from where the ratio stops falling by a tenth in 100 steps, or at once when noise is turned up."""
    steps = np.arange(1, 901)
    halves = 40 * 0.5 ** (steps / 300)  # by a fifth in 100 steps: 12.6 at step 500, 5 at step 900
    assert diagnosis.noise_drowns(evidence(noise_scale=halves, n=900)) is None
    slow = np.where(steps <= 700, halves, halves[699] * 0.95 ** ((steps - 700) / 100))
    finding = diagnosis.noise_drowns(evidence(noise_scale=slow, n=900))
    assert 740 < finding.since < 780
    turned_up = np.where(steps <= 700, halves, 4 * halves)
    assert diagnosis.noise_drowns(evidence(noise_scale=turned_up, n=900)).since == 701


def test_a_load_loss_without_noise_is_told_at_once() -> None:
    turned = [change(120, "noise", 0.0, 1.0), change(50, "w_load", 0.1, 0.0)]
    finding = diagnosis.idle_load_loss(evidence(knobs_with(noise=0), changes=turned, n=130))
    assert finding.since == 120
    assert finding.remedy == {"noise": 1.0}
    assert diagnosis.idle_load_loss(evidence(knobs_with(noise=0, w_load=0))) is None
    assert diagnosis.idle_load_loss(evidence(knobs_with(noise=0.05))) is None
    assert diagnosis.idle_load_loss(evidence(knobs_with(noise=0, strategy="switch"))) is None
    assert diagnosis.idle_load_loss(evidence(knobs_with(noise=0))).since == 1
    # Of two levels, the noise of either gives the loss a gradient.
    groups = Config(num_experts=E, groups=4)
    assert diagnosis.idle_load_loss(evidence(knobs_with(noise=0), config=groups)) is None
    assert diagnosis.idle_load_loss(evidence(knobs_with(noise=0, noise_primary=0), config=groups))


# Coefficients


def test_loss_weights_that_flatten_the_logits_are_too_large() -> None:
    drowned = evidence(knobs_with(w_importance=1, w_load=0.5), noise_scale=9.0, n=600)
    finding = diagnosis.large_coefficient(drowned)
    assert finding.since == diagnosis.SETTLED + 1
    assert "w_importance at 1 and w_load at 0.5 the noise is 9.0 times" in finding.what
    assert finding.remedy == {"w_importance": 0.1, "w_load": 0.1}
    assert diagnosis.noise_drowns(drowned) is None
    assert diagnosis.large_coefficient(evidence(knobs_with(w_load=1), noise_scale=9.0, n=600)).remedy == {"w_load": 0.1}
    assert diagnosis.large_coefficient(evidence(knobs_with(w_load=1), noise_scale=1.0, n=600)) is None
    steered = diagnosis.large_coefficient(drowned._replace(knobs=knobs_with(w_load=1, autobalance=0.02)))
    assert steered.remedy is None
    assert "autobalance up" in steered.try_this


@pytest.mark.parametrize("knobs", [knobs_with(), knobs_with(noise=4, w_load=1), knobs_with(strategy="none", w_load=1)])
def test_where_the_weights_are_not_to_blame_it_is_the_noise(knobs: Knobs) -> None:
    drowned = evidence(knobs, noise_scale=9.0, n=600)
    assert diagnosis.large_coefficient(drowned) is None
    assert diagnosis.noise_drowns(drowned).remedy == ({"noise": 1.0} if knobs.noise > 1 else None)


# Dropped tokens


def by_noise(cv_held_out, knobs: Knobs = QUIET, cv_load=0.1, at=(550, 600), **rest):
    """even_by_noise of a run of 600 steps with evaluations at these."""
    rest = {"config": Config(task="plane", num_experts=E)} | rest
    given = evidence(knobs, n=600, cv_load=cv_load, **rest)
    return diagnosis.even_by_noise(
        given._replace(
            held_out_steps_m=np.array(at), held_out_cv_m=np.broadcast_to(np.float64(cv_held_out), (len(at),))
        )
    )


def test_even_in_training_and_uneven_without_noise_is_even_only_by_its_noise() -> None:
    finding = by_noise(0.5)
    assert (finding.since, finding.remedy) == (550, {"noise": 0.25})
    assert "0.10 in training, a mean of 20 steps, and 0.50 without noise" in finding.what


@pytest.mark.parametrize(
    "given",
    [
        {"cv_held_out": 0.39},
        {"cv_held_out": 0.5, "cv_load": 0.5},  # uneven in both: no word about noise
        {"cv_held_out": [0.1, 0.5]},  # one evaluation may be chance
        {"cv_held_out": 0.5, "at": (50, 500)},  # a fresh gate grows out of its noise
        {"cv_held_out": 0.5, "knobs": knobs_with(noise=0)},
        {"cv_held_out": 0.5, "knobs": knobs_with(strategy="loss-free")},
        {"cv_held_out": 0.5, "knobs": knobs_with(strategy="expert-choice")},
        {"cv_held_out": np.nan},
        {"cv_held_out": 0.5, "at": ()},
    ],
    ids=str,
)
def test_it_is_not_even_by_its_noise(given) -> None:
    assert by_noise(**given) is None


def test_what_was_not_measured_to_make_a_gate_even_by_itself_is_not_offered() -> None:
    assert by_noise(0.5, config=CONFIG).remedy is None  # text
    assert by_noise(0.5, knobs_with(strategy="switch")).remedy is None
    assert by_noise(0.5, knobs_with(noise=0.25)).remedy is None
    assert by_noise(0.5, config=Config(task="plane", num_experts=E, groups=4)).remedy is None
    turned = by_noise(0.5, knobs_with(noise=0.9), changes=[change(590, "noise", 0.9, 1.0)])
    assert (turned.remedy, turned.try_this) == (None, "The knobs were turned at step 590; give them until step 690.")


def test_it_ends_when_evaluations_are_even_too() -> None:
    at = (550, 560, 570, 580, 590, 600)
    assert by_noise([0.5, 0.5, 0.5, 0.35, 0.35, 0.35], at=at).since == 550
    assert by_noise([0.5, 0.5, 0.5, 0.3, 0.3, 0.3], at=at) is None


def test_dropped_tokens() -> None:
    counts = np.full(E, 10.0)
    counts[0] = 40
    finding = diagnosis.dropped_tokens(
        evidence(knobs_with(capacity_factor=1.25), dropped=from_step(301, 0.2), counts=counts)
    )
    assert finding.since == 301
    assert "20 %" in finding.what
    assert "takes 1.25 times its fair share at most" in finding.why
    assert "chosen 3.4 times as often" in finding.why
    assert diagnosis.dropped_tokens(evidence(dropped=diagnosis.DROPPING[0])) is None
    assert diagnosis.dropped_tokens(evidence(dropped=from_step(200, 0.03, 0.2)))
    assert diagnosis.dropped_tokens(evidence(dropped=from_step(200, 0.01, 0.2))) is None


# Together


class Source:
    """A run of n steps in memory, as a diagnosis reads it."""

    def __init__(self, knobs: Knobs, changes=(), n: int = N, **stats) -> None:
        self.description, self.knobs, self.n, self.changes = describe(CONFIG, knobs), knobs, n, list(changes)
        made = evidence(knobs, n=max(n, 1), **stats)
        fields = {"dead_experts": "dead", "counts": "counts"}
        names = ("task_loss", "cv_load", "counts", "dead_experts", "noise_scale", "logit_spread", "dropped")
        self.stats = {s: getattr(made, fields.get(s, s) + ("_nE" if s == "counts" else "_n")) for s in names}

    def history(self, stat, layer=0, first=None, last=None, bins=None):
        if stat not in self.stats:
            raise ValueError(f"this run has no statistic {stat!r}")
        return np.arange(1, self.n + 1), self.stats[stat][: self.n]

    def knob_changes(self):
        return self.changes

    def evals(self):
        return []


def test_findings_come_gravest_first_and_nothing_is_said_of_no_steps() -> None:
    finding = diagnose(Source(knobs_with(w_load=0), cv_load=1.9, dead=3.0, dropped=0.5, counts=np.eye(E)[0]))
    assert [f.rule for f in finding] == ["collapse", "constant_bias", "dead_experts", "dropped_tokens"]
    assert diagnose(Source(knobs_with(w_load=0), n=0)) == []


def test_in_a_collapse_no_remedy_is_offered_that_leaves_it_collapsed() -> None:
    finding = {f.rule: f for f in diagnose(Source(knobs_with(noise=0, w_load=0.05), cv_load=1.9, dropped=0.5))}
    assert finding["collapse"].remedy == {"noise": 1.0, "w_load": 0.1}
    assert finding["idle_load_loss"].remedy is None
    assert finding["dropped_tokens"].remedy is None
    quiet = {f.rule: f for f in diagnose(Source(knobs_with(noise=0, w_load=0.05)))}
    assert quiet["idle_load_loss"].remedy == {"noise": 1.0}


def test_a_change_that_has_not_taken_effect_yet_is_not_counted() -> None:
    waiting = [change(None, "noise", 0.0, 1.0, id=2), change(30, "w_load", 0.1, 0.0, id=1)]
    assert diagnose(Source(knobs_with(noise=0), changes=waiting))[0].since == 30


class Last(Source):
    """The same, of which the last steps are in memory only."""

    def history(self, stat, layer=0, first=None, last=None, bins=None):
        steps, values = super().history(stat)
        return steps[-300:], values[-300:]


def test_a_diagnosis_of_the_last_steps_says_what_one_of_all_of_them_says() -> None:
    """A collapse that wavers, one expert that every token chooses and then another, dropped tokens that end and come again, and a
    gate that grows out of its noise."""
    t = np.arange(2000)
    stats = {
        "cv_load": np.where((t >= 150) & (t % 140 < 100), 0.9, 1.2) * (t >= 100),
        "dropped": np.where((t > 900) & (t < 1300), 0.0, 0.2),
        "noise_scale": 100 * np.exp(-t / 600),
        "counts": 1 + 1e4 * np.eye(E)[np.where(t < 500, 3, 5)] * (t[:, None] >= 300),
    }
    source, memory, told = Last(knobs_with(w_load=0), n=2000, **stats), Memory(), []
    for source.n in range(40, 2001, 30):
        of_all = Source(
            knobs_with(w_load=0), n=source.n, **{name: values[: source.n] for name, values in stats.items()}
        )
        told.append(diagnose(source, 0, memory))
        assert [(f.rule, f.since, f.known) for f in told[-1]] == [(f.rule, f.since, True) for f in diagnose(of_all)]
    assert {(f.rule, f.since) for found in told for f in found} == {
        ("collapse", 101), ("constant_bias", 301), ("constant_bias", 501), ("dropped_tokens", 1), ("dropped_tokens", 1301)
    }  # fmt: skip
    assert not diagnose(source, 0, Memory())[0].known  # of the last steps alone


def test_what_wavers_in_all_steps_that_were_read_may_have_begun_before_them() -> None:
    """Or a page that is opened late would miss a collapse that one which was open has found."""
    t = np.arange(2000)
    cv_load = np.where((t >= 500) & (t % 30 < 15), 0.9, 1.2) * (t >= 100)  # begins above 1.0, ends below 0.8
    source, memory = Last(knobs_with(w_load=0), n=2000, cv_load=cv_load), Memory()
    assert "collapse" not in [f.rule for f in diagnose(source, 0, memory)]
    assert not memory.known
    healthy, memory = Last(knobs_with(w_load=0), n=2000, cv_load=0.1), Memory()
    diagnose(healthy, 0, memory)
    assert memory.known  # nothing is looked for, also where a statistic is not recorded


def test_a_state_is_remembered_while_no_finding_speaks_of_it() -> None:
    """Two experts that take turns as the busiest, a weight that becomes heavy in a gate that has long been drowned, and a strategy
    that leaves nothing to say for a while."""
    t = np.arange(1000)
    first = 10 + (t // 40 % 2 == 0)  # of two experts that every token chooses, the one with more selections
    stats = {
        "counts": np.stack([first, 21 - first, *np.zeros((E - 2, 1000))], 1), "cv_load": np.full(1000, 2.0),
        "noise_scale": np.where(t >= 520, 100.0, 0.1),
    }  # fmt: skip
    source, memory, told = Last(knobs_with(w_load=0), n=1000, **stats), Memory(), set()
    for source.n in range(40, 1001, 30):
        of_all = Source(QUIET, n=source.n, **{name: values[: source.n] for name, values in stats.items()})
        source.knobs = of_all.knobs = knobs_with(
            w_importance=5.0 if source.n > 900 else 0.0, strategy="expert-choice" if 300 < source.n < 700 else "paper"
        )
        found = diagnose(source, 0, memory)
        assert [(f.rule, f.since, f.known) for f in found] == [(f.rule, f.since, True) for f in diagnose(of_all)]
        told |= {(f.rule, f.since) for f in found}
    assert told >= {("constant_bias", 1), ("noise_drowns", 521), ("large_coefficient", 521)}


def test_what_holds_without_noise_is_remembered_while_none_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    uneven = np.eye(E)[:1] * 1e4
    source, memory = Last(QUIET, n=1500), Memory()
    monkeypatch.setattr(
        source, "evals", lambda: [SimpleNamespace(step=s, counts=uneven) for s in range(600, source.n + 1, 50)]
    )
    for source.n in range(40, 1501, 30):
        source.knobs = knobs_with(noise=0 if 800 < source.n < 1300 else 1, w_load=0)
        told = [(f.since, f.known) for f in diagnose(source, 0, memory) if f.rule == "even_by_noise"]
    assert told == [(600, True)]


def test_what_was_found_before_steps_that_nobody_read_does_not_count() -> None:
    source, memory = Last(knobs_with(w_load=0), n=1000, cv_load=1.9), Memory()
    source.n = 100
    assert diagnose(source, 0, memory)[0].known
    source.n = 1000
    (found,) = diagnose(source, 0, memory)
    assert (found.since, found.known) == (701, False)


def test_a_finding_is_plain_json() -> None:
    finding = diagnose(Source(knobs_with(w_importance=0, w_load=0), cv_load=1.9))[0]
    assert Finding(**json.loads(json.dumps(finding._asdict()))) == finding
