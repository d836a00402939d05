"""The length of a prompt is that of its encoding, template included."""

import datasets
import pytest

from rlhf.data import filter_long_prompts
from rlhf.data.encode import encode_prompt
from rlhf.errors import InputError


def test_prompts_of_at_most_the_limit_stay(toy_tokenizer, caplog):
    prompts = [[{"role": "user", "content": "word " * n}] for n in (1, 20, 3)]
    limit = len(encode_prompt(toy_tokenizer, prompts[2]))
    dataset = datasets.Dataset.from_dict({"prompt": prompts, "user_id": ["a", "b", "c"]})
    assert filter_long_prompts(dataset, toy_tokenizer, limit)["user_id"][:] == ["a", "c"]
    assert f"left out 1 of 3 prompts of more than {limit} tokens" in caplog.text
    assert filter_long_prompts(dataset, toy_tokenizer, limit - 1)["user_id"][:] == ["a"]


def test_no_prompt_left_is_an_error(toy_tokenizer):
    dataset = datasets.Dataset.from_dict({"prompt": ["word " * 20]})
    with pytest.raises(InputError, match="all 1 prompts are longer than 2 tokens"):
        filter_long_prompts(dataset, toy_tokenizer, 2)
