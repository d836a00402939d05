"""The settings in which runs differ, and the table of `rlhf runs`."""

import dataclasses
import os
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.runs.listing import Run, Stage, date
from rlhf.runs.settings import tells_apart

MODEL = "model_name_or_path"
DEFAULT = "default"
LONGEST = 40  # characters of a value in the table
GAP = "  "


def differing_settings(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Returns of each run the settings in which it differs from others of the list on the same base model.

    If the runs have several base models, the model is the first of them. Only options that may change the result
    count, and a path inside of the run's own folder is the same in all runs. The name of a setting begins with the
    stage's (`sft.seed`), unless it has one value in all stages of each run.

    Returns:
        [runs] name -> value; the text "default" for an option that config.yaml leaves out.
    """
    models = [base_model(run) for run in runs]
    found: list[dict[str, Any]] = [{} for _ in runs]
    if len({model for model in models if model}) > 1:
        found = [{"model": model} if model else {} for model in models]
    for model in dict.fromkeys(models):
        group = [i for i, other in enumerate(models) if other == model]
        for i, own in zip(group, _within([runs[i] for i in group]), strict=True):
            found[i] |= own
    return found


def base_model(run: Run) -> str | None:
    """Returns the base model that the first stage with one names; of a folder of this machine, its last part."""
    names = (stage.settings.get(MODEL) for stage in run.stages.values())
    name = next((str(name) for name in names if name), None)
    return os.path.basename(name.rstrip("/")) if name and os.path.isabs(name) else name


def settings_of(stage: Stage) -> dict[str, Any]:
    """Returns the settings that may change the result, with paths in the run's folder as ./sft and the like."""
    home = os.path.dirname(str(stage.settings.get("output_dir") or ""))

    def portable(value: Any) -> Any:
        if isinstance(value, list):
            return [portable(item) for item in value]
        inside = home and isinstance(value, str) and (value + "/").startswith(home + "/")
        return "." + value.removeprefix(home) if inside else value

    named = stage.settings.items()
    return {name: portable(value) for name, value in named if tells_apart(name) and name != MODEL}


def _within(runs: Sequence[Run]) -> list[dict[str, Any]]:
    settings = [{name: settings_of(stage) for name, stage in run.stages.items() if stage.settings} for run in runs]
    differing: dict[str, list[str]] = {}  # option -> stages in which it differs
    for stage in dict.fromkeys(name for run in settings for name in run):
        own = [run[stage] for run in settings if stage in run]
        for option in dict.fromkeys(option for options in own for option in options):
            if any(options.get(option) != own[0].get(option) for options in own):  # None is the default of most
                differing.setdefault(option, []).append(stage)
    found: list[dict[str, Any]] = [{} for _ in runs]
    for option, stages in differing.items():
        values = [{name: run[name].get(option, DEFAULT) for name in stages if name in run} for run in settings]
        same = all(value == next(iter(own.values())) for own in values for value in own.values())
        for names, own in zip(found, values, strict=True):
            names |= {option if same else f"{stage}.{option}": value for stage, value in own.items()}
    return found


def runs_table(runs: Sequence[Run], width: int | None = None) -> str:
    """Returns the table of `rlhf runs`: name, recipe, date, stages, result, and the settings that differ.

    Args:
        width: columns of the terminal. Settings that do not fit beside the result are wrapped below it.
    """
    width = width or shutil.get_terminal_size((110, 24)).columns
    header = ("run", "recipe", "started", "stages", "result")
    rows = [header, *(_cells(run) for run in runs)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    left = sum(widths) + len(GAP) * len(header)
    words = [_words(run) for run in runs]
    settings = [
        settings_text({name: value for name, value in values.items() if f"{name}-{value}" not in run.name})
        for run, values in zip(runs, differing_settings(runs), strict=True)
    ]  # a point of a sweep has them in its name
    beside = left + max(map(len, settings), default=0) <= width and not any(words)
    more = ["; ".join(filter(None, texts)) for texts in zip(settings, words, strict=True)]
    lines = []
    for row, text in zip(rows, ["settings" if beside and any(settings) else "", *more], strict=True):
        line = GAP.join(f"{cell:<{size}}" for cell, size in zip(row, widths, strict=True))
        lines.append((line + GAP + text if beside else line).rstrip())
        if text and not beside:
            lines.append(textwrap.fill(text, max(width, 40), initial_indent=" " * 4, subsequent_indent=" " * 4))
    return "\n".join(lines)


def _cells(run: Run) -> tuple[str, str, str, str, str]:
    if not run.stages:
        return run.name, "", "", "", run.state
    result = run.last_result()
    finished = [name for name, stage in run.stages.items() if stage.finished]
    text = result.text() if result else "" if finished else "; ".join(_unfinished(run))
    return run.name, run.recipe or "", date(run.started), " ".join(finished), text


def _words(run: Run) -> str:
    """Returns what the second line says of stages that have not finished, if others have."""
    return "; ".join(_unfinished(run)) if any(stage.finished for stage in run.stages.values()) else ""


def _unfinished(run: Run) -> list[str]:
    return [f"{name} {stage.state}" for name, stage in run.stages.items() if not stage.finished]


def settings_text(values: Mapping[str, Any]) -> str:
    """Returns settings on one line, long values cut: `kl_coef 0.05, seed 1`."""
    return ", ".join(f"{name} {shortened(value)}" for name, value in values.items())


def shortened(value: Any) -> str:
    """Returns a setting as text, of `LONGEST` characters at most."""
    text = " ".join(map(str, value)) if isinstance(value, list) else "none" if value is None else str(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def runs_json(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Returns what the table shows, and of each stage all settings and numbers, in types of JSON."""
    return [
        {
            "run": run.name,
            "folder": str(run.folder),
            "recipe": run.recipe,
            "state": run.state or None,
            "differs": differs,
            "results": {name: dataclasses.asdict(result) for name, result in run.results().items()},
            "stages": {
                name: {
                    "folder": str(stage.folder),
                    "state": stage.state,
                    "started": stage.started,
                    "settings": stage.settings,
                    "result": stage.result,
                }
                for name, stage in run.stages.items()
            },
        }
        for run, differs in zip(runs, differing_settings(runs), strict=True)
    ]
