"""Adapters that plain PEFT loads on a fresh base, also where the base has no embedding for the pad token."""

import json
import shutil

import pytest
import torch
from datasets import Dataset
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model
from safetensors.torch import load_file
from toys import bpe_tokenizer, lora, ppo_config, save_toy, trainer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, pipeline
from trl import ModelConfig

from rlhf.models.loading import load_base, load_sequence_classifier, load_tokenizer, lora_config
from rlhf.models.reward_model import load_reward_model
from rlhf.models.shared_base import SharedBase
from rlhf.reward import KWiseRewardConfig, KWiseRewardTrainer
from rlhf.runs.model_card import embedding_rows
from rlhf.sft.trainer import SFTArguments, SFTTrainer, tokenize_demonstrations

OPTIONS = dict(report_to="none", use_cpu=True, bf16=False, max_steps=2, learning_rate=1e-2, disable_tqdm=True)
TEXTS = [("User: Name a sea. Assistant:", " The sea is cold."), ("User: Is it? Assistant:", " No.")]


@pytest.fixture
def base(tmp_path):
    """Returns the folder of a GPT-2 whose vocabulary is full."""
    return save_toy(tmp_path / "gpt2", "gpt2")


def trained(stage: str, base, folder) -> None:
    args, tokenizer = ModelConfig(model_name_or_path=str(base), lora_r=2), load_tokenizer(str(base))
    assert tokenizer.pad_token_id == 300  # and the base has 300 rows
    if stage == "sft":
        rows = Dataset.from_dict({"prompt": [p for p, _ in TEXTS] * 4, "completion": [c for _, c in TEXTS] * 4})
        config = SFTArguments(
            output_dir=str(folder), eval_strategy="no", save_strategy="steps", save_steps=2, **OPTIONS
        )
        model = get_peft_model(load_base(args, tokenizer), lora_config(args))
        rows = tokenize_demonstrations(rows, tokenizer)
        run = SFTTrainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer)
    else:
        rows = [{"prompt": p, "completions": [c, c + c, "!"], "ranks": [0, 1, 2]} for p, c in TEXTS * 4]
        config = KWiseRewardConfig(output_dir=str(folder), save_strategy="steps", save_steps=2, **OPTIONS)
        model = get_peft_model(load_sequence_classifier(args, tokenizer), lora_config(args, "SEQ_CLS"))
        run = KWiseRewardTrainer(model, config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    run.train()
    run.save_model()


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_seam_i8_an_adapter_loads_on_a_fresh_base(base, tmp_path, stage):
    trained(stage, base, tmp_path / stage)
    auto = AutoModelForCausalLM if stage == "sft" else AutoModelForSequenceClassification
    ids = torch.tensor([[40, 41, 42]])
    logits = []
    for folder in (tmp_path / stage, tmp_path / stage / "checkpoint-2"):
        assert embedding_rows(folder) is None
        assert not [name for name in load_file(folder / "adapter_model.safetensors") if "wte" in name]
        fresh = auto.from_pretrained(base, **({} if stage == "sft" else {"num_labels": 1}))
        fresh = PeftModel.from_pretrained(fresh, folder).eval()
        logits.append(fresh(ids).logits)
    assert torch.equal(*logits)
    if stage == "sft":
        shared = SharedBase(load_base(ModelConfig(model_name_or_path=str(base)), load_tokenizer(str(base))))
        shared.add_adapter("sft", folder=tmp_path / stage)
        with shared.use("sft"):
            torch.testing.assert_close(shared.lm(ids).logits, logits[0])
        assert fresh.generate(ids, max_new_tokens=3, do_sample=False).shape[1] <= 6
    else:
        model = load_reward_model(tmp_path / stage)
        torch.testing.assert_close(model(ids).logits, logits[0])
        padded, mask = torch.tensor([[40, 41, 42, 300], [40, 41, 42, 43]]), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
        torch.testing.assert_close(model(padded, attention_mask=mask).logits[0], logits[0][0])  # a batch may be padded


def test_seam_i8_an_adapter_with_embeddings_from_before_is_read(base, tmp_path):
    args, tokenizer = ModelConfig(model_name_or_path=str(base), lora_r=2), load_tokenizer(str(base))
    model = load_sequence_classifier(args, tokenizer)
    model.resize_token_embeddings(301, mean_resizing=False)
    get_peft_model(model, lora_config(args, "SEQ_CLS")).save_pretrained(tmp_path / "old", save_embedding_layers=True)
    tokenizer.save_pretrained(tmp_path / "old")
    assert embedding_rows(tmp_path / "old") == 301
    assert load_reward_model(tmp_path / "old")(torch.tensor([[40, 300]])).logits.shape == (1, 1)


def test_seam_i8_ppo_saves_adapters_and_checkpoints_for_a_fresh_base(base, tmp_path):
    """From TRL's script: a `[PAD]` without an embedding and a LoRA configuration."""
    tokenizer = bpe_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    ids = Dataset.from_dict({"input_ids": [tokenizer(prompt)["input_ids"] for prompt, _ in TEXTS * 4]})
    reward = [AutoModelForSequenceClassification.from_pretrained(base, num_labels=1) for _ in range(2)]
    args = ppo_config(tmp_path / "ppo", save_strategy="steps", save_steps=1)
    config = lora(init_lora_weights=False)
    config.target_modules = {"c_attn"}
    layout = {"reward_model": reward[0], "value_model": reward[1], "peft_config": config}
    layout["model"] = AutoModelForCausalLM.from_pretrained(base)
    ppo = trainer(args, layout, processing_class=tokenizer, train_dataset=ids)
    ppo.train()
    ppo.save_model()
    for folder in (tmp_path / "ppo", tmp_path / "ppo" / "raw", tmp_path / "ppo" / "checkpoint-1"):
        assert embedding_rows(folder) is None
        AutoPeftModelForCausalLM.from_pretrained(folder)
    fresh = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "ppo" / "raw").eval()
    with torch.no_grad(), ppo.actor_critic.as_role("policy") as lm:
        torch.testing.assert_close(fresh(torch.tensor([[40, 41]])).logits, lm(torch.tensor([[40, 41]])).logits)


def test_seam_i9_a_pipeline_needs_the_folders_tokenizer_by_name(base, tmp_path):
    """`pipeline(model=folder)` reads the tokenizer of the base, which has no template; docs/migration.md says so."""
    trained("sft", base, tmp_path / "sft")
    folder = str(tmp_path / "sft")
    assert AutoTokenizer.from_pretrained(folder).chat_template
    pipe = pipeline("text-generation", model=folder, tokenizer=folder)
    question = [{"role": "user", "content": "Name a sea."}]
    answer = pipe(question, max_new_tokens=3, do_sample=False)[0]["generated_text"][-1]
    assert answer["role"] == "assistant"
    ids = pipe.tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=False)
    assert pipe.tokenizer.decode(ids) == "User: Name a sea.\nAssistant:"
    assert json.loads((tmp_path / "sft" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    shutil.rmtree(tmp_path / "sft")
