"""The loss of SFT: value, gradients and metrics are those of TRL's chunked loss, with the logits computed once."""

import copy
from contextlib import nullcontext

import pytest
import torch
import trl
from datasets import Dataset
from packaging.version import Version
from peft import LoraConfig, get_peft_model
from toys import EOS, VOCAB, causal, word_tokenizer
from transformers import GraniteConfig, GraniteForCausalLM
from trl import SFTConfig

from rlhf.errors import InputError
from rlhf.sft.trainer import SFTArguments, SFTTrainer

CHUNK = 7
ROWS = [([4 + i, 9, 12][: 1 + i % 3], [20 + i, 7 + i, 30 - i, EOS][i % 3 :]) for i in range(10)]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr("rlhf.models.logprobs.chunk_size", lambda vocabulary, device: CHUNK)


# Newer versions compute all losses with a fused unembedding of their own, which stays.
ours_alone = pytest.mark.skipif(Version(trl.__version__) >= Version("1.13"), reason="TRL has another loss")


def trainer(folder, model=None, cls=SFTTrainer, **changes):
    """Returns a trainer of an adapter, whose weights are not zero, without dropout."""
    plain = dict(bf16=False, use_cpu=True, gradient_checkpointing=False, disable_tqdm=True, report_to="none")
    args = SFTArguments(output_dir=str(folder), per_device_train_batch_size=5, **plain | changes)
    if model is None:
        torch.manual_seed(1)
        model = get_peft_model(causal(), LoraConfig(target_modules=["q_proj", "up_proj"], init_lora_weights=False))
    rows = [{"input_ids": p + c, "completion_mask": [0] * len(p) + [1] * len(c)} for p, c in ROWS]
    rows = Dataset.from_list(rows)
    return cls(model, args, train_dataset=rows, eval_dataset=rows, processing_class=word_tokenizer())


def full_model():
    return causal()


def adapted_head():
    torch.manual_seed(1)
    return get_peft_model(causal(), LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]))


def step(trainer, items):
    """Loss, metrics and gradients of the first batch."""
    inputs = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, inputs, num_items_in_batch=items)
    loss.backward()
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    return loss.item(), metrics, [p.grad for p in trainer.model.parameters() if p.requires_grad]


@pytest.mark.parametrize("items", [None, torch.tensor(100)])
@pytest.mark.parametrize("make", [None, full_model, adapted_head])
def test_loss_gradients_and_metrics_are_trls(make, items, tmp_path):
    found = [step(trainer(tmp_path, make and make(), cls), items) for cls in (SFTTrainer, trl.SFTTrainer)]
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)
    assert {"entropy", "mean_token_accuracy", "num_tokens"} <= found[0][1].keys()
    for a, b in zip(found[0][2], found[1][2], strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


@ours_alone
def test_logits_of_responses_alone_are_computed_and_once(tmp_path):
    ours, sizes = trainer(tmp_path), []
    head = ours.model.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, logits: sizes.append(logits.shape[:-1].numel()))
    inputs = next(iter(ours.get_train_dataloader()))
    ours.compute_loss(ours.model, inputs).backward()
    assert max(sizes) == CHUNK
    assert sum(sizes) == (inputs["labels"] != -100).sum()


def test_a_training_run_has_the_metrics_and_the_validation_loss_of_trls(tmp_path):
    logs = []
    for cls in (SFTTrainer, trl.SFTTrainer):
        each = trainer(tmp_path / cls.__module__, cls=cls, max_steps=2, logging_steps=1, eval_strategy="no",
                       save_strategy="no", learning_rate=1e-2, per_device_eval_batch_size=10)  # fmt: skip
        each.train()
        logs.append([entry for entry in each.state.log_history if "loss" in entry] + [each.evaluate()])
    for ours, theirs in zip(*logs, strict=True):
        for name in theirs.keys() & ours.keys() - {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4), name
    assert {"eval_loss", "eval_entropy", "eval_mean_token_accuracy"} <= logs[0][-1].keys()


def test_scaled_logits_are_those_of_the_model(tmp_path):
    """TRL's chunked loss leaves out the scale of Granite."""
    torch.manual_seed(0)
    sizes = dict(vocab_size=VOCAB, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    lm = GraniteForCausalLM(GraniteConfig(**sizes, num_key_value_heads=2, logits_scaling=0.1, pad_token_id=0))
    expected = copy.deepcopy(lm).eval()
    ours = trainer(tmp_path, get_peft_model(lm, LoraConfig(target_modules=["q_proj"])))
    inputs = next(iter(ours.get_train_dataloader()))
    with torch.no_grad():
        loss = expected(**inputs).loss
    assert ours.compute_loss(ours.model, inputs).item() == pytest.approx(loss.item(), rel=1e-5)


def test_a_batch_without_response_tokens_has_a_loss_of_zero_and_gradients(tmp_path):
    """Other processes wait for its gradients."""
    ours = trainer(tmp_path)
    inputs = next(iter(ours.get_train_dataloader()))
    inputs["labels"][:] = -100
    loss = ours.compute_loss(ours.model, inputs, num_items_in_batch=10)
    loss.backward()
    assert loss.item() == 0
    gradients = [p.grad for p in ours.model.parameters() if p.requires_grad]
    assert all(g is not None and not g.any() for g in gradients)


@ours_alone
def test_a_copy_of_a_trained_model_computes_with_its_own_weights(tmp_path):
    """PPO copies the policy as its reference: the original would move, and the KL would stay 0."""
    lm, ids = trainer(tmp_path, full_model()).model.eval(), torch.tensor([[4, 9, 12]])
    with torch.no_grad():
        expected = lm(input_ids=ids).logits
        reference = copy.deepcopy(lm)
        lm.lm_head.weight.mul_(2)
        assert torch.equal(reference(input_ids=ids).logits, expected)
        assert not torch.equal(lm(input_ids=ids).logits, expected)


@pytest.mark.parametrize("loss_type", ["nll", "dft"])
def test_other_losses_are_trls(loss_type, tmp_path):
    found = [step(trainer(tmp_path, None, cls, loss_type=loss_type), None) for cls in (SFTTrainer, trl.SFTTrainer)]
    assert found[0][:2] == found[1][:2]


def test_what_needs_logits_is_refused_with_a_loss_that_has_none(tmp_path):
    plain = dict(output_dir=str(tmp_path), bf16=False, use_cpu=True, report_to="none")
    chunked = SFTConfig(**plain, loss_type="chunked_nll").loss_type == "chunked_nll"  # newer TRL: another name of nll
    for loss_type in (
        ("chunked_nll", "dft") if chunked else ("dft",)
    ):  # TRL would end in an AttributeError, or ignore it
        with pytest.raises(InputError, match=rf"factor is 0\.1, .* loss_type is {loss_type}. Set loss_type to nll"):
            trainer(tmp_path, loss_type=loss_type, label_smoothing_factor=0.1)
    model = get_peft_model(causal(), LoraConfig(target_modules=["q_proj"]))
    args, options = SFTConfig(**plain), trainer(tmp_path)
    with pytest.raises(InputError, match="compute_loss_func is given") if chunked else nullcontext():
        SFTTrainer(model, args, train_dataset=options.train_dataset, processing_class=options.processing_class,
                   compute_loss_func=lambda outputs, labels, num_items_in_batch: outputs.logits.sum())  # fmt: skip
    smoothed, plain = (trainer(tmp_path, loss_type="nll", label_smoothing_factor=epsilon) for epsilon in (0.1, 0.0))
    assert step(smoothed, None)[0] > step(plain, None)[0] > 0


def test_without_labels_the_forward_is_the_models(tmp_path):
    model, ids = trainer(tmp_path).model.eval(), torch.tensor([[4, 9, 12]])
    with model.disable_adapter(), torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, causal().eval()(input_ids=ids).logits)
        assert model.generate(input_ids=ids, max_new_tokens=3, do_sample=False).shape[1] >= 4
