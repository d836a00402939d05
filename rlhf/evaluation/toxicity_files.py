"""Scores files of continuations that were made elsewhere, without a model: the numbers of `rlhf.evaluation.toxicity`.

Read are the files that the benchmark writes, and published ones:

    {"prompt": "...", "continuation": "..."}                        also `response`, `completion`, `text`
    {"prompt": {"text": ...}, "generations": [{"text": ...}, ...]}  RealToxicityPrompts' own; also `completions`
    context, sample, model_type, prompt_type, toxicity              the samples published with the paper, a CSV file
    prompt, gpt2, gpt2 toxicity, gpt3, gpt3 toxicity                a column for each model, a table

A cell of a table may spell an object or a list. If rows bring a toxicity of their own, beside the text or in
Perspective's objects, the result says how well ours agrees with it.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.data.encode import prompt_text
from rlhf.data.files import SourceRow
from rlhf.errors import InputError
from rlhf.evaluation.benchmark import ItemScores, Scores, summarize
from rlhf.evaluation.scored_rows import (
    KIND,
    SYSTEM,
    agreement,
    find,
    first_value,
    one_row_a_model,
    parsed,
    plain,
    read_source,
)
from rlhf.evaluation.scored_rows import score as published_score
from rlhf.evaluation.toxicity import TOXIC, prompt_scores
from rlhf.evaluation.toxicity_scorers import ToxicityScorer

logger = logging.getLogger(__name__)

# Names of columns, in order of preference.
PROMPT = ("prompt", "context")
CONTINUATION = ("continuations", "generations", "completions", "responses", "continuation", "generation", "completion")
CONTINUATION += ("response", "sample", "output", "text")
PUBLISHED = ("toxicity", "toxicity_score", "perspective_toxicity")
NESTED = ("perspective", "perspective_api", "attributescores", "attribute_scores", "summaryscore", "summary_score")
NESTED += ("scores", "value")  # keys on the way to Perspective's toxicity


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
    name, source = read_source(spec, "continuations")
    source = one_row_a_model(source, CONTINUATION, PUBLISHED, PROMPT, every=False)
    return [one for row in source for one in _continuations(row, name)]


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
    published = [
        (row.system, row.kind, row.published, score)
        for row, score in zip(rows, toxicity, strict=True)
        if row.published is not None
    ]
    return result | {"published": agreement(published, TOXIC) if published else None}


def _names(rows: Sequence[Continuation]) -> tuple[Iterable[str], ...]:
    return (row.system for row in rows), (row.kind for row in rows), (row.prompt for row in rows)


def _continuations(row: SourceRow, system: str) -> Iterable[Continuation]:
    content = row.content
    prompt_column = next((one for name in PROMPT if (one := find(content, [name])) and content[one]), None)
    column = find(content, CONTINUATION)
    if prompt_column is None or column is None:
        what, names = ("prompt", PROMPT) if prompt_column is None else ("continuation", CONTINUATION)
        raise InputError(
            f"{row.file}, {row.place}: no {what}. Name its column one of {', '.join(names)}; a column for each model "
            "needs its scores beside it: gpt2, gpt2_toxicity."
        )
    prompt = parsed(content[prompt_column])
    try:
        prompt = prompt["text"] if isinstance(prompt, dict) else prompt_text(prompt)
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(f"{row.file}, {row.place}: {prompt_column} is neither text nor messages.") from error
    kind = str(first_value(content, KIND) or "basic").removesuffix(" prompt")
    name = str(first_value(content, SYSTEM) or system)
    value = parsed(content[column])
    elements = value if isinstance(value, list) else [value]
    own = _own_scores(row, len(elements))
    for one, published in zip(elements, own, strict=True):
        if not isinstance(one := {"text": one} if not isinstance(one, dict) else one, dict) or "text" not in one:
            raise InputError(f"{row.file}, {row.place}: an element of {column} has no text.")
        text = one["text"] or ""  # an empty cell of a table is an empty continuation
        if not isinstance(text, str):
            raise InputError(f"{row.file}, {row.place}: {column} holds {text!r:.40}, which is no text.")
        inner = _toxicity(one)
        number = published_score(row, "toxicity", published if inner is None else inner)
        yield Continuation(name, kind, str(prompt), text, number)


def _own_scores(row: SourceRow, count: int) -> list[Any]:
    """Returns the published toxicity that stands beside the continuations, for each of them."""
    own = _toxicity(row.content)
    if isinstance(own, list):
        if len(own) != count:
            raise InputError(f"{row.file}, {row.place}: {count} continuations have {len(own)} scores of toxicity.")
        return own
    if count != 1:  # one number for several: of the prompt, or a summary
        return [None] * count
    return [own]


def _toxicity(content: dict[str, Any]) -> Any:
    """Returns the toxicity that an object gives, also within Perspective's objects; None without one."""
    own = {plain(name): parsed(value) for name, value in content.items()}
    found = next((own[name] for name in PUBLISHED if own.get(name) is not None), None)
    if found is None:
        inner = next((own[name] for name in NESTED if isinstance(own.get(name), dict)), None)
        return None if inner is None else _toxicity(inner)
    while isinstance(found, dict):  # {"summaryScore": {"value": 0.1}}
        inner = {plain(name): value for name, value in found.items()}
        found = next((inner[name] for name in NESTED if name in inner), "an object without a value")
    return found
