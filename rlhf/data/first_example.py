"""Shows the first encoded row of a stage, so that a wrong form of the prompts is seen before training."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf.models.stop_tokens import stop_token_texts
from rlhf.runs.console import show

HEAD, TAIL = 200, 120  # characters of a longer text that are shown
NEW_LINE = "⏎"


def show_demonstration(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any]) -> None:
    """Prints a row of `tokenize_demonstrations`: its prompt, and the completion on which the loss is."""
    size = row["completion_mask"].index(1) if 1 in row["completion_mask"] else len(row["input_ids"])
    prompt, completion = row["input_ids"][:size], row["input_ids"][size:]
    _show(tokenizer, ("prompt, no loss", prompt), ("completion, loss on each token", completion))


def show_comparison(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any]) -> None:
    """Prints a row of `tokenize_comparisons`: its prompt, and the best and the worst completion."""
    ranks, size = row["ranks"], row["prompt_length"]
    best, worst = ranks.index(min(ranks)), ranks.index(max(ranks))
    _show(
        tokenizer,
        ("prompt", row["completions_ids"][best][:size]),
        ("best, score at its last token", row["completions_ids"][best][size:]),
        ("worst, score at its last token", row["completions_ids"][worst][size:]),
    )


def show_prompt(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> None:
    """Prints an encoded prompt, and the tokens that end an answer."""
    _show(tokenizer, ("prompt, after which the policy samples", ids))


def _show(tokenizer: PreTrainedTokenizerBase, *parts: tuple[str, Sequence[int]]) -> None:
    """Prints prompt and completions as facts, one line each; the ends of their own lines are marked.

    Also prints the tokens that end an answer, unless there is one, and all completions show it.
    """
    lines = [f"{name} ({len(ids)} tokens): {shortened(str(tokenizer.decode(list(ids))))}" for name, ids in parts]
    stops = stop_token_texts(tokenizer)
    if len(stops) > 1 or len(parts) == 1 or not all(line.endswith(stops[0]) for line in lines[1:]):
        lines.append(f"an answer ends with {' or '.join(stops)}")
    show("first row", "\n".join(lines))


def shortened(text: str) -> str:
    """Returns a text in one line, with `NEW_LINE` at the ends of its lines and without the middle of a long one."""
    line = text.replace("\n", NEW_LINE)
    return line if len(line) <= HEAD + TAIL else f"{line[:HEAD]} […] {line[-TAIL:]}"
