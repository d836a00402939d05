"""Converts text to token ids in one way, so that SFT, PPO and the reward model see the same ids of the same text.

A prompt is plain text or a list of messages. The ids of `encode_prompt` are always a prefix of prompt + completion, so
a completion sampled after them is trained on exactly as it was sampled.
"""

import json
from collections.abc import Mapping, Sequence

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rlhf.errors import InputError

Message = Mapping[str, str]
Prompt = str | Sequence[Message]
Completion = str | Sequence[Message]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Returns the token ids after which the model answers.

    Args:
        tokenizer: has a chat template if prompts are messages (`rlhf.models.loading.load_tokenizer` adds one).
        prompt: plain text is encoded as it is, with the tokenizer's BOS if it adds one (as in TRL); messages go through
            the chat template up to and including the generation prompt.

    Returns:
        list of `[prompt_length]` ids.

    Raises:
        InputError: the chat template refuses the messages.
    """
    return _all_ids(tokenizer, [_render_prompt(tokenizer, prompt)], is_text=isinstance(prompt, str))[0]


def encode_completion(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, completion: Completion) -> list[int]:
    """Returns the ids that follow `encode_prompt(tokenizer, prompt)`, ending in exactly one EOS.

    Sampling stops at EOS, so everything after the first EOS is dropped: the rest of a completion that contains one, and
    the template's own text (SmolLM2's newline).

    Args:
        completion: text, or a list of one assistant message.

    Returns:
        list of `[completion_length]` ids, the last one `tokenizer.eos_token_id`.
    """
    return encode_prompt_and_completions(tokenizer, prompt, [completion])[1][0]


def encode_prompt_and_completions(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, completions: Sequence[Completion]
) -> tuple[list[int], list[list[int]]]:
    """Returns `encode_prompt`, and `encode_completion` of each completion; the prompt is tokenized once."""
    eos_id = tokenizer.eos_token_id
    if not isinstance(eos_id, int):
        raise InputError("The tokenizer has no EOS token. Set eos_token in its tokenizer_config.json.")
    start = _render_prompt(tokenizer, prompt)
    rests = [
        completion_text(completion)
        if isinstance(prompt, str)
        else _render_completion(tokenizer, prompt, start, completion)
        for completion in completions
    ]
    texts = [start, *(start + rest for rest in rests)]
    prompt_ids, *joint_ids = _all_ids(tokenizer, texts, is_text=isinstance(prompt, str))
    encoded = []
    for rest, ids in zip(rests, joint_ids, strict=True):
        if ids[: len(prompt_ids)] == prompt_ids:
            ids = ids[len(prompt_ids) :]
        else:  # a token spans the border of prompt and completion; after this prompt the model never sees it
            ids = tokenizer(rest, add_special_tokens=False)["input_ids"]
        encoded.append(_end_at_eos(ids, eos_id))
    return prompt_ids, encoded


def completion_text(completion: Completion) -> str:
    """Returns the text of an answer that is text or one assistant message."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def prompt_key(prompt: Prompt) -> str:
    """Returns canonical JSON: equal exactly if role and content of every message (or the plain texts) are equal."""
    return json.dumps(prompt if isinstance(prompt, str) else plain_messages(prompt), ensure_ascii=False)


def prompt_text(prompt: Prompt) -> str:
    """Returns the prompt for a reader: the text or the only message, else one paragraph `Role: content` per message."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in prompt)


def plain_messages(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Returns role and content alone: `datasets` fills other keys of messages with None, which some templates print."""
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _render_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    return _apply_template(tokenizer, plain_messages(prompt), add_generation_prompt=True)


def _render_completion(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], start: str, completion: Completion
) -> str:
    """Returns the text after the rendered prompt `start`, with the template's EOS if it has one."""
    text = completion_text(completion)
    conversation = _apply_template(tokenizer, [*plain_messages(prompt), {"role": "assistant", "content": text}])
    if not conversation.startswith(start):  # e.g. a generation prompt that opens a <think> block
        return text
    rest = conversation[len(start) :]
    # A newline between turns is not part of the answer.
    return rest if str(tokenizer.eos_token) in rest else rest.rstrip()


def _apply_template(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], **kwargs) -> str:
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, **kwargs)  # pyright: ignore[reportReturnType]
    except (TemplateError, ValueError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise InputError(f"The tokenizer's chat template refuses messages with roles {roles}: {error}") from error


def _all_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], is_text: bool) -> list[list[int]]:
    encoded = tokenizer(texts, add_special_tokens=is_text)["input_ids"]  # templates write special tokens themselves
    if not is_text:
        return encoded
    return [_without_appended_eos(tokenizer, text, ids) for text, ids in zip(texts, encoded, strict=True)]


def _without_appended_eos(tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int]) -> list[int]:
    appended = len(ids) > 1 and ids[-1] == tokenizer.eos_token_id and not text.endswith(str(tokenizer.eos_token))
    return ids[:-1] if appended else ids


def _end_at_eos(ids: list[int], eos_token_id: int) -> list[int]:
    end = ids.index(eos_token_id) if eos_token_id in ids else len(ids)
    return [*ids[:end], eos_token_id]
