"""Runs that differ only in seeds: their groups, and the numbers of a group with an interval over seeds.

An interval over prompts says how well a trained model was measured; one over seeds says what training again gives. It
is the t interval of the runs' numbers, one value a seed (`rlhf.statistics.cluster_mean`).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from rlhf.evaluation.report_parts import PERCENT, SCORE, Column, Table, Unit
from rlhf.runs.differences import base_model, differing_settings, settings_of, settings_text
from rlhf.runs.listing import Run
from rlhf.statistics import cluster_mean

# Further numbers of a PPO run, from its result.json: of held-out prompts if there are any, else of the last rollouts.
PPO = {"KL, nats per response": "objective/kl", "length, tokens": "rollout/length"}

MEASURING = ("evaluate", "benchmark")  # stages that change no model: one run may have been measured, another not


def is_seed(name: str) -> bool:
    """True for the name of a seed: `seed`, `sft.seed`, `dataset_seed`."""
    return name.rpartition(".")[2].rpartition("_")[2] == "seed"


def groups_of(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Returns the runs in groups that differ in nothing but seeds; the name is the setting in which groups differ.

    A second run of the same seeds is no further seed: it is in another group.
    """
    groups: dict[str, list[Run]] = {}
    seen: dict[str, int] = {}
    for run in runs:
        settings = {stage: settings_of(found) for stage, found in run.stages.items() if stage not in MEASURING}
        others, seeds = ({s: _part(own, seed) for s, own in settings.items()} for seed in (False, True))
        key = json.dumps([base_model(run), others], sort_keys=True, default=str)
        once = json.dumps([key, seeds], sort_keys=True)
        seen[once] = seen.get(once, 0) + 1
        groups.setdefault(f"{key} {seen[once]}", []).append(run)
    if len(groups) == len(runs):
        return {run.name: [run] for run in runs}
    differs = differing_settings([members[0] for members in groups.values()])
    titles = [settings_text(_part(own, seed=False)) for own in differs]
    named = [
        title or members[0].name + (" and its seeds" if len(members) > 1 else "")
        for title, members in zip(titles, groups.values(), strict=True)
    ]
    return dict(zip(_distinct(named), groups.values(), strict=True))


def _part(settings: dict[str, Any], seed: bool) -> dict[str, Any]:
    """Returns the seeds among settings, or the others."""
    return {name: value for name, value in settings.items() if is_seed(name) == seed}


def seeds_table(groups: dict[str, list[Run]]) -> Table:
    """Returns the numbers of the groups of two runs or more, each with its interval over seeds."""
    several = {name: members for name, members in groups.items() if len(members) > 1}
    unlike = [name for name, members in several.items() if not evaluated_alike(members)]
    numbers = {
        name: [numbers_of(replace(run, summary=None) if name in unlike else run) for run in members]
        for name, members in several.items()
    }
    titles = dict.fromkeys(title for members in numbers.values() for own in members for title in own)
    rows: list[list[Any]] = []
    absent = [f"The evaluations of {name} differ in their settings, and are left out." for name in unlike]
    for name, members in numbers.items():
        known = {title: [own[title][0] for own in members if title in own] for title in titles}
        rows.append([name, len(members), *map(over_seeds, known.values())])
        absent += [
            f"{title} of {name} is over {len(values)} of its {len(members)} runs: the others have no such number."
            for title, values in known.items()
            if 0 < len(values) < len(members)
        ]
    units = {title: unit for members in numbers.values() for own in members for title, (_, unit) in own.items()}
    columns = (Column("runs"), Column("seeds"), *(Column(title, units[title]) for title in titles))
    note = (
        "Mean over seeds, with the 95 % interval of Student’s t over seeds: it is for the mean of further seeds, and "
        f"from two seeds it is very wide. {seed_text(several)}"
    )
    note = " ".join([note.rstrip(), *absent])
    return Table("over_seeds", "Over seeds", columns, rows, note)


def evaluated_alike(members: Sequence[Run]) -> bool:
    """True if the evaluations of runs had the same settings but seeds: else their numbers are of other questions."""
    settings = [_part(settings_of(run.stages["evaluate"]), seed=False) for run in members if "evaluate" in run.stages]
    return all(own == settings[0] for own in settings)


def over_seeds(values: Sequence[float]) -> dict[str, Any] | None:
    """Returns mean and 95 % t interval of one number of several runs; None without any."""
    return asdict(cluster_mean(values, range(len(values)))) if values else None


def numbers_of(run: Run) -> dict[str, tuple[float, Unit]]:
    """Returns the numbers of a run that are averaged over seeds, each with the form of its column."""
    found = {}
    for stage, result in run.results().items():
        found[f"{stage}: {result.name.rstrip(':')}"] = (
            result.mean,
            PERCENT if result.share else Unit(digits=result.digits),
        )
    ppo = run.stages["ppo"].result if "ppo" in run.stages else {}
    for title, name in PPO.items():
        value = ppo.get(f"eval_{name}", ppo.get(name))
        if isinstance(value, int | float):
            found[f"ppo: {title}"] = (value, SCORE)
    return found


def seed_text(groups: dict[str, list[Run]]) -> str:
    """Returns which stages have another seed: the interval does not hold the chance of the others."""
    stages = {
        stage
        for members in groups.values()
        for stage in dict.fromkeys(name for run in members for name in run.stages)
        if stage not in MEASURING
        and len({str(run.stages[stage].settings.get("seed")) for run in members if stage in run.stages}) > 1
    }
    if not stages:
        return ""
    order = [stage for stage in ("pretrain", "sft", "reward", "ppo") if stage in stages]
    return f"The runs differ in the seed of {', '.join(order)}."


def _distinct(names: Sequence[str]) -> list[str]:
    return [name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names, 1)]
