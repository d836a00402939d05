"""argilla/distilabel-capybara-dpo-7k-binarized: {"chosen": messages, "rejected": messages, "rating_chosen", ...}.

Both conversations hold the prompt. The other columns are what they were made of: the conversation as pairs of input and
output, the answer that it had, and the answers that models wrote.
"""

from collections.abc import Iterator

from rlhf.data.formats.base import Format, Row, has

READ = ("chosen", "rejected", "rating_chosen", "rating_rejected")


def comparisons(row: Row) -> Iterator[Row]:
    yield {name: row.get(name) for name in READ}


CAPYBARA = Format(
    title="Capybara pairs",
    matches=has("conversation", "original_response", "chosen", "rejected"),
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
