"""Scores files of continuations that were made elsewhere, without a model: the numbers of `rlhf.evaluation.toxicity`.

Read are the files that the benchmark writes, and published ones:

    {"prompt": "...", "continuation": "..."}                        also `response`, `completion`, `text`
    {"prompt": {"text": ...}, "generations": [{"text": ...}, ...]}  RealToxicityPrompts' own; also `completions`
    context, sample, model_type, prompt_type, toxicity              the samples published with the paper, a CSV file

If rows bring a toxicity of their own, the result says how well ours agrees with it.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from rlhf.data.encode import prompt_text
from rlhf.data.files import SUFFIXES, SourceRow, read_rows
from rlhf.errors import InputError
from rlhf.evaluation.benchmark import ItemScores, Scores, summarize
from rlhf.evaluation.toxicity import TOXIC, prompt_scores
from rlhf.evaluation.toxicity_scorers import ToxicityScorer

logger = logging.getLogger(__name__)

# Names of columns, in order of preference.
PROMPT = ("prompt", "context")
CONTINUATION = ("continuations", "generations", "completions", "responses", "continuation", "generation", "completion")
CONTINUATION += ("response", "sample", "output", "text")
SYSTEM = ("system", "model_type", "model", "arm")
KIND = ("prompt_type", "kind")
PUBLISHED = ("toxicity", "toxicity_score")


@dataclass(frozen=True)
class Continuation:
    """A continuation of a prompt by a system.

    Attributes:
        kind: of prompt, such as basic.
        published: toxicity that the file gives; None without one.
    """

    system: str
    kind: str
    prompt: str
    text: str
    published: float | None


def read_continuations(spec: str) -> list[Continuation]:
    """Reads a file of continuations; `name=path` names the system of rows that do not name one.

    Raises:
        InputError: the file does not exist, is empty, or a row has no prompt or continuation.
    """
    name, _, location = spec.rpartition("=")
    path = Path(location if name else spec).expanduser()
    if not path.is_file():
        raise InputError(f"File of continuations {path} does not exist. Check the path.")
    if not path.name.lower().endswith(SUFFIXES):
        raise InputError(f"{path} has an unknown ending. Pass a file that ends in one of {', '.join(SUFFIXES)}.")
    rows = [one for row in read_rows(path) for one in _continuations(row, name or path.name.split(".")[0])]
    if not rows:
        raise InputError(f"{path} has no rows. Pass rows with a prompt and a continuation.")
    return rows


def score_continuations(rows: Sequence[Continuation], scorer: ToxicityScorer) -> dict[str, Any]:
    """Returns the contents of benchmark.json for continuations, and `published`: the agreement with their own scores.

    Prompts that a system has not answered count in none of its means and differences.
    """
    toxicity = scorer.score([row.text for row in rows])
    systems, kinds, prompts = (list(dict.fromkeys(names)) for names in _names(rows))
    values: dict[tuple[str, str, str], list[float]] = {}
    for row, score in zip(rows, toxicity, strict=True):
        values.setdefault((row.system, row.kind, row.prompt), []).append(score)
    scores: Scores = {}
    for kind in kinds:
        for system in systems:
            of_prompts = [values.get((system, kind, prompt), []) for prompt in prompts]
            answered = sum(map(bool, of_prompts))
            if not answered:
                continue
            if answered < len(prompts):
                logger.warning("%s, %s prompts: %d of %d prompts.", system, kind, answered, len(prompts))
            for metric, one in prompt_scores(of_prompts).items():
                scores.setdefault(f"{metric}_{kind}", {})[system] = ItemScores(one, prompts)
    counts = sorted({len(one) for one in values.values()})
    note = (
        f"toxicity by {scorer.about}; {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} continuations of "
        f"{len(prompts)} prompts"
    )
    result = summarize(systems, {"toxicity": scores}, {"toxicity": note})
    published = [(row, score) for row, score in zip(rows, toxicity, strict=True) if row.published is not None]
    return result | {"published": agreement(published) if published else None}


def agreement(rows: Iterable[tuple[Continuation, float]]) -> dict[str, Any]:
    """Returns how well our scores agree with published ones.

    Returns:
        `auc`: of our scores, for texts whose published toxicity is at least 0.5; None if all or none are.
        `rank_correlation`: Spearman's, of the means of systems for each kind of prompt, and of all means (`all`); None
            for fewer than three means.
        `means`: system -> kind -> published and our mean over continuations.
    """
    groups: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row, score in rows:
        groups.setdefault((row.system, row.kind), []).append((float(row.published or 0.0), score))
    means = {key: np.mean(pairs, axis=0) for key, pairs in groups.items()}  # [2]: published, ours
    theirs, ours = np.concatenate([np.array(pairs) for pairs in groups.values()]).T
    table: dict[str, dict[str, dict[str, float]]] = {}
    for (system, kind), (published, score) in means.items():
        table.setdefault(system, {})[kind] = {"published": float(published), "ours": float(score)}
    correlations = {"all": _rank_correlation(list(means.values()))}
    for kind in dict.fromkeys(kind for _, kind in means):
        correlations[kind] = _rank_correlation([mean for key, mean in means.items() if key[1] == kind])
    return {"auc": auc(ours, theirs >= TOXIC), "rank_correlation": correlations, "means": table}


def _rank_correlation(pairs: Sequence[np.ndarray]) -> float | None:
    if len(pairs) < 3:
        return None
    return float(np.corrcoef([rankdata(column) for column in np.array(pairs).T])[0, 1])


def auc(scores: Sequence[float] | np.ndarray, labels: Sequence[bool] | np.ndarray) -> float | None:
    """Returns the area under the ROC curve: how often a positive row scores above a negative one, ties counted half.

    None if there are only positive or only negative rows.
    """
    positive = np.asarray(labels, dtype=bool)
    p, n = int(positive.sum()), int((~positive).sum())
    if not p or not n:
        return None
    return float((rankdata(scores)[positive].sum() - p * (p + 1) / 2) / (p * n))  # Mann and Whitney's U / (p n)


def _names(rows: Sequence[Continuation]) -> tuple[Iterable[str], ...]:
    return (row.system for row in rows), (row.kind for row in rows), (row.prompt for row in rows)


def _continuations(row: SourceRow, system: str) -> Iterable[Continuation]:
    if row.fault:
        raise InputError(f"{row.file}, {row.place}: {row.fault}.")
    content = row.content
    prompt_column = next((name for name in PROMPT if content.get(name)), None)
    column = next((name for name in CONTINUATION if name in content), None)
    if prompt_column is None or column is None:
        what, names = ("prompt", PROMPT) if prompt_column is None else ("continuation", CONTINUATION)
        raise InputError(f"{row.file}, {row.place}: no {what}. Name its column one of {', '.join(names)}.")
    prompt = content[prompt_column]
    try:
        prompt = prompt["text"] if isinstance(prompt, dict) else prompt_text(prompt)
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(f"{row.file}, {row.place}: {prompt_column} is neither text nor messages.") from error
    kind = str(_first(content, KIND) or "basic").removesuffix(" prompt")
    own = _first(content, PUBLISHED)
    for one in _list(content[column]):
        if not isinstance(one := {"text": one} if not isinstance(one, dict) else one, dict) or "text" not in one:
            raise InputError(f"{row.file}, {row.place}: an element of {column} has no text.")
        text = one["text"] or ""  # an empty cell of a table is an empty continuation
        if not isinstance(text, str):
            raise InputError(f"{row.file}, {row.place}: {column} holds {text!r:.40}, which is no text.")
        published = _number(row, one.get("toxicity", own))
        yield Continuation(str(_first(content, SYSTEM) or system), kind, prompt, text, published)


def _list(value: Any) -> list[Any]:
    """Returns the continuations of a row: a list, a text, or a cell of a table that holds a list as JSON."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            parsed = json.loads(value)
        except json.JSONDecodeError:
            return [value]
        return parsed if isinstance(parsed, list) else [value]
    return value if isinstance(value, list) else [value]


def _number(row: SourceRow, value: Any) -> float | None:
    try:
        number = None if value is None else float(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"{row.file}, {row.place}: toxicity is {value!r:.40}; it must be a number.") from error
    return None if number is None or np.isnan(number) else number


def _first(content: dict[str, Any], names: Iterable[str]) -> Any:
    return next((content[name] for name in names if content.get(name) is not None), None)
