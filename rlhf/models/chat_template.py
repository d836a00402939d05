"""The side effects of chat templates: they print a date, begin the answer, open or write blocks of thinking.

The changes are made in the tokenizer's template, and are saved with it. So every stage, `pipeline` and vLLM ask in the
form that was trained.
"""

import json
import logging
import re
from collections.abc import Callable, Iterable
from datetime import date
from functools import lru_cache

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# For base models without a template. Its words are in every pretraining corpus, so no embedding must be learned for it.
# An answer ends with the model's own end-of-text token. A prompt ends with "Assistant:", without a space: in byte-level
# BPE and SentencePiece the space belongs to the first word of the answer, so the ids of the prompt are a prefix of the
# ids of prompt + answer. A decoded answer therefore begins with a space; strip it before display.
DEFAULT_CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role == 'system' -%}{{ message.content + '\\n\\n' }}
{%- elif message.role == 'user' -%}{{ 'User: ' + message.content + '\\n' }}
{%- elif message.role == 'assistant' -%}{{ 'Assistant: ' + message.content + eos_token + '\\n' }}
{%- else -%}{{ raise_exception("role must be system, user or assistant, got '" ~ message.role ~ "'") }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'Assistant:' }}{%- endif -%}
"""

FIXED_DATE = date(2024, 7, 26)  # the one that Llama's templates print where they cannot ask for today's
NOW = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
DATE_NOTE = f"{{# date: {FIXED_DATE:%d %b %Y} #}}"
NO_THINKING = "{% if enable_thinking is not defined %}{% set enable_thinking = false %}{% endif %}"

TAG = r"[\w:]*(?:think|thought|reason)\w*"  # <think>, [THINK], <seed:think>, <reasoning>, ...
THINK_TAG = re.compile(rf"<(/?{TAG})>|\[(/?{TAG})\]", re.IGNORECASE)
OPENS = re.compile(rf"(<{TAG}>|\[{TAG}\])(\s*)\Z", re.IGNORECASE)  # at the end of a prompt
THOUGHTS = re.compile(  # at the start of an answer
    rf"\s*(?:<(?P<tag>{TAG})>(?P<text>.*?)</(?P=tag)>|\[THINK\](?P<text_2>.*?)\[/THINK\])\s*", re.DOTALL | re.IGNORECASE
)
PROBE = [{"role": "user", "content": "Hello"}]


def fix_date(tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes one fixed date into a template that prints today's, so that tomorrow's stages ask the same prompts."""

    def fixed(template: str) -> str:
        if "strftime_now" not in template:
            return template
        text = NOW.sub(lambda call: json.dumps(FIXED_DATE.strftime(call[2])), template)
        if "strftime_now(" in text:  # a format that is not a literal
            text = f"{{% macro strftime_now(format) %}}{FIXED_DATE:%d %b %Y}{{% endmacro %}}{text}"
        return text if text == template else DATE_NOTE + text

    if change_template(tokenizer, fixed):
        logger.warning(
            "the chat template prints today's date; it now prints %s, so that all stages ask the same prompts",
            template_date(tokenizer),
        )


def template_date(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Returns the date that the chat template prints, such as `26 Jul 2024`; None if it prints none."""
    text = f"{FIXED_DATE:%d %b %Y}"
    return text if text in str(tokenizer.chat_template) else None


def begin_answers(tokenizer: PreTrainedTokenizerBase) -> None:
    """Makes a template without a generation prompt end prompts with what it writes before answers.

    Older ChatML templates have none. The model would learn to write `<|im_start|>assistant` itself, as a part of every
    answer. Spaces before an answer (Mistral) stay with its first word.
    """
    answer = "\U000fffd0"
    try:
        start = tokenizer.apply_chat_template(PROBE, tokenize=False)
        asked = tokenizer.apply_chat_template(PROBE, tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template([*PROBE, {"role": "assistant", "content": answer}], tokenize=False)
    except (TemplateError, ValueError):
        return
    if asked != start or not str(whole).startswith(str(start)):
        return
    header = str(whole)[len(str(start)) :].partition(answer)[0].rstrip(" ")
    if not header.strip():
        return
    ending = f"{{% if add_generation_prompt %}}{{{{ {json.dumps(header, ensure_ascii=False)} }}}}{{% endif %}}"
    change_template(tokenizer, lambda template: template.removesuffix("\n") + ending)
    logger.warning("the chat template has no generation prompt; prompts now end with %r, as before its answers", header)


def turn_thinking_off(tokenizer: PreTrainedTokenizerBase, answers: Iterable[str]) -> None:
    """Sets `enable_thinking` to false in a template that has this switch, unless one of `answers` begins with thoughts.

    Then the prompt holds the empty block of thoughts, as Qwen3's template writes it, and answers are trained without.
    """
    if not _has_switch(tokenizer) or NO_THINKING in str(tokenizer.chat_template):
        return
    if any(thoughts(answer) for answer in answers):
        logger.warning(
            "some answers begin with thoughts; prompts leave thinking on, as the chat template does by itself"
        )
        return
    change_template(tokenizer, lambda template: NO_THINKING + template)
    logger.warning(
        "no answer begins with thoughts; the saved chat template sets enable_thinking to false, so that prompts hold "
        "the empty block of thoughts and answers are trained without it"
    )


def thoughts(answer: str) -> str | None:
    """Returns the thoughts in tags with which an answer begins; None without."""
    found = THOUGHTS.match(answer)
    return (found["text"] or found["text_2"] or "") if found else None


def answer_end(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns what the chat template writes after an answer, such as `<|im_end|>` and a newline."""
    return _answer_end(tokenizer, len(tokenizer), str(tokenizer.chat_template), str(tokenizer.eos_token))


@lru_cache(maxsize=16)
def _answer_end(tokenizer: PreTrainedTokenizerBase, *_state) -> str:
    answer = "\U000fffd0"  # a private-use character
    try:
        text = tokenizer.apply_chat_template([*PROBE, {"role": "assistant", "content": answer}], tokenize=False)
    except (TemplateError, ValueError):
        return ""
    return str(text).rpartition(answer)[2]


def continue_thoughts(start: str, answer: str) -> str:
    """Returns the text that follows the rendered prompt `start` so that `answer` does not lie in a block of thoughts.

    If `start` opens such a block (DeepSeek-R1), the answer's own thoughts continue it, or it is closed without any.
    """
    opened = OPENS.search(start)
    if opened is None:
        return answer
    close = _closing(opened[1])
    if close in answer:
        rest = answer.lstrip().removeprefix(opened[1])
        return rest.lstrip("\n") if opened[2] else rest
    return ("\n" if opened[2] else "\n\n") + close + "\n\n" + answer


def answer_text(tokenizer: PreTrainedTokenizerBase, prompt_ids: list[int], ids: list[int]) -> str:
    """Decodes sampled ids to the text of an answer, without special tokens.

    Thoughts in a block that the prompt opened get their opening tag, and an empty block is left out, so that
    `rlhf.data.encode.encode_completion` of the text gives the ids again.
    """
    text = str(tokenizer.decode(ids, skip_special_tokens=True))
    opened = OPENS.search(str(tokenizer.decode(prompt_ids[-32:])))
    if opened is None:
        return text
    before, close, after = text.partition(_closing(opened[1]))
    return after.lstrip() if close and not before.strip() else f"{opened[1]}{opened[2]}{text}"


def _closing(tag: str) -> str:
    return f"{tag[0]}/{tag[1:]}"


def change_template(tokenizer: PreTrainedTokenizerBase, change: Callable[[str], str]) -> bool:
    """Applies `change` to the template, or to each of several; returns True if one is another now."""
    before = tokenizer.chat_template
    if isinstance(before, dict):
        tokenizer.chat_template = {name: change(template) for name, template in before.items()}
    elif before is not None:
        tokenizer.chat_template = change(before)
    return tokenizer.chat_template != before


def _has_switch(tokenizer: PreTrainedTokenizerBase) -> bool:
    if "enable_thinking" not in str(tokenizer.chat_template):
        return False
    try:
        usual = tokenizer.apply_chat_template(PROBE, tokenize=False, add_generation_prompt=True)
        off = tokenizer.apply_chat_template(PROBE, tokenize=False, add_generation_prompt=True, enable_thinking=False)
        return usual != off
    except (TemplateError, ValueError):
        return False
