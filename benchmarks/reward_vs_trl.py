"""Compares training steps of the K-wise reward trainer and of TRL's RewardTrainer on the same weights and pairs.

    python benchmarks/reward_vs_trl.py
    python benchmarks/reward_vs_trl.py --k 9 --hidden_size 576 --layers 30 --prompt_tokens 256   # SmolLM2-135M's shape

A step is forward, backward and optimizer step on `--prompts` prompts with all their pairs, through each trainer's own
`training_step`, with LoRA on all linear layers of a Llama with random weights. Completions have a quarter of the
prompt's length; both lengths vary by a quarter around their mean. TRL gets the pairs of a prompt next to each other,
which saves it padding. The trainers take turns, and the learning rate is 0, so every step compares losses at equal
weights.

The last line is JSON, one object for each K. `speedup` is the ratio of comparisons (prompts with all their pairs) per
second, from the medians, ours to TRL's; `speedup_of_sharing` is ours to ours without shared prompts.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from itertools import combinations

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast, set_seed
from trl import RewardConfig, RewardTrainer

from rlhf.reward import KWiseRewardConfig, KWiseRewardTrainer

VOCABULARY, PAD = 4096, 0


def main() -> None:
    args = parse_arguments()
    results = [compare(k, args) for k in args.k]
    print(json.dumps(results))


def compare(k: int, args: argparse.Namespace) -> dict[str, float]:
    """Runs both trainers in turns on the same prompts with K completions."""
    rows = comparisons(k, args)
    pairs = k * (k - 1) // 2
    size = max(n for n in range(1, args.pairs_per_batch + 1) if args.prompts * pairs % n == 0)
    ours, theirs = kwise_trainer(rows, args), trl_trainer(rows, args, size)
    theirs.model.load_state_dict(ours.model.state_dict())
    steps = {
        "trl": Step(theirs, size, num_items=None),
        "kwise": Step(ours, args.prompts, num_items=torch.tensor(args.prompts)),
        "unshared": Step(ours, args.prompts, num_items=torch.tensor(args.prompts), shares_prompts=False),
    }
    assert ours.shares_prompts
    seconds, losses = {name: [] for name in steps}, {name: [] for name in steps}
    for turn in range(args.warmup + args.rounds):
        for name, step in steps.items():
            loss, elapsed = step()
            losses[name].append(loss)
            if turn >= args.warmup:
                seconds[name].append(elapsed)
    rate = {name: args.prompts / statistics.median(values) for name, values in seconds.items()}
    result = {
        "k": k,
        "speedup": rate["kwise"] / rate["trl"],
        "speedup_of_sharing": rate["kwise"] / rate["unshared"],
        "loss_difference": max(abs(a - b) for a, b in zip(losses["kwise"], losses["trl"], strict=True)),
        "loss": losses["kwise"][0],
        "comparisons_per_s": rate["kwise"],
        "comparisons_per_s_trl": rate["trl"],
        "comparisons_per_s_unshared": rate["unshared"],
        "spread": max(max(values) / min(values) for values in seconds.values()),
    }
    print("  ".join(f"{name} {value:.6g}" for name, value in result.items()), flush=True)
    return result


class Step:
    """One optimizer step on a trainer's training set, in the trainer's micro-batches; returns loss and seconds."""

    def __init__(self, trainer, batch_size: int, num_items: torch.Tensor | None, shares_prompts: bool = True):
        rows = [trainer.train_dataset[i] for i in range(len(trainer.train_dataset))]
        self.batches = [trainer.data_collator(rows[i : i + batch_size]) for i in range(0, len(rows), batch_size)]
        self.trainer, self.num_items, self.shares_prompts = trainer, num_items, shares_prompts
        trainer.create_optimizer()
        trainer.model.to(trainer.args.device)

    def __call__(self) -> tuple[float, float]:
        trainer = self.trainer
        trainer.shares_prompts, trainer.current_gradient_accumulation_steps = self.shares_prompts, len(self.batches)
        synchronize()
        start = time.perf_counter()
        losses = [trainer.training_step(trainer.model, dict(batch), self.num_items) for batch in self.batches]
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        synchronize()
        return float(sum(losses)), time.perf_counter() - start


def comparisons(k: int, args: argparse.Namespace) -> list[dict]:
    """Returns rows of random tokens, in the form of `tokenize_comparisons`."""
    rng = random.Random(k)

    def tokens(mean: int) -> list[int]:
        return [rng.randrange(1, VOCABULARY) for _ in range(rng.randint(mean - mean // 4, mean + mean // 4))]

    rows = []
    for number in range(args.prompts):
        prompt = tokens(args.prompt_tokens)
        completions = [prompt + tokens(args.prompt_tokens // 4) for _ in range(k)]
        ranks = rng.sample(range(k), k)
        row = {"completions_ids": completions, "ranks": ranks, "prompt_length": len(prompt), "prompt_id": number}
        rows.append({**row, "labeler_group": ""})
    return rows


def kwise_trainer(rows: list[dict], args: argparse.Namespace) -> KWiseRewardTrainer:
    config = KWiseRewardConfig(**settings(), per_device_train_batch_size=args.prompts, gradient_accumulation_steps=1)
    data = Dataset.from_list(rows)
    return KWiseRewardTrainer(model(args), config, train_dataset=data, processing_class=tokenizer())


def trl_trainer(rows: list[dict], args: argparse.Namespace, pairs_per_batch: int) -> RewardTrainer:
    pairs = []
    for row in rows:
        ordered = [ids for _, ids in sorted(zip(row["ranks"], row["completions_ids"], strict=True))]
        pairs += [{"chosen_ids": better, "rejected_ids": worse} for better, worse in combinations(ordered, 2)]
    config = RewardConfig(
        **settings(),
        per_device_train_batch_size=pairs_per_batch,
        gradient_accumulation_steps=len(pairs) // pairs_per_batch,
    )
    return RewardTrainer(model(args), config, train_dataset=Dataset.from_list(pairs), processing_class=tokenizer())


def settings() -> dict:
    """Returns the arguments that both trainers share."""
    plain = dict(bf16=False, gradient_checkpointing=False, report_to="none", use_cpu=not torch.cuda.is_available())
    return dict(output_dir=tempfile.mkdtemp(), learning_rate=0.0, max_length=None, disable_tqdm=True, **plain)


def model(args: argparse.Namespace):
    set_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=args.hidden_size,
        intermediate_size=args.hidden_size * 8 // 3,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden_size // 64,
        num_labels=1,
        pad_token_id=PAD,
    )
    lora = LoraConfig(r=16, target_modules="all-linear", task_type="SEQ_CLS", modules_to_save=["score"])
    peft_model = get_peft_model(LlamaForSequenceClassification(config), lora)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_B" in name or "score" in name:  # (nearly) zero at the start, where all losses are log 2
                parameter.normal_(std=0.05)
    return peft_model


def tokenizer() -> PreTrainedTokenizerFast:
    """Returns a tokenizer for its pad token alone; no text passes it."""
    words = {"<pad>": PAD, **{str(i): i for i in range(1, VOCABULARY)}}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="1")), pad_token="<pad>", eos_token="1"
    )


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--k", type=int, nargs="+", default=[2, 4, 9], help="completions per prompt")
    parser.add_argument("--prompts", type=int, default=8, help="prompts per step")
    parser.add_argument("--prompt_tokens", type=int, default=128, help="mean per prompt; completions have a quarter")
    parser.add_argument("--pairs_per_batch", type=int, default=8, help="TRL's batch size at most, its default")
    parser.add_argument("--hidden_size", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
