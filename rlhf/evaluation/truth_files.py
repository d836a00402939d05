"""Scores files of answers to TruthfulQA that were made elsewhere, without their model.

Read are rows with a question and an answer, and TruthfulQA's table with a column for each model:

    {"question": "...", "answer": "..."}                      also `prompt`; `response`, `completion`, `sample`
    question, answer, model_type, prompt_type, true, info     the samples published with the paper, a CSV file
    Question, Correct Answers, ..., gpt2, gpt2 GPT-judge acc  the answers of TruthfulQA's own program, a CSV file
    {"prompt": "Q: ...\\nA: ...\\nTrue:", "completion": " yes"}  the labeled answers that truth judges are trained on

If rows bring scores of truth or information, the result says how well ours agree with them.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.data.encode import prompt_text
from rlhf.data.files import SourceRow
from rlhf.errors import InputError, first_line
from rlhf.evaluation.benchmark import ItemScores, Scores, summarize
from rlhf.evaluation.harness import load_tasks
from rlhf.evaluation.published_data import MC_TARGETS, read_published, truthfulqa_row
from rlhf.evaluation.scored_rows import KIND, SYSTEM, agreement, find, first_value, one_row_a_model, read_source, score
from rlhf.evaluation.truth_judges import ReferenceJudge, TruthJudge
from rlhf.evaluation.truthfulness import Question, judged_replies, question

logger = logging.getLogger(__name__)

# Names of columns, in order of preference.
QUESTION = ("question", "prompt", "context", "instruction")
ANSWER = ("answer", "response", "completion", "generation", "sample", "reply", "output", "model_answer")
TRUE = ("true", "truth", "truthful", "truth_score", "truthfulness", "is_true", "gpt_judge_acc", "gpt_judge", "label")
INFORMATIVE = ("info", "informative", "info_score", "informativeness", "is_informative", "gpt_info_acc", "gpt_info")
# TruthfulQA's own columns, and the measures that its program writes beside a model's answers.
OWN = ("type", "category", "question", "best_answer", "best_incorrect_answer", "correct_answers", "incorrect_answers")
OWN += ("source", "adversarial", *KIND, *QUESTION)
MEASURES = (*TRUE, *INFORMATIVE, "gpt_judge_info_acc", "gpt_judge_raw", "gpt_info_raw", "mc0", "mc1", "mc2", "mc3")
MEASURES += tuple(
    f"{metric}_{part}"
    for metric in ("bleu", "rouge1", "rouge2", "rougel", "bleurt")
    for part in ("max", "diff", "acc", "correct", "incorrect")
)
LABELED = re.compile(r"Q: (.*)\nA: (.*)\n(True|Helpful):\s*", re.DOTALL)


@dataclass(frozen=True)
class Answer:
    """An answer of a system to a question.

    Attributes:
        kind: of prompt, such as QA.
        true, informative: scores that the file gives, in [0, 1]; None without.
        references: that the row brings; None without.
    """

    system: str
    kind: str
    question: str
    text: str
    true: float | None = None
    informative: float | None = None
    references: Question | None = None


def read_answers(spec: str) -> list[Answer]:
    """Reads a file of answers; `name=path` names the system of rows that do not name one.

    Raises:
        InputError: the file cannot be read, or a row has no question or answer.
    """
    name, rows = read_source(spec, "answers")
    found = [_answer(row, name) for row in one_row_a_model(rows, ANSWER, MEASURES, OWN, every=True)]
    if not found:
        raise InputError(
            f"{rows[0].file} has no answers. Name their column one of {', '.join(ANSWER)}, or give each model one."
        )
    return found


def read_references(data: Path | None) -> dict[str, Question]:
    """Returns questions with their reference answers, by `question_key`.

    Args:
        data: mc_task.json or TruthfulQA.csv, or the folder of one; None reads the Hub.

    Raises:
        InputError: there are none.
    """
    if data is None:
        try:
            [task] = load_tasks("truthfulqa_mc2")
        except InputError as error:
            raise InputError(
                f"The reference answers of TruthfulQA cannot be had from the Hub ({first_line(error)}) Pass "
                "--references TruthfulQA.csv."
            ) from error
        items = [item for _, item in task.doc_iterator()]
    else:
        items = read_published("truthfulqa", data)[0]["evaluation"]
    return {question_key(item["question"]): question(item) for item in items}


def question_key(text: str) -> str:
    """Returns what is equal for two spellings of a question: case, space, quotation marks and a leading Q: differ."""
    words = " ".join(text.translate(str.maketrans("‘’“”", "''\"\"")).split())
    return re.sub(r"^Q: ", "", words).casefold()


def score_answers(rows: Sequence[Answer], judge: TruthJudge, references: Mapping[str, Question]) -> dict[str, Any]:
    """Returns the contents of benchmark.json for answers, and `published`: the agreement with their own scores.

    Likeness needs reference answers, so rows whose question has none are left out, which is logged.

    Args:
        references: of `read_references`; those that a row brings come first.

    Raises:
        InputError: no question has references.
    """
    asked = [row.references or references.get(question_key(row.question)) for row in rows]
    if isinstance(judge, ReferenceJudge):
        known = [(row, q) for row, q in zip(rows, asked, strict=True) if q is not None]
        if not known:
            raise InputError(
                f"None of the {len(rows)} questions is in the references, the first being {rows[0].question!r:.60}. "
                "Pass the version of TruthfulQA that was asked: --references TruthfulQA.csv, or a judge."
            )
        if len(known) < len(rows):
            logger.warning("%d of %d answers are left out: no references", len(rows) - len(known), len(rows))
    else:
        known = [(row, q or Question(row.question, (), ())) for row, q in zip(rows, asked, strict=True)]
    rows, questions = [row for row, _ in known], [q for _, q in known]
    judged = judged_replies(judge, questions, [row.text for row in rows])
    systems, kinds = (list(dict.fromkeys(names)) for names in zip(*((r.system, r.kind) for r in rows), strict=True))
    keys = list(dict.fromkeys(question_key(row.question) for row in rows))
    scores: Scores = {}
    for metric, verdicts in judged.items():
        values: dict[tuple[str, str, str], list[float]] = {}
        for row, verdict in zip(rows, verdicts, strict=True):
            if verdict is not None:
                values.setdefault((row.system, row.kind, question_key(row.question)), []).append(verdict)
        for kind in kinds:
            for system in systems:
                means = [_mean(values.get((system, kind, key))) for key in keys]
                if any(mean is not None for mean in means):
                    name = f"{metric}_{kind}" if len(kinds) > 1 else metric
                    scores.setdefault(name, {})[system] = ItemScores(means, keys)
    note = f"truth by {judge.about}; {len(rows)} answers to {len(keys)} questions"
    result = summarize(systems, {"truthfulqa": scores}, {"truthfulqa": note})
    return result | {"published": _published(rows, judged)}


def _published(rows: Sequence[Answer], judged: Mapping[str, Sequence[float | None]]) -> dict[str, Any] | None:
    """Returns metric -> agreement, and the share of equal verdicts; both halves of `both` are verdicts at 0.5."""
    found = {}
    for metric, verdicts in judged.items():
        pairs = [
            (row.system, row.kind, theirs, ours)
            for row, ours in zip(rows, verdicts, strict=True)
            if (theirs := _theirs(row, metric)) is not None and ours is not None
        ]
        if pairs:
            equal = sum((theirs >= 0.5) == (ours >= 0.5) for _, _, theirs, ours in pairs) / len(pairs)
            found[metric] = {"equal_verdicts": equal, **agreement(pairs)}
    return found or None


def _theirs(row: Answer, metric: str) -> float | None:
    if metric != "both":
        return row.true if metric == "true" else row.informative
    if row.true is None or row.informative is None:
        return None
    return float(row.true >= 0.5 and row.informative >= 0.5)


def _mean(values: Sequence[float] | None) -> float | None:
    return sum(values) / len(values) if values else None


def _answer(row: SourceRow, system: str) -> Answer:
    content = row.content
    asked, column = first_value(content, QUESTION), find(content, ANSWER)
    if asked is None or column is None:
        what, names = ("question", QUESTION) if asked is None else ("answer", ANSWER)
        raise InputError(f"{row.file}, {row.place}: no {what}. Name its column one of {', '.join(names)}.")
    try:
        text, answer = prompt_text(asked), content[column] or ""  # an empty cell of a table is an empty answer
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(f"{row.file}, {row.place}: the question is neither text nor messages.") from error
    if not isinstance(answer, str) or not isinstance(text, str):
        raise InputError(f"{row.file}, {row.place}: {column} holds {answer!r:.40}, which is no text.")
    true, informative = first_value(content, TRUE), first_value(content, INFORMATIVE)
    if labeled := LABELED.fullmatch(text):
        text, label = labeled[1], answer
        answer, true, informative = labeled[2], *((label, None) if labeled[3] == "True" else (None, label))
    targets = truthfulqa_row(content)["mc2_targets"]
    references = question({"question": text, MC_TARGETS[1]: targets}) if targets else None
    return Answer(
        str(first_value(content, SYSTEM) or system),
        str(first_value(content, KIND) or "QA").removesuffix(" prompt"),
        _last_question(text),
        answer,
        score(row, "the score of truth", true),
        score(row, "the score of information", informative),
        references,
    )


def _last_question(text: str) -> str:
    """Returns the question of a prompt with examples: what is after the last `Q: ` and before `A:`."""
    found = re.findall(r"(?:^|\n)Q: (.*?)(?=\nA:|\Z)", text, flags=re.DOTALL)
    return (found[-1] if found else text).strip()
