"""Rows over the limit are left out, or end the run; the length of a prompt is that of its encoding."""

import datasets
import pytest

from rlhf.data.encode import encode_prompt
from rlhf.data.lengths import drop_long_rows, shorter
from rlhf.errors import InputError


def dropped(prompts, tokenizer, limit, on_bad_rows="skip"):
    dataset = datasets.Dataset.from_dict({"prompt": prompts, "number": range(len(prompts))})
    lengths = [len(encode_prompt(tokenizer, prompt)) for prompt in prompts]
    return drop_long_rows(dataset, lengths, limit, "a.jsonl (train split)", on_bad_rows)["number"][:]


def test_prompts_of_at_most_the_limit_stay(toy_tokenizer, caplog):
    prompts = [[{"role": "user", "content": "word " * n}] for n in (1, 20, 3)]
    limit = len(encode_prompt(toy_tokenizer, prompts[2]))  # the chat template included
    assert dropped(prompts, toy_tokenizer, limit) == [0, 2]
    assert "skipped 1 of 3 rows" in caplog.text and f"more than max_length ({limit} tokens" in caplog.text
    assert dropped(prompts, toy_tokenizer, limit - 1) == [0]
    assert dropped(prompts, toy_tokenizer, None) == [0, 1, 2]


def test_a_long_row_ends_the_run(toy_tokenizer):
    with pytest.raises(InputError, match=r"a.jsonl \(train split\) as loaded, row 2: \d+ tokens, more than max_length"):
        dropped(["word", "word " * 20], toy_tokenizer, 5, "error")


def test_no_row_left_is_an_error(toy_tokenizer):
    with pytest.raises(InputError, match=r"all rows of a.jsonl .* longer than max_length \(2 tokens, at most"):
        dropped(["word " * 20], toy_tokenizer, 2)


def test_the_smaller_of_two_limits():
    assert [shorter(*limits) for limits in ((3, 5), (5, 3), (None, 3), (3, None), (None, None))] == [3, 3, 3, 3, None]
