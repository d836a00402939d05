"""The stages of every recipe fit together, and LoRA fits the architecture of its model."""

import copy
import runpy
from pathlib import Path

import pytest
import torch
import yaml
from peft import get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen3Config,
)
from trl import ModelConfig

from rlhf.data import DataArguments
from rlhf.models.loading import lora_config

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("sft", "reward", "ppo")
# recipes of all stages; tests/test_sentiment_recipe.py is about the one that has PPO alone
MODELS = sorted(folder.name for folder in (ROOT / "recipes").iterdir() if (folder / "sft.yaml").exists())
REAL_MODELS = [name for name in MODELS if name != "sandbox"]

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA_LAYERS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
GPT2_LAYERS = {"c_attn", "c_proj", "c_fc"}
NEOX_LAYERS = {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}

# base model: (its configuration at toy size, linear layers that LoRA must reach, its context in tokens)
ARCHITECTURES: dict[str, tuple[PreTrainedConfig, set[str], int]] = {
    "sandbox": (LlamaConfig(**SIZES), LLAMA_LAYERS, 256),
    "openai-community/gpt2": (GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4), GPT2_LAYERS, 1024),
    "EleutherAI/pythia-1b-deduped": (GPTNeoXConfig(**SIZES), NEOX_LAYERS, 2048),
    "HuggingFaceTB/SmolLM2-135M-Instruct": (LlamaConfig(**SIZES, num_key_value_heads=2), LLAMA_LAYERS, 8192),
    "Qwen/Qwen3-1.7B-Base": (Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=8), LLAMA_LAYERS, 32768),
    "meta-llama/Llama-3.2-1B": (LlamaConfig(**SIZES, num_key_value_heads=2), LLAMA_LAYERS, 131072),
    "meta-llama/Llama-3.1-8B": (LlamaConfig(**SIZES, num_key_value_heads=2), LLAMA_LAYERS, 131072),
}


@pytest.fixture
def stages(parse_recipe, monkeypatch):
    """Returns a function: recipe -> stage -> {class or base class of a config: the config}, "args": the trainer's."""
    monkeypatch.chdir(ROOT)

    def by_class(recipe, stage):
        _, parsed = parse_recipe(stage, f"recipes/{recipe}/{stage}.yaml")
        return {base: config for config in parsed for base in type(config).__mro__ if base is not object} | {
            "args": next(config for config in parsed if hasattr(config, "per_device_train_batch_size"))
        }

    return lambda recipe: {stage: by_class(recipe, stage) for stage in STAGES}


@pytest.mark.parametrize("recipe", MODELS)
def test_stages_have_the_same_base_and_pass_their_folders_on(recipe, stages):
    parsed = stages(recipe)
    args = {stage: parsed[stage]["args"] for stage in STAGES}
    model = {stage: parsed[stage][ModelConfig] for stage in STAGES}
    assert {stage: args[stage].output_dir for stage in STAGES} == {stage: f"runs/{recipe}/{stage}" for stage in STAGES}
    assert args["reward"].sft_model_path == args["ppo"].sft_model_path == args["sft"].output_dir
    assert args["ppo"].reward_model_path == args["reward"].output_dir
    for name in ("model_name_or_path", "dtype", "load_in_4bit", "load_in_8bit", "use_bnb_nested_quant"):
        assert len({getattr(one, name) for one in model.values()}) == 1, name
    for name in ("lora_r", "lora_alpha", "use_rslora", "use_dora"):  # the reward model starts from the SFT's weights
        assert getattr(model["sft"], name) == getattr(model["reward"], name), name


@pytest.mark.parametrize("recipe", MODELS)
def test_batches_and_lengths(recipe, stages):
    parsed = stages(recipe)
    sft, reward, ppo = (parsed[stage]["args"] for stage in STAGES)
    _, _, context = ARCHITECTURES[parsed["ppo"][ModelConfig].model_name_or_path]
    for args in (sft, reward):
        assert args.batch_size in (8, 32, 64, 128)
        assert args.max_length <= context
    assert ppo.rollout_size == ppo.batch_size
    assert ppo.mini_batch_size == ppo.per_device_train_batch_size * ppo.micro_batches_per_step
    assert ppo.total_episodes >= 8 * ppo.batch_size
    if ppo.max_prompt_length is not None:
        assert ppo.max_prompt_length + ppo.response_length <= min(reward.max_length, context)
    assert ppo.warmup_rollouts + ppo.value_warmup_rollouts < ppo.total_episodes / ppo.batch_size


@pytest.mark.parametrize("recipe", REAL_MODELS)
@pytest.mark.parametrize("stage", STAGES)
def test_the_head_of_a_recipe_says_how_to_run_it(recipe, stage):
    head = []
    for line in (ROOT / "recipes" / recipe / f"{stage}.yaml").read_text().splitlines():
        if not line.startswith("#"):
            break
        head.append(line)
    text = "\n".join(head)
    assert f"#   rlhf {stage} {recipe}\n" in text
    assert "# Hardware: " in text and "Expected result: " in text


@pytest.mark.parametrize("recipe", MODELS)
def test_stages_with_the_same_data_read_the_same_splits(recipe, stages):
    data = [parsed[DataArguments] for parsed in stages(recipe).values()]
    for name in {one.dataset_name for one in data}:
        fields = ("dataset_config", "dataset_train_split", "dataset_format")
        assert len({tuple(getattr(one, f) for f in fields) for one in data if one.dataset_name == name}) == 1, name


@pytest.mark.parametrize("recipe", MODELS)
def test_lora_reaches_every_linear_layer_of_the_architecture(recipe, stages):
    for stage, parsed in stages(recipe).items():
        model_args = parsed[ModelConfig]
        config, layers, _ = ARCHITECTURES[model_args.model_name_or_path]
        causal = stage != "reward"
        config = copy.deepcopy(config)
        config.pad_token_id, config.num_labels = 0, 1
        auto_class = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
        model = get_peft_model(
            auto_class.from_config(config), lora_config(model_args, "CAUSAL_LM" if causal else "SEQ_CLS")
        )
        adapted = {name.split(".")[-2]: module for name, module in model.named_modules() if name.endswith(".lora_A")}
        assert adapted.keys() == layers, stage
        assert all(module["default"].out_features == model_args.lora_r for module in adapted.values())
        logits = model(torch.tensor([[5, 6, 7]])).logits
        assert logits.shape == ((1, 3, 64) if causal else (1, 1))
        logits.sum().backward()
        assert all(p.grad is not None for name, p in model.named_parameters() if "lora_A" in name)


def test_the_demo_has_a_recipe_for_each_stage_and_batches_that_two_processes_share():
    demo = runpy.run_path(str(ROOT / "recipes" / "demo.py"))
    assert demo["STAGES"].keys() == {"sft", "reward", "choose", "ppo", "evaluate"}
    settings = {}
    for stage, recipe in demo["STAGES"].items():
        assert (ROOT / "recipes" / recipe).exists()
        settings[stage] = yaml.safe_load((ROOT / "recipes" / "sandbox" / f"{stage}.yaml").read_text())
    steps = (settings["sft"]["batch_size"], settings["reward"]["batch_size"], settings["ppo"]["mini_batch_size"])
    assert all(rows % 2 == 0 for rows in steps)
