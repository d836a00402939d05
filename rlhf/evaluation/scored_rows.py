"""Rows of answers of other models with published scores: the names of columns, nested objects, a column a model."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from rlhf.data.cells import parse_value
from rlhf.data.files import SUFFIXES, SourceRow, sound_rows
from rlhf.errors import InputError

# Names of columns, in order of preference. Case, spaces and signs do not count.
SYSTEM = ("system", "model_type", "model", "arm", "model_name", "model_id", "model_key", "generator", "engine")
KIND = ("prompt_type", "kind")
TRUE_WORDS, FALSE_WORDS = ("true", "yes"), ("false", "no")


def read_source(spec: str, noun: str) -> tuple[str, list[SourceRow]]:
    """Reads the rows of `path` or `name=path`; returns them with the name, without one that of the file.

    Raises:
        InputError: the file does not exist, is empty, or a row cannot be read.
    """
    name, _, location = spec.rpartition("=")
    if name and ("/" in name or Path(spec).is_file()):  # a path that holds a =
        name, location = "", spec
    path = Path(location if name else spec).expanduser()
    if not path.is_file():
        raise InputError(f"File of {noun} {path} does not exist. Check the path.")
    if not path.name.lower().endswith(SUFFIXES):
        raise InputError(f"{path} has an unknown ending. Pass a file that ends in one of {', '.join(SUFFIXES)}.")
    rows = list(sound_rows(path))
    if not rows:
        raise InputError(f"{path} has no rows. Pass rows with a prompt and a model's answer.")
    return name or path.name.split(".")[0], rows


def plain(name: str) -> str:
    """Returns the name of a column in lower case, with _ for all but letters and digits."""
    return re.sub(r"[\W_]+", "_", name.lower()).strip("_")


def find(content: Mapping[str, Any], names: Iterable[str]) -> str | None:
    """Returns the first of some columns that a row has."""
    own = {plain(name): name for name in reversed(list(content))}
    return next((own[name] for name in names if name in own), None)


def first_value(content: Mapping[str, Any], names: Iterable[str]) -> Any:
    """Returns the value of the first of some columns that is filled; None without one."""
    own = {plain(name): value for name, value in reversed(list(content.items())) if value is not None and value != ""}
    return next((own[name] for name in names if name in own), None)


def parsed(value: Any) -> Any:
    """Returns the list or object that a cell of a table spells, as JSON or as Python prints it; else the value."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        found = parse_value(value)
    except ValueError:
        return value
    return found if isinstance(found, list | dict) else value


def score(row: SourceRow, name: str, value: Any) -> float | None:
    """Returns a published score in [0, 1]: a number, a truth value, yes or no; None for an empty cell or NaN.

    Raises:
        InputError: it is none of these.
    """
    if isinstance(value, str):
        word = value.strip().lower()
        value = 1.0 if word in TRUE_WORDS else 0.0 if word in FALSE_WORDS else word or None
    try:
        number = None if value is None else float(value)
    except (TypeError, ValueError):
        number = -1.0
    if number is None or np.isnan(number):
        return None
    if not 0 <= number <= 1:
        raise InputError(f"{row.file}, {row.place}: {name} is {value!r:.40}; it must be a number from 0 to 1.")
    return number


def one_row_a_model(
    rows: Sequence[SourceRow], answers: Sequence[str], measures: Iterable[str], known: Iterable[str], every: bool
) -> list[SourceRow]:
    """Returns the rows of a table with a column for each model as one row for each model and prompt.

    A table with a column of answers stays as it is. In another one, a model is a column with a measure beside it:
    `gpt2` and `gpt2 GPT-judge acc`. The measures of other models are left out of a model's row.

    Args:
        answers: names of a column of answers; a model's column gets the first one.
        measures: what may stand after the name of a model, plain.
        known: columns that are no model, plain.
        every: a column of text without a measure is a model, too.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row.content))
    if find(dict.fromkeys(columns), answers):
        return list(rows)
    measures, own = set(measures), {name: plain(name) for name in columns}
    beside = {
        model: {
            name: rest
            for name in columns
            if own[name].startswith(f"{own[model]}_") and (rest := own[name][len(own[model]) + 1 :]) in measures
        }
        for model in columns
        if own[model] not in known
    }
    taken = {name for one in beside.values() for name in one}
    models = [
        model
        for model, one in beside.items()
        if model not in taken and (one or every) and any(_is_answer(row.content.get(model)) for row in rows)
    ]
    if not models:
        return list(rows)  # whose reader says what is missing
    common = [name for name in columns if name not in taken and name not in models]
    return [
        replace(
            row,
            content={name: row.content.get(name) for name in common}
            | {rest: row.content.get(name) for name, rest in beside[model].items()}
            | {SYSTEM[0]: model, answers[0]: row.content.get(model)},
        )
        for row in rows
        for model in models
    ]


def _is_answer(value: Any) -> bool:
    if not isinstance(value, str):
        return isinstance(value, list | dict)
    return (
        bool(value.strip()) and re.fullmatch(r"nan|true|false|[+-]?[\d.]+(e[+-]?\d+)?", value.strip().lower()) is None
    )


# ---- agreement with published scores


def agreement(rows: Iterable[tuple[str, str, float, float]], threshold: float = 0.5) -> dict[str, Any]:
    """Returns how well our scores agree with published ones.

    Args:
        rows: system, kind of prompt, published score, our score.
        threshold: a published score from here on is positive.

    Returns:
        `auc`: of our scores, for positive rows; None if all or none are.
        `rank_correlation`: Spearman's, of the means of systems for each kind of prompt, and of all means (`all`); None
            for fewer than three means, or if all means are equal.
        `means`: system -> kind -> published and our mean.
    """
    groups: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for system, kind, published, ours in rows:
        groups.setdefault((system, kind), []).append((published, ours))
    means = {key: np.mean(pairs, axis=0) for key, pairs in groups.items()}  # [2]: published, ours
    theirs, scores = np.concatenate([np.array(pairs) for pairs in groups.values()]).T
    table: dict[str, dict[str, dict[str, float]]] = {}
    for (system, kind), (published, ours) in means.items():
        table.setdefault(system, {})[kind] = {"published": float(published), "ours": float(ours)}
    correlations = {"all": _rank_correlation(list(means.values()))}
    for kind in dict.fromkeys(kind for _, kind in means):
        correlations[kind] = _rank_correlation([mean for key, mean in means.items() if key[1] == kind])
    return {"auc": auc(scores, theirs >= threshold), "rank_correlation": correlations, "means": table}


def agreement_text(published: Mapping[str, Any], what: str) -> str:
    """Returns the numbers of `agreement` for the terminal, one a line."""
    numbers = {f"AUC for {what}": published["auc"]}
    for kind, value in published["rank_correlation"].items():
        numbers[f"Rank correlation with the published means, {kind} prompts"] = value
    return "".join(f"{name}: {value:.3f}\n" for name, value in numbers.items() if value is not None)


def auc(scores: Sequence[float] | np.ndarray, labels: Sequence[bool] | np.ndarray) -> float | None:
    """Returns the area under the ROC curve: how often a positive row scores above a negative one, ties counted half.

    None if there are only positive or only negative rows.
    """
    positive = np.asarray(labels, dtype=bool)
    p, n = int(positive.sum()), int((~positive).sum())
    if not p or not n:
        return None
    return float((rankdata(scores)[positive].sum() - p * (p + 1) / 2) / (p * n))  # Mann and Whitney's U / (p n)


def _rank_correlation(pairs: Sequence[np.ndarray]) -> float | None:
    ranks = [rankdata(np.round(column, 9)) for column in np.array(pairs).T]
    if len(pairs) < 3 or any(np.ptp(column) == 0 for column in ranks):
        return None
    return float(np.corrcoef(ranks)[0, 1])
