"""Win rates, tables and summary.json on rows worked out by hand."""

import json
from dataclasses import asdict

import pytest

from rlhf.errors import InputError
from rlhf.evaluation.gold import gold_judge, labeler_limits
from rlhf.evaluation.length_control import length_controlled_win_rate
from rlhf.evaluation.power import measured_detectable_difference
from rlhf.evaluation.preferences import accuracy_by, by_category, compare, flag_of, gain, mean_score, score_of, showcase
from rlhf.evaluation.summary import as_text, read_summary, summarize
from rlhf.runs.system_names import rival

SETTINGS = {"dataset": "sandbox", "model": "sandbox", "split": "test", "seed": 0, "max_new_tokens": 8}


JUDGES = {
    "gold": {"kind": "scores", "about": "The truth."},
    "reward": {"kind": "scores", "about": "PPO's reward.", "optimized": True},
}
gold, reward = score_of("gold"), score_of("reward")


def row(prompt_id, system, overall=None, reward=None, category="chat", **flags):
    likert = None if overall is None else 1 + round(6 * overall)
    return {
        "prompt_id": prompt_id,
        "key": f"key {prompt_id}",
        "category": category,
        "prompt": f"prompt {prompt_id}",
        "system": system,
        "response": f"{system} {prompt_id}",
        "ended": True,
        "tokens": 3,
        "kl": 2.0 + prompt_id if system == "ppo" else None,
        "scores": {"gold": overall, "reward": reward},
        "likert": {"gold": likert, "reward": None},
        "flags": {"gold": flags, "reward": {}},
        "preferences": {},
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
    assert compare(rows, "ppo", "sft", gold).mean == pytest.approx(2.5 / 4)
    assert compare(rows, "ppo", "sft", reward).mean == pytest.approx(2 / 4)
    assert compare(rows, "ppo_greedy", "sft_greedy", gold).mean == 1.0


def test_answers_are_paired_by_prompt_whatever_their_order(rows):
    assert compare(rows[::-1], "ppo", "sft", gold).mean == compare(rows, "ppo", "sft", gold).mean
    assert gain(rows, "ppo", "sft", gold).mean == pytest.approx((0.6 + 0.2 + 0 - 0.8) / 4)


def test_prompt_that_one_model_did_not_answer_is_left_out(rows):
    rows = [r for r in rows if (r["prompt_id"], r["system"]) != (3, "sft")]
    assert compare(rows, "ppo", "sft", gold).n == 3


def test_axis_counts_only_the_answers_it_applies_to(rows):
    assert mean_score(rows, "sft", flag_of("gold", "rude")).mean == 0.25
    assert mean_score(rows, "ppo", flag_of("gold", "satisfies_constraint")).n == 1
    assert mean_score(rows, "sft", flag_of("gold", "satisfies_constraint")) is None


def test_reward_models_agreement_with_gold_leaves_golds_ties_out(rows):
    assert accuracy_by(rows, "ppo", "sft", "reward", "gold").mean == pytest.approx(2 / 3)
    assert accuracy_by(rows, "ppo", "sft", "reward", "gold").n == 3


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
    others = [{**r, "response": "better", "scores": {"gold": 1.0}} for r in reversed(prompts)]
    assert showcase(others, 3) == showcase(prompts, 3)


def test_summary_has_the_fields_that_were_promised(rows):
    accuracy = {"accuracy": 0.7, "accuracy_by_group": {"training": {"accuracy": 0.71}, "heldout": {"accuracy": 0.69}}}
    results = {
        "sft": {"seconds": 10.0, "choice_seconds": 4.0},
        "reward": {"seconds": 20.0, **accuracy},
        "ppo": {"seconds": 30.0},
    }
    limits = {"labeler_agreement": 0.73, "attainable_accuracy": 0.8}
    specs = {"sft": {"source": "sft"}, "sft_best": {"source": "sft", "best_of": 4}}
    settings = {**SETTINGS, **limits, "systems": specs}
    summary = json.loads(json.dumps(summarize(rows, JUDGES, results, settings, 5.0)))
    assert (summary["prompts"], summary["baseline"], summary["systems"]["sft"]["spec"]) == (4, "sft", {"source": "sft"})
    assert summary["systems"]["ppo"]["kl"]["mean"] == pytest.approx(3.5)
    assert summary["systems"]["sft"]["kl"] is None
    assert summary["systems"]["sft"]["tokens"]["mean"] == 3
    judge = summary["judges"]["gold"]
    means = {system: estimate["mean"] for system, estimate in judge["mean"].items()}
    assert means == pytest.approx({"base": 0.0, "sft": 0.5, "ppo": 0.5, "sft_greedy": 0.5, "ppo_greedy": 0.7})
    assert set(judge["win_rate"]) == {"base", "ppo", "ppo_greedy"}
    assert set(judge["win_rate"]["ppo"]) == {"mean", "low", "high", "n"}
    assert judge["win_rate"]["ppo"]["mean"] == pytest.approx(0.625)
    assert judge["win_rate"]["ppo_greedy"]["mean"] == 1.0
    assert judge["gain"]["base"]["mean"] == -0.5
    assert summary["judges"]["reward"]["win_rate"]["ppo"]["mean"] == 0.5
    assert (judge["optimized"], summary["judges"]["reward"]["optimized"]) == (False, True)
    assert summary["reward_model"]["accuracy"] == 0.7
    assert summary["reward_model"]["heldout_labeler_accuracy"] == 0.69
    assert summary["reward_model"]["labeler_agreement"] == 0.73
    assert summary["reward_model"]["gold_accuracy_on_ppo_sft_pairs"]["mean"] == pytest.approx(2 / 3)
    assert summary["best_of_n"]["n"] == 4
    expected = {"sft": 10.0, "reward": 20.0, "ppo": 30.0, "evaluate": 5.0, "choice": 4.0, "total": 69.0}
    assert summary["seconds"] == expected
    extract, chat = judge["categories"]["extract"], judge["categories"]["chat"]
    assert extract["win_rate"]["ppo"]["mean"] == 0.25
    assert chat["flags"]["rude"]["sft"]["mean"] == 0.5
    assert chat["flags_gain"]["rude"]["ppo"]["mean"] == -0.5
    assert judge["categories_with_higher_mean"]["ppo"] == {"higher": 1, "of": 2}


def test_changes_of_a_flag_in_a_few_prompts_are_not_certain(rows):
    judge = summarize(rows, JUDGES, {}, SETTINGS, 5.0)["judges"]["gold"]
    changed = judge["categories"]["chat"]["flags_gain"]["rude"]["ppo_greedy"]
    assert (changed["mean"], changed["low"] < 0 < changed["high"]) == (0, True)
    assert judge["flags"]["rude"]["ppo"]["high"] > 0.2  # none of four answers is rude


def test_one_judge_never_stands_in_for_another(rows):
    for r in rows:
        r["scores"]["gold"] = r["likert"]["gold"] = None
        r["flags"]["gold"] = {}
    summary = summarize(rows, JUDGES, {}, SETTINGS, 5.0)
    judge = summary["judges"]["gold"]
    for name in ("mean", "likert", "flags", "gain", "categories_with_higher_mean"):
        assert judge[name] is None
    assert judge["win_rate"] == {}
    assert summary["judges"]["reward"]["win_rate"]["ppo"]["mean"] == 0.5
    assert summary["reward_model"]["gold_accuracy_on_ppo_sft_pairs"] is None


def test_greedy_systems_are_compared_with_the_greedy_baseline_if_there_is_one():
    systems = ["base", "sft", "sft_greedy", "ppo_greedy", "other"]
    assert [rival(name, "sft", systems) for name in systems] == ["sft", None, None, "sft_greedy", "sft"]
    assert rival("ppo_greedy", "sft", ["sft", "ppo_greedy"]) == "sft"
    assert rival("ppo", "sft", ["ppo"]) is None


def test_a_judge_of_pairs_has_win_rates_alone(rows):
    for r in rows:
        wins = r["prompt_id"] in (0, 1) or (0.5 if r["prompt_id"] == 2 else 0.0)
        r["preferences"] = {"llm": float(wins) if r["system"] == "ppo" else None}
    judges = {"llm": {"kind": "pairs", "about": "A model.", "consistency": {"mean": 0.9}}}
    judge = summarize(rows, judges, {}, SETTINGS, 5.0)["judges"]["llm"]
    assert {name: win["mean"] for name, win in judge["win_rate"].items()} == {"ppo": 0.625}
    assert judge["mean"] is judge["flags"] is judge["gain"] is None
    assert judge["consistency"] == {"mean": 0.9}


def test_length_strength_power_and_agreement_are_those_of_the_single_preferences(rows):
    summary = summarize(rows, JUDGES, {}, SETTINGS, 5.0)
    judge = summary["judges"]["gold"]
    preferences, keys = [1, 1, 0.5, 0], [f"key {i}" for i in range(4)]
    for r in rows:
        r["response"] = "word " * (2 + r["prompt_id"] if r["system"] == "ppo" else 3)
    controlled = summarize(rows, JUDGES, {}, SETTINGS, 5.0)["judges"]["gold"]["length_controlled_win_rate"]["ppo"]
    lengths = [5 * (2 + i) for i in range(4)]
    assert controlled == asdict(length_controlled_win_rate(preferences, lengths, [15] * 4, keys))
    assert set(judge["bradley_terry"]) == {"base", "ppo", "sft_greedy", "ppo_greedy"}
    assert judge["bradley_terry"]["base"]["mean"] < 0 < judge["bradley_terry"]["ppo_greedy"]["mean"]
    assert judge["detectable_difference"] == measured_detectable_difference(preferences, keys)  # others all win or lose
    [pair] = summary["agreement"]
    gold_pairs = {"base": [0, 0, 0, 0], "ppo": [1, 1, 0.5, 0], "ppo_greedy": [1, 1, 1, 1]}
    reward_pairs = {"base": [0, 0, 0, 0], "ppo": [1, 0, 1, 0], "ppo_greedy": [1, 1, 1, 1]}
    equal = sum(g == r for name in gold_pairs for g, r in zip(gold_pairs[name], reward_pairs[name], strict=True))
    assert (pair["judges"], pair["agreement"]["mean"]) == (["gold", "reward"], pytest.approx(equal / 12))


def test_two_systems_need_no_strengths(rows):
    two = [r for r in rows if r["system"] in ("sft", "ppo")]
    assert summarize(two, JUDGES, {}, SETTINGS, 5.0)["judges"]["gold"]["bradley_terry"] is None


def test_base_alone_is_summarized(rows):
    alone = [r for r in rows if r["system"] == "base"]
    summary = summarize(alone, {"gold": JUDGES["gold"]}, {}, SETTINGS, 5.0)
    judge = summary["judges"]["gold"]
    assert (summary["baseline"], judge["mean"]["base"]["mean"], judge["win_rate"]) == (None, 0.0, {})
    assert summary["systems"]["base"]["kl"] is None


def test_the_table_for_the_terminal_has_a_line_for_each_system(rows):
    lines = as_text(summarize(rows, JUDGES, {}, SETTINGS, 5.0)).splitlines()
    assert lines[0].split("  ")[-1] == "reward: wins over sft"
    assert [line.split()[0] for line in lines[1:]] == ["base", "sft", "ppo", "sft_greedy", "ppo_greedy"]
    assert lines[5].startswith("ppo_greedy  0.70  100 % (")


def test_numbers_of_other_runs_are_put_beside_those_of_this_one(rows, tmp_path):
    first, other = (summarize(r, JUDGES, {}, SETTINGS, 5.0) for r in (rows, rows[5:]))
    (tmp_path / "summary.json").write_text(json.dumps(other))
    spread = summarize(rows, JUDGES, {}, SETTINGS, 5.0, [read_summary(tmp_path)])["over_runs"]
    wins = [summary["judges"]["gold"]["win_rate"]["ppo"]["mean"] for summary in (first, other)]
    assert spread["gold.win_rate.ppo"] == {"mean": sum(wins) / 2, "low": min(wins), "high": max(wins), "runs": 2}
    (tmp_path / "summary.json").write_text(json.dumps({"win_rate_vs_sft": None}))
    with pytest.raises(InputError, match="is of an older version"):
        read_summary(tmp_path)


def test_gold_exists_for_the_sandbox_only():
    assert gold_judge("trl-lib/tldr") is None
    assert labeler_limits("trl-lib/tldr") == {"labeler_agreement": None, "attainable_accuracy": None}


def test_gold_judge_of_the_sandbox_keeps_to_the_interface():
    prompt = [{"role": "user", "content": "Name two foods."}]
    verdict = gold_judge("sandbox")(prompt, "Here are two foods: cabbage and pasta.", ended=True)
    assert 0 <= verdict["overall"] <= 1
    assert 1 <= verdict["likert"] <= 7
    assert isinstance(verdict["follows_instruction"], bool)
