"""The form of prompts of text: one message of the user in the chat template ("chat"), or the text as it is ("text").

Where the tokenizer brings a chat template, a model was made to answer in it, so a text is a message there. Prompts that
are messages have the form "chat" in any case. Rows are converted once, right after they are loaded, so that judges,
samples and the model see the same prompt.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, Literal, cast

import datasets
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rlhf.data.arguments import DataArguments
from rlhf.data.bad_rows import BadRows
from rlhf.data.encode import Prompt, without_eos
from rlhf.data.files import SourceRow
from rlhf.data.formats import hh
from rlhf.data.literal import special_tokens
from rlhf.data.loading import MESSAGES
from rlhf.errors import InputError
from rlhf.models.chat_template import DEFAULT_CHAT_TEMPLATE

PromptStyle = Literal["chat", "text"]


def brings_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """True if the chat template is the tokenizer's own, not the one that `load_tokenizer` gives where there is none."""
    template = tokenizer.chat_template
    return template is not None and not str(template).strip().endswith(DEFAULT_CHAT_TEMPLATE.strip())


def resolve_style(option: str | None, trained: str | None, tokenizer: PreTrainedTokenizerBase) -> PromptStyle:
    """Returns the form of prompts that are text.

    Args:
        option: `prompt_style` of the options; None follows what is known.
        trained: form that the adapter was trained on (`Contract.prompt_style`); None for a stage without an adapter.

    Raises:
        InputError: the option differs from `trained`.
    """
    if option is not None and trained is not None and option != trained:
        raise InputError(
            f"prompt_style is {option}, but the adapter was trained on prompts of style {trained} (contract.json). "
            "Leave prompt_style out, or train the stage before with it."
        )
    style = option or trained or ("chat" if brings_template(tokenizer) else "text")
    return cast(PromptStyle, style)


def in_prompt_style(
    rows: datasets.Dataset,
    args: DataArguments,
    tokenizer: PreTrainedTokenizerBase,
    split: str,
    trained: str | None = None,
    output_dir: str | None = None,
) -> datasets.Dataset:
    """Returns the rows with prompts in the form of `resolve_style`; rows of messages stay as they are.

    Args:
        rows: of `load_demonstrations`, `load_comparisons` or `load_prompts`.
        args: `prompt_style`, and the handling of bad rows.
        split: name of the split, for messages.
        output_dir: the run's folder, in which skipped rows are listed.

    Raises:
        InputError: the form is "text" by `prompt_style` or `trained` and the prompts are messages, or these two differ;
            or, while `on_bad_rows` is "error", the chat template refuses the roles of a row's messages, or a prompt of
            text is rendered in it already.
    """
    style = resolve_style(args.prompt_style, trained, tokenizer)
    if len(rows) == 0:
        return rows
    if not isinstance(rows[0]["prompt"], str):
        if style == "text" and "text" in (args.prompt_style, trained):
            whose = "prompt_style is text" if trained is None else "the adapter was trained on prompts of style text"
            raise InputError(
                f"{whose}, but the prompts of {args.dataset_name} are messages. Write them in one form, or train the "
                "stage before on messages."
            )
        return _without_bad(rows, partial(refused_roles, tokenizer), args, split, output_dir)
    rows = _without_bad(rows, partial(rendered_already, tokenizer), args, split, output_dir)
    if style == "text":
        return rows
    # The space at the border of two texts belongs to no message, and neither does an EOS.
    completion_is_message = "completion" in rows.column_names

    def convert(row: dict[str, Any]) -> dict[str, Any]:
        converted: dict[str, Any] = {"prompt": as_messages(row["prompt"])}
        if completion_is_message:
            answer = without_eos(tokenizer, row["completion"]).removeprefix(" ")
            converted["completion"] = [{"role": "assistant", "content": answer}]
        if "completions" in row:
            converted["completions"] = [without_eos(tokenizer, c).removeprefix(" ") for c in row["completions"]]
        return converted

    features = rows.features.copy()
    features["prompt"] = MESSAGES
    if completion_is_message:
        features["completion"] = MESSAGES
    return rows.map(convert, features=features, desc=f"Prompts of {split} as messages")


def as_messages(text: str) -> list[dict[str, str]]:
    """Returns a text as one message of the user; a transcript of hh-rlhf ("Human: ... Assistant:") as its messages."""
    if text.lstrip().startswith("Human:") and text.rstrip().endswith("\n\nAssistant:"):
        return hh.turns(text, "prompt")[:-1]
    return [{"role": "user", "content": text}]


def styled_prompt(text: str, style: str) -> Prompt:
    """Returns one prompt of text in a form."""
    return as_messages(text) if style == "chat" else text


def rendered_already(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str | None:
    """Returns the reason why a prompt of text is a bad row: it begins as the template does, `<|im_start|>`."""
    mark = template_mark(tokenizer)
    text = prompt.lstrip().removeprefix(str(tokenizer.bos_token or "")).lstrip()
    if not mark or not text.startswith(mark):
        return None
    return f"column prompt begins with the chat template's {mark}; give messages in its place"


def refused_roles(tokenizer: PreTrainedTokenizerBase, prompt: list[dict[str, str]]) -> str | None:
    """Returns the reason why messages are a bad row: the chat template refuses their roles, or leaves some out."""
    roles = tuple(message["role"] for message in prompt)
    return _refused_roles(tokenizer, str(tokenizer.chat_template), roles)


@lru_cache(maxsize=1024)
def _refused_roles(tokenizer: PreTrainedTokenizerBase, template: str, roles: tuple[str, ...]) -> str | None:
    try:
        messages = [{"role": role, "content": f"content-{i}."} for i, role in enumerate(roles)]
        rendered = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except (TemplateError, ValueError) as error:
        reason = f"the tokenizer's chat template refuses messages with roles {', '.join(roles)}"
        return f"{reason} ({str(error).rstrip('.')}); write them with other roles"
    lost = [i for i, message in enumerate(messages) if message["content"] not in rendered]
    if lost:
        return (
            f"the tokenizer's chat template leaves out message {lost[0] + 1} of {len(roles)} (role {roles[lost[0]]}); "
            "write its content into another message, or set another chat template"
        )
    return None


def template_mark(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns what a rendered prompt begins with after BOS, "" for nothing: the template's first token or words."""
    return _template_mark(tokenizer, str(tokenizer.chat_template)) if brings_template(tokenizer) else ""


@lru_cache(maxsize=16)
def _template_mark(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    try:
        messages = as_messages("\U000fffd0")
        rendered = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except (TemplateError, ValueError):
        return ""
    head = rendered.partition(messages[0]["content"])[0]
    head = head.removeprefix(str(tokenizer.bos_token or "")).strip()
    token = special_tokens(tokenizer).match(head)
    return token[0] if token else head


def _without_bad(
    rows: datasets.Dataset,
    reason_of: Callable[[Any], str | None],
    args: DataArguments,
    split: str,
    output_dir: str | None,
) -> datasets.Dataset:
    """Returns the rows for whose prompt `reason_of` gives no reason; the others are bad rows."""
    bad_rows, good = BadRows(args.on_bad_rows, output_dir), []
    for i, prompt in enumerate(rows["prompt"]):
        row = SourceRow(f"{args.dataset_name} ({split} split)", f"row {i + 1}", {})  # not the name of `drop_long_rows`
        bad_rows.read(row)
        if reason := reason_of(prompt):
            bad_rows.add(row, reason)
        else:
            good.append(i)
    bad_rows.report()
    if not good:
        raise InputError(f"All {len(rows)} prompts of {args.dataset_name} ({split} split) are bad rows. Correct them.")
    return rows if len(good) == len(rows) else rows.select(good)
