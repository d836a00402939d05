"""Which faults does a model of the sandbox see? Pairs of a faultless answer and one with a single fault.

    python benchmarks/sandbox_faults.py --reward_model runs/sandbox/reward
    python benchmarks/sandbox_faults.py --base rlhf/sandbox/base

A reward model orders a pair rightly when it gives the faultless answer the higher score; a base model, when it finds
the mark "Right." more probable below it. Instructions are of the test split. The last line is JSON: the share of the
pairs that are ordered rightly, by fault.
"""

import argparse
import json
import random
from collections.abc import Callable

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf.data.encode import encode_completion, encode_prompt
from rlhf.models import load_tokenizer
from rlhf.reward_model import load_reward_model
from rlhf.sandbox.grammar import items_of, with_items
from rlhf.sandbox.responses import respond
from rlhf.sandbox.school import EOS, FAULTS, MANNERS, MARKS, heading, work
from rlhf.sandbox.tasks import Task, draw_category, draw_task

SAME_ITEM = "one item for all of a list"
Score = Callable[[Task, str], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--reward_model", help="Folder of a reward model.")
    model.add_argument("--base", help="Folder of a base model.")
    parser.add_argument("--pairs", type=int, default=300, help="Pairs for each fault.")
    args = parser.parse_args()
    score = scores_of(args.reward_model) if args.reward_model else marks_of(args.base)
    faults = [name for name in (*FAULTS, *MANNERS) if name] + [SAME_ITEM]
    print(json.dumps({fault: seen(fault, score, args.pairs) for fault in tqdm(faults)}))


@torch.no_grad()
def seen(fault: str, score: Score, size: int) -> float:
    """Share of `size` pairs with this fault that `score` orders rightly; ties count half."""
    rng = random.Random(f"faults-{fault}")
    right, pairs = 0.0, 0
    while pairs < size:
        task = draw_task(rng, "brainstorming" if fault == SAME_ITEM else draw_category(rng), "test")
        good = respond(task, set(), rng)
        if (bad := worse(task, good, fault, rng)) is None:
            continue
        better, other = score(task, good), score(task, bad)
        right += 0.5 if better == other else better > other
        pairs += 1
    return right / size


def worse(task: Task, good: str, fault: str, rng: random.Random) -> str | None:
    """An answer with the fault; None where the task leaves no room for it."""
    if fault == SAME_ITEM:
        items = items_of(good)
        return with_items(good, items[:1] * len(items)) if len(items) > 1 else None
    if fault in MANNERS:
        return respond(task, {fault}, rng)
    text, found = work(task, fault, None, rng)
    return text if found else None


def scores_of(folder: str) -> Score:
    model, tokenizer = load_reward_model(folder), load_tokenizer(folder)

    def score(task: Task, response: str) -> float:
        prompt = [{"role": "user", "content": task.instruction}]
        ids = torch.tensor([encode_prompt(tokenizer, prompt) + encode_completion(tokenizer, prompt, response)])
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.item()

    return score


def marks_of(folder: str) -> Score:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    right = tokenizer(MARKS[None])["input_ids"][0]

    def score(task: Task, response: str) -> float:
        ids = tokenizer(f"{heading(task)} {response}{EOS}", return_tensors="pt")["input_ids"]
        return model(input_ids=ids).logits[0, -1].log_softmax(-1)[right].item()

    return score


if __name__ == "__main__":
    main()
