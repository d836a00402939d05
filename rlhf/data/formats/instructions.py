"""Instructions with one answer: Stanford Alpaca, Databricks Dolly, and the seed tasks of self-instruct."""

from collections.abc import Iterator

from rlhf.data.checks import truth_value
from rlhf.data.formats.base import Format, Row, assistant, conversation, has, optional_text, required_text, user
from rlhf.data.formats.trl import is_labeled
from rlhf.data.schemas import RowError


def alpaca_demonstrations(row: Row) -> Iterator[Row]:
    """{"instruction", "input", "output"}: the input, if not blank, is the second paragraph of the prompt.

    LLaMA-Factory adds "system", and "history": pairs of an earlier instruction and its answer.
    """
    (question,) = alpaca_prompts(row)
    yield question | {"completion": assistant(required_text(row, "output"))}


def alpaca_prompts(row: Row) -> Iterator[Row]:
    yield {"prompt": conversation(row, user(required_text(row, "instruction"), optional_text(row, "input")))}


def dolly_demonstrations(row: Row) -> Iterator[Row]:
    """{"instruction", "context", "response", "category"}: context or, in copies, input follow the instruction."""
    (question,) = dolly_prompts(row)
    yield question | {"completion": assistant(required_text(row, "response"))}


def dolly_prompts(row: Row) -> Iterator[Row]:
    texts = required_text(row, "instruction"), optional_text(row, "context"), optional_text(row, "input")
    yield {"prompt": conversation(row, user(*texts)), "category": row.get("category")}


def seed_demonstrations(row: Row) -> Iterator[Row]:
    """{"instruction", "instances": [{"input", "output"}]}: a row for each instance."""
    for prompt, instance in _instances(row):
        yield prompt | {"completion": assistant(required_text(instance, "output"))}


def seed_prompts(row: Row) -> Iterator[Row]:
    for prompt, _ in _instances(row):
        yield prompt


def _instances(row: Row) -> Iterator[tuple[Row, Row]]:
    instruction, instances = required_text(row, "instruction"), row.get("instances")
    if not isinstance(instances, list) or not all(isinstance(instance, dict) for instance in instances):
        raise RowError("column instances is not a list of objects with input and output; make it one")
    mark = row.get("is_classification")
    is_classification = mark is not None and truth_value(mark, "column is_classification")
    for instance in instances:
        prompt = {"prompt": user(instruction, optional_text(instance, "input"))}
        yield (prompt | {"category": "classification"} if is_classification else prompt), instance


ALPACA = Format(
    title="Alpaca instructions",
    matches=lambda row: {"instruction", "output"} <= row.keys() and not is_labeled(row),
    columns=("instruction", "input", "output", "system", "history"),
    kinds={"demonstrations": alpaca_demonstrations, "prompts": alpaca_prompts},
)
DOLLY = Format(
    title="Dolly instructions",
    matches=lambda row: {"instruction", "response"} <= row.keys() and not is_labeled(row),
    columns=("instruction", "context", "input", "response", "system", "history", "category"),
    kinds={"demonstrations": dolly_demonstrations, "prompts": dolly_prompts},
)
SELF_INSTRUCT = Format(
    title="self-instruct tasks",
    matches=has("instruction", "instances"),
    columns=("instruction", "instances", "is_classification", "motivation_app"),
    kinds={"demonstrations": seed_demonstrations, "prompts": seed_prompts},
)
