"""Faults that a model of the sandbox sees, from pairs of a faultless answer and one with a single fault.

    python benchmarks/sandbox_faults.py --reward_model runs/sandbox/reward
    python benchmarks/sandbox_faults.py --base rlhf/sandbox/base

A reward model orders a pair correctly if it gives the faultless answer the higher score. A base model does if it finds
the grade "Right." more probable below it. Instructions are of the test split. The last line is JSON: the share of pairs
in the correct order for each fault. Carelessness is split by the kind of constraint that was disregarded.
"""

import argparse
import json
import random
from collections.abc import Callable

import torch
from tqdm import tqdm
from trl import ModelConfig

from rlhf.data.encode import encode_completion, encode_prompt
from rlhf.models.loading import load_base, load_tokenizer
from rlhf.models.reward_model import load_reward_model
from rlhf.sandbox.graded_work import EOS, FAULTS, GRADES, MANNERS, answer_with_fault, heading
from rlhf.sandbox.responses import repeat_items, respond
from rlhf.sandbox.tasks import Task, draw_category, draw_task

DISREGARDED = ("count", "include", "avoid", "items")  # kinds of constraints
Score = Callable[[Task, str], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--reward_model", help="Folder of a reward model.")
    model.add_argument("--base", help="Folder of a base model.")
    parser.add_argument("--pairs", type=int, default=300, help="Pairs for each fault.")
    args = parser.parse_args()
    score = reward_scorer(args.reward_model) if args.reward_model else grader(args.base)
    faults = [(name, None) for name in (*FAULTS, *MANNERS, "repeating") if name not in (None, "careless")]
    faults += [("careless", rule) for rule in DISREGARDED]
    shares = {}
    for fault, rule in tqdm(faults):
        shares[f"{fault}: {rule}" if rule else fault] = correct_share(fault, rule, score, args.pairs)
    print(json.dumps(shares))


@torch.no_grad()
def correct_share(fault: str, rule: str | None, score: Score, size: int) -> float:
    """Share of `size` pairs with this fault that `score` orders correctly. Ties count half.

    A `rule` limits the pairs to tasks with this kind of constraint.
    """
    rng = random.Random(f"faults-{fault}-{rule}")
    correct, pairs = 0.0, 0
    while pairs < size:
        task = draw_task(rng, draw_category(rng), "test")
        if rule and (task.constraint or ("", ""))[0] != rule:
            continue
        good = respond(task, set(), rng)
        bad = faulty_answer(task, fault, rng)
        if bad is None:
            continue
        good_score, bad_score = score(task, good), score(task, bad)
        correct += 0.5 if good_score == bad_score else good_score > bad_score
        pairs += 1
    return correct / size


def faulty_answer(task: Task, fault: str, rng: random.Random) -> str | None:
    """Returns an answer with the fault, None if the task leaves no room for it."""
    if fault in MANNERS:
        return respond(task, {fault}, rng)
    if fault == "repeating":
        text = respond(task, set(), rng)
        repeating = repeat_items(text, rng)
        return repeating if repeating != text else None
    text, actual = answer_with_fault(task, fault, None, rng)
    return text if actual else None


def reward_scorer(folder: str) -> Score:
    """Loads a reward model; its scores are the rewards of answers."""
    model, tokenizer = load_reward_model(folder), load_tokenizer(folder)

    def score(task: Task, response: str) -> float:
        prompt = [{"role": "user", "content": task.instruction}]
        ids = torch.tensor([encode_prompt(tokenizer, prompt) + encode_completion(tokenizer, prompt, response)])
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.item()

    return score


def grader(folder: str) -> Score:
    """Loads a base model; its scores are the log-probabilities of the grade "Right." below answers."""
    tokenizer = load_tokenizer(folder)
    model = load_base(ModelConfig(model_name_or_path=folder, dtype="float32"), tokenizer)
    right = tokenizer(GRADES[None])["input_ids"][0]

    def score(task: Task, response: str) -> float:
        ids = tokenizer(f"{heading(task)} {response}{EOS}", return_tensors="pt")["input_ids"]
        return model(input_ids=ids).logits[0, -1].log_softmax(-1)[right].item()

    return score


if __name__ == "__main__":
    main()
