"""Sections of the report in their order, and what was not measured, in words."""

import re
from typing import Any

from rlhf.data.encode import prompt_text
from rlhf.evaluation import report_benchmarks as bench
from rlhf.evaluation import report_figures as figures
from rlhf.evaluation import report_tables as tables
from rlhf.evaluation.preferences import AnswerRow, showcase
from rlhf.evaluation.report_parts import (
    PERCENT,
    SCORE,
    Answer,
    Card,
    Column,
    Listing,
    Part,
    Points,
    Section,
    Table,
    estimate_texts,
    number,
    without_paths,
)
from rlhf.evaluation.report_stages import Stage, stage_sections, versions
from rlhf.evaluation.report_tables import Summary, percent
from rlhf.runs.system_names import GREEDY, label


def lead(summary: Summary, benchmark: dict[str, Any] | None) -> str:
    """Returns the report's first sentences: whom the first judge prefers, or why nobody can say."""
    if not summary["systems"]:
        return "Only benchmarks were run: no answers were compared." if benchmark else "Nothing was measured."
    system, asked = tables.headline_system(summary), f"On {number(summary['prompts'])} held-out prompts"
    for name, judge in tables.judges_of(summary).items():
        wins = judge.get("win_rate") or {}
        if system is None or system not in wins:
            continue
        sentences = [
            f"{asked}, the judge “{name}” prefers the answers of {label(system)} to those of "
            f"{label(tables.rival(summary, system))} {_share(wins[system])}."
        ]
        if f"{system}{GREEDY}" in wins:
            sentences.append(f"When both decode greedily, it does so {_share(wins[system + GREEDY])}.")
        if judge.get("optimized"):
            trained = "PPO was trained" if "ppo" in summary["systems"] else "A system was trained or its answers chosen"
            sentences.append(
                f"{trained} to please exactly this judge: the number shows how far the optimization went, not "
                "whether people would agree."
            )
        return " ".join(sentences)
    return f"{asked}, {', '.join(map(label, summary['systems']))} answered. No judge compared them."


def _share(estimate: dict[str, Any]) -> str:
    mean, low, high = estimate_texts(estimate, PERCENT)
    interval = f" (95 % interval over prompts {low} to {high})" if low else ""
    return f"{mean}\u202f% of the time{interval}"


def sections(
    summary: Summary, benchmark: dict[str, Any] | None, rows: list[AnswerRow], stages: dict[str, Stage]
) -> list[Section]:
    """Returns all sections of the report after its first sentences."""
    return [
        *comparison_sections(summary, benchmark),
        Section("The same instructions, side by side", _side_by_side(summary, rows)),
        *stage_sections(summary, stages),
        Section("What was not measured", [Points(not_measured(summary, benchmark))]),
        Section("Settings", [tables.settings(summary, versions(stages)), *_configurations(stages)]),
    ]


def comparison_sections(summary: Summary, benchmark: dict[str, Any] | None) -> list[Section]:
    """Returns the sections on what was compared, by whom, and with what result."""
    return [
        Section("What was compared", _compared(summary)),
        Section("Who answers better", _better(summary)),
        Section("What changed in the answers", _changed(summary)),
        *_categories(summary),
        Section("Benchmarks", _benchmarks(benchmark)),
    ]


def card_sections(summary: Summary, benchmark: dict[str, Any] | None) -> list[Section]:
    """Returns the sections of a model card: the comparison, and what was not measured."""
    return [
        *comparison_sections(summary, benchmark),
        Section("What was not measured", [Points(not_measured(summary, benchmark))]),
    ]


def _compared(summary: Summary) -> list[Part]:
    if not summary["systems"]:
        return [tables.systems(summary)]
    asked = (
        f"{number(summary['prompts'])} held-out prompts ({number(summary['distinct_prompts'])} of them distinct) of "
        f"{without_paths(str(summary['dataset']))}, {summary['split']}. "
    )
    seen = summary.get("prompts_seen_in_training")
    if seen is None:
        asked += "Nobody can tell how many of them a system had seen in training: an adapter does not say."
    elif seen:
        asked += f"{number(seen)} more were left out because a system had seen them in training."
    else:
        asked += "No system had seen any of them in training."
    return [asked, tables.systems(summary), tables.judges(summary)]


def _better(summary: Summary) -> list[Part]:
    words = (
        "Two answers to a prompt are judged against each other. The intervals are over prompts, for the models of this "
        "run: another run of the recipe may lie outside."
    )
    if any(name.endswith(GREEDY) for name in summary["systems"]):
        words += " A gain in samples but not in greedy answers means a sharper distribution rather than a better model."
    parts: list[Part] = [words, figures.wins(summary), tables.win_rates(summary)]
    scoring = next((name for name, judge in tables.judges_of(summary).items() if judge.get("mean")), None)
    if scoring is not None:
        parts.append(figures.scores(summary, scoring))
    optional = (tables.scores, tables.bradley_terry, tables.agreement, tables.over_runs)
    return [*parts, *(table for make in optional if (table := make(summary)).rows)]


def _changed(summary: Summary) -> list[Part]:
    return [tables.flags(summary), tables.lengths(summary)]


def _categories(summary: Summary) -> list[Section]:
    parts: list[Part] = []
    for judge in tables.judges_of(summary):
        made = (tables.categories(summary, judge), tables.flags_by_category(summary, judge))
        parts += [part for part in (tables.improved_text(summary, judge), *made) if isinstance(part, str) or part.rows]
    parts = [part for part in parts if part]
    return [Section("By kind of task", parts)] if parts else []


def _benchmarks(benchmark: dict[str, Any] | None) -> list[Part]:
    before = bench.benchmarks(benchmark)
    if not before.rows:
        return [before]
    return [
        before,
        *(t for t in (bench.benchmark_differences(benchmark), bench.benchmark_notes(benchmark)) if t.rows),
    ]


def _configurations(stages: dict[str, Stage]) -> list[Listing]:
    return [
        Listing(f"{name}: resolved configuration", without_paths(stage.config))
        for name, stage in stages.items()
        if stage.config
    ]


# -- answers ----------------------------------------------------------------------------------------------------------


def _side_by_side(summary: Summary, rows: list[AnswerRow]) -> list[Part]:
    shown = cards(summary, rows)
    if not shown:
        return ["Not run: there are no answers to show."]
    return ["The first held-out prompts of each category, fixed before any model answered.", *shown]


def cards(summary: Summary, rows: list[AnswerRow]) -> list[Card]:
    """Returns the prompts of `showcase` with the answers of all systems.

    If some systems decode greedily, the sampled answers of the same models are folded.
    """
    systems = list(summary["systems"])
    by_system = {(row["prompt_id"], row["system"]): row for row in rows}
    found = []
    for prompt_id in showcase(rows):
        answers = {name: by_system[prompt_id, name] for name in systems if (prompt_id, name) in by_system}
        if answers:
            row = next(iter(answers.values()))
            found.append(
                Card(
                    category=(row["category"] or "").replace("_", " "),
                    prompt=prompt_text(row["prompt"]),
                    answers=[_answer(summary, name, row) for name, row in answers.items()],
                )
            )
    return found


def _answer(summary: Summary, system: str, row: AnswerRow) -> Answer:
    scores = row.get("scores") or {}
    found = [fault for flags in (row.get("flags") or {}).values() for fault in tables.faults(flags or {})]
    return Answer(
        system=label(system),
        color=figures.color(system, list(summary["systems"])),
        text=row["response"],
        scores=[f"{name} {number(value, SCORE)}" for name, value in scores.items() if value is not None],
        faults=list(dict.fromkeys(found)),
        cut="" if row["ended"] else f"cut at {row['tokens']} tokens" if row["tokens"] else "cut",
        folded=f"{system}{GREEDY}" in summary["systems"],
    )


def answers_table(shown: list[Card]) -> Table:
    """Returns the answers side by side as a table, one answer a row."""
    columns = tuple(map(Column, ("category", "prompt", "system", "answer", "cut", "scores", "faults")))
    rows = [
        [card.category, card.prompt, a.system, a.text, a.cut, ", ".join(a.scores), ", ".join(a.faults)]
        for card in shown
        for a in card.answers
    ]
    return Table("answers", "Answers", columns, rows)


# -- what was not measured --------------------------------------------------------------------------------------------


def not_measured(summary: Summary, benchmark: dict[str, Any] | None) -> list[str]:
    """Returns one sentence for each thing that this report cannot tell."""
    judges = summary["judges"]
    found = [*_missing_judges(summary), *_small_differences(summary)]
    if judges and not any(judge.get("flags") for judge in judges.values()):
        found.append("Properties of the answers (the paper’s Table 3): no judge reported them.")
    if judges and not any(judge.get("likert") for judge in judges.values()):
        found.append("Overall quality on the Likert scale from 1 to 7: no judge reported it.")
    if judges and not any(judge.get("length_controlled_win_rate") for judge in judges.values()):
        found.append("Win rates at equal length: judges may prefer longer answers.")
    if len(judges) == 1:
        found.append("Agreement between judges: there was only one.")
    if "ppo" in summary["systems"] and not summary["systems"]["ppo"].get("kl"):
        found.append("The KL of RLHF from SFT.")
    if summary["systems"] and not summary.get("over_runs"):
        found.append(
            "Other runs: all numbers are of one run with one seed. Training again would give other models, and "
            "intervals over prompts do not include that."
        )
    return [*found, *bench.missing_benchmarks(benchmark)]


def _missing_judges(summary: Summary) -> list[str]:
    judges = summary["judges"]
    if not judges:
        return ["Quality: no judge read the answers."]
    found = [
        f"Anything by the judge “{name}”: it has judged none of these answers."
        for name, judge in judges.items()
        if not judge.get("win_rate") and not judge.get("mean")
    ]
    known = " ".join(f"{name} {judge['about']}" for name, judge in judges.items())
    if all(judge.get("optimized") for judge in judges.values()):
        whom = "PPO was not trained" if "ppo" in summary["systems"] else "no system was optimized"
        found.append(f"Quality by a judge that {whom} to please: every verdict here is the reward’s own.")
    if not re.search(r"(?i)\bpeople\b", known):
        found.append("What people prefer: no person judged these answers.")
    if not re.search(r"(?i)\bllm\b|language model", known):
        found.append("What an LLM judge prefers.")
    return found


def _small_differences(summary: Summary) -> list[str]:
    smallest = {name: judge.get("detectable_difference") for name, judge in summary["judges"].items()}
    return [
        f"Differences in win rate below {percent(value)[:-2]} points by the judge “{name}”: "
        f"{number(summary['prompts'])} prompts detect them in less than 80 of 100 repetitions."
        for name, value in smallest.items()
        if value is not None
    ]
