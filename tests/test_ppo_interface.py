"""Arguments of scripts written for TRL's PPOTrainer, and reward models with their own tokenizers."""

import dataclasses

import pytest
import torch
import trl
from packaging.version import Version
from test_ppo_trainer import assert_same, train, weights
from tokenizers import Tokenizer, models, pre_tokenizers
from toys import (
    EOS,
    VOCAB,
    causal,
    classifier,
    logged,
    lora,
    ppo_config,
    prompts,
    separate,
    shared_base,
    trainer,
    word_tokenizer,
)
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    HfArgumentParser,
    PreTrainedTokenizerFast,
)
from trl import ModelConfig, get_peft_config

from rlhf.data.encode import encode_completion, encode_prompt
from rlhf.errors import InputError
from rlhf.ppo import PPOConfig, PPOTrainer
from rlhf.ppo.rewards import TextRewardModel
from rlhf.ppo.trl_baseline import trl_ppo_config

HAS_TRL_PPO = Version(trl.__version__) < Version("1.13")


# ---- TRL's scripts


@pytest.mark.skipif(not HAS_TRL_PPO, reason="TRL's PPOConfig was deleted in 1.13")
def test_every_documented_field_of_trls_config_is_accepted(tmp_path):
    from trl.experimental.ppo import PPOConfig as TRLPPOConfig

    theirs = {field.name for field in dataclasses.fields(TRLPPOConfig) if field.init}
    ours = {field.name for field in dataclasses.fields(PPOConfig) if field.init}
    assert theirs - ours == {"world_size"}  # the launcher's; TRL overwrites a given value


@pytest.mark.skipif(not HAS_TRL_PPO, reason="TRL's PPOTrainer was deleted in 1.13")
def test_trls_trainer_as_a_baseline_takes_as_many_steps(tmp_path):
    sizes = dict(batch_size=8, mini_batch_size=2, per_device_train_batch_size=1, total_episodes=8)
    args = PPOConfig(str(tmp_path), **sizes, bf16=False, use_cpu=True, report_to="none")
    baseline = trl_ppo_config(args)
    assert (baseline.num_mini_batches, baseline.num_ppo_epochs) == (4, args.num_ppo_epochs)
    assert (baseline.per_device_train_batch_size, baseline.gradient_accumulation_steps) == (8, 1)


# docs/trl-faults.md, faults 29 and 30
@pytest.mark.parametrize("peft", [False, True])
def test_fault_29_30_trls_own_example_runs_with_the_import_changed(tmp_path, monkeypatch, peft):
    """The steps of trl/examples/scripts/ppo: options of the command line, tokenized prompts, four full models."""
    start = word_tokenizer()
    start.pad_token = None
    for name, model in (("sft", causal()), ("reward", classifier())):
        model.save_pretrained(tmp_path / name)
        start.save_pretrained(tmp_path / name)
    arguments = [
        *("--output_dir", tmp_path / "ppo"),
        *("--model_name_or_path", tmp_path / "sft"),
        *("--sft_model_path", tmp_path / "sft"),
        *("--reward_model_path", tmp_path / "reward"),
        *("--learning_rate", "1e-3", "--num_ppo_epochs", "1", "--num_mini_batches", "1", "--total_episodes", "8"),
        *("--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2", "--response_length", "5"),
        *("--missing_eos_penalty", "1.0", "--stop_token", "eos", "--local_rollout_forward_batch_size", "1"),
        *("--eval_strategy", "steps", "--eval_steps", "1", "--report_to", "none", "--bf16", "False", "--use_cpu"),
        *("--num_sample_generations", "1", "--save_strategy", "no"),
        *(("--use_peft", "--lora_r", "4", "--lora_target_modules", "q_proj", "v_proj") if peft else ()),
    ]
    args, model_args = HfArgumentParser((PPOConfig, ModelConfig)).parse_args_into_dataclasses(list(map(str, arguments)))

    tokens = AutoTokenizer.from_pretrained(model_args.model_name_or_path, padding_side="left")
    tokens.add_special_tokens({"pad_token": "[PAD]"})
    value_model = AutoModelForSequenceClassification.from_pretrained(args.reward_model_path, num_labels=1)
    reward_model = AutoModelForSequenceClassification.from_pretrained(args.reward_model_path, num_labels=1)
    policy = AutoModelForCausalLM.from_pretrained(args.sft_model_path)
    peft_config = get_peft_config(model_args)
    ref_policy = None if peft_config else AutoModelForCausalLM.from_pretrained(args.sft_model_path)

    def prepare(dataset):
        return dataset.map(
            lambda rows: {"input_ids": tokens(rows["prompt"], padding=False)["input_ids"]},
            batched=True,
            remove_columns=dataset.column_names,
            num_proc=args.dataset_num_proc,
        )

    ppo = PPOTrainer(
        args=args,
        processing_class=tokens,
        model=policy,
        ref_model=ref_policy,
        reward_model=reward_model,
        value_model=value_model,
        train_dataset=prepare(prompts(16)),
        eval_dataset=prepare(prompts(4, seed=1)),
        peft_config=peft_config,
    )
    output = ppo.train()
    ppo.save_model(args.output_dir)
    ppo.generate_completions()
    assert output.global_step == 2
    assert len(logged(ppo, "eval_objective/score")) == 3
    assert (tmp_path / "ppo" / ("adapter_config.json" if peft else "config.json")).exists()


def test_a_policy_with_two_adapters(tmp_path):
    """TRL's `model_adapter_name` is trained, `ref_adapter_name` is the reference."""
    from peft import get_peft_model

    policy = get_peft_model(causal(), lora(init_lora_weights=False), adapter_name="default")
    policy.add_adapter("new", lora(init_lora_weights=False))
    policy.add_adapter("old", lora(init_lora_weights=False))
    layout = separate() | {"model": policy, "ref_model": None}
    before = {n: p.detach().clone() for n, p in policy.named_parameters()}
    args = ppo_config(tmp_path, model_adapter_name="new", ref_adapter_name="old", total_episodes=16)
    ppo, recorder = train(args, layout)
    moved = {n for n, p in policy.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n in before if ".new." in n}
    assert all(".new." in n for n in recorder.gradients[0] if "policy" in n)

    ids = torch.tensor([[5, 6, 7]])
    policy.set_adapter("old")
    expected = policy(ids).logits
    policy.set_adapter("new")
    with torch.no_grad(), ppo.actor_critic.as_role("reference") as lm:
        logits = lm(ids).logits
    torch.testing.assert_close(logits, expected)
    assert policy.active_adapter == "new"
    with pytest.raises(InputError, match="ref_adapter_name is old, and the policy, a LlamaForCausalLM, has no such"):
        trainer(ppo_config(tmp_path, ref_adapter_name="old"), separate())
    with pytest.raises(InputError, match="both given"):
        trainer(ppo_config(tmp_path, ref_adapter_name="old"), layout | {"ref_model": causal()})


# ---- Reward models with other tokenizers


def other_tokenizer() -> PreTrainedTokenizerFast:
    """Returns a tokenizer with the same words, other ids and another EOS."""
    words = {"<end>": 0, "<unk>": 1, "<fill>": 2} | {f"w{i}": VOCAB + 2 - i for i in range(4, VOCAB)}
    fast = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="<fill>", eos_token="<end>", unk_token="<unk>")


def translated(model):
    """Returns the model with its embedding rows in the order of the other tokenizer."""
    ours, theirs = word_tokenizer().get_vocab(), other_tokenizer().get_vocab()
    same = {"</s>": "<end>", "<unk>": "<unk>", "<pad>": "<fill>"} | {f"w{i}": f"w{i}" for i in range(4, VOCAB)}
    old = model.get_input_embeddings().weight.detach().clone()
    with torch.no_grad():
        for word, other in same.items():
            model.get_input_embeddings().weight[theirs[other]] = old[ours[word]]
    return model


# docs/trl-faults.md, fault 29
def test_fault_29_a_reward_model_with_its_own_tokenizer_gives_the_scores_of_its_own_ids(tmp_path):
    """The policy samples only words and EOS. Then text and ids hold the same, and both models give the same scores."""
    at_0 = {"learning_rate": 0.0, "value_learning_rate": 0.0}
    layout = separate()
    for model in (layout["model"], layout["ref_model"]):
        model.lm_head.register_forward_hook(lambda m, i, logits: logits.index_fill(-1, torch.tensor([0, 2, 3]), -1e4))
    plain, _ = train(ppo_config(tmp_path, **at_0, total_episodes=32), layout)
    layout |= {"reward_model": translated(classifier())}
    ppo, _ = train(ppo_config(tmp_path, **at_0, total_episodes=32), layout, reward_processing_class=other_tokenizer())
    responses = [b.input_ids[:, -b.response_mask.shape[1] :][b.response_mask] for b in plain.rollout.micro_batches()]
    assert not set(torch.cat(responses).tolist()) & {0, 2, 3}
    assert any(EOS in ids.tolist() for ids in responses)
    assert logged(ppo, "objective/score") == pytest.approx(logged(plain, "objective/score"), rel=1e-4)


def test_the_same_tokenizer_given_again_reads_the_sampled_ids(tmp_path):
    plain, _ = train(ppo_config(tmp_path), separate())
    ppo, _ = train(ppo_config(tmp_path), separate(), reward_processing_class=word_tokenizer())
    assert ppo.reward_funcs == []
    assert_same(weights(plain), weights(ppo), atol=0, rtol=0)


# docs/trl-faults.md, fault 29
def test_fault_29_several_rewards_with_weights(tmp_path):
    def length(prompts, completions, **_):
        return [float(len(completion.split())) for completion in completions]

    scores = {}
    for name, functions in {"a": [translated(classifier(seed=3))], "b": [length]}.items():
        layout = separate() | {"reward_model": None}
        tokenizers = [other_tokenizer() if isinstance(f, torch.nn.Module) else None for f in functions]
        options = {"reward_funcs": functions, "reward_processing_classes": tokenizers}
        scores[name] = logged(train(ppo_config(tmp_path, learning_rate=0.0), layout, **options)[0], "objective/score")
    options = {
        "reward_funcs": [translated(classifier(seed=3)), length],
        "reward_processing_classes": [other_tokenizer(), None],
    }
    args = ppo_config(tmp_path, learning_rate=0.0, reward_weights=[2.0, -0.5])
    ppo, _ = train(args, separate() | {"reward_model": None}, **options)
    expected = [2.0 * a - 0.5 * b for a, b in zip(scores["a"], scores["b"], strict=True)]
    assert logged(ppo, "objective/score") == pytest.approx(expected, rel=1e-5)


def test_a_text_reward_reads_its_template_and_its_eos_only_if_the_response_ended():
    tokens = other_tokenizer()
    tokens.chat_template = "{% for m in messages %}w9 {{ m.content }} {% if m.role == 'assistant' %}<end>{% endif %}{% endfor %}{% if add_generation_prompt %}w10 {% endif %}"  # noqa: E501
    reward = TextRewardModel(classifier(), tokens)
    prompt = [{"role": "user", "content": "w5 w6"}]
    ids = encode_prompt(tokens, prompt) + encode_completion(tokens, prompt, "w7")
    assert reward.encode(prompt, "w7", ended=True) == ids
    assert ids[-1] == tokens.eos_token_id
    assert reward.encode(prompt, "w7", ended=False) == ids[:-1]
    alone = [reward([prompt], [text], [True])[0] for text in ("w7", "w7 w8 w9 w5")]
    assert reward([prompt] * 2, ["w7", "w7 w8 w9 w5"], [True, True]) == pytest.approx(alone, rel=1e-5)


def test_a_text_beyond_the_reward_models_context_loses_its_beginning(caplog):
    reward = TextRewardModel(classifier(max_position_embeddings=4), other_tokenizer())
    ids = reward.encode("w4 w5 w6", "w7 w8", ended=True)
    assert ids == other_tokenizer()("w6 w7 w8 <end>")["input_ids"]
    reward.encode("w4 w5 w6", "w7 w8", ended=True)
    assert caplog.text.count("exceed a reward model's context of 4") == 1


def test_refusals(tmp_path):
    other = {"reward_processing_class": other_tokenizer()}
    with pytest.raises(InputError, match=r"label_smoothing_factor is 0\.1"):
        trainer(ppo_config(tmp_path, label_smoothing_factor=0.1))
    with pytest.raises(InputError, match="another tokenizer and cannot be copied"):
        trainer(ppo_config(tmp_path), separate() | {"value_model": None}, **other)
    with pytest.raises(InputError, match="2 reward_processing_classes for 1 reward_funcs"):
        trainer(ppo_config(tmp_path), reward_funcs=len, reward_processing_classes=[None, None])
    with pytest.raises(InputError, match="no `score` head with one label"):
        trainer(ppo_config(tmp_path), reward_funcs=[causal()])


def test_a_shared_base_with_a_reward_from_text_does_not_use_its_adapter(tmp_path):
    ppo, _ = train(
        ppo_config(tmp_path, learning_rate=0.0),
        shared_base(),
        reward_model=translated(classifier(seed=3)),
        reward_processing_class=other_tokenizer(),
    )
    layout = separate() | {"reward_model": None}
    assert len(ppo.reward_funcs) == 1
    assert not ppo.actor_critic.has_reward
    assert layout["reward_model"] is None
