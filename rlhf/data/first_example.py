"""Shows the first encoded row of a stage, so that a wrong form of the prompts is seen before training."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf.models.stop_tokens import stop_token_texts
from rlhf.runs.artifacts import is_first_process


def show_demonstration(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any]) -> None:
    """Prints a row of `tokenize_demonstrations`: its prompt, and the completion on which the loss is."""
    size = row["completion_mask"].index(1) if 1 in row["completion_mask"] else len(row["input_ids"])
    prompt, completion = row["input_ids"][:size], row["input_ids"][size:]
    _show("First demonstration", tokenizer, ("prompt, no loss", prompt), ("completion, loss on each token", completion))


def show_comparison(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any]) -> None:
    """Prints a row of `tokenize_comparisons`: its prompt, and the best and the worst completion."""
    ranks, size = row["ranks"], row["prompt_length"]
    best, worst = ranks.index(min(ranks)), ranks.index(max(ranks))
    _show(
        "First comparison",
        tokenizer,
        ("prompt", row["completions_ids"][best][:size]),
        ("best completion, score and loss at its last token", row["completions_ids"][best][size:]),
        ("worst completion, score and loss at its last token", row["completions_ids"][worst][size:]),
    )


def show_prompt(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> None:
    """Prints an encoded prompt, and the tokens that end an answer."""
    _show("First prompt", tokenizer, ("prompt, after which the policy samples", ids))


def _show(title: str, tokenizer: PreTrainedTokenizerBase, *parts: tuple[str, Sequence[int]]) -> None:
    if not is_first_process():
        return
    lines = [f"{title}, as it is encoded (an answer ends with {' or '.join(stop_token_texts(tokenizer))}):"]
    for name, ids in parts:
        lines.append(f"--- {name} ({len(ids)} tokens) ---\n{tokenizer.decode(list(ids))}")
    print("\n".join(lines) + "\n---", flush=True)
