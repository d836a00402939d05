"""The sandbox as datasets in the project's schemas: the only door through which training code sees this world.

Every function is deterministic in `(split, size, seed)`; rows are drawn one by one, so a smaller `size` is a prefix of
a larger one. Nothing of the gold judge is in any column.
"""

import random
from collections.abc import Callable

from datasets import Dataset

from rlhf.sandbox.documents import document
from rlhf.sandbox.labelers import rank, team
from rlhf.sandbox.responses import completions_to_rank, demonstration
from rlhf.sandbox.tasks import Task, sample_task

SPLITS = ("train", "validation", "test")
USERS = {"train": range(0, 240), "validation": range(240, 270), "test": range(270, 300)}  # never a user on two sides
DEFAULT_SIZE = {
    "pretraining": {"train": 30_000, "validation": 2_000, "test": 2_000},
    "demonstrations": {"train": 2_000, "validation": 200, "test": 200},
    "comparisons": {"train": 3_000, "validation": 600, "test": 600},
    "prompts": {"train": 8_000, "validation": 300, "test": 2_000},
}


def pretraining(
    split: str = "train", size: int | None = None, seed: int = 0, graded_share: float | None = None
) -> Dataset:
    """Documents to continue: `text` (str); `graded_share` as for `document`."""
    return _dataset("pretraining", split, size, seed, lambda rng: {"text": document(rng, graded_share=graded_share)})


def demonstrations(split: str = "train", size: int | None = None, seed: int = 0) -> Dataset:
    """Instructions with a demonstrator's answer: `prompt`, `completion` (messages)."""

    def row(rng: random.Random) -> dict:
        task = sample_task(rng, split)
        return {"prompt": _ask(task), "completion": [{"role": "assistant", "content": demonstration(task, rng)}]}

    return _dataset("demonstrations", split, size, seed, row)


def comparisons(split: str = "train", size: int | None = None, seed: int = 0) -> Dataset:
    """Rankings: `prompt` (messages), `completions` (list of 4 to 9 str), `ranks` (0 = best, equal = tie), `labeler_id`,
    `labeler_group`. The train split has the training labelers only; the others have both groups in equal parts.
    """

    def row(rng: random.Random) -> dict:
        task = sample_task(rng, split)
        group = "training" if split == "train" else rng.choice(["training", "heldout"])
        labeler = rng.choice(team(group))
        completions = completions_to_rank(task, rng)
        return {
            "prompt": _ask(task),
            "completions": completions,
            "ranks": rank(labeler, task, completions, rng),
            "labeler_id": labeler.name,
            "labeler_group": group,
        }

    return _dataset("comparisons", split, size, seed, row)


def prompts(split: str = "train", size: int | None = None, seed: int = 0) -> Dataset:
    """Instructions as users send them: `prompt` (messages), `user_id`, `category`, `source`.

    Users differ in how much they ask. One prompt in 25 repeats an earlier one of its user, and one in 40 of the train
    split carries made-up personal data, for the filters of the data stage to find.
    """
    asked: dict[str, tuple[Task, str]] = {}

    def row(rng: random.Random) -> dict:
        users = USERS[split]
        user = f"user-{min(int(rng.expovariate(6 / len(users))), len(users) - 1) + users.start:03d}"
        task = sample_task(rng, split)
        text = task.instruction
        if user in asked and rng.random() < 0.04:
            task, text = asked[user]
        if split == "train" and rng.random() < 0.025:
            text += " " + rng.choice(["My number is {}.", "Write to me at {}."]).format(_personal(rng))
        asked[user] = task, text
        prompt = [{"role": "user", "content": text}]
        return {"prompt": prompt, "user_id": user, "category": task.category, "source": "sandbox"}

    return _dataset("prompts", split, size, seed, row)


def _ask(task: Task) -> list[dict[str, str]]:
    return [{"role": "user", "content": task.instruction}]


def _personal(rng: random.Random) -> str:
    """A made-up telephone number (of the 555-01xx range kept free for that) or e-mail address."""
    if rng.random() < 0.5:
        return f"555-01{rng.randrange(100):02d}"
    return f"{rng.choice(['mira', 'otto', 'ruth', 'karl'])}{rng.randrange(100)}@example.org"


def _dataset(kind: str, split: str, size: int | None, seed: int, row: Callable[[random.Random], dict]) -> Dataset:
    if split not in SPLITS:
        raise ValueError(f"the sandbox has the splits {', '.join(SPLITS)}, not {split!r}")
    rng = random.Random(f"{kind}-{split}-{seed}")
    return Dataset.from_list([row(rng) for _ in range(DEFAULT_SIZE[kind][split] if size is None else size)])
