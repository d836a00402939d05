"""Which learning rates move a real model in the number of steps of a recipe, with a Python reward alone.

    python benchmarks/function_reward.py --model <folder of SmolLM2-135M-Instruct> --rates 3e-5 1e-4 3e-4 1e-3

PPO from an instruct model with LoRA (r = 16, alpha = 32) on all linear layers. The reward is half the number of
positive less negative words in a continuation of 8 tokens, clipped to [-1, 1]: a sentiment that the model can raise
after any prompt. The value model has no reward model to start from: its adapter is new and its head zero. Each setting
starts from the same weights, prompts and random numbers, and answers the same held-out prompts (other subjects) before
and after. `--value_head random` draws the value head from N(0, 1 / (H + 1)), as a reward model's. Prints one JSON row
per setting, and all of them on the last line.
"""

import argparse
import json
import re
import tempfile
import time
from itertools import product

from accelerate.utils import set_seed
from datasets import Dataset
from peft import LoraConfig
from torch import nn
from trl import ModelConfig

from rlhf.models.loading import load_base, load_tokenizer
from rlhf.models.shared_base import SharedBase
from rlhf.ppo import PPOConfig, PPOTrainer

POSITIVE = (
    "good great best love loved loves loving happy joy joyful fun beautiful wonderful amazing excellent fantastic nice "
    "perfect enjoy enjoys enjoyed enjoyable delight delightful pleasant brilliant lovely favorite friendly fresh warm "
    "bright calm peaceful success successful win hope hopeful kind gentle sweet delicious rich healthy helpful easy "
    "safe strong proud exciting excited popular special magical charming comfortable creative inspiring unique vibrant"
)
NEGATIVE = (
    "bad worst hate hated sad angry terrible horrible awful poor ugly boring pain painful fear afraid lost loss fail "
    "failure failed wrong problem problems difficult hard dangerous danger cold dark dirty sick weak death dead war "
    "worry worried hurt broken lonely cruel tired stress stressful disappointing expensive risk risky harm harmful"
)
SUBJECTS = """
rain|the train|my neighbor|homework|the bakery|the sea|winter|that old book|the dentist|football|chess|the city bus
my cat|the garden|Monday|the airport|the museum|coffee|the mountain|the office|the violin|cooking|the bridge|school
the lake|my bicycle|the night|soup|the market|the exam|the meeting|the road
"""
HELD_OUT = "the hospital|the dog|snow|the library|the long flight|housework|tea|the village"
TEMPLATES = (
    "In my opinion, {} is",
    "Yesterday I thought about {}. It was",
    "Honestly, {} made me feel",
    "They say that {} is",
)


def sentiment(completions: list, **columns) -> list[float]:
    """(positive - negative words) / 2 of each continuation, clipped to [-1, 1]."""
    positive, negative = set(POSITIVE.split()), set(NEGATIVE.split())
    scores = []
    for completion in completions:
        words = re.findall(r"[a-z]+", completion.lower())
        count = sum(word in positive for word in words) - sum(word in negative for word in words)
        scores.append(max(-1.0, min(1.0, count / 2)))
    return scores


def prompts(subjects: str) -> Dataset:
    texts = [template.format(subject) for subject, template in product(re.split("[|\n]", subjects.strip()), TEMPLATES)]
    return Dataset.from_dict({"prompt": texts})


def run(rate: float, value_rate: float, args: argparse.Namespace) -> dict:
    """Trains one setting; returns its numbers."""
    tokenizer = load_tokenizer(args.model)
    base = load_base(ModelConfig(model_name_or_path=args.model, dtype="float32"), tokenizer)
    set_seed(args.seed)
    shared = SharedBase(base)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    shared.add_adapter("sft", lora_config=lora)
    shared.add_adapter("policy", copy_of="sft", trainable=True)
    shared.add_adapter("value", lora_config=lora, trainable=True, head=True)
    head = shared.heads["value"].get_parameter("weight")
    if args.value_head == "random":
        nn.init.normal_(head, std=(head.shape[1] + 1) ** -0.5)
    else:
        nn.init.zeros_(head)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        config = PPOConfig(
            output_dir=folder, seed=args.seed, total_episodes=args.episodes, batch_size=args.batch_size,
            mini_batch_size=args.mini_batch_size, per_device_train_batch_size=args.mini_batch_size,
            response_length=8, max_prompt_length=64, learning_rate=rate, value_learning_rate=value_rate,
            kl_coef=args.kl_coef, warmup_rollouts=1, ema_decay=None, adam_epsilon=args.adam_epsilon, bf16=False,
            save_strategy="no", report_to="none", disable_tqdm=True, num_sample_generations=0, use_cpu=args.cpu,
            per_device_eval_batch_size=32, gradient_checkpointing=False,
        )  # fmt: skip
        trainer = PPOTrainer(
            config, tokenizer, shared, train_dataset=prompts(SUBJECTS), eval_dataset=prompts(HELD_OUT),
            reward_funcs=sentiment,
        )  # fmt: skip
        before = trainer.evaluate()
        started = time.monotonic()
        trainer.train()
        seconds = time.monotonic() - started
        after = trainer.evaluate()
        rows = [row for row in trainer.state.log_history if "objective/score" in row]
    curve = {
        name: [round(row[key], 3) for row in rows]
        for name, key in {
            "score": "objective/score", "kl": "objective/kl", "explained_variance": "val/explained_variance",
        }.items()
    }  # fmt: skip
    return {
        "learning_rate": rate,
        "value_learning_rate": value_rate,
        "value_head": args.value_head,
        "steps": trainer.state.global_step,
        "held_out_score": [before["eval_objective/score"], after["eval_objective/score"]],
        "held_out_kl": after["eval_objective/kl"],
        **curve,
        "seconds": round(seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Folder or Hub id of an instruct model.")
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-5, 1e-4, 3e-4, 1e-3], help="Of the policy.")
    parser.add_argument("--value_rates", type=float, nargs="+", help="One for each of --rates. None: the same.")
    parser.add_argument("--value_head", choices=["zero", "random"], default="zero")
    parser.add_argument("--episodes", type=int, default=320)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--mini_batch_size", type=int, default=8)
    parser.add_argument("--kl_coef", type=float, default=0.02)
    parser.add_argument("--adam_epsilon", type=float, default=1e-8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cpu", action="store_true")
    args = parser.parse_args()
    value_rates = args.value_rates or args.rates
    results = []
    for rate, value_rate in zip(args.rates, value_rates, strict=True):
        results.append(run(rate, value_rate, args))
        print(json.dumps(results[-1]), flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
