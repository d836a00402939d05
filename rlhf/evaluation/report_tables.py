"""Tables of the report, from the numbers of summary.json and benchmark.json; each is empty if nothing was measured."""

from typing import Any

from rlhf.evaluation.preferences import AXES
from rlhf.evaluation.report_parts import (
    COUNT,
    GAIN,
    LENGTH,
    METRIC,
    PERCENT,
    POINTS,
    SCORE,
    WIN_RATE,
    Column,
    Table,
    Unit,
    duration,
    estimate_texts,
    number,
    without_paths,
)
from rlhf.runs import system_names
from rlhf.runs.model_card import portable
from rlhf.runs.results import headline_system, judges_of
from rlhf.runs.system_names import GREEDY, label

Summary = dict[str, Any]
Judges = dict[str, dict[str, Any]]


# -- systems and judges -----------------------------------------------------------------------------------------------


def rival(summary: Summary, system: str) -> str:
    """Returns the system that another one is compared with; "" without one."""
    return system_names.rival(system, summary.get("baseline") or "", summary["systems"]) or ""


def spec_text(spec: Any) -> str:
    """Returns a system's spec on one line, without what is not set and without paths of this machine."""
    if not isinstance(spec, dict):
        return without_paths(str(portable(spec) if spec is not None else ""))
    values = {name: value for name, value in portable(spec).items() if value not in (None, "", [], {})}
    return ", ".join(f"{name}={without_paths(str(value))}" for name, value in values.items())


def systems(summary: Summary) -> Table:
    rows = [[label(name), name, spec_text(system.get("spec"))] for name, system in summary["systems"].items()]
    return Table("systems", "Systems", (Column("system"), Column("name"), Column("spec")), rows)


def judges(summary: Summary) -> Table:
    rows = [
        [
            name,
            {"scores": "scores answers", "pairs": "compares pairs"}.get(judge["kind"], judge["kind"]),
            without_paths(judge["about"]),
            bool(judge.get("optimized")),
            judge.get("consistency"),
            judge.get("detectable_difference"),
        ]
        for name, judge in judges_of(summary).items()
    ]
    columns = (
        Column("judge"),
        Column("kind"),
        Column("about"),
        Column("a system was optimized against it"),
        Column("consistent, %", PERCENT),
        Column("detects, points", PERCENT),
    )
    note = (
        "Consistent: the share of pairs with the same verdict in both orders. Detects: the smallest difference from a "
        "win rate of 50 % that these prompts show in 80 of 100 repetitions."
    )
    return filled("judges", "Judges", columns, rows, note)


# -- verdicts ---------------------------------------------------------------------------------------------------------


def win_rates(summary: Summary) -> Table:
    rows = [
        [
            label(system),
            name,
            estimate,
            (judge.get("length_controlled_win_rate") or {}).get(system),
            label(rival(summary, system)),
            estimate["n"],
        ]
        for name, judge in judges_of(summary).items()
        for system, estimate in (judge.get("win_rate") or {}).items()
    ]
    columns = (
        Column("system"),
        Column("judge"),
        Column("win rate, %", WIN_RATE),
        Column("length-controlled win rate, %", WIN_RATE),
        Column("against"),
        Column("answers", COUNT),
    )
    note = "A tie counts half. Intervals are 95 %, clustered by prompt; bold where they exclude 50 %."
    return filled("win_rates", "Win rates", columns, rows, note)


def bradley_terry(summary: Summary) -> Table:
    rows = [
        [label(system), name, estimate]
        for name, judge in judges_of(summary).items()
        for system, estimate in (judge.get("bradley_terry") or {}).items()
    ]
    columns = (Column("system"), Column("judge"), Column("strength, log odds", GAIN))
    note = "Log odds of winning against the baseline, from all pairs; bold where the 95 % interval excludes 0."
    return Table("bradley_terry", "Bradley-Terry strengths", columns, rows, note)


def scores(summary: Summary) -> Table:
    rows = [
        [
            label(system),
            name,
            *((judge.get(measure) or {}).get(system) for measure in ("mean", "likert", "gain")),
        ]
        for name, judge in judges_of(summary).items()
        for system in summary["systems"]
        if any(system in (judge.get(measure) or {}) for measure in ("mean", "likert", "gain"))
    ]
    columns = (
        Column("system"),
        Column("judge"),
        Column("mean score", SCORE),
        Column("Likert, 1 to 7", SCORE),
        Column("gain over the baseline", GAIN),
    )
    note = "Each judge has its own scale. Gains are over the same prompts; bold where the 95 % interval excludes 0."
    return filled("scores", "Scores", columns, rows, note)


def agreement(summary: Summary) -> Table:
    rows = [[*pair["judges"][:2], pair["agreement"]] for pair in summary.get("agreement") or []]
    columns = (Column("judge"), Column("other judge"), Column("agreement, %", PERCENT))
    return Table("agreement", "Agreement between judges", columns, rows, "Share of pairs with the same preference.")


def flags(summary: Summary) -> Table:
    names = list(summary["systems"])
    rows = [
        [flag_label(flag), name, *(by_system.get(system) for system in names)]
        for name, judge in judges_of(summary).items()
        for flag, by_system in (judge.get("flags") or {}).items()
    ]
    columns = (Column("the answer"), Column("judge"), *(Column(f"{label(name)}, %", PERCENT) for name in names))
    note = "Share of the answers with each property, after Table 3 of the paper."
    return Table("flags", "Properties of the answers", columns, rows, note)


def flag_label(flag: str) -> str:
    """Returns a property of an answer in words."""
    return AXES[flag].label if flag in AXES else flag.replace("_", " ")


def faults(verdict: dict[str, bool | None]) -> list[str]:
    """Returns the faults of an answer in words: unwanted properties that it has, and wanted ones that it lacks.

    A flag that is not among our axes, such as those of Table 3, names a fault.
    """
    found = {flag: value for flag, value in verdict.items() if isinstance(value, bool)}
    return [
        AXES[flag].fault if flag in AXES else flag.replace("_", " ")
        for flag, value in found.items()
        if value != (AXES[flag].wanted if flag in AXES else False)
    ]


def lengths(summary: Summary) -> Table:
    rows = [
        [label(name), system.get("tokens"), system.get("ended"), system.get("kl")]
        for name, system in summary["systems"].items()
    ]
    columns = (
        Column("system"),
        Column("tokens", LENGTH),
        Column("ends by itself, %", PERCENT),
        Column("KL from SFT, nats per response", SCORE),
    )
    return filled("lengths", "Length and distance", columns, rows)


def categories(summary: Summary, judge: str) -> Table:
    """Returns the win rate of each system in each category, by one judge; without win rates, the mean scores."""
    by_category = summary["judges"][judge].get("categories") or {}
    by_category = by_category if len(by_category) > 1 else {}
    win_rates, means = (
        [name for name in summary["systems"] if any(name in (row.get(measure) or {}) for row in by_category.values())]
        for measure in ("win_rate", "mean")
    )
    measure, present = ("win_rate", win_rates) if win_rates else ("mean", means)
    rows = [
        [name.replace("_", " "), row.get("prompts"), *((row.get(measure) or {}).get(system) for system in present)]
        for name, row in by_category.items()
    ]
    unit, ending = (WIN_RATE, " wins, %") if measure == "win_rate" else (SCORE, "")
    columns = (Column("category"), Column("prompts", COUNT), *(Column(label(name) + ending, unit) for name in present))
    return Table(f"categories_{file_name(judge)}", f"By kind of task, judge: {judge}", columns, rows if present else [])


def flags_by_category(summary: Summary, judge: str) -> Table:
    """Returns the change of each property from the baseline to the headline's system, in each category."""
    system, by_category = headline_system(summary), summary["judges"][judge].get("categories") or {}
    gains = {name: row.get("flags_gain") or {} for name, row in by_category.items()}
    found = [flag for flag in AXES if any(system in (row.get(flag) or {}) for row in gains.values())]
    rows = [
        [name.replace("_", " "), *((row.get(flag) or {}).get(system) for flag in found)] for name, row in gains.items()
    ]
    columns = (Column("category"), *(Column(f"{flag_label(flag)}, points", POINTS) for flag in found))
    pair = f"{label(system)} minus {label(rival(summary, system))}" if system else ""
    title = f"Properties by kind of task, {pair}, judge: {judge}"
    note = "Bold where the 95 % interval of the change excludes 0; other changes may be chance."
    return Table(f"flags_by_category_{file_name(judge)}", title, columns, rows if found else [], note)


# -- the reward model, runs, settings ---------------------------------------------------------------------------------


def reward_model(summary: Summary) -> Table:
    values = summary.get("reward_model") or {}
    rows = [[name.replace("_", " "), value] for name, value in values.items() if value is not None]
    return Table("reward_model", "Reward model", (Column("share of pairs"), Column("%", PERCENT)), rows)


def over_runs(summary: Summary) -> Table:
    rows = [
        [name, *(values[key] for key in ("mean", "low", "high", "runs"))]
        for name, values in (summary.get("over_runs") or {}).items()
    ]
    columns = (Column("number"), *(Column(name, METRIC) for name in ("mean", "lowest", "highest")), Column("runs"))
    runs = max((row[-1] for row in rows), default=0)
    return Table("over_runs", f"Over {runs} runs", columns, rows)


def settings(summary: Summary, versions: dict[str, str]) -> Table:
    rows: list[list[Any]] = [
        ["model", without_paths(str(summary.get("model")))],
        ["prompts", f"{without_paths(str(summary.get('dataset')))}, {summary.get('split')}"],
        ["number of prompts", summary.get("prompts")],
        ["distinct prompts", summary.get("distinct_prompts")],
        ["left out, seen in training", seen_text(summary)],
        ["longest answer, tokens", summary.get("max_new_tokens")],
        ["temperature", summary.get("temperature")],
        ["seed of the evaluation", summary.get("seed")],
    ]
    rows += [[f"time, {name}", duration(value)] for name, value in (summary.get("seconds") or {}).items() if value]
    rows += [[name, version] for name, version in versions.items()]
    return Table("settings", "Settings", (Column("setting"), Column("value")), rows)


def improved_text(summary: Summary, judge: str) -> str:
    """Returns in how many categories the headline's system has a higher mean score than its rival; "" if unknown."""
    system = headline_system(summary)
    counts = (summary["judges"][judge].get("categories_with_higher_mean") or {}).get(system)
    if system is None or not counts or counts["of"] < 2:
        return ""
    return (
        f"By the judge “{judge}”, the mean score of {label(system)} is above that of {label(rival(summary, system))} "
        f"in {counts['higher']} of {counts['of']} categories."
    )


def seen_text(summary: Summary) -> str:
    """Returns the number of prompts that were left out because a system had seen them in training."""
    seen = summary.get("prompts_seen_in_training")
    return "unknown" if seen is None else number(seen)


def headline(summary: Summary) -> Table:
    """Returns the few numbers that the report begins with, as text: measure, value, and what it means."""
    rows: list[list[str]] = []
    system, all_judges = headline_system(summary), judges_of(summary)
    for name, judge in list(all_judges.items())[:2]:
        wins = judge.get("win_rate") or {}
        if system and system in wins:
            interval = _interval(wins[system], PERCENT, "\u202f%")
            note = f"{label(system)} over {label(rival(summary, system))}, judge: {name}{interval}"
            rows.append(["Win rate", percent(wins[system]["mean"]), note])
    first = next((name for name, judge in all_judges.items() if judge.get("mean")), None)
    means = all_judges[first]["mean"] if first is not None else {}
    shown = [name for name in means if not name.endswith(GREEDY)] or list(means)
    if shown:
        values = " → ".join(number(means[name]["mean"], SCORE) for name in shown[:4])
        rows.append(["Mean score", values, f"{' → '.join(label(name) for name in shown[:4])}, judge: {first}"])
    accuracy = (summary.get("reward_model") or {}).get("accuracy")
    if accuracy is not None:
        rows.append(["Reward model’s accuracy", percent(accuracy), "on held-out comparisons"])
    kl = (summary["systems"].get("ppo") or {}).get("kl")
    if kl:
        rows.append(["KL from SFT", number(kl["mean"], SCORE), f"nats per response{_interval(kl, SCORE)}"])
    if (summary.get("seconds") or {}).get("total"):
        parts = [name for name, value in summary["seconds"].items() if name != "total" and value]
        rows.append(["Time", duration(summary["seconds"]["total"]), f"for {', '.join(parts)}"])
    return Table("headline", "In short", (Column("measure"), Column("value"), Column("meaning")), rows)


def _interval(estimate: dict[str, Any], unit: Unit, ending: str = "") -> str:
    _, low, high = estimate_texts(estimate, unit)
    return f", {low} to {high}{ending}" if low else ""


def percent(value: float) -> str:
    """Returns 0.7365 as 73.7 %."""
    return f"{number(value, PERCENT)}\u202f%"


def filled(name: str, title: str, columns: tuple[Column, ...], rows: list[list[Any]], note: str = "") -> Table:
    """Returns a table without the columns that no row fills."""
    kept = [i for i in range(len(columns)) if any(row[i] is not None for row in rows)]
    return Table(name, title, tuple(columns[i] for i in kept), [[row[i] for i in kept] for row in rows], note)


def file_name(text: str) -> str:
    """Returns the text of a name as part of a file name: letters, digits, dots, - and _ alone."""
    return "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "_" for letter in text)
