"""Win rates, tables and summary.json on rows worked out by hand."""

import json

import pytest

from rlhf.evaluation.gold import gold_judge, labeler_limits
from rlhf.evaluation.preferences import (
    by_category,
    compare,
    gain,
    gold,
    gold_accuracy,
    mean_score,
    reward,
    showcase,
)
from rlhf.evaluation.summary import summarize

SETTINGS = {"dataset": "sandbox", "model": "sandbox", "split": "test", "seed": 0, "max_new_tokens": 8}


def row(prompt_id, arm, overall=None, reward=None, category="chat", **verdicts):
    return {
        "prompt_id": prompt_id,
        "key": f"key {prompt_id}",
        "category": category,
        "prompt": f"prompt {prompt_id}",
        "arm": arm,
        "response": f"{arm} {prompt_id}",
        "ended": True,
        "tokens": 3,
        "reward": reward,
        "gold": None if overall is None else {"overall": overall, "likert": 1 + round(6 * overall), **verdicts},
        **({"kl": 2.0 + prompt_id} if arm == "ppo" else {}),
    }


@pytest.fixture
def rows():
    """Gold: RLHF wins prompts 0 and 1, ties 2, loses 3. The reward model has 0 and 3 right and 1 wrong."""
    sft, ppo = (0.2, 0.4, 0.5, 0.9), (0.8, 0.6, 0.5, 0.1)
    sft_reward, ppo_reward = (0.0, 2.0, 1.0, 1.0), (1.0, 1.0, 5.0, 0.0)
    categories = ("chat", "chat", "extract", "extract")
    rows = []
    for i in range(4):
        rows.append(row(i, "base", 0.0, -1.0, categories[i], rude=True))
        rows.append(row(i, "sft", sft[i], sft_reward[i], categories[i], rude=i == 0, satisfies_constraint=None))
        rows.append(
            row(i, "ppo", ppo[i], ppo_reward[i], categories[i], rude=False, satisfies_constraint=i == 3 or None)
        )
        rows.append(row(i, "sft_greedy", 0.5, 0.0, categories[i], rude=False))
        rows.append(row(i, "ppo_greedy", 0.7, 1.0, categories[i], rude=False))
    return rows


def test_win_rate_by_each_judge(rows):
    assert compare(rows, "ppo", "sft", gold("overall")).mean == pytest.approx(2.5 / 4)
    assert compare(rows, "ppo", "sft", reward).mean == pytest.approx(2 / 4)
    assert compare(rows, "ppo_greedy", "sft_greedy", gold("overall")).mean == 1.0


def test_answers_are_paired_by_prompt_whatever_their_order(rows):
    assert compare(rows[::-1], "ppo", "sft", gold("overall")).mean == compare(rows, "ppo", "sft", gold("overall")).mean
    assert gain(rows, "ppo", "sft", gold("overall")).mean == pytest.approx((0.6 + 0.2 + 0 - 0.8) / 4)


def test_prompt_that_one_model_did_not_answer_is_left_out(rows):
    rows = [r for r in rows if (r["prompt_id"], r["arm"]) != (3, "sft")]
    assert compare(rows, "ppo", "sft", gold("overall")).n == 3


def test_axis_counts_only_the_answers_it_applies_to(rows):
    assert mean_score(rows, "sft", gold("rude")).mean == 0.25
    assert mean_score(rows, "ppo", gold("satisfies_constraint")).n == 1
    assert mean_score(rows, "sft", gold("satisfies_constraint")) is None


def test_reward_models_agreement_with_gold_leaves_golds_ties_out(rows):
    assert gold_accuracy(rows, "ppo", "sft").mean == pytest.approx(2 / 3)
    assert gold_accuracy(rows, "ppo", "sft").n == 3


def test_categories_come_largest_first():
    rows = [
        row(0, "sft", category="a"),
        row(1, "sft", category="b"),
        row(2, "sft", category="b"),
        row(3, "sft", category=None),
    ]
    assert list(by_category(rows)) == ["b", "a", "all"]


def test_showcase_takes_the_first_of_each_category_whatever_was_answered(rows):
    prompts = [row(i, "sft", 0.1, category="abbcb"[i]) for i in range(5)]
    assert showcase(prompts, 3) == [1, 0, 3]
    assert showcase(prompts, 10) == [1, 0, 3, 2, 4]
    others = [{**r, "response": "better", "gold": {"overall": 1.0}} for r in reversed(prompts)]
    assert showcase(others, 3) == showcase(prompts, 3)


def test_summary_has_the_fields_that_were_promised(rows):
    accuracy = {"accuracy": 0.7, "accuracy_by_group": {"training": {"accuracy": 0.71}, "heldout": {"accuracy": 0.69}}}
    results = {
        "sft": {"seconds": 10.0, "choice_seconds": 4.0},
        "reward": {"seconds": 20.0, **accuracy},
        "ppo": {"seconds": 30.0},
    }
    limits = {"labeler_agreement": 0.73, "attainable_accuracy": 0.8}
    summary = json.loads(json.dumps(summarize(rows, results, {**SETTINGS, **limits}, 5.0)))
    assert summary["gold"] == pytest.approx({"base": 0.0, "sft": 0.5, "ppo": 0.5, "sft_greedy": 0.5, "ppo_greedy": 0.7})
    assert set(summary["win_rate_vs_sft"]["ppo"]) == {"mean", "low", "high", "n"}
    assert summary["win_rate_vs_sft"]["ppo"]["mean"] == pytest.approx(0.625)
    assert summary["win_rate_vs_sft"]["ppo_greedy"]["mean"] == 1.0
    assert summary["win_rate_vs_base"]["sft"]["mean"] == 1.0
    assert summary["kl"] == pytest.approx(3.5)
    assert summary["reward_model"]["accuracy"] == 0.7
    assert summary["reward_model"]["heldout_labeler_accuracy"] == 0.69
    assert summary["reward_model"]["labeler_agreement"] == 0.73
    expected = {"sft": 10.0, "reward": 20.0, "ppo": 30.0, "evaluate": 5.0, "choice": 4.0, "total": 69.0}
    assert summary["seconds"] == expected
    assert summary["categories"]["extract"]["win_rate_vs_sft"]["ppo"]["mean"] == 0.25
    assert summary["categories"]["chat"]["axes"]["rude"]["sft"] == 0.5
    assert summary["categories"]["chat"]["axes_gain_vs_sft"]["rude"]["ppo"]["mean"] == -0.5
    assert summary["categories_with_higher_gold"] == {"higher": 1, "of": 2}


def test_changes_of_an_axis_in_a_few_prompts_are_not_certain(rows):
    summary = summarize(rows, {}, SETTINGS, 5.0)
    changed = summary["categories"]["chat"]["axes_gain_vs_sft"]["rude"]["ppo_greedy"]
    assert (changed["mean"], changed["low"] < 0 < changed["high"]) == (0, True)
    assert summary["axes"]["rude"]["ppo"]["high"] > 0.2  # none of four answers is rude


def test_reward_model_never_stands_in_for_gold(rows):
    summary = summarize([{**r, "gold": None} for r in rows], {}, SETTINGS, 5.0)
    for name in ("gold", "win_rate_vs_sft", "win_rate_vs_base", "axes", "likert", "categories_with_higher_gold"):
        assert summary[name] is None
    assert summary["win_rate_vs_sft_by_reward_model"]["ppo"]["mean"] == 0.5


def test_base_alone_is_summarized(rows):
    summary = summarize([{**r, "reward": None} for r in rows if r["arm"] == "base"], {}, SETTINGS, 5.0)
    assert summary["gold"] == {"base": 0.0}
    assert summary["win_rate_vs_sft"] is summary["kl"] is summary["reward"] is None


def test_gold_exists_for_the_sandbox_only():
    assert gold_judge("trl-lib/tldr") is None
    assert labeler_limits("trl-lib/tldr") == {"labeler_agreement": None, "attainable_accuracy": None}


def test_gold_judge_of_the_sandbox_keeps_to_the_interface():
    prompt = [{"role": "user", "content": "Name two foods."}]
    verdict = gold_judge("sandbox")(prompt, "Here are two foods: cabbage and pasta.", ended=True)
    assert 0 <= verdict["overall"] <= 1
    assert 1 <= verdict["likert"] <= 7
    assert isinstance(verdict["follows_instruction"], bool)
