"""Models and prompts small enough to train in a test: 40 words, two layers of width 16."""

import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    OPTConfig,
    OPTForCausalLM,
    OPTForSequenceClassification,
    PreTrainedTokenizerFast,
)

from rlhf.models.shared_base import SharedBase
from rlhf.ppo import PPOConfig, PPOTrainer

gc.freeze()  # Accelerate collects all garbage at each train(), which took longer than the training itself

VOCAB = 40
PAD, EOS, EOT = 0, 1, 2
TOKENS = {"vocab_size": VOCAB, "pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": None}


def tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": PAD, "</s>": EOS, "<eot>": EOT, "<unk>": 3} | {f"w{i}": i for i in range(4, VOCAB)}
    fast = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def config(kind: str = "llama", **changes):
    changes = {"num_labels": 1, **changes}
    if kind == "gpt2":
        return GPT2Config(**TOKENS, n_embd=16, n_layer=2, n_head=2, n_positions=64, **changes)
    if kind == "opt":
        return OPTConfig(
            **TOKENS, hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=64, word_embed_proj_dim=16, **changes,
        )  # fmt: skip
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaConfig(**{**TOKENS, **sizes, "max_position_embeddings": 64, **changes})


CAUSAL = {"llama": LlamaForCausalLM, "gpt2": GPT2LMHeadModel, "opt": OPTForCausalLM}
CLASSIFIER = {
    "llama": LlamaForSequenceClassification,
    "gpt2": GPT2ForSequenceClassification,
    "opt": OPTForSequenceClassification,
}


def causal(kind: str = "llama", seed: int = 0, **changes):
    """Initial weights are scaled up so that the model prefers some words, and values and scores vary."""
    return _scaled(CAUSAL[kind], config(kind, **changes), seed)


def classifier(kind: str = "llama", seed: int = 1, **changes):
    return _scaled(CLASSIFIER[kind], config(kind, **changes), seed)


def _scaled(model_class, model_config, seed: int):
    torch.manual_seed(seed)
    model = model_class(model_config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(20.0 if "score" in name else 4.0)
    return model


def lora(task_type: str = "CAUSAL_LM", **changes) -> LoraConfig:
    modules = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
    return LoraConfig(r=4, lora_alpha=16, target_modules=modules, task_type=task_type, **changes)


def shared_base(seed: int = 0) -> SharedBase:
    """policy a copy of sft, value a copy of reward, all with weights that differ from zero."""
    torch.manual_seed(seed)
    base = SharedBase(causal(seed=seed))
    base.add_adapter("sft", lora_config=lora(init_lora_weights=False))
    base.add_adapter("reward", lora_config=lora(init_lora_weights=False), head=True)
    base.add_adapter("policy", copy_of="sft", trainable=True)
    base.add_adapter("value", copy_of="reward", trainable=True, head=True)
    return base


def separate(kind: str = "llama") -> dict:
    """model, ref_model, reward_model, value_model for PPOTrainer."""
    return {
        "model": causal(kind),
        "ref_model": causal(kind),
        "reward_model": classifier(kind, seed=1),
        "value_model": classifier(kind, seed=2),
    }


def prompts(n: int = 16, seed: int = 0) -> Dataset:
    """Prompts of 2 to 9 words."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 10, (n,), generator=generator).tolist()
    rows = [torch.randint(4, VOCAB, (k,), generator=generator).tolist() for k in lengths]
    return Dataset.from_dict({"prompt": [" ".join(f"w{i}" for i in row) for row in rows]})


def ppo_config(output_dir, **changes) -> PPOConfig:
    defaults = dict(
        output_dir=str(output_dir),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        num_mini_batches=2,
        total_episodes=8,
        response_length=6,
        learning_rate=1e-3,
        value_learning_rate=1e-3,
        warmup_rollouts=0,
        max_grad_norm=1.0,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        num_sample_generations=0,
        seed=7,
    )
    return PPOConfig(**{**defaults, **changes})


def trainer(args: PPOConfig, layout: dict | SharedBase | None = None, cls=PPOTrainer, **kwargs) -> PPOTrainer:
    layout = shared_base() if layout is None else layout
    layout = layout if isinstance(layout, dict) else {"model": layout}
    kwargs = {"train_dataset": prompts(), "processing_class": tokenizer(), **layout, **kwargs}
    return cls(args=args, **kwargs)


def logged(ppo: PPOTrainer, name: str) -> list[float]:
    return [row[name] for row in ppo.state.log_history if name in row]
