"""Scripts written for TRL's PPOTrainer: pad tokens, attributes, the meaning of the fields, tokenized prompts."""

import dataclasses
import logging
import re
from pathlib import Path

import pytest
import torch
import trl
from datasets import Dataset
from packaging.version import Version
from test_ppo_trainer import assert_same, train, weights
from toys import (
    EOS,
    PAD,
    VOCAB,
    causal,
    classifier,
    logged,
    lora,
    ppo_config,
    prompts,
    separate,
    trainer,
    word_tokenizer,
)
from transformers import DataCollatorWithPadding, HfArgumentParser

from rlhf.errors import InputError
from rlhf.ppo import PPOConfig, PPOTrainer
from rlhf.ppo.prompts import tokenized_prompts

ROOT = Path(__file__).resolve().parent.parent
needs_trl_ppo = pytest.mark.skipif(
    Version(trl.__version__) >= Version("1.13"), reason="TRL's PPOTrainer was deleted in 1.13"
)


def padded_with(token: str | None):
    """Returns a tokenizer without a pad token, or with one that the models have no embedding for, or with its EOS."""
    tokenizer = word_tokenizer()
    tokenizer.pad_token = None
    if token is not None:
        tokenizer.add_special_tokens({"pad_token": token})
    tokenizer.padding_side = "left"
    return tokenizer


@pytest.mark.parametrize("pad", ["[PAD]", "</s>", None, "negative"])
def test_seam_i1_a_pad_token_without_an_embedding_changes_nothing(tmp_path, pad):
    expected, _ = train(ppo_config(tmp_path), separate())
    layout = separate()
    tokenizer = padded_with(None if pad == "negative" else pad)
    if pad == "negative":  # as in some configurations of Llama
        for model in layout.values():
            model.config.pad_token_id = -1
    if pad == "[PAD]":
        assert tokenizer.pad_token_id == VOCAB
    ppo, _ = train(ppo_config(tmp_path), layout, processing_class=tokenizer, eval_dataset=prompts(3))
    ppo.evaluate()
    assert_same(weights(ppo), weights(expected), atol=0, rtol=0)


def test_seam_i1_a_policy_that_grew_a_row_for_its_pad_token_is_scored_by_models_without_it(tmp_path):
    layout = separate()
    for name in ("model", "ref_model"):
        layout[name].resize_token_embeddings(VOCAB + 1)
    layout["model"].lm_head.register_forward_hook(lambda m, i, logits: logits.index_fill(-1, torch.tensor(VOCAB), 9.0))
    ppo, _ = train(ppo_config(tmp_path, learning_rate=0.0), layout, processing_class=padded_with("[PAD]"))
    assert VOCAB in torch.cat([b.input_ids.flatten() for b in ppo.rollout.micro_batches()])  # it was sampled


def test_seam_i1_a_reference_of_another_vocabulary_is_refused(tmp_path):
    layout = separate()
    layout["model"].resize_token_embeddings(VOCAB + 1)
    with pytest.raises(InputError, match="41 tokens and the reference 40; resize"):
        trainer(ppo_config(tmp_path), layout)


def test_seam_i2_the_trainer_has_trls_attributes(tmp_path):
    layout = separate()
    args = ppo_config(tmp_path, stop_token="eos", total_episodes=16)
    ppo = trainer(args, layout)
    assert (ppo.state.episode, ppo.stop_token_id, ppo.train_dataset_len) == (0, EOS, 16)
    ppo.train()
    assert ppo.state.episode == 16
    assert ppo.model.policy is ppo.policy_model is layout["model"]
    assert ppo.model.value_model is ppo.value_model is layout["value_model"]
    assert (ppo.ref_model, ppo.reward_model) == (layout["ref_model"], layout["reward_model"])
    assert not ppo.is_peft_model
    with ppo.null_ref_context():
        pass
    sizes = ("batch_size", "local_batch_size", "mini_batch_size", "local_mini_batch_size", "micro_batch_size")
    for config in (args, ppo.args):
        assert [getattr(config, name) for name in sizes] == [8, 8, 4, 4, 2]
        assert (config.num_total_batches, config.total_episodes) == (2, 16)

    layout = separate() | {"ref_model": None, "peft_config": lora(init_lora_weights=False)}
    ppo = trainer(ppo_config(tmp_path), layout)
    assert ppo.is_peft_model and ppo.ref_model is None
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad(), ppo.null_ref_context():
        torch.testing.assert_close(ppo.policy_model(ids).logits, causal()(ids).logits)


def test_seam_i2_the_default_paths_are_trls():
    args = PPOConfig(output_dir="x", use_cpu=True, bf16=False)
    assert args.sft_model_path == args.reward_model_path == "EleutherAI/pythia-160m"


COMMAND = (
    "--per_device_train_batch_size 4 --gradient_accumulation_steps 2 --num_mini_batches 2 --num_ppo_epochs 2 "
    "--total_episodes 32 --learning_rate 1e-3 --lr_scheduler_type linear --save_strategy steps --save_steps 2 "
    "--logging_steps 1 --missing_eos_penalty 1.0 --stop_token eos --temperature 0.7 --kl_coef 0.05 "
    "--response_length 6 --report_to none --use_cpu --bf16 False --gradient_checkpointing False "
    "--disable_tqdm True --num_sample_generations 0"
)


@needs_trl_ppo
def test_seam_i3_a_command_for_trl_means_the_same_run(tmp_path):
    """Rollouts, episodes, learning rates, logs and checkpoints of both classes, from the same command line."""
    from trl.experimental.ppo import PPOConfig as TRLPPOConfig
    from trl.experimental.ppo import PPOTrainer as TRLPPOTrainer

    def run(config_class, trainer_class, folder):
        arguments = [*COMMAND.split(), "--output_dir", str(folder)]
        (args,) = HfArgumentParser(config_class).parse_args_into_dataclasses(arguments)
        tokenizer = word_tokenizer()
        tokenizer.padding_side = "left"
        ids = Dataset.from_dict({"input_ids": [tokenizer(text)["input_ids"] for text in prompts(16)["prompt"]]})
        ppo = trainer_class(args=args, processing_class=tokenizer, train_dataset=ids, **separate())
        ppo.train()
        rows = [row for row in ppo.state.log_history if "objective/kl" in row]
        return ppo, rows, len(list(folder.glob("checkpoint-*")))

    ours, our_rows, our_saves = run(PPOConfig, PPOTrainer, tmp_path / "ours")
    theirs, their_rows, their_saves = run(TRLPPOConfig, TRLPPOTrainer, tmp_path / "theirs")
    assert len(our_rows) == len(their_rows) == 4
    for name in ("lr", "episode"):
        assert [row[name] for row in our_rows] == pytest.approx([row[name] for row in their_rows])
    assert set(their_rows[-1]) - {"epoch", "step"} <= set(our_rows[-1])
    assert our_saves == their_saves == 2
    for name in ("batch_size", "mini_batch_size", "local_batch_size", "local_mini_batch_size", "num_total_batches"):
        assert getattr(ours.args, name) == getattr(theirs.args, name)
    assert ours.state.episode == theirs.state.episode == 32


def test_seam_i3_the_learning_rate_that_was_asked_for_is_reached_by_both_models(tmp_path):
    ppo, recorder = train(PPOConfig(**short_run(tmp_path), learning_rate=1e-4, total_episodes=6 * 4), separate())
    assert [(r["policy"], r["value"]) for r in recorder.rates] == [(1e-4, 1e-4)] * 6
    assert logged(ppo, "lr") == [1e-4] * 6
    long = PPOConfig(**short_run(tmp_path), learning_rate=1e-4, total_episodes=40 * 4)
    _, recorder = train(long, separate())
    rates = [r["value"] for r in recorder.rates]
    assert rates == pytest.approx([1e-4 * min(1, 0.1 + 0.9 * k / 4) for k in range(40)])  # a tenth of the run


def short_run(folder) -> dict:
    return dict(
        output_dir=str(folder), per_device_train_batch_size=4, response_length=2, bf16=False, use_cpu=True,
        gradient_checkpointing=False, report_to="none", save_strategy="no", disable_tqdm=True, num_sample_generations=0,
    )  # fmt: skip


def test_seam_i3_intervals_count_rollouts(tmp_path):
    options = short_run(tmp_path) | {
        "num_mini_batches": 2, "num_ppo_epochs": 2, "total_episodes": 24, "eval_strategy": "steps", "eval_steps": 2,
        "save_strategy": "steps", "save_steps": 3, "logging_steps": 2,
    }  # fmt: skip
    ppo, _ = train(PPOConfig(**options), separate(), eval_dataset=prompts(3))
    assert len(logged(ppo, "loss")) == len(logged(ppo, "eval_objective/kl")) == 3
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-12", "checkpoint-24"]


def test_seam_i3_minibatches_that_are_no_multiple_of_the_device_batch(tmp_path):
    """TRL's micro-batches of 4 and 2; the loss is a mean over tokens, so the division changes nothing."""
    runs = []
    for device_batch in (4, 6):
        args = ppo_config(tmp_path, batch_size=12, num_mini_batches=2, per_device_train_batch_size=device_batch)
        runs.append(train(args, separate()))
    assert [len(minibatch) for minibatch in runs[0][0].rollout.minibatches] == [2, 2]
    (_, ours), (_, whole) = runs
    for name, gradient in ours.gradients[0].items():
        torch.testing.assert_close(gradient, whole.gradients[0][name], atol=1e-6, rtol=1e-4)


def test_seam_i3_trls_metrics_are_what_they_say(tmp_path):
    ppo, _ = train(ppo_config(tmp_path, missing_eos_penalty=1.5, score_clip=0.5, num_ppo_epochs=3), separate())
    (row,) = (row for row in ppo.state.log_history if "loss/policy_avg" in row)
    batches = list(ppo.rollout.micro_batches())
    assert row["objective/scores"] == pytest.approx(torch.cat([b.shaped_scores for b in batches]).mean().item())
    assert row["val/num_eos_tokens"] == sum(int(b.ended.sum()) for b in batches)
    assert row["policy/clipfrac_avg"] <= row["policy/clipfrac"]
    assert row["val/ratio_var"] > 0
    for theirs, ours in {"loss/value_avg": "loss/value", "val/ratio": "policy/ratio"}.items():
        assert row[theirs] == row[ours]
    still, _ = train(ppo_config(tmp_path, learning_rate=0.0, value_learning_rate=0.0), separate())
    assert logged(still, "val/ratio_var") == [0.0]
    entropy = torch.cat([-b.logprobs[b.response_mask] for b in still.rollout.micro_batches()])
    per_minibatch = [torch.cat([-b.logprobs[b.response_mask] for b in m]).mean() for m in still.rollout.minibatches]
    assert logged(still, "policy/entropy_avg") == pytest.approx([sum(per_minibatch).item() / 2])
    assert entropy.mean() > 0


@needs_trl_ppo
def test_seam_i3_every_default_that_differs_from_trls_is_in_the_page():
    from trl.experimental.ppo import PPOConfig as TRLPPOConfig

    ours, theirs = ({f.name: f.default for f in dataclasses.fields(c) if f.init} for c in (PPOConfig, TRLPPOConfig))
    differ = {name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name]}
    page = (ROOT / "docs/migration.md").read_text(encoding="utf-8")
    section = page[page.index("## Defaults") : page.index("## Intervals")]
    assert set(re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE)) == differ


# ---- Tokenized prompts


def ids_of(rows: dict, tokenizer=None, collate=None) -> list[list[int]]:
    return tokenized_prompts(Dataset.from_dict(rows), tokenizer or word_tokenizer(), "train", collate)["input_ids"][:]


def test_seam_i4_padding_is_removed_by_the_mask_or_the_pad_token():
    padded = [[PAD, PAD, 5, 6], [7, 8, 9, 10], [5, PAD, 6, PAD]]
    mask = [[0, 0, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0]]
    assert ids_of({"input_ids": padded, "attention_mask": mask}) == [[5, 6], [7, 8, 9, 10], [5, PAD, 6]]
    assert ids_of({"input_ids": padded}) == [[5, 6], [7, 8, 9, 10], [5, PAD, 6]]
    assert ids_of({"query_token": padded}) == [[5, 6], [7, 8, 9, 10], [5, PAD, 6]]
    # A mask decides even where the pad token is a word.
    assert ids_of({"input_ids": [[PAD, PAD, 5]], "attention_mask": [[0, 1, 1]]}) == [[PAD, 5]]
    # EOS as the pad token: one may be a word, several cannot be told apart.
    eos = padded_with("</s>")
    assert ids_of({"input_ids": [[EOS, 5], [5, EOS]]}, eos) == [[EOS, 5], [5, EOS]]
    with pytest.raises(InputError, match=r"row 1 of the train prompts has several pad ids \(1\) at one end"):
        ids_of({"input_ids": [[5], [EOS, EOS, 5]]}, eos)
    with pytest.raises(InputError, match="row 0 of the train prompts has 2 input_ids and 1 values"):
        ids_of({"input_ids": [[5, 6]], "attention_mask": [[1]]})


def test_seam_i4_a_run_on_padded_prompts_is_the_run_on_prompts(tmp_path, caplog):
    tokenizer = padded_with("[PAD]")
    plain, _ = train(ppo_config(tmp_path), separate(), processing_class=tokenizer, eval_dataset=prompts(3))
    batch = tokenizer(prompts()["prompt"][:], padding=True)
    caplog.set_level(logging.INFO)
    for columns in ({"input_ids", "attention_mask"}, {"input_ids"}):
        rows = Dataset.from_dict({name: batch[name] for name in columns})
        ppo, _ = train(ppo_config(tmp_path), separate(), processing_class=tokenizer, train_dataset=rows)
        assert_same(weights(ppo), weights(plain), atol=0, rtol=0)
    assert "padding tokens were removed from the train prompts" in caplog.text
    assert plain.evaluate() == plain.evaluate()


def test_seam_i4_a_data_collator_makes_the_prompts(tmp_path):
    rows = Dataset.from_dict({"query_token": [[PAD, 5, 6], [7, 8, 9]], "answer": ["a", "b"]})

    def collate(rows):
        ids = torch.tensor([row["query_token"][::-1] for row in rows])
        return {"input_ids": ids, "attention_mask": ids != PAD}

    ppo = trainer(ppo_config(tmp_path), separate(), train_dataset=rows, eval_dataset=rows, data_collator=collate)
    assert ppo.train_dataset["input_ids"][:] == ppo.eval_dataset["input_ids"][:] == [[6, 5], [9, 8, 7]]
    assert ppo.train_dataset["answer"][:] == ["a", "b"]
    ppo.evaluate()
    tokenizer = word_tokenizer()
    ids = Dataset.from_dict({"input_ids": [[5, 6], [7]]})
    trls = trainer(
        ppo_config(tmp_path), separate(), train_dataset=ids, data_collator=DataCollatorWithPadding(tokenizer)
    )
    assert trls.train_dataset["input_ids"][:] == [[5, 6], [7]]
    with pytest.raises(InputError, match="row 0 of the train prompts get no `input_ids` from the data_collator"):
        trainer(ppo_config(tmp_path), separate(), train_dataset=ids, data_collator=lambda rows: {"ids": rows})


def test_seam_i1_no_model_is_given_a_token_that_it_lacks(tmp_path):
    """Also the models of evaluation, sampling and the shared base: the smallest vocabulary is never exceeded."""
    seen = []
    layout = separate()
    for model in layout.values():
        model.get_input_embeddings().register_forward_pre_hook(lambda m, args: seen.append(int(args[0].max())))
    train(ppo_config(tmp_path), layout, processing_class=padded_with("[PAD]"), eval_dataset=prompts(3))[0].evaluate()
    assert seen and max(seen) < VOCAB
    assert classifier().config.vocab_size == VOCAB
