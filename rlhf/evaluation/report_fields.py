"""The fields that report.html.j2 reads, taken from summary.json and the judged answers."""

from typing import Any

from rlhf.evaluation.preferences import NAMES, AnswerRow, compare, score_of, systems_of
from rlhf.evaluation.summary import GOLD

MODELS = tuple(NAMES)
ARMS = (*MODELS, *(f"{model}_greedy" for model in MODELS if model != "sft_best"))


def report_rows(rows: list[AnswerRow], optimized: str | None) -> list[AnswerRow]:
    """Returns the rows of ARMS with `arm`, `gold` and `reward`."""
    return [
        row
        | {
            "arm": row["system"],
            "reward": row["scores"].get(optimized),
            "gold": None
            if row["scores"].get(GOLD) is None
            else {"overall": row["scores"][GOLD], "likert": row["likert"].get(GOLD), **row["flags"][GOLD]},
        }
        for row in rows
        if row["system"] in ARMS
    ]


def report_fields(summary: dict[str, Any], rows: list[AnswerRow]) -> tuple[dict[str, Any], list[AnswerRow]]:
    """Returns the fields of the page and its rows."""
    judges, systems = summary["judges"], summary["systems"]
    optimized = next((name for name, judge in judges.items() if judge["optimized"]), None)
    gold, reward = judges.get(GOLD), judges.get(optimized) if optimized else None
    kl = (systems.get("ppo") or {}).get("kl")
    runs = {f"win_rate_vs_sft.{name.rsplit('.', 1)[1]}": spread for name, spread in (summary["over_runs"] or {}).items()
            if name.startswith(f"{GOLD if gold else optimized}.win_rate.")}  # fmt: skip

    def base(judge: str | None) -> dict[str, Any] | None:
        from dataclasses import asdict

        wins = {a: compare(rows, a, b, score_of(judge)) for a, b in (("sft", "base"), ("sft_greedy", "base_greedy"))
                if judge and {a, b} <= set(systems_of(rows))}  # fmt: skip
        return {name: asdict(win) for name, win in wins.items() if win} or None

    categories = {}
    for name, category in ((gold or reward or {}).get("categories") or {}).items():
        other = reward["categories"][name] if reward else {}
        means = {arm: estimate["mean"] for arm, estimate in (category["mean"] or {}).items()}
        flags = category["flags"] or {}
        categories[name] = {
            "prompts": category["prompts"],
            "gold": means if gold else None,
            "reward": means,
            "win_rate_vs_sft": category["win_rate"] if gold else None,
            "win_rate_vs_sft_by_reward_model": other.get("win_rate"),
            "axes": {flag: {arm: e["mean"] for arm, e in arms.items()} for flag, arms in flags.items()} or None,
            "axes_gain_vs_sft": category["flags_gain"],
        }
    fields = {
        **summary,
        "gold": {arm: estimate["mean"] for arm, estimate in gold["mean"].items()} if gold else None,
        "gold_intervals": gold["mean"] if gold else None,
        "likert": {arm: e["mean"] for arm, e in gold["likert"].items()} if gold and gold["likert"] else None,
        "win_rate_vs_sft": gold["win_rate"] or None if gold else None,
        "win_rate_vs_base": base(GOLD if gold else None),
        "win_rate_vs_sft_by_reward_model": reward["win_rate"] or None if reward else None,
        "win_rate_vs_base_by_reward_model": base(optimized),
        "reward": reward["mean"] if reward else None,
        "kl": kl and kl["mean"],
        "kl_interval": kl,
        "tokens": {name: system["tokens"] for name, system in systems.items()},
        "ended": {name: system["ended"] for name, system in systems.items()},
        "axes": gold["flags"] if gold else None,
        "categories": categories,
        "categories_with_higher_gold": (gold["categories_with_higher_mean"] or {}).get("ppo") if gold else None,
        "over_runs": runs or None,
    }
    return fields, report_rows(rows, optimized)
