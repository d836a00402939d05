"""The sandbox as datasets in the project's schemas, the only part of it that training code sees.

Every function is deterministic in `(split, size, seed)`. Rows are drawn one by one, so a smaller dataset is a prefix of
a larger one. No column holds a verdict of the gold judge.
"""

import random
from collections.abc import Callable

from datasets import Dataset

from rlhf.sandbox.documents import document
from rlhf.sandbox.graded_work import EOS
from rlhf.sandbox.labelers import rank, team
from rlhf.sandbox.responses import completions_to_rank, demonstration
from rlhf.sandbox.tasks import Task, sample_task

SPLITS = ("train", "validation", "test")
USERS = {"train": range(0, 240), "validation": range(240, 270), "test": range(270, 300)}  # no user is in two splits
DEFAULT_SIZE = {
    "pretraining": {"train": 30_000, "validation": 2_000, "test": 2_000},
    "demonstrations": {"train": 2_000, "validation": 200, "test": 200},
    "comparisons": {"train": 3_000, "validation": 600, "test": 600},
    "prompts": {"train": 8_000, "validation": 300, "test": 2_000},
}


def pretraining(
    split: str = "train", size: int | None = None, seed: int = 0, graded_share: float | None = None
) -> Dataset:
    """Documents to continue: `text` (list of str), where the grades of a work follow it as a document of their own.

    `graded_share` is that of `document`.
    """

    def row(rng: random.Random) -> dict:
        return {"text": document(rng, graded_share=graded_share).split(EOS)}

    return _dataset("pretraining", split, size, seed, row)


def demonstrations(split: str = "train", size: int | None = None, seed: int = 0) -> Dataset:
    """Instructions and demonstrators' answers: `prompt`, `completion` (messages)."""

    def row(rng: random.Random) -> dict:
        task = sample_task(rng, split)
        return {"prompt": _messages(task), "completion": [{"role": "assistant", "content": demonstration(task, rng)}]}

    return _dataset("demonstrations", split, size, seed, row)


def comparisons(split: str = "train", size: int | None = None, seed: int = 0) -> Dataset:
    """Rankings: `prompt` (messages), `completions` (list of 4 to 9 str), `ranks` (0 = best, equal = tie), `labeler_id`,
    `labeler_group`.

    Training labelers rank the train split. In the other splits each row is ranked by either group with equal
    probability.
    """

    def row(rng: random.Random) -> dict:
        task = sample_task(rng, split)
        group = "training" if split == "train" else rng.choice(["training", "heldout"])
        labeler = rng.choice(team(group))
        completions = completions_to_rank(task, rng)
        return {
            "prompt": _messages(task),
            "completions": completions,
            "ranks": rank(labeler, task, completions, rng),
            "labeler_id": labeler.name,
            "labeler_group": group,
        }

    return _dataset("comparisons", split, size, seed, row)


def prompts(split: str = "train", size: int | None = None, seed: int = 0) -> Dataset:
    """Instructions as users send them: `prompt` (messages), `user_id`, `category`, `source`.

    Some users ask more than others. One prompt in 25 repeats the previous one of its user. One in 40 of the train split
    contains made-up personal data. The filters of the data stage must find both.
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


def _messages(task: Task) -> list[dict[str, str]]:
    return [{"role": "user", "content": task.instruction}]


def _personal(rng: random.Random) -> str:
    """Makes up a phone number (in the 555-01xx range, reserved for fiction) or an e-mail address."""
    if rng.random() < 0.5:
        return f"555-01{rng.randrange(100):02d}"
    return f"{rng.choice(['mira', 'otto', 'ruth', 'karl'])}{rng.randrange(100)}@example.org"


def _dataset(kind: str, split: str, size: int | None, seed: int, row: Callable[[random.Random], dict]) -> Dataset:
    if split not in SPLITS:
        raise ValueError(f"The sandbox has no split {split!r}. Choose from {', '.join(SPLITS)}.")
    rng = random.Random(f"{kind}-{split}-{seed}")
    return Dataset.from_list([row(rng) for _ in range(DEFAULT_SIZE[kind][split] if size is None else size)])
