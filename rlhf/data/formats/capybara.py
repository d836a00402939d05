"""argilla/distilabel-capybara-dpo-7k-binarized: {"chosen": messages, "rejected": messages, "rating_chosen", ...}.

Both conversations hold the prompt. The other columns are what they were made of: the conversation as pairs of input and
output, the answer that it had, and the answers that models wrote.
"""

from collections.abc import Iterator

from rlhf.data.formats.base import Format, Row

READ = ("chosen", "rejected", "rating_chosen", "rating_rejected")


def is_pair(row: Row) -> bool:
    pair = isinstance(row.get("chosen"), list) and isinstance(row.get("rejected"), list)
    return pair and {"conversation", "original_response"} <= row.keys()


def comparisons(row: Row) -> Iterator[Row]:
    yield {name: row.get(name) for name in READ}


CAPYBARA = Format(
    title="Capybara pairs",
    matches=is_pair,
    columns=(
        *READ,
        "prompt",
        "conversation",
        "original_response",
        "generation_prompt",
        "raw_generation_responses",
        "new_generations",
    ),
    kinds={"comparisons": comparisons, "prompts": comparisons},
)
