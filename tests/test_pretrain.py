"""The sandbox's base model, made as `make pretrain` makes it, in two parts of a step each."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf.runs.artifacts import read_result

ROOT = Path(__file__).parent.parent
SHORT = "--n_documents 400 --tokenizer_documents 400 --max_steps 1 --warmup_steps 0 --bf16 false --save_strategy no"


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """The folders of the first and the second part."""
    folder = tmp_path_factory.mktemp("pretrain")
    parts = folder / "base-1", folder / "base"
    for part, name in zip(parts, ("pretrain", "pretrain_stage2"), strict=True):
        options = [*SHORT.split(), "--output_dir", str(part)]
        options += ["--continue_from", str(parts[0])] if part == parts[1] else []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["pretrain.py", "--config", f"{ROOT}/recipes/sandbox/{name}.yaml", *options])
            runpy.run_path(f"{ROOT}/recipes/pretrain.py", run_name="__main__")
    return parts


def test_the_second_part_goes_on_from_the_first(parts):
    first, second = (AutoModelForCausalLM.from_pretrained(part) for part in parts)
    assert first.dtype == second.dtype == torch.bfloat16
    moved = [(a - b).abs().max() for a, b in zip(first.parameters(), second.parameters(), strict=True)]
    assert 0 < max(moved) < 0.02  # one step of AdamW at 2e-3, not other weights
    texts = [AutoTokenizer.from_pretrained(part)("A story of Mira and a cat.")["input_ids"] for part in parts]
    assert texts[0] == texts[1]


def test_what_was_read_is_reported(parts):
    for part in parts:
        result = read_result(part)
        assert result["n_tokens"] > 10_000 and 0 < result["validation_loss"] < 8
