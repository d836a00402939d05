"""Converts text to token ids in one way, so that SFT, PPO and the reward model see the same ids of the same text.

A prompt is plain text or a list of messages. The ids of `encode_prompt` are always a prefix of prompt + completion, and
a completion ends with the first token at which sampling would stop. So what is trained on, sampled and scored has the
same ids. Contents never become special tokens (`rlhf.data.literal`).
"""

import json
from collections.abc import Mapping, Sequence
from typing import cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rlhf.data.literal import Literal
from rlhf.errors import InputError
from rlhf.models.chat_template import answer_end, continue_thoughts, thoughts
from rlhf.models.stop_tokens import stop_ids, stop_token_texts

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
    literal = Literal(tokenizer, _contents(tokenizer, prompt))
    return _all_ids(tokenizer, [_render_prompt(tokenizer, prompt, literal)], isinstance(prompt, str), literal)[0]


def encode_completion(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, completion: Completion, ended: bool = True
) -> list[int]:
    """Returns the ids that follow `encode_prompt(tokenizer, prompt)`, ending in exactly one stop token.

    Sampling stops at the first stop token (`rlhf.models.stop_tokens`), so what the template writes after it is dropped:
    SmolLM2's newline, the EOS after Phi-3's `<|end|>`. Without a stop token in the template, EOS ends the answer.

    Args:
        completion: text, or a list of one assistant message. After a prompt of plain text it may end in EOS, as in TRL.
        ended: False for an answer that was cut off, which has no stop token and nothing that follows an answer.

    Returns:
        list of `[completion_length]` ids, the last one a stop token if `ended`.
    """
    return encode_prompt_and_completions(tokenizer, prompt, [completion], [ended])[1][0]


def encode_prompt_and_completions(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    completions: Sequence[Completion],
    ended: Sequence[bool] | None = None,
) -> tuple[list[int], list[list[int]]]:
    """Returns `encode_prompt`, and `encode_completion` of each completion; the prompt is tokenized once."""
    eos_id = tokenizer.eos_token_id
    if not isinstance(eos_id, int):
        raise InputError("The tokenizer has no EOS token. Set eos_token in its tokenizer_config.json.")
    is_text = isinstance(prompt, str)
    answers = [completion_text(completion) for completion in completions]
    if is_text:
        answers = [without_eos(tokenizer, answer) for answer in answers]
    literal = Literal(tokenizer, [*_contents(tokenizer, prompt), *answers])
    start, stops = _render_prompt(tokenizer, prompt, literal), stop_ids(tokenizer)
    rests = []
    for answer, whole in zip(answers, ended or [True] * len(answers), strict=True):
        body, end = (literal.mark(answer), "") if is_text else _render_answer(tokenizer, prompt, start, answer, literal)
        rests.append(body + end if whole else body)
    prompt_ids, *joint_ids = _all_ids(tokenizer, [start, *(start + rest for rest in rests)], is_text, literal)
    encoded = []
    for rest, ids, whole in zip(rests, joint_ids, ended or [True] * len(rests), strict=True):
        if ids[: len(prompt_ids)] == prompt_ids:
            ids = ids[len(prompt_ids) :]
        else:  # a token spans the border of prompt and completion; after this prompt the model never sees it
            ids = literal.encode(rest, lambda text: tokenizer(text, add_special_tokens=False)["input_ids"])
        encoded.append(_end_at_stop(ids, stops, eos_id) if whole else ids)
    return prompt_ids, encoded


def without_eos(tokenizer: PreTrainedTokenizerBase, answer: str) -> str:
    """Returns an answer of a text row without the EOS that TRL's rows may end in.

    An EOS that closes an element of HTML (`</s>`) belongs to the answer.
    """
    eos = str(tokenizer.eos_token)
    closes = eos.startswith("</") and answer.count(eos.replace("</", "<")) >= answer.count(eos)
    return answer if closes else answer.removesuffix(eos)


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


def encode_document(tokenizer: PreTrainedTokenizerBase, text: str | Sequence[str]) -> list[int]:
    """Returns the ids of a document of pretraining text: with BOS if the tokenizer adds one, and one EOS at the end.

    Args:
        text: a document, or several that follow one another.
    """
    if not isinstance(text, str):
        return [i for document in text for i in encode_document(tokenizer, document)]
    text = without_eos(tokenizer, text)
    return [*encode_prompt(tokenizer, text), cast(int, tokenizer.eos_token_id)]


def _contents(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[str]:
    if isinstance(prompt, str):
        return [_without_bos(tokenizer, prompt)]
    return [message["content"] for message in prompt]


def _without_bos(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    return text if tokenizer.bos_token is None else text.removeprefix(str(tokenizer.bos_token))


def _render_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, literal: Literal) -> str:
    if isinstance(prompt, str):  # a BOS that is written out is the token, and is never there twice
        rest = _without_bos(tokenizer, prompt)
        return prompt.removesuffix(rest) + literal.mark(rest)
    return _apply_template(tokenizer, _marked(prompt, literal), add_generation_prompt=True)


def _marked(prompt: Sequence[Message], literal: Literal) -> list[dict[str, str]]:
    return [message | {"content": literal.mark(message["content"])} for message in plain_messages(prompt)]


def _render_answer(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], start: str, answer: str, literal: Literal
) -> tuple[str, str]:
    """Returns the text after the rendered prompt `start`: up to the end of the answer, and what the template adds."""
    text = literal.mark(answer)
    conversation = _apply_template(tokenizer, [*_marked(prompt, literal), {"role": "assistant", "content": text}])
    end = answer_end(tokenizer)
    follows = conversation.startswith(start)
    body = conversation[len(start) :].removesuffix(end) if follows else _space_before(conversation, start, text) + text
    lost = (thoughts(answer) or "").strip() and not thoughts(body)  # the template has dropped the answer's thoughts
    if lost or not follows:  # or its generation prompt opens a block that it does not write before answers
        body = continue_thoughts(start, body if not follows else text)
    if not any(token in end for token in stop_token_texts(tokenizer)):
        end = end.rstrip()  # a newline between turns is not part of the answer
        body = body if end else body.rstrip()
    return body, end


def _space_before(conversation: str, start: str, text: str) -> str:
    """Returns the space that the template writes before an answer, if it does not stand at the end of `start`.

    Mistral's templates write the system message into the last message of the user, which is another one once there is
    an answer, so that the rendered conversation does not begin with `start`.
    """
    written = text if text in conversation else text.strip()  # a space of the answer itself is not the template's
    before = conversation[: conversation.rfind(written)]
    return " " if before.endswith(" ") and not start[-1:].isspace() else ""


def _apply_template(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], **kwargs) -> str:
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, **kwargs)  # pyright: ignore[reportReturnType]
    except (TemplateError, ValueError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise InputError(f"The tokenizer's chat template refuses messages with roles {roles}: {error}") from error


def _all_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], is_text: bool, literal: Literal) -> list[list[int]]:
    def encode(texts: list[str]) -> list[list[int]]:
        # Templates write special tokens themselves. verbose would warn of texts longer than the context.
        encoded = tokenizer(texts, add_special_tokens=is_text, verbose=False)["input_ids"]
        return [_as_sampled(tokenizer, *row) for row in zip(texts, encoded, strict=True)] if is_text else encoded

    if any(map(literal.is_marked, texts)):
        return [literal.encode(text, lambda start: encode([start])[0]) for text in texts]
    return encode(texts)


def _as_sampled(tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int]) -> list[int]:
    """Returns the ids of a plain text with one BOS at most, and without an EOS that the tokenizer appends."""
    bos_id, eos_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos_id is not None and ids[:2] == [bos_id, bos_id]:  # written out, and added by the tokenizer
        ids = ids[1:]
    appended = len(ids) > 1 and ids[-1] == eos_id and not text.endswith(str(tokenizer.eos_token))
    return ids[:-1] if appended else ids


def _end_at_stop(ids: list[int], stops: list[int], eos_id: int) -> list[int]:
    for i, token in enumerate(ids):
        if token in stops:
            return ids[: i + 1]
    return [*ids, eos_id]
