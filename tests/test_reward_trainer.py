"""KWiseRewardTrainer against TRL's RewardTrainer, and its invariances."""

import copy

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from toys import save_toy
from trl import ModelConfig, RewardConfig, RewardTrainer

from rlhf.data import DataArguments, load_demonstrations
from rlhf.data.encode import encode_completion, encode_prompt
from rlhf.errors import InputError
from rlhf.models.loading import load_sequence_classifier, load_tokenizer
from rlhf.reward import KWiseRewardConfig, KWiseRewardTrainer
from rlhf.reward.calibration import load_calibration_rows
from rlhf.reward.collator import KWiseCollator
from rlhf.reward.initialization import check_sft_start, load_reward_start, pool_at_last_token
from rlhf.tensors import pad_right

ANSWERS = ["Paris.", "The capital of France is Paris.", "pears", "I do not know", "no no no no no", "?", "a b", "x"]


def comparisons(n=12, sizes=(2, 3, 4, 5)):
    rows = []
    for i in range(n):
        k = sizes[i % len(sizes)]
        rows.append(
            {
                "prompt": [{"role": "user", "content": f"Question {i % 7}?"}],
                "completions": [ANSWERS[(i + j) % len(ANSWERS)] for j in range(k)],
                "ranks": [(j * (i + 1)) % k for j in range(k)],
                "labeler_group": ["training", "heldout"][i % 2],
            }
        )
    return Dataset.from_list(rows)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(save_toy(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def tokenizer(base):
    return load_tokenizer(base)


def config(tmp_path, **kwargs):
    plain = dict(bf16=False, use_cpu=True, gradient_checkpointing=False, disable_tqdm=True, report_to="none")
    return KWiseRewardConfig(output_dir=str(tmp_path), **plain | kwargs)


def trainer(base, tokenizer, tmp_path, rows=None, seed=0, **kwargs):
    torch.manual_seed(seed)
    model = load_reward_start(ModelConfig(base, lora_r=4, lora_dropout=0.0), tokenizer)
    with torch.no_grad():  # LoRA's B starts at zero, where A has no gradient
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    rows = comparisons() if rows is None else rows
    args = config(tmp_path, **kwargs)
    return KWiseRewardTrainer(model, args, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer)


def trained(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def largest_difference(a, b):
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def loss_and_gradient(trainer, batch):
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("center", [None, 0.1])
def test_two_completions_give_the_loss_and_gradient_of_trl(base, tokenizer, tmp_path, center):
    pairs = [
        {"prompt": "Capital of France?", "chosen": " Paris.", "rejected": " I do not know, sorry."},
        {"prompt": "Is it?", "chosen": " No, never, it is made of rock", "rejected": " Yes"},
        {"prompt": "Three fruits:", "chosen": " Apples", "rejected": " Dogs"},
    ]
    ours = trainer(base, tokenizer, tmp_path, Dataset.from_list(pairs), center_rewards_coefficient=center)
    args = RewardConfig(
        output_dir=str(tmp_path), bf16=False, use_cpu=True, report_to="none", center_rewards_coefficient=center
    )
    torch.manual_seed(1)
    base_model = load_sequence_classifier(ModelConfig(base), tokenizer)
    lora = LoraConfig(r=4, lora_alpha=32, target_modules="all-linear", task_type="SEQ_CLS", modules_to_save=["score"])
    theirs = RewardTrainer(
        base_model, args, train_dataset=Dataset.from_list(pairs), processing_class=tokenizer, peft_config=lora
    )
    theirs.model.load_state_dict(ours.model.state_dict())

    our_batch = next(iter(ours.get_eval_dataloader(ours.train_dataset)))
    their_batch = next(iter(theirs.get_eval_dataloader(theirs.train_dataset)))
    ours_ids, their_ids = ((b["input_ids"] * b["attention_mask"]).tolist() for b in (our_batch, their_batch))
    assert sorted(ours_ids) == sorted(their_ids)
    our_loss, our_gradient = loss_and_gradient(ours, our_batch)
    their_loss, their_gradient = loss_and_gradient(theirs, their_batch)
    assert our_loss == pytest.approx(their_loss, abs=1e-6)
    assert largest_difference(our_gradient, their_gradient) < 1e-6


def test_kwise_loss_of_the_model_is_the_pairwise_loss_of_its_scores(base, tokenizer, tmp_path):
    ours = trainer(base, tokenizer, tmp_path)
    rows = [ours.train_dataset[i] for i in range(4)]
    losses = []
    for row in rows:
        scores = [
            ours.model(**pad_right([ids], tokenizer.pad_token_id), use_cache=False).logits.item()
            for ids in row["completions_ids"]
        ]
        ranks, k = row["ranks"], len(row["ranks"])
        pairs = [(i, j) for i in range(k) for j in range(k) if ranks[i] < ranks[j]]
        total = sum(np.log1p(np.exp(scores[j] - scores[i])) for i, j in pairs)
        losses.append(total / (k * (k - 1) / 2))
    batch = ours.data_collator(rows)
    assert ours.compute_loss(ours.model, batch).item() == pytest.approx(np.mean(losses), abs=1e-6)


@pytest.mark.parametrize("completions_per_forward", [1, 3, 1000])
def test_forward_size_and_padding_change_nothing(base, tokenizer, tmp_path, completions_per_forward):
    single, divided = (
        trainer(base, tokenizer, tmp_path, completions_per_forward=n) for n in (1000, completions_per_forward)
    )
    rows = [single.train_dataset[i] for i in range(6)]
    padded = KWiseCollator(tokenizer.pad_token_id, pad_to_multiple_of=64)(rows)
    expected, gradient = loss_and_gradient(single, single.data_collator(rows))
    loss, other_gradient = loss_and_gradient(divided, padded)
    assert loss == pytest.approx(expected, abs=1e-6)
    assert largest_difference(gradient, other_gradient) < 1e-6


def test_order_of_prompts_and_of_completions_changes_nothing(base, tokenizer, tmp_path):
    ours = trainer(base, tokenizer, tmp_path)
    rows = [ours.train_dataset[i] for i in range(5)]
    reversed_rows = [
        {**row, "completions_ids": row["completions_ids"][::-1], "ranks": row["ranks"][::-1]} for row in rows[::-1]
    ]
    loss, gradient = loss_and_gradient(ours, ours.data_collator(rows))
    other_loss, other_gradient = loss_and_gradient(ours, ours.data_collator(reversed_rows))
    assert loss == pytest.approx(other_loss, abs=1e-6)
    assert largest_difference(gradient, other_gradient) < 1e-6


def test_a_sampled_pad_token_at_the_end_is_a_token(base, tokenizer):
    model = load_sequence_classifier(ModelConfig(base), tokenizer)
    hf_scores = lambda ids: model(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)).long()).logits  # noqa: E731
    plain, ends_in_pad = [5, 6, 7], [5, 6, 7, tokenizer.pad_token_id]
    torch.testing.assert_close(hf_scores(plain), hf_scores(ends_in_pad))  # what transformers does
    pool_at_last_token(model)
    scores = model(**pad_right([plain, ends_in_pad], tokenizer.pad_token_id)).logits
    torch.testing.assert_close(scores[0], hf_scores(plain)[0])
    assert (scores[0] - scores[1]).abs() > 1e-4


def test_noise_of_embeddings_is_that_of_a_row(base, tokenizer, tmp_path, packed_on_cpu):
    """NEFTune divides by the length of a row: a row of many prompts would have too little."""
    run = trainer(base, tokenizer, tmp_path, neftune_noise_alpha=5.0)
    assert not run.packs and not run.shares_prompts


def test_a_copy_of_a_reward_model_computes_with_its_own_weights(base, tokenizer):
    """PPO copies the reward model as its value model, and trains the copy."""
    model, ids = load_sequence_classifier(ModelConfig(base), tokenizer).eval(), torch.tensor([[5, 6, 7]])
    pool_at_last_token(model)
    value = copy.deepcopy(model)
    with torch.no_grad():
        value.score.weight.mul_(2)
        torch.testing.assert_close(value(input_ids=ids).logits, 2 * model(input_ids=ids).logits)


@pytest.mark.parametrize("quantized", [False, True])
def test_small_steps_move_the_head_of_a_base_in_16_bit(base, tokenizer, tmp_path, quantized):
    """Bfloat16 numbers near the weights, 0.02, are 1.2e-4 apart, so most steps of 2e-5 would be lost."""
    if quantized:
        pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    model = load_reward_start(ModelConfig(base, dtype="bfloat16", load_in_4bit=quantized, lora_r=4), tokenizer)
    rows = comparisons(8)
    run = KWiseRewardTrainer(
        model,
        config(tmp_path, learning_rate=2e-5, num_train_epochs=1, per_device_train_batch_size=1, save_strategy="no"),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    head = model.get_base_model().score.modules_to_save["default"].weight
    before = head.detach().clone()
    run.train()
    assert before.dtype == head.dtype == torch.float32
    assert (head != before).all()
    inputs = torch.tensor([[5, 6, 7]])
    assert model(input_ids=inputs).logits.isfinite().all()  # the plain forward still takes the head


def test_accumulation_changes_nothing(base, tokenizer, tmp_path):
    """11 prompts in steps of 8: the last step has 3 prompts, which do not fill its micro-batches of 2."""
    results = []
    for batch, accumulation in ((8, 1), (2, 4), (1, 8)):
        run = trainer(
            base,
            tokenizer,
            tmp_path / f"{batch}",
            rows=comparisons(11),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            learning_rate=1e-2,
            adam_epsilon=1e-3,  # Adam's first steps are sign(g), which would turn rounding into differences
            logging_steps=1,
            save_strategy="no",
        )
        run.train()
        losses = [log["loss"] for log in run.state.log_history if "loss" in log]
        results.append((trained(run), losses))
    for weights, losses in results[1:]:
        assert losses == pytest.approx(results[0][1], abs=1e-5)
        assert largest_difference(weights, results[0][0]) < 1e-5


def test_resuming_gives_the_run_that_never_stopped(base, tokenizer, tmp_path):
    sizes = dict(per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=1e-2, save_steps=1)
    unbroken = trainer(base, tokenizer, tmp_path / "unbroken", **sizes)
    unbroken.train()
    assert unbroken.state.global_step == 3
    resumed = trainer(base, tokenizer, tmp_path / "resumed", seed=1, **sizes)
    resumed.train(resume_from_checkpoint=str(tmp_path / "unbroken" / "checkpoint-1"))
    assert largest_difference(trained(unbroken), trained(resumed)) == 0.0


def test_evaluation_reports_accuracy_by_k_and_labeler_group(base, tokenizer, tmp_path):
    ours = trainer(base, tokenizer, tmp_path, per_device_eval_batch_size=5)
    metrics = ours.evaluate()
    report = ours.report()
    loss = ours.compute_loss(ours.model.eval(), ours.data_collator(list(ours.eval_dataset))).item()
    assert report["eval_loss"] == metrics["eval_loss"] == pytest.approx(loss, abs=1e-6)
    assert metrics["eval_accuracy"] == pytest.approx(report["accuracy"])
    assert metrics["eval_accuracy_k3"] == pytest.approx(report["accuracy_by_k"]["3"]["accuracy"])
    assert metrics["eval_accuracy_heldout"] == pytest.approx(report["accuracy_by_group"]["heldout"]["accuracy"])

    right, total, prompts = 0, 0, set()
    for row in comparisons():
        single = trainer_scores(ours, tokenizer, row)
        for i, a in enumerate(row["ranks"]):
            for j, b in enumerate(row["ranks"]):
                if a < b:
                    total += 1
                    prompts.add(row["prompt"][0]["content"])
                    right += 1.0 if single[i] > single[j] else 0.5 if single[i] == single[j] else 0.0
    assert report["n_pairs"] == total
    assert report["accuracy"] == pytest.approx(right / total)
    assert report["n_prompts"] == len(prompts)  # rows on the same prompt are one cluster


def trainer_scores(ours, tokenizer, row):
    from rlhf.data.encode import encode_completion, encode_prompt

    prompt = encode_prompt(tokenizer, row["prompt"])
    ids = [prompt + encode_completion(tokenizer, row["prompt"], text) for text in row["completions"]]
    ours.model.eval()
    with torch.no_grad():
        return ours.model(**pad_right(ids, tokenizer.pad_token_id)).logits.squeeze(-1).tolist()


def test_starts_from_the_sft_adapter(base, tokenizer, tmp_path):
    from peft import get_peft_model

    from rlhf.models.loading import load_base, lora_config

    model_args = ModelConfig(base, lora_r=4, lora_dropout=0.0)
    sft = get_peft_model(load_base(model_args, tokenizer), lora_config(model_args))
    with torch.no_grad():
        for parameter in sft.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    sft.save_pretrained(tmp_path / "sft")
    check_sft_start(str(tmp_path / "sft"), model_args)
    model = load_reward_start(model_args, tokenizer, str(tmp_path / "sft")).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    hidden = model.get_base_model().model(ids).last_hidden_state
    torch.testing.assert_close(hidden, sft.eval().get_base_model().model(ids).last_hidden_state)

    with pytest.raises(InputError, match="lora_r 4, not 8"):
        check_sft_start(str(tmp_path / "sft"), ModelConfig(base, lora_r=8))
    with pytest.raises(InputError, match="lora_target_modules"):
        load_reward_start(
            ModelConfig(base, lora_r=4, lora_target_modules=["q_proj", "v_proj"]), tokenizer, str(tmp_path / "sft")
        )


def test_shuffled_pairs_are_rows_of_their_own(base, tokenizer, tmp_path):
    rows = comparisons(4)
    ours = trainer(base, tokenizer, tmp_path, rows, shuffled_pairs=True)
    kwise = trainer(base, tokenizer, tmp_path, rows)
    expected = [
        [row["completions_ids"][i], row["completions_ids"][j]]
        for row in kwise.train_dataset
        for i, a in enumerate(row["ranks"])
        for j, b in enumerate(row["ranks"])
        if a < b
    ]
    assert len(expected) > len(rows)
    assert sorted(ours.train_dataset["completions_ids"]) == sorted(expected)
    assert all(ranks == [0, 1] for ranks in ours.train_dataset["ranks"])
    assert len(ours.eval_dataset) == len(rows)  # accuracy is measured on all completions of a comparison
    pairs = ours.data_collator(list(ours.train_dataset))
    loss = ours.compute_loss(ours.model, pairs)
    with torch.no_grad():
        chosen, rejected = ours.score(ours.model, pairs).view(-1, 2).T
    torch.testing.assert_close(loss, torch.nn.functional.softplus(rejected - chosen).mean())


def test_a_gap_between_labelers_is_logged_at_evaluation(base, tokenizer, tmp_path):
    trained_on = comparisons().filter(lambda row: row["labeler_group"] == "training")
    ours = trainer(base, tokenizer, tmp_path, trained_on)
    ours.eval_dataset = ours._prepare_dataset(comparisons(), tokenizer, ours.args, "eval")
    metrics = ours.evaluate()
    expected = metrics["eval_accuracy_training"] - metrics["eval_accuracy_heldout"]
    assert metrics["eval_labeler_gap"] == pytest.approx(expected)
    assert metrics["eval_labeler_gap_low"] < expected
    lengths = ours.predictions(ours.eval_dataset).lengths
    row = ours.eval_dataset[1]
    assert lengths[1][:3].tolist() == [len(ids) - row["prompt_length"] for ids in row["completions_ids"]]


def test_smoothed_labels_are_refused(base, tokenizer, tmp_path):
    with pytest.raises(InputError, match=r"label_smoothing_factor is 0\.1, and ranks are no labels"):
        trainer(base, tokenizer, tmp_path, label_smoothing_factor=0.1)


def test_a_completion_beyond_max_length_is_an_error(base, tokenizer, tmp_path):
    with pytest.raises(InputError, match="max_length 10"):
        trainer(base, tokenizer, tmp_path, max_length=10)


def test_scores_that_are_not_finite_are_an_error(base, tokenizer, tmp_path):
    ours = trainer(base, tokenizer, tmp_path)
    with torch.no_grad():
        ours.model.get_base_model().score.modules_to_save["default"].weight.fill_(float("nan"))
    with pytest.raises(InputError, match="scores are not finite: training diverged"):
        ours.report()


def test_demonstrations_beyond_max_length_are_not_calibrated_with(tokenizer, tmp_path, caplog):
    data = DataArguments("sandbox")
    every = load_calibration_rows(config(tmp_path, max_length=None), data, tokenizer)
    limit = sorted(map(len, every))[len(every) // 2]
    some = load_calibration_rows(config(tmp_path, max_length=limit), data, tokenizer)
    assert some == [ids for ids in every if len(ids) <= limit]
    assert f"{len(every) - len(some)} of {len(every)} demonstrations are longer than max_length" in caplog.text
    with pytest.raises(InputError, match=f"All {len(every)} demonstrations are longer than max_length 3. Raise it"):
        load_calibration_rows(config(tmp_path, max_length=3, calibration_dataset="sandbox"), data, tokenizer)
    assert load_calibration_rows(config(tmp_path, max_length=3), data, tokenizer) is None
    assert "scores are left uncalibrated" in caplog.text


def test_calibration_size_limits_the_validation_demonstrations(tokenizer, tmp_path):
    data = DataArguments("sandbox", dataset_eval_size=50)
    rows = load_calibration_rows(config(tmp_path, calibration_size=3), data, tokenizer)
    first = load_demonstrations(data, "validation").select(range(3))
    assert rows == [
        encode_prompt(tokenizer, row["prompt"]) + encode_completion(tokenizer, row["prompt"], row["completion"])
        for row in first
    ]
