"""Toys of the tests: models of two layers with random weights, their tokenizers, prompts, trainers and finished runs.

Two families. The word models know 40 words, have width 16 and stay in memory: a test of PPO trains them in a second.
The BPE models have a byte-level tokenizer and width 32, and `save_toy` writes them where `from_pretrained` finds them.
"""

import gc
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPTNeoXForCausalLM,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    OPTForCausalLM,
    OPTForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from trl import ModelConfig, SFTConfig

from rlhf.models.adapter_files import write_calibration
from rlhf.models.loading import load_base, load_sequence_classifier, load_tokenizer, lora_config
from rlhf.models.shared_base import SharedBase
from rlhf.ppo import PPOConfig, PPOTrainer
from rlhf.runs.artifacts import start_run, write_result

gc.freeze()  # Accelerate collects all garbage at each train(), which took longer than the training itself

CAUSAL = {
    "llama": LlamaForCausalLM,
    "gpt2": GPT2LMHeadModel,
    "gpt_neox": GPTNeoXForCausalLM,
    "opt": OPTForCausalLM,
}
CLASSIFIER = {
    "llama": LlamaForSequenceClassification,
    "gpt2": GPT2ForSequenceClassification,
    "opt": OPTForSequenceClassification,
}


def toy_config(kind: str, width: int, heads: int, positions: int, **changes) -> PretrainedConfig:
    """Returns the configuration of two layers; architectures name their sizes differently."""
    if kind == "gpt2":
        sizes = {"n_embd": width, "n_layer": 2, "n_head": heads, "n_positions": positions}
    else:
        sizes = {"hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": heads}
        sizes["max_position_embeddings"] = positions
        sizes |= {"ffn_dim": 2 * width} if kind == "opt" else {"intermediate_size": 2 * width}
    if kind == "opt":
        sizes["word_embed_proj_dim"] = width
    return CAUSAL[kind].config_class(**{**sizes, **changes})


def random_model(model_class: type, config: PretrainedConfig, seed: int, scale: float) -> PreTrainedModel:
    """Returns a model whose initial weights are scaled up, so that it prefers some tokens and its scores vary."""
    torch.manual_seed(seed)
    model = model_class(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(20.0 if "score" in name else scale)
    return model


# --- word models ------------------------------------------------------------------------------------------------------

VOCAB = 40
PAD, EOS, EOT = 0, 1, 2
WORD_TOKENS = {"vocab_size": VOCAB, "pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": None}


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Returns a tokenizer with one token per word: the words are w4 to w39."""
    words = {"<pad>": PAD, "</s>": EOS, "<eot>": EOT, "<unk>": 3} | {f"w{i}": i for i in range(4, VOCAB)}
    fast = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def _word_config(kind: str, **changes) -> PretrainedConfig:
    return toy_config(kind, width=16, heads=2, positions=64, **{"num_labels": 1, **WORD_TOKENS, **changes})


def causal(kind: str = "llama", seed: int = 0, **changes) -> PreTrainedModel:
    return random_model(CAUSAL[kind], _word_config(kind, **changes), seed, scale=4.0)


def classifier(kind: str = "llama", seed: int = 1, **changes) -> PreTrainedModel:
    return random_model(CLASSIFIER[kind], _word_config(kind, **changes), seed, scale=4.0)


def lora(task_type: str = "CAUSAL_LM", **changes) -> LoraConfig:
    modules = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
    return LoraConfig(r=4, lora_alpha=16, target_modules=modules, task_type=task_type, **changes)


def shared_base(lm: PreTrainedModel | None = None) -> SharedBase:
    """Returns four adapters on one base: policy copies sft, value copies reward, and no weight is zero."""
    torch.manual_seed(0)
    base = SharedBase(causal() if lm is None else lm)
    base.add_adapter("sft", lora_config=lora(init_lora_weights=False))
    base.add_adapter("reward", lora_config=lora(init_lora_weights=False), head=True)
    base.add_adapter("policy", copy_of="sft", trainable=True)
    base.add_adapter("value", copy_of="reward", trainable=True, head=True)
    return base


def separate(kind: str = "llama") -> dict[str, PreTrainedModel]:
    """Returns the four models of PPOTrainer as its keyword arguments."""
    return {
        "model": causal(kind),
        "ref_model": causal(kind),
        "reward_model": classifier(kind, seed=1),
        "value_model": classifier(kind, seed=2),
    }


def prompts(n: int = 16, seed: int = 0) -> Dataset:
    """Returns `n` prompts of 2 to 9 words."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 10, (n,), generator=generator).tolist()
    rows = [torch.randint(4, VOCAB, (k,), generator=generator).tolist() for k in lengths]
    return Dataset.from_dict({"prompt": [" ".join(f"w{i}" for i in row) for row in rows]})


def ppo_config(output_dir, **changes) -> PPOConfig:
    """Returns the settings of one rollout of eight episodes on the CPU; nothing is saved or reported.

    Unlike in PPOConfig, `gradient_accumulation_steps` is that of one minibatch, and `logging_steps`, `eval_steps` and
    `save_steps` count optimizer steps, so that tests can look into a rollout.
    """
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
    values = {**defaults, **changes}
    values["gradient_accumulation_steps"] *= values["num_mini_batches"]
    intervals = {name: changes[name] for name in ("logging_steps", "eval_steps", "save_steps") if name in changes}
    args = PPOConfig(**{name: value for name, value in values.items() if name not in intervals})
    if not intervals:
        return args
    total = args.total_steps(num_prompts=0)
    shares = {name: (steps - 0.5) / total if steps <= total else 1000 for name, steps in intervals.items()}
    return PPOConfig(**{**values, **shares})


def trainer(args: PPOConfig, layout: dict | SharedBase | None = None, cls=PPOTrainer, **kwargs) -> PPOTrainer:
    """Returns a PPO trainer of `layout`: the models of `separate`, or a shared base."""
    layout = shared_base() if layout is None else layout
    layout = layout if isinstance(layout, dict) else {"model": layout}
    kwargs = {"train_dataset": prompts(), "processing_class": word_tokenizer(), **layout, **kwargs}
    return cls(args=args, **kwargs)


def logged(ppo: PPOTrainer, name: str) -> list[float]:
    """Returns all logged values of one metric."""
    return [row[name] for row in ppo.state.log_history if name in row]


# --- BPE models -------------------------------------------------------------------------------------------------------

BPE_EOS = "<|endoftext|>"
TEXT = """\
User: What is the capital of France? Assistant: The capital of France is Paris, a city on the river Seine.
User: Name three fruits. Assistant: Apples, pears and plums are fruits that grow on trees in the garden.
User: Write a short story about a dog. Assistant: The dog ran over the hill to the river and back to the house again.
User: Is the moon made of cheese? Assistant: No, the moon is made of rock, and nobody has ever eaten it.
"""
# Llama: grouped key-value heads, 20 embedding rows more than the tokenizer has tokens. GPT-2: Conv1D layers, learned
# positions, no spare embedding row for a pad token. GPT-NeoX: fused query-key-value, an unembedding called `embed_out`.
BPE_MODELS = {
    "llama": {"vocab_size": 320, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "gpt2": {"vocab_size": 300, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0},
    "gpt_neox": {"vocab_size": 320, "tie_word_embeddings": False},
}


def bpe_tokenizer(vocab_size: int = 300, special_tokens: tuple[str, ...] = (BPE_EOS,)) -> PreTrainedTokenizerFast:
    """Returns a byte-level tokenizer with an end-of-text token, no pad token and no chat template, like GPT-2's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    bpe_trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], bpe_trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=BPE_EOS)


def bpe_model(kind: str = "llama", seed: int = 0, **changes) -> PreTrainedModel:
    tokens = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    config = toy_config(kind, width=32, heads=4, positions=256, **{**tokens, **BPE_MODELS[kind], **changes})
    return random_model(CAUSAL[kind], config, seed, scale=10.0).eval()


def save_toy(folder: Path, kind: str = "llama", **changes) -> Path:
    """Writes a BPE model and its tokenizer to `folder`."""
    bpe_model(kind, **changes).save_pretrained(folder)
    bpe_tokenizer().save_pretrained(folder)
    return folder


# --- finished runs ----------------------------------------------------------------------------------------------------


def save_adapter(base: Path, folder: Path, stage: str) -> None:
    """Writes an adapter that changes the outputs of the model in `base`; stage "reward" adds head and calibration."""
    torch.manual_seed(0)
    model_args = ModelConfig(model_name_or_path=str(base), lora_r=2)
    tokenizer = load_tokenizer(str(base))
    if stage == "reward":
        model = get_peft_model(load_sequence_classifier(model_args, tokenizer), lora_config(model_args, "SEQ_CLS"))
    else:
        model = get_peft_model(load_base(model_args, tokenizer), lora_config(model_args))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)  # zero in a fresh adapter, which would change nothing
    model.save_pretrained(folder)
    if stage == "reward":
        write_calibration(folder, 0.25)


def save_toy_stages(folder: Path) -> Path:
    """Writes a toy to base/ of `folder`, and an SFT and a reward adapter with their tokenizer to sft/ and reward/."""
    save_toy(folder / "base")
    for stage in ("sft", "reward"):
        save_adapter(folder / "base", folder / stage, stage)
        load_tokenizer(str(folder / "base")).save_pretrained(folder / stage)
    return folder


def save_word_stages(folder: Path) -> SharedBase:
    """Writes a word model and its adapters to base/, sft/ and reward/ of `folder`."""
    causal().save_pretrained(folder / "base")
    word_tokenizer().save_pretrained(folder / "base")
    base = shared_base(AutoModelForCausalLM.from_pretrained(folder / "base"))
    for name in ("sft", "reward"):
        base.save_adapter(name, folder / name)
    return base


def finish_stage(base: Path, folder: Path, stage: str) -> Path:
    """Writes the files of a finished stage, and some files that no upload may contain."""
    config = SFTConfig(output_dir=str(folder), report_to="none", use_cpu=True, bf16=False, hub_token="hf_" + "s" * 34)
    start_run(folder, config, ModelConfig(model_name_or_path=str(base)), stage=stage)
    save_adapter(base, folder, stage)
    load_tokenizer(str(base)).save_pretrained(folder)
    write_result(folder, {"accuracy": {"all": 0.75}, "seconds": 3.5, "checkpoint": str(folder / "checkpoint-1")})
    for name in ("training_args.bin", "metrics.jsonl", "checkpoint-1/optimizer.pt", "checkpoint-1/adapter_config.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("only on this machine")
    return folder
