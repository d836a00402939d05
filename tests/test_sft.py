"""SFT: its training rows, the choice of an epoch, and resuming."""

import json

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from toys import save_toy
from trl import ModelConfig, SFTTrainer

import rlhf.generation.sampler
import rlhf.sft.trainer
from rlhf.data.encode import encode_completion, encode_prompt
from rlhf.data.pretraining import PretrainingStream
from rlhf.errors import InputError
from rlhf.models.loading import load_base, load_sequence_classifier, load_tokenizer, lora_config
from rlhf.ppo.networks import remove_dropout
from rlhf.runs.resume import find_checkpoint
from rlhf.sft.select_checkpoint import ChoiceArguments, checkpoint_table, choose_checkpoint, score_checkpoints
from rlhf.sft.trainer import (
    SFTArguments,
    SFTModelConfig,
    mix_pretraining,
    set_residual_dropout,
    tokenize_demonstrations,
)

DEMONSTRATIONS = Dataset.from_list(
    [
        {
            "prompt": [{"role": "user", "content": f"Question {i}?"}],
            "completion": [{"role": "assistant", "content": f"Answer {'very ' * (i % 4)}{i}."}],
        }
        for i in range(10)
    ]
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(save_toy(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def tokenizer(base):
    return load_tokenizer(base)


TEXT = Dataset.from_dict({"text": [f"Document {i} goes on about rivers and trees. " * (1 + i % 3) for i in range(30)]})
OTHER_TEXT = Dataset.from_dict({"text": [f"{i} {i} {i}" for i in range(30)]})


def trainer(base, tokenizer, folder, sources=None, cls=SFTTrainer, **kwargs):
    plain = dict(bf16=False, use_cpu=True, gradient_checkpointing=False, disable_tqdm=True, report_to="none")
    sizes = dict(num_train_epochs=2, per_device_train_batch_size=4, gradient_accumulation_steps=1, learning_rate=1e-2)
    args = SFTArguments(output_dir=str(folder), **plain | sizes | kwargs)
    model_args = SFTModelConfig(base, lora_r=4)
    rows = tokenize_demonstrations(DEMONSTRATIONS, tokenizer)
    return cls(
        load_base(model_args, tokenizer),
        args,
        train_dataset=rows if sources is None else mix_pretraining(rows, sources, tokenizer, args),
        eval_dataset=rows,
        processing_class=tokenizer,
        peft_config=lora_config(model_args),
    )


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def test_defaults_are_those_of_the_paper(tmp_path):
    args = SFTArguments(output_dir=str(tmp_path), bf16=False)
    assert args.num_train_epochs == 16
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps == 32
    assert (args.adam_beta1, args.adam_beta2, args.warmup_steps) == (0.9, 0.95, 0)
    assert SFTModelConfig().lora_dropout == 0.2


def test_learning_rate_ends_at_a_tenth_of_its_peak(base, tokenizer, tmp_path):
    run = trainer(base, tokenizer, tmp_path, num_train_epochs=4, logging_steps=1, save_strategy="no")
    run.train()
    rates = [log["learning_rate"] for log in run.state.log_history if "learning_rate" in log]
    assert rates[0] == pytest.approx(1e-2)  # no warm-up
    assert run.lr_scheduler.get_last_lr()[0] == pytest.approx(1e-3)


def test_another_schedule_can_be_chosen(tmp_path):
    args = SFTArguments(output_dir=str(tmp_path), bf16=False, lr_scheduler_type="constant")
    assert not args.lr_scheduler_kwargs


def test_loss_is_on_response_tokens_only(base, tokenizer, tmp_path):
    run = trainer(base, tokenizer, tmp_path)
    row = DEMONSTRATIONS[3]
    prompt_ids = encode_prompt(tokenizer, row["prompt"])
    completion_ids = encode_completion(tokenizer, row["prompt"], row["completion"])
    assert run.train_dataset[3]["labels"] == [-100] * len(prompt_ids) + completion_ids

    batch = run.data_collator([run.train_dataset[3]])
    run.model.eval()
    with torch.no_grad():
        loss = run.compute_loss(run.model, dict(batch)).item()
        logits = load_base(ModelConfig(base), tokenizer)(torch.tensor([prompt_ids + completion_ids])).logits[0]
    logprobs = logits.log_softmax(-1)[len(prompt_ids) - 1 : -1]
    expected = -logprobs.gather(1, torch.tensor(completion_ids)[:, None]).mean().item()
    assert loss == pytest.approx(expected, abs=1e-5)


def test_batches_without_padding_train_alike(base, tokenizer, tmp_path, packed_on_cpu):
    """Also blocks of pretraining text, whose first token is not predicted, and rows that evaluation does not count."""
    results = {}
    for packed in (False, True):
        options = dict(max_length=64, pretrain_mix=0.5, logging_steps=1)
        run = trainer(base, tokenizer, tmp_path / str(packed), TEXT, rlhf.sft.trainer.SFTTrainer, **options)
        assert run.packs
        run.packs = packed
        remove_dropout(run.model)
        tokens = []
        run.model.get_input_embeddings().register_forward_hook(lambda m, x, y, t=tokens: t.append(x[0].shape))
        run.train()
        names = ("loss", "eval_loss", "entropy", "mean_token_accuracy", "num_tokens")
        logs = [[row[name] for row in run.state.log_history if name in row] for name in names]
        results[packed] = weights(run), logs
        assert all(shape[0] == 1 for shape in tokens) == packed
    assert results[True][1] == [pytest.approx(values, abs=1e-4) for values in results[False][1]]
    for name, weight in results[False][0].items():
        torch.testing.assert_close(results[True][0][name], weight, atol=2e-4, rtol=1e-3, msg=name)


def lengths_seen(run):
    """Shapes of the ids that reach the embeddings of a trainer's model."""
    shapes = []
    run.model.get_input_embeddings().register_forward_hook(lambda m, x, y: shapes.append(tuple(x[0].shape)))
    return shapes


def test_predicted_logits_are_those_of_the_rows(base, tokenizer, tmp_path, packed_on_cpu):
    run = trainer(base, tokenizer, tmp_path, cls=rlhf.sft.trainer.SFTTrainer, loss_type="nll")
    rows, shapes = run.eval_dataset, lengths_seen(run)
    output = run.predict(rows)
    assert output.predictions.shape[:2] == output.label_ids.shape
    ids = torch.tensor([rows[-1]["input_ids"]])
    with torch.no_grad():
        expected = run.model.eval()(input_ids=ids).logits[0]
    assert output.predictions[len(rows) - 1, : ids.shape[1]] == pytest.approx(expected.numpy(), abs=1e-4)
    shapes.clear()
    run.evaluate()  # asks for no logits
    assert {rows for rows, _ in shapes} == {1}


@pytest.mark.parametrize("column", ["token_type_ids", "pixel_values"])
def test_a_batch_with_more_than_text_keeps_its_rows(base, tokenizer, tmp_path, packed_on_cpu, column):
    """Of a vision-language model, images are attended to in both directions, and have positions of their own."""
    run = trainer(base, tokenizer, tmp_path, cls=rlhf.sft.trainer.SFTTrainer)
    inputs, shapes = next(iter(run.get_train_dataloader())), lengths_seen(run)
    run.compute_loss(run.model, dict(inputs))
    rows = len(inputs["input_ids"])
    run.compute_loss(run.model, inputs | {column: torch.zeros(rows, 1)})
    assert [shape[0] for shape in shapes] == [1, rows]


def test_noise_of_embeddings_is_that_of_a_row(base, tokenizer, tmp_path, packed_on_cpu):
    """NEFTune divides by the length of a row; of a packed one, it would be too small by the root of their number."""
    assert not trainer(base, tokenizer, tmp_path, cls=rlhf.sft.trainer.SFTTrainer, neftune_noise_alpha=5.0).packs


@pytest.mark.parametrize("option", ["packing", "padding_free"])
def test_packing_by_trl_is_refused(base, tokenizer, tmp_path, option):
    with pytest.raises(InputError, match="leave it out"):
        trainer(base, tokenizer, tmp_path, None, rlhf.sft.trainer.SFTTrainer, **{option: True})


def test_resuming_gives_the_run_that_never_stopped(base, tokenizer, tmp_path):
    uninterrupted = trainer(base, tokenizer, tmp_path / "uninterrupted")
    uninterrupted.train()
    table = checkpoint_table(uninterrupted.state.log_history, tmp_path / "uninterrupted")
    assert [row["epoch"] for row in table] == [1.0, 2.0]

    first = tmp_path / "uninterrupted" / table[0]["checkpoint"]
    resumed = trainer(base, tokenizer, tmp_path / "resumed")
    resumed.args.resume_from_checkpoint = str(first)
    resumed.train(resume_from_checkpoint=find_checkpoint(resumed.args))
    for name, weight in weights(uninterrupted).items():
        assert torch.equal(weight, weights(resumed)[name]), name


def predicted(row):
    """Tokens in the loss of a prepared row: the model predicts all but the first."""
    return [label for label in row["labels"][1:] if label != -100]


@pytest.mark.parametrize("share", [0.25, 0.6, 0.9])
def test_pretraining_text_has_its_share_of_the_predicted_tokens(base, tokenizer, tmp_path, share):
    run = trainer(base, tokenizer, tmp_path, TEXT, pretrain_mix=share, max_length=80)
    plain = trainer(base, tokenizer, tmp_path).train_dataset
    texts = [row for row in run.train_dataset if row["labels"] == row["input_ids"]]
    answers = [row for row in run.train_dataset if row["labels"] != row["input_ids"]]
    assert answers == list(plain)  # in the same order
    assert {len(row["input_ids"]) for row in texts} == {80}
    responses = sum(len(predicted(row)) for row in plain)
    assert 79 * len(texts) == pytest.approx(responses * share / (1 - share), abs=79 / 2)  # to half a block
    assert sum(len(predicted(row)) for row in texts) == 79 * len(texts)


def mixed(tokenizer, folder, sources=TEXT, **kwargs):
    args = SFTArguments(output_dir=str(folder), bf16=False, **{"pretrain_mix": 0.5, "max_length": 16, **kwargs})
    return mix_pretraining(tokenize_demonstrations(DEMONSTRATIONS, tokenizer), sources, tokenizer, args)


def blocks(rows):
    return [row["input_ids"] for row in rows if all(row["completion_mask"])]


def test_blocks_are_those_of_the_stream_spread_among_the_demonstrations(tokenizer, tmp_path):
    rows = mixed(tokenizer, tmp_path, seed=3)
    stream = PretrainingStream(TEXT, tokenizer, 16, seed=3)
    assert blocks(rows) == [next(stream) for _ in blocks(rows)]
    is_text = [all(row["completion_mask"]) for row in rows]
    half = len(rows) // 2
    assert abs(sum(is_text[:half]) - sum(is_text[half:])) <= 1
    assert blocks(mixed(tokenizer, tmp_path, seed=3)) == blocks(rows) != blocks(mixed(tokenizer, tmp_path, seed=4))


def test_several_sources_have_their_weights(tokenizer, tmp_path):
    other = set(tokenizer("0123456789 ")["input_ids"])
    rows = mixed(tokenizer, tmp_path, [TEXT, OTHER_TEXT], pretrain_mix=0.9, pretrain_mix_weights=[1, 3])
    from_other = [len(set(block) & other) > 3 for block in blocks(rows)]
    assert sum(from_other) / len(from_other) == pytest.approx(0.75, abs=0.15)


def test_a_small_mix_has_at_least_one_block(tokenizer, tmp_path):
    assert len(blocks(mixed(tokenizer, tmp_path, pretrain_mix=1e-6))) == 1


def test_impossible_mixes_are_refused(tokenizer, tmp_path):
    with pytest.raises(InputError, match=r"pretrain_mix is 1\.0"):
        mixed(tokenizer, tmp_path, pretrain_mix=1.0)
    with pytest.raises(InputError, match="pretrain_mix_weights is set"):
        mixed(tokenizer, tmp_path, pretrain_mix=0.0, pretrain_mix_weights=[1.0])
    with pytest.raises(InputError, match="for 1 sources"):
        mixed(tokenizer, tmp_path, pretrain_mix_weights=[1.0, 2.0])
    with pytest.raises(InputError, match="Set max_length"):
        mixed(tokenizer, tmp_path, max_length=None)


def test_resuming_a_run_with_pretraining_text(base, tokenizer, tmp_path):
    options = dict(sources=[TEXT, OTHER_TEXT], pretrain_mix=0.8, max_length=80, save_strategy="steps", save_steps=2)
    uninterrupted = trainer(base, tokenizer, tmp_path / "uninterrupted", **options)
    uninterrupted.train()
    resumed = trainer(base, tokenizer, tmp_path / "resumed", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "uninterrupted" / "checkpoint-2"))
    assert resumed.state.global_step == uninterrupted.state.global_step > 4
    for name, weight in weights(uninterrupted).items():
        assert torch.equal(weight, weights(resumed)[name]), name


def test_finding_the_checkpoint_to_resume_from(tmp_path):
    def find(value):
        args = SFTArguments(output_dir=str(tmp_path / "run"), bf16=False, resume_from_checkpoint=value)
        return find_checkpoint(args)

    assert find(None) is None
    with pytest.raises(InputError, match="no checkpoint to resume from"):
        find("true")
    for step in (9, 10):
        (tmp_path / "run" / f"checkpoint-{step}").mkdir(parents=True)
        (tmp_path / "run" / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    assert find("true").endswith("checkpoint-10")
    (tmp_path / "run" / "checkpoint-10" / "trainer_state.json").unlink()  # incomplete
    assert find("true").endswith("checkpoint-9")
    with pytest.raises(InputError, match=r"trainer_state\.json"):
        find(str(tmp_path / "run" / "checkpoint-10"))


def test_residual_dropout_is_set_where_the_architecture_has_it(tmp_path):
    gpt2 = load_base(ModelConfig(str(save_toy(tmp_path, "gpt2"))))
    set_residual_dropout(gpt2, 0.2)
    block = gpt2.transformer.h[0]
    assert (block.attn.resid_dropout.p, block.mlp.dropout.p, block.attn.attn_dropout.p) == (0.2, 0.2, 0.0)


def write_checkpoint(folder, text):
    folder.mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).write_text(text)


def test_reward_chooses_the_epoch_if_known_and_loss_otherwise(tmp_path):
    table = [{"epoch": i, "checkpoint": f"checkpoint-{i}", "eval_loss": loss} for i, loss in enumerate([2.0, 1.0, 1.5])]
    for row in table:
        write_checkpoint(tmp_path / row["checkpoint"], row["checkpoint"])
    result = choose_checkpoint(tmp_path, table)
    assert (result["chosen"], result["chosen_by"]) == ("checkpoint-1", "eval_loss")
    assert (tmp_path / "adapter_model.safetensors").read_text() == "checkpoint-1"
    result = choose_checkpoint(tmp_path, [{**row, "rm_score": row["epoch"]} for row in table])
    assert (result["chosen"], result["chosen_by"]) == ("checkpoint-2", "rm_score")
    assert (tmp_path / "adapter_model.safetensors").read_text() == "checkpoint-2"
    assert json.loads(json.dumps(result))["epochs"][1]["rm_score"] == 1
    assert choose_checkpoint(tmp_path, []) == {"chosen": None, "chosen_by": "last", "epochs": []}


@pytest.fixture(scope="module")
def reward_model(base, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reward")
    torch.manual_seed(0)
    model = get_peft_model(
        load_sequence_classifier(ModelConfig(base), tokenizer), lora_config(ModelConfig(base, lora_r=4), "SEQ_CLS")
    )
    model.save_pretrained(folder)
    (folder / "calibration.json").write_text('{"bias": 3.0}')
    return model, folder


def test_scores_of_checkpoints_are_calibrated_rewards_of_samples(base, tokenizer, tmp_path, reward_model, monkeypatch):
    classifier, folder = reward_model
    run = trainer(base, tokenizer, tmp_path, num_train_epochs=1)
    run.train()
    table = checkpoint_table(run.state.log_history, tmp_path)
    copy = {**table[0], "epoch": 2.0}  # the same adapter twice: the same score twice
    choice = ChoiceArguments(str(folder), choice_prompts=6, choice_max_new_tokens=8, choice_batch_size=4)

    sampled = []  # one (prompt ids, prompt mask, answers) per batch
    original = rlhf.generation.sampler.decode

    def decode(lm, ids, mask, *args):
        sampled.append((ids, mask, original(lm, ids, mask, *args)))
        return sampled[-1][-1]

    monkeypatch.setattr(rlhf.generation.sampler, "decode", decode)
    bare = load_base(ModelConfig(base), tokenizer)
    scored = score_checkpoints([*table, copy], tmp_path, bare, tokenizer, DEMONSTRATIONS, choice)
    assert scored[0]["rm_score"] == scored[1]["rm_score"]

    rewards = []
    classifier.eval()
    for prompts, masks, answers in sampled[:2]:
        for prompt, mask, answer in zip(prompts, masks.bool(), answers, strict=True):
            assert tokenizer.eos_token_id not in answer[:-1]
            ids = torch.tensor([prompt[mask].tolist() + answer])
            hidden = classifier.get_base_model().model(ids).last_hidden_state[0, -1]
            rewards.append(classifier.get_base_model().score(hidden).item() - 3.0)
    assert len(rewards) == 6
    assert scored[0]["rm_score"] == pytest.approx(sum(rewards) / 6, abs=1e-4)

    bare, choice.choice_seed = load_base(ModelConfig(base), tokenizer), 1
    (other,) = score_checkpoints(table, tmp_path, bare, tokenizer, DEMONSTRATIONS, choice)
    assert other["rm_score"] != scored[0]["rm_score"]
