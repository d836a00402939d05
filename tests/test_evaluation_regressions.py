"""The alignment tax: held-out text and few-shot tasks, against the loss of transformers itself."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf.evaluation.regressions import few_shot_accuracy, text_loss
from rlhf.models.loading import load_tokenizer, resolve_model_name
from rlhf.models.shared_base import SharedBase
from rlhf.sandbox.datasets import pretraining
from rlhf.sandbox.few_shot import few_shot_items
from rlhf.sandbox.graded_work import EOS


@pytest.fixture(scope="module")
def sandbox():
    folder = resolve_model_name("sandbox")
    return SharedBase(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()), load_tokenizer(folder)


def test_text_loss_is_the_models_own_loss_over_all_tokens(sandbox):
    shared, tokenizer = sandbox
    texts = pretraining("test", 12)["text"]
    assert max(map(len, texts)) == 2  # graded work, and its grades
    loss = text_loss(shared, None, tokenizer, texts)
    total = tokens = 0
    for text in texts:
        ids = torch.tensor([[*tokenizer(EOS.join(text))["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            total += shared.lm(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    assert loss.mean == pytest.approx(total / tokens, rel=1e-5)
    assert loss.low < loss.mean < loss.high and loss.n == tokens


def test_the_base_reads_and_knows_and_a_broken_one_does_not(sandbox):
    shared, tokenizer = sandbox
    items = few_shot_items(90, seed=5)
    accuracy = few_shot_accuracy(shared, None, tokenizer, items)
    assert accuracy["all"].mean > 0.6 and accuracy["copy"].mean > 0.8
    wrong = [(task, prompt, "Nobody") for task, prompt, _ in items]
    assert few_shot_accuracy(shared, None, tokenizer, wrong)["all"].mean == 0
    assert math.isclose(sum(accuracy[t].n for t in accuracy if t != "all"), accuracy["all"].n)
