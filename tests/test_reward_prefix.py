"""Prompts shared by their completions against the plain computation with one completion per row."""

import logging

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from toys import bpe_model, bpe_tokenizer
from transformers import (
    AutoModelForSequenceClassification,
    FalconConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    Qwen3Config,
    set_seed,
)

from rlhf.models.loading import set_pad_token
from rlhf.models.packed_attention import NAME
from rlhf.reward import KWiseRewardConfig, KWiseRewardTrainer
from rlhf.reward.collator import KWiseCollator
from rlhf.reward.prefix import share_prompts

SIZES = dict(vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=256)
WIDE = {**SIZES, "intermediate_size": 64, "num_key_value_heads": 2}
CONFIGS = {
    "llama": lambda: bpe_model().config,
    "gpt2": lambda: bpe_model("gpt2", vocab_size=320).config,
    "gpt_neox": lambda: bpe_model("gpt_neox").config,
    "qwen3": lambda: Qwen3Config(**WIDE, head_dim=8),
    "mistral": lambda: MistralConfig(**WIDE, sliding_window=128),
    "opt": lambda: OPTConfig(**SIZES, ffn_dim=64, word_embed_proj_dim=32, dropout=0.0, pad_token_id=1),
    "phi": lambda: PhiConfig(**SIZES, intermediate_size=64, partial_rotary_factor=0.5),
    "falcon": lambda: FalconConfig(**SIZES, alibi=True),
}
PROMPTS = ["Name three fruits, and say of each where it grows and how it tastes.", "Why?", "Say no. " * 6, "What is it"]
ANSWERS = [
    "Apples grow on trees.",
    "no",
    "I do not know that at all, sorry.",
    "?",
    "No no no",
    "a b",
    "x",
    "pears",
    "y",
]


def rows(sizes=(9, 2, 4, 3)):
    return Dataset.from_list(
        [
            {"prompt": prompt, "completions": ANSWERS[:k], "ranks": [(3 * j) % k for j in range(k)]}
            for prompt, k in zip(PROMPTS, sizes, strict=True)
        ]
    )


def trainer(architecture, folder, lora=True, attn="sdpa", changes=None, **kwargs):
    config = CONFIGS[architecture]()
    config.update(changes or {})
    config.num_labels, config.pad_token_id, config._attn_implementation = 1, 1, attn
    set_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    if lora:
        config = LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS", modules_to_save=["score"])
        model = get_peft_model(model, config)
    with torch.no_grad():  # an untrained model's attention is nearly uniform, and LoRA's B is zero
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape) * 0.2)
    tokenizer = bpe_tokenizer()
    tokenizer.chat_template = ""
    set_pad_token(tokenizer)
    plain = dict(bf16=False, use_cpu=True, gradient_checkpointing=False, disable_tqdm=True, report_to="none")
    args = KWiseRewardConfig(output_dir=str(folder), **plain | {"max_length": 128} | kwargs)
    return KWiseRewardTrainer(model, args, train_dataset=rows(), eval_dataset=rows(), processing_class=tokenizer)


def outcome(trainer, shares, batch):
    """Scores, loss and gradient of one training pass."""
    trainer.shares_prompts = shares
    trainer.model.train()
    trainer.model.zero_grad()
    loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    loss.backward()
    gradient = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
    return outputs["scores"].detach(), loss.detach(), gradient


@pytest.mark.parametrize(
    ("architecture", "lora", "kwargs"),
    [
        ("llama", True, {}),
        ("llama", True, {"gradient_checkpointing": True}),
        ("llama", True, {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}),
        ("llama", False, {}),
        ("gpt2", True, {}),
        ("gpt2", False, {"completions_per_forward": 3}),
        ("gpt_neox", True, {}),
        ("qwen3", True, {"gradient_checkpointing": True}),
        ("mistral", True, {}),
        ("opt", True, {}),
        ("phi", True, {"completions_per_forward": 10}),
    ],
)
def test_scores_loss_and_gradient_are_those_of_the_plain_computation(architecture, lora, kwargs, tmp_path):
    ours = trainer(architecture, tmp_path, lora, **kwargs)
    assert ours.shares_prompts
    if ours.args.gradient_checkpointing:
        ours.model.gradient_checkpointing_enable(ours.args.gradient_checkpointing_kwargs or {"use_reentrant": False})
    batch = ours.data_collator(list(ours.train_dataset))
    plain_scores, plain_loss, plain_gradient = outcome(ours, False, batch)
    scores, loss, gradient = outcome(ours, True, batch)
    assert scores.std() > 0.05
    torch.testing.assert_close(scores, plain_scores, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss, plain_loss, atol=1e-5, rtol=0)
    assert gradient.keys() == plain_gradient.keys()
    scale = max(g.abs().max() for g in plain_gradient.values())
    assert scale > 1e-3
    for name, expected in plain_gradient.items():
        torch.testing.assert_close(gradient[name], expected, atol=1e-5 * max(1.0, scale.item()), rtol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("architecture", "kwargs"),
    [
        ("llama", {"gradient_checkpointing": True}),
        ("gpt2", {"completions_per_forward": 3}),
        ("mistral", {}),
        ("opt", {}),
    ],
)
def test_packed_scores_loss_and_gradient_are_those_of_the_plain_computation(
    architecture, kwargs, tmp_path, packed_on_cpu
):
    window = dict(sliding_window=8) if architecture == "mistral" else {}  # shorter than the rows
    ours = trainer(architecture, tmp_path, changes={"attn_pdrop": 0.0} if architecture == "gpt2" else window, **kwargs)
    assert ours.packs and ours.shares_prompts
    if ours.args.gradient_checkpointing:
        ours.model.gradient_checkpointing_enable({"use_reentrant": False})
    batch = ours.data_collator(list(ours.train_dataset))
    plain_scores, plain_loss, plain_gradient = outcome(ours, False, batch)
    scores, loss, gradient = outcome(ours, True, batch)
    torch.testing.assert_close(scores, plain_scores, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss, plain_loss, atol=1e-5, rtol=0)
    scale = max(1.0, *(g.abs().max().item() for g in plain_gradient.values()))
    for name, expected in plain_gradient.items():
        torch.testing.assert_close(gradient[name], expected, atol=1e-5 * scale, rtol=1e-4, msg=name)


def test_each_token_is_in_the_row_once():
    rows = [
        {"completions_ids": [[7, 8, 1], [7, 8, 2, 3]], "ranks": [0, 1], "prompt_length": 2},
        {"completions_ids": [[9, 4], [9, 0], [9, 6, 6]], "ranks": [0, 1, 2], "prompt_length": 1},
    ]
    batch = KWiseCollator(pad_token_id=0)([{**row, "prompt_id": 0, "labeler_group_id": 0} for row in rows])
    row = share_prompts(
        batch["input_ids"], batch["last_token"], batch["prompt_length"], batch["completions_per_prompt"]
    )
    assert row["input_ids"].tolist() == [[7, 8, 9, 1, 2, 3, 4, 0, 6, 6]]
    assert row["position_ids"].tolist() == [[0, 1, 0, 2, 2, 3, 1, 1, 1, 2]]
    assert row["last_token"].tolist() == [3, 5, 6, 7, 9]


def test_the_cost_grows_with_k_and_not_with_the_prompt_times_k(tmp_path):
    """A linear layer processes P + K C tokens, so one more completion costs its own C tokens."""
    ours = trainer("llama", tmp_path)
    seen = []
    ours.model.get_base_model().model.layers[0].mlp.register_forward_hook(lambda m, x, y: seen.append(x[0].shape))
    row = ours.train_dataset[0]
    for k in (2, 9):
        ours.score(
            ours.model,
            ours.data_collator([{**row, "completions_ids": row["completions_ids"][:k], "ranks": row["ranks"][:k]}]),
        )
    lengths = [len(ids) - row["prompt_length"] for ids in row["completions_ids"]]
    assert [shape.numel() // shape[-1] for shape in seen] == [row["prompt_length"] + sum(lengths[:k]) for k in (2, 9)]


@pytest.mark.parametrize(
    ("architecture", "kwargs", "reason"),
    [
        ("falcon", {}, "attention of its own"),
        ("llama", {"attn": "eager"}, "attn_implementation is eager"),
        ("mistral", {"max_length": 129}, "sliding window of 128"),
    ],
)
def test_prompts_that_cannot_be_shared_are_a_warning_and_the_plain_computation(
    architecture, kwargs, reason, tmp_path, caplog
):
    with caplog.at_level(logging.WARNING, logger="rlhf.reward.trainer"):
        ours = trainer(architecture, tmp_path, **kwargs)
    assert not ours.shares_prompts
    assert ours.model.config._attn_implementation != NAME
    assert reason in caplog.text
    assert ours.compute_loss(ours.model, ours.data_collator(list(ours.train_dataset))).isfinite()


def test_a_layer_that_does_not_see_the_shared_prompts_is_an_error(tmp_path):
    ours = trainer("llama", tmp_path)
    layer = ours.model.get_base_model().model.layers[1].self_attn
    layer.register_forward_pre_hook(lambda module, args, kw: (args, kw | {"grids": None}), with_kwargs=True)
    with pytest.raises(RuntimeError, match="size"):
        ours.score(ours.model, ours.data_collator(list(ours.train_dataset)))
