"""The sandbox's base model, trained as by `make pretrain`: two stages, here of one step each."""

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
def stages(tmp_path_factory):
    """Folders of the first and the second stage."""
    folder = tmp_path_factory.mktemp("pretrain")
    stages = folder / "base-1", folder / "base"
    for stage, name in zip(stages, ("pretrain", "pretrain_stage2"), strict=True):
        options = [*SHORT.split(), "--output_dir", str(stage)]
        options += ["--continue_from", str(stages[0])] if stage == stages[1] else []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["pretrain.py", "--config", f"{ROOT}/recipes/sandbox/{name}.yaml", *options])
            runpy.run_path(f"{ROOT}/recipes/pretrain.py", run_name="__main__")
    return stages


def test_the_second_stage_continues_from_the_first(stages):
    first, second = (AutoModelForCausalLM.from_pretrained(stage) for stage in stages)
    assert first.dtype == second.dtype == torch.bfloat16
    moved = [(a - b).abs().max() for a, b in zip(first.parameters(), second.parameters(), strict=True)]
    assert 0 < max(moved) < 0.02  # one step of AdamW at 2e-3, not new weights
    texts = [AutoTokenizer.from_pretrained(stage)("A story of Mira and a cat.")["input_ids"] for stage in stages]
    assert texts[0] == texts[1]


def test_tokens_and_loss_are_reported(stages):
    for stage in stages:
        result = read_result(stage)
        assert result["n_tokens"] > 10_000 and 0 < result["validation_loss"] < 8
