"""Measures the peak memory of training steps of each stage beside the formulas of rlhf/models/memory.py.

    python benchmarks/memory.py --rows 4    # on a GPU if there is one; the last line is JSON

A Llama of random weights takes two steps through the stage's own trainer, with every combination of autocast and
activation checkpointing. On a GPU the peak is that of PyTorch's allocator; on a CPU it is the model plus the largest
sum of the allocations that PyTorch's profiler recorded. Both leave out Python, the libraries and the CUDA context.
"""

import argparse
import gc
import itertools
import json
import tempfile
import warnings
from collections.abc import Callable

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast, Trainer
from transformers.trainer_utils import set_seed

from rlhf.models.memory import Memory, ppo_memory, reward_memory, sft_memory
from rlhf.models.model_sizes import Layout, Shape, shape_of
from rlhf.models.shared_base import SharedBase
from rlhf.ppo import PPOConfig, PPOTrainer
from rlhf.reward import KWiseRewardConfig, KWiseRewardTrainer
from rlhf.sft.trainer import SFTArguments, SFTTrainer

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK, COMPLETIONS = 16, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", default=["sft", "reward", "ppo"], choices=list(STAGES))
    parser.add_argument("--base", default="bfloat16", choices=["float32", "bfloat16"], help="dtype of the base")
    parser.add_argument("--rows", type=int, default=4, help="demonstrations, prompts or episodes in a pass")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of a row, half of them the prompt's")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden_size", type=int, default=576)
    parser.add_argument("--vocabulary", type=int, default=49152)
    args = parser.parse_args()
    results = []
    for stage, autocast, checkpointing in itertools.product(args.stages, (False, True), (False, True)):
        layout = Layout(args.base, autocast=autocast, checkpointing=checkpointing, rank=RANK)
        measured, memory = STAGES[stage](args, layout)
        largest = max(memory.phases, key=lambda phase: sum(memory.phases[phase].values()))
        row = {"stage": stage, "autocast": autocast, "checkpointing": checkpointing, "measured_mb": measured / 1e6,
               "formula_mb": memory.peak / 1e6, "error": memory.peak / measured - 1, "phase": largest}  # fmt: skip
        results.append(row)
        print({name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()}, flush=True)
    print(json.dumps({"device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu", **vars(args),
                      "results": results}))  # fmt: skip


def sft(args: argparse.Namespace, layout: Layout) -> tuple[int, Memory]:
    model = language_model(args)
    rows = {"input_ids": [], "completion_mask": []}
    for row in range(2 * args.rows):
        tokens = args.tokens - row % 2  # not all of one length, so that there is a mask
        rows["input_ids"].append(torch.randint(3, args.vocabulary, (tokens,)).tolist())
        rows["completion_mask"].append([int(i >= tokens // 2) for i in range(tokens)])
    options = SFTArguments(batch_size=args.rows, max_length=args.tokens, **common(args, layout))
    trainer = SFTTrainer(
        model, options, train_dataset=Dataset.from_dict(rows), processing_class=tokenizer(args.vocabulary),
        peft_config=lora("CAUSAL_LM"),
    )  # fmt: skip
    return peak_of(trainer), sft_memory(shape(args), layout, args.rows, args.tokens)


def reward(args: argparse.Namespace, layout: Layout) -> tuple[int, Memory]:
    half = args.tokens // 2
    prompts = torch.randint(3, args.vocabulary, (2 * args.rows, 1, half)).expand(-1, COMPLETIONS, -1)
    answers = torch.randint(3, args.vocabulary, (2 * args.rows, COMPLETIONS, half))
    rows = [
        {"completions_ids": ids, "ranks": list(range(COMPLETIONS)), "prompt_length": half, "prompt_id": i,
         "labeler_id": "", "labeler_group": ""}
        for i, ids in enumerate(torch.cat([prompts, answers], 2).tolist())
    ]  # fmt: skip
    config = LlamaConfig(**sizes(args), num_labels=1, pad_token_id=0)
    model = get_peft_model(LlamaForSequenceClassification(config).to(getattr(torch, args.base)), lora("SEQ_CLS"))
    options = KWiseRewardConfig(
        batch_size=args.rows, max_length=args.tokens, completions_per_forward=2 * COMPLETIONS, **common(args, layout)
    )
    trainer = KWiseRewardTrainer(
        model, options, train_dataset=Dataset.from_list(rows), processing_class=tokenizer(args.vocabulary)
    )
    memory = reward_memory(shape(args), layout, args.rows, COMPLETIONS, half, half, 2 * COMPLETIONS)
    return peak_of(trainer), memory


def ppo(args: argparse.Namespace, layout: Layout) -> tuple[int, Memory]:
    base = SharedBase(language_model(args))
    base.add_adapter("sft", lora_config=lora("CAUSAL_LM"))
    base.add_adapter("reward", lora_config=lora("CAUSAL_LM"), head=True)
    base.add_adapter("policy", copy_of="sft", trainable=True)
    base.add_adapter("value", copy_of="reward", trainable=True, head=True)
    half = args.tokens // 2
    prompts = torch.randint(3, args.vocabulary, (2 * args.rows, half)).tolist()
    options = PPOConfig(
        batch_size=2 * args.rows, mini_batch_size=args.rows, local_rollout_forward_batch_size=2 * args.rows,
        total_episodes=2 * args.rows, response_length=half, num_sample_generations=0, **common(args, layout),
    )  # fmt: skip
    trainer = PPOTrainer(
        args=options, processing_class=tokenizer(args.vocabulary), model=base,
        train_dataset=Dataset.from_dict({"input_ids": prompts}),
    )  # fmt: skip
    limit = 16384 if torch.cuda.is_available() else 512 * torch.get_num_threads()
    return peak_of(trainer), ppo_memory(shape(args), layout, args.rows, half, half, 2 * args.rows, pass_tokens=limit)


STAGES: dict[str, Callable[[argparse.Namespace, Layout], tuple[int, Memory]]] = {
    "sft": sft, "reward": reward, "ppo": ppo,
}  # fmt: skip


def sizes(args: argparse.Namespace) -> dict:
    """Fields of a LlamaConfig with the proportions of SmolLM2-135M."""
    return dict(
        vocab_size=args.vocabulary, hidden_size=args.hidden_size, intermediate_size=args.hidden_size * 8 // 3,
        num_hidden_layers=args.layers, num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
    )  # fmt: skip


def shape(args: argparse.Namespace) -> Shape:
    return shape_of(LlamaConfig(**sizes(args)))


def language_model(args: argparse.Namespace) -> LlamaForCausalLM:
    set_seed(0)
    return LlamaForCausalLM(LlamaConfig(**sizes(args), pad_token_id=0, eos_token_id=1)).to(getattr(torch, args.base))


def lora(task: str) -> LoraConfig:
    return LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=LINEAR, task_type=task)


def common(args: argparse.Namespace, layout: Layout) -> dict:
    return dict(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=args.rows, max_steps=2, bf16=layout.autocast,
        gradient_checkpointing=layout.checkpointing, use_cpu=not torch.cuda.is_available(), report_to="none",
        save_strategy="no", eval_strategy="no", disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip


def tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Never used on text."""
    words = {"<pad>": 0, "<eos>": 1, **{str(i): i for i in range(2, vocabulary)}}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="2")), pad_token="<pad>", eos_token="<eos>"
    )


def peak_of(trainer: Trainer) -> int:
    """Bytes at the peak of a training run, models included."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        trainer.train()
        return torch.cuda.max_memory_allocated()
    model: nn.Module = trainer.model  # pyright: ignore[reportAssignmentType]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
                for t in itertools.chain(model.parameters(), model.buffers())}  # fmt: skip
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        trainer.train()
    results = profiler.profiler.kineto_results  # pyright: ignore[reportOptionalMemberAccess]
    events = sorted((event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]")
    return sum(storages.values()) + max(itertools.accumulate(size for _, size in events))


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
