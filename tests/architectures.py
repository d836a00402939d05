"""Toys of forty architectures: two layers of the real configuration classes, and their way through all stages."""

import contextlib
import json
import os
import runpy
import sys
from pathlib import Path

import torch
from toys import bpe_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
SIZES = dict(
    vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, max_position_embeddings=256, bos_token_id=0, eos_token_id=0, pad_token_id=None,
)  # fmt: skip
MOE = dict(num_experts=4, num_local_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
LATENT = dict(  # DeepSeek
    MOE, n_routed_experts=4, n_shared_experts=1, kv_lora_rank=16, q_lora_rank=16, qk_rope_head_dim=8, n_group=1,
    qk_nope_head_dim=8, v_head_dim=8, first_k_dense_replace=1, num_key_value_heads=4, topk_group=1,
)  # fmt: skip
MAMBA = dict(mamba_n_heads=4, mamba_d_state=8, mamba_d_head=16, mamba_n_groups=1)
LONGROPE = dict(
    rope_type="longrope", rope_theta=1e4, short_factor=[1.0] * 4, long_factor=[2.0, 3.0, 4.0, 5.0],
    original_max_position_embeddings=64,
)  # fmt: skip
VISION = dict(
    hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
)
# name -> what its configuration has besides SIZES; the name is the model type but where "model_type" is given.
ARCHITECTURES: dict[str, dict] = {
    "llama": {},
    "mistral": dict(sliding_window=8),
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": MOE,
    "mixtral": MOE,
    "olmoe": MOE,
    "phimoe": MOE,
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "phi": {},
    "phi3": dict(original_max_position_embeddings=64, sliding_window=None, rope_parameters=LONGROPE),
    "gpt2": {},
    "gpt_neo": dict(num_layers=2, attention_types=[[["global", "local"], 1]], window_size=8, num_heads=4),
    "gptj": dict(rotary_dim=4),
    "gpt_neox": {},
    "gpt_bigcode": {},
    "codegen": dict(rotary_dim=4),
    "opt": dict(word_embed_proj_dim=32, ffn_dim=64),
    "opt_350m": dict(model_type="opt", word_embed_proj_dim=16, ffn_dim=64, do_layer_norm_before=False),
    "bloom": {},
    "mpt": dict(d_model=32, n_heads=4, n_layers=2, max_seq_len=256),
    "falcon": dict(head_dim=None, alibi=False),
    "falcon_alibi": dict(model_type="falcon", head_dim=None, alibi=True),
    "stablelm": {},
    "gemma": {},
    "gemma2": dict(sliding_window=8, final_logit_softcapping=2.0),
    "gemma3_text": dict(sliding_window=8),
    "gemma3": dict(  # with a vision tower
        text_config={**SIZES, "sliding_window": 8}, vision_config=VISION, mm_tokens_per_image=1,
        image_token_index=319, boi_token_index=318, eoi_token_index=317,
    ),
    "cohere": dict(logit_scale=0.5),
    "cohere2": dict(logit_scale=0.5, sliding_window=8),
    "granite": dict(logits_scaling=4.0, embedding_multiplier=2.0),
    "granitemoe": dict(MOE, logits_scaling=4.0),
    "granitemoehybrid": dict(
        MOE, **MAMBA, shared_intermediate_size=32, mamba_expand=2, layer_types=["mamba", "attention"]
    ),
    "olmo2": {},
    "smollm3": {},
    "lfm2": dict(layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False),
    "starcoder2": dict(sliding_window=None),
    "ernie4_5": {},
    "glm4": {},
    "exaone4": dict(sliding_window=8),
    "gpt_oss": dict(MOE, sliding_window=8),
    "nemotron": {},
    "mamba": dict(state_size=8),
    "jamba": dict(MOE, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, mamba_d_state=8),
    "falcon_h1": dict(MAMBA, mamba_d_ssm=64),
    "qwen3_next": dict(
        MOE, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8,
        shared_expert_intermediate_size=32, layer_types=["linear_attention", "full_attention"],
    ),
    "minimax": MOE,
}  # fmt: skip
COMMON = dict(
    bf16=False, use_cpu=True, report_to="none", disable_tqdm=True, learning_rate=1e-2, gradient_checkpointing=False
)
ONE_STEP = dict(max_steps=1, gradient_accumulation_steps=1, lora_r=2)


def architecture_config(name: str) -> PretrainedConfig:
    changes = dict(ARCHITECTURES[name])
    model_type = changes.pop("model_type", name)
    sizes = {} if "text_config" in changes else {**SIZES, **changes}
    sizes = {key: value for key, value in (sizes or changes).items() if (key, value) != ("head_dim", None)}
    return AutoConfig.for_model(model_type, **sizes)


def architecture(name: str) -> PreTrainedModel:
    """Returns a model with random weights, scaled up so that it prefers some tokens."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(architecture_config(name))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim > 1 and "A_log" not in key:
                parameter.mul_(8.0)
    return model.eval()


def save_architecture(name: str, folder: Path) -> Path:
    architecture(name).save_pretrained(folder)
    bpe_tokenizer().save_pretrained(folder)
    return folder


WORDS = ("apples", "pears", "river", "dog", "moon", "cheese", "city", "garden")


def prompt(i: int) -> list[dict]:
    return [{"role": "user", "content": f"Name {WORDS[i % 8]}{' and the garden' * (i % 4)} {i}?"}]


def write_data(folder: Path) -> None:
    """Writes demonstrations/ and comparisons/, with rows enough for each split."""
    completion = "The {} is {}."
    for name in ("demonstrations", "comparisons"):
        (folder / name).mkdir(parents=True)
        rows = []
        for i in range(80):
            answer = completion.format(WORDS[3 * i % 8], i)
            answers = {"completions": [answer, "no", "no no"], "ranks": [0, 1, 2]}
            rows.append({"prompt": prompt(i), **({"completion": answer} if name == "demonstrations" else answers)})
        (folder / name / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def run_recipe(name: str, **options) -> None:
    """Runs a recipe in this process, as its command line does."""
    before = sys.argv
    sys.argv = [name, *(text for key, value in options.items() for text in (f"--{key}", str(value)))]
    try:
        main = runpy.run_path(str(RECIPES / f"{name}.py"))["main"]
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            main()
    finally:
        sys.argv = before


def run_stages(base: Path, data: Path, run: Path) -> None:
    """Takes the model in `base` through sft, reward, ppo and evaluate, one optimizer step each."""
    demonstrations, comparisons = data / "demonstrations", data / "comparisons"
    each_step = dict(eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1)
    run_recipe(
        "sft", **COMMON, **ONE_STEP, **each_step, model_name_or_path=base, dataset_name=demonstrations,
        output_dir=run / "sft", per_device_train_batch_size=8,
    )  # fmt: skip
    run_recipe(
        "reward", **COMMON, **ONE_STEP, model_name_or_path=base, dataset_name=comparisons, output_dir=run / "reward",
        sft_model_path=run / "sft", calibration_dataset=demonstrations, per_device_train_batch_size=4,
    )  # fmt: skip
    run_recipe(
        "ppo", **COMMON, dataset_name=demonstrations, output_dir=run / "ppo", sft_model_path=run / "sft",
        reward_model_path=run / "reward", batch_size=8, mini_batch_size=8, per_device_train_batch_size=8,
        total_episodes=8, response_length=8, num_sample_generations=0, warmup_rollouts=0, save_strategy="no",
    )  # fmt: skip
    run_recipe(
        "evaluate", dataset_name=demonstrations, output_dir=run / "evaluate", sft_model_path=run / "sft",
        ppo_model_path=run / "ppo", reward_model_path=run / "reward", max_new_tokens=6, dataset_eval_size=4,
    )  # fmt: skip
