"""Text to token ids, once for all stages, so that SFT, PPO and the reward model see the same ids of the same text.

A prompt is plain text or a list of messages. The ids of `encode_prompt` are always a prefix of prompt + completion, so
a completion that was sampled after them can be trained on as sampled.
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
    """Token ids after which the model answers.

    Args:
        tokenizer: with a chat template if prompts are messages (`rlhf.models.loading.load_tokenizer` sees to that).
        prompt: plain text is taken as it is, with the tokenizer's BOS if it adds one (as TRL does); messages go through
            the chat template up to and including the generation prompt.

    Returns:
        list of `[prompt_length]` ids.

    Raises:
        InputError: the chat template refuses the messages.
    """
    return _all_ids(tokenizer, [_render_prompt(tokenizer, prompt)], is_text=isinstance(prompt, str))[0]


def encode_completion(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, completion: Completion) -> list[int]:
    """Ids that follow `encode_prompt(tokenizer, prompt)`, ending in exactly one EOS.

    What the template writes after its EOS (SmolLM2's newline) is dropped, since sampling stops at EOS too; so is all
    that follows an EOS inside the completion's own text.

    Args:
        completion: text, or a list of one assistant message.

    Returns:
        list of `[completion_length]` ids, the last one `tokenizer.eos_token_id`.
    """
    return encode_prompt_and_completions(tokenizer, prompt, [completion])[1][0]


def encode_prompt_and_completions(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, completions: Sequence[Completion]
) -> tuple[list[int], list[list[int]]]:
    """`encode_prompt`, and `encode_completion` of each of several completions: the prompt is tokenised once."""
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no EOS token; set eos_token in its tokenizer_config.json.")
    is_text = isinstance(prompt, str)
    start = _render_prompt(tokenizer, prompt)
    rests = [
        completion_text(completion) if is_text else _render_completion(tokenizer, prompt, start, completion)
        for completion in completions
    ]
    prompt_ids, *joint_ids = _all_ids(tokenizer, [start, *(start + rest for rest in rests)], is_text)
    encoded = []
    for rest, ids in zip(rests, joint_ids, strict=True):
        if ids[: len(prompt_ids)] == prompt_ids:
            ids = ids[len(prompt_ids) :]
        else:  # a token of the joint text spans the border: the model never sees that token after this prompt
            ids = tokenizer(rest, add_special_tokens=False)["input_ids"]
        encoded.append(_end_at_eos(ids, tokenizer.eos_token_id))
    return prompt_ids, encoded


def completion_text(completion: Completion) -> str:
    """The answer's text, be it text or one assistant message."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def prompt_key(prompt: Prompt) -> str:
    """Canonical JSON of a prompt: equal exactly if role and content of every message (or the plain text) are."""
    return json.dumps(prompt if isinstance(prompt, str) else plain_messages(prompt), ensure_ascii=False)


def prompt_text(prompt: Prompt) -> str:
    """The prompt for a reader: plain text, the only user message, or one paragraph `Role: content` per message."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in prompt)


def plain_messages(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Role and content only; `datasets` fills other columns of a message with None, which some templates print."""
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _render_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    return _apply_template(tokenizer, plain_messages(prompt), add_generation_prompt=True)


def _render_completion(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, start: str, completion: Completion) -> str:
    """What the template writes after the rendered prompt `start` for this completion, EOS included if it has one."""
    text = completion_text(completion)
    whole = _apply_template(tokenizer, [*plain_messages(prompt), {"role": "assistant", "content": text}])
    if not whole.startswith(start):  # e.g. a generation prompt that opens a <think> block
        return text
    rest = whole[len(start) :]
    return rest if tokenizer.eos_token in rest else rest.rstrip()  # a newline between turns is not part of the answer


def _apply_template(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], **kwargs) -> str:
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, **kwargs)
    except (TemplateError, ValueError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise InputError(f"the tokenizer's chat template refuses messages with roles {roles}: {error}") from error


def _all_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], is_text: bool) -> list[list[int]]:
    found = tokenizer(texts, add_special_tokens=is_text)["input_ids"]  # a template writes its special tokens itself
    if not is_text:
        return found
    return [_without_appended_eos(tokenizer, text, ids) for text, ids in zip(texts, found, strict=True)]


def _without_appended_eos(tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int]) -> list[int]:
    appended = len(ids) > 1 and ids[-1] == tokenizer.eos_token_id and not text.endswith(tokenizer.eos_token)
    return ids[:-1] if appended else ids


def _end_at_eos(ids: list[int], eos_token_id: int) -> list[int]:
    end = ids.index(eos_token_id) if eos_token_id in ids else len(ids)
    return [*ids[:end], eos_token_id]
