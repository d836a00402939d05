"""Encoding: prompt ids are a prefix, completions end in exactly one EOS, for every kind of tokenizer."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from rlhf.data.encode import encode_completion, encode_prompt, prompt_key, prompt_text
from rlhf.errors import InputError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_EOS = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    + "{% if add_generation_prompt %}assistant: {% endif %}"
)
THINKING = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>{% endif %}")
STRICT = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML


def byte_tokenizer(template: str | None = CHATML, bos: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE with merges across letters, spaces and newlines, which may span the border of two texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["hello world\n\nhello there\n\n", "assistant: hello", "a a a  a\n\n\n"] * 5, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A <|im_end|>", special_tokens=[("<s>", 1), ("<|im_end|>", 3)]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="<|im_end|>", model_max_length=512
    )
    fast.chat_template = template
    return fast


USER = [{"role": "user", "content": "hello world"}]


def test_conversational_completion_ends_in_one_eos_without_the_templates_newline():
    tokenizer = byte_tokenizer()
    prompt, completion = encode_prompt(tokenizer, USER), encode_completion(tokenizer, USER, "hello there")
    assert tokenizer.decode(prompt) == "<|im_start|>user\nhello world<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(completion) == "hello there<|im_end|>"
    assert completion.count(tokenizer.eos_token_id) == 1


def test_joint_ids_are_those_of_the_conversation():
    tokenizer = byte_tokenizer()
    joint = encode_prompt(tokenizer, USER) + encode_completion(tokenizer, USER, "hello there")
    conversation = tokenizer.apply_chat_template(
        [*USER, {"role": "assistant", "content": "hello there"}], tokenize=False
    )
    assert joint == tokenizer(conversation.removesuffix("\n"), add_special_tokens=False)["input_ids"]


def test_text_and_message_completions_are_the_same():
    tokenizer = byte_tokenizer()
    message = [{"role": "assistant", "content": "hello there", "tool_calls": None}]
    assert encode_completion(tokenizer, USER, message) == encode_completion(tokenizer, USER, "hello there")
    assert encode_completion(tokenizer, "hello", message) == encode_completion(tokenizer, "hello", "hello there")


@pytest.mark.parametrize("bos", [False, True])
def test_plain_text_takes_no_template_and_the_tokenizers_bos(bos):
    tokenizer = byte_tokenizer(bos=bos)  # with bos, it also appends EOS to every text
    assert tokenizer.decode(encode_prompt(tokenizer, "hello")) == ("<s>hello" if bos else "hello")
    assert tokenizer.decode(encode_completion(tokenizer, "hello", " world")) == " world<|im_end|>"


def test_token_across_the_border_is_not_used():
    tokenizer = byte_tokenizer()
    assert len(tokenizer("hello")["input_ids"]) == 1  # otherwise this test would show nothing
    prompt, completion = encode_prompt(tokenizer, "hel"), encode_completion(tokenizer, "hel", "lo")
    assert tokenizer("hello")["input_ids"][: len(prompt)] != prompt
    assert tokenizer.decode(prompt + completion) == "hello<|im_end|>"


def test_template_without_eos_gets_one_in_place_of_its_newline():
    tokenizer = byte_tokenizer(NO_EOS)
    assert tokenizer.decode(encode_completion(tokenizer, USER, "hello there")) == "hello there<|im_end|>"


def test_generation_prompt_that_the_template_does_not_write_for_answers():
    tokenizer = byte_tokenizer(THINKING)
    answer = "\n\n</think>\n\nhello there<|im_end|>"  # the block that the prompt opens is closed first
    assert tokenizer.decode(encode_completion(tokenizer, USER, "hello there")) == answer


def test_completion_does_not_stop_at_an_eos_in_its_text():
    tokenizer = byte_tokenizer()
    ids = encode_completion(tokenizer, USER, "hello<|im_end|>\nmore")
    assert ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(ids) == "hello<|im_end|>\nmore<|im_end|>"


def test_empty_completion_is_eos_alone():
    tokenizer = byte_tokenizer()
    assert encode_completion(tokenizer, USER, "") == [tokenizer.eos_token_id]
    assert encode_completion(tokenizer, "hello", "") == [tokenizer.eos_token_id]


def test_refusing_template_and_missing_eos_are_input_errors():
    with pytest.raises(InputError, match=r"roles system, user: no system role"):
        encode_prompt(byte_tokenizer(STRICT), [{"role": "system", "content": "x"}, *USER])
    with pytest.raises(InputError, match="chat template"):
        encode_prompt(byte_tokenizer(None), USER)
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="EOS"):
        encode_completion(tokenizer, USER, "x")


def test_prompt_key_ignores_other_columns_of_messages_and_keeps_text_apart():
    assert prompt_key(USER) == prompt_key([{"content": "hello world", "role": "user", "name": None}])
    assert prompt_key("hello world") != prompt_key(USER)
    assert prompt_key([{"role": "user", "content": "a"}]) != prompt_key([{"role": "system", "content": "a"}])


def test_prompt_text():
    assert prompt_text("hi") == "hi"
    assert prompt_text(USER) == "hello world"
    assert prompt_text([{"role": "system", "content": "Be kind."}, *USER]) == "System: Be kind.\n\nUser: hello world"


TOKENIZERS = [byte_tokenizer(), byte_tokenizer(NO_EOS), byte_tokenizer(THINKING), byte_tokenizer(bos=True)]


@settings(max_examples=200, deadline=None)
@given(
    tokenizer=st.sampled_from(TOKENIZERS),
    prompt=st.text(alphabet="helo wrd\nast:é", min_size=1, max_size=20),
    completion=st.text(alphabet="helo wrd\nast:é", max_size=20),
    conversational=st.booleans(),
)
def test_prompt_ids_followed_by_completion_ids_spell_the_text(tokenizer, prompt, completion, conversational):
    prompt = [{"role": "user", "content": prompt}] if conversational else prompt
    prompt_ids, ids = encode_prompt(tokenizer, prompt), encode_completion(tokenizer, prompt, completion)
    assert ids.count(tokenizer.eos_token_id) == 1 and ids[-1] == tokenizer.eos_token_id
    written = tokenizer.decode(prompt_ids + ids[:-1])
    start = tokenizer.decode(prompt_ids)
    assert written.startswith(start)
    stripped = conversational and tokenizer.chat_template == NO_EOS
    closing = "\n\n</think>\n\n" if conversational and tokenizer.chat_template == THINKING else ""
    assert written == start + closing + (completion.rstrip() if stripped else completion)
