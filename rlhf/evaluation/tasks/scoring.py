"""Scores per item of our own task files: answers in a passage, summaries, translations."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

NO_ANSWER = "not in background"  # what the prompt of SQuADv2 asks for where the passage has no answer


def normalized(answer: str) -> str:
    """Returns an answer without case, punctuation, articles and extra blanks (Rajpurkar et al. 2016, section 6.1)."""
    letters = "".join(letter for letter in answer.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", letters).split())


def token_f1(prediction: str, reference: str) -> float:
    """Returns the harmonic mean of precision and recall over the words of two answers, after `normalized`.

    Of two answers of which one is empty, the score is 1 if both are.
    """
    predicted, expected = normalized(prediction).split(), normalized(reference).split()
    if not predicted or not expected:
        return float(predicted == expected)
    common = sum((Counter(predicted) & Counter(expected)).values())
    return 2 * common / (len(predicted) + len(expected))


def answer_scores(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """Returns `exact` and `f1`, each the best over the references."""
    return {
        "exact": max(float(normalized(prediction) == normalized(reference)) for reference in references),
        "f1": max(token_f1(prediction, reference) for reference in references),
    }


def squad_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Scores SQuADv2: "not in background" is the empty answer, which is right where a passage has none."""
    prediction = results[0].strip()
    if normalized(prediction) in (NO_ANSWER, "unanswerable"):
        prediction = ""
    return answer_scores(prediction, doc["answers"]["text"] or [""])


def quac_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Scores QuAC by the best F1 over the references; the leave-one-out of its paper needs several references."""
    return {"f1": answer_scores(results[0].strip(), doc["answers"])["f1"]}


def summary_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Scores a summary by the F-measures of ROUGE with stemming."""
    scores = _rouge().score(doc["summary"].strip(), results[0].strip())
    return {name: scores[name].fmeasure for name in ("rouge1", "rouge2", "rougeL")}


def translation_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Scores a translation by sentence BLEU and chrF (sacrebleu), each in [0, 1]; their means are not corpus BLEU."""
    import sacrebleu

    reference, translation = doc["translation"]["en"], results[0].strip()
    return {
        "sentence_bleu": sacrebleu.sentence_bleu(translation, [reference]).score / 100,
        "sentence_chrf": sacrebleu.sentence_chrf(translation, [reference]).score / 100,
    }


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
