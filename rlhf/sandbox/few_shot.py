"""Few-shot tasks on texts, to measure whether alignment costs the base model abilities (section 4.2, figure 29)."""

import random
from typing import NamedTuple

from rlhf.sandbox.documents import exercise, known_facts
from rlhf.sandbox.grammar import join, render
from rlhf.sandbox.tasks import passage, pick, shopping
from rlhf.sandbox.world import WORDS

SHOTS = 2


class FewShot(NamedTuple):
    task: str
    prompt: str  # a document up to the start of the answer
    answer: str


def few_shot_items(size: int, seed: int = 0) -> list[FewShot]:
    """Draws `size` items, the tasks in turn: facts, rewriting, reading and copying, in the forms of the documents."""
    rng = random.Random(f"few-shot-{seed}")
    makers = list(_TASKS.items())
    return [FewShot(name, *make(rng)) for name, make in (makers[i % len(makers)] for i in range(size))]


def _fact(rng: random.Random) -> tuple[str, str]:
    *shown, asked = rng.sample(known_facts(), SHOTS + 1)
    lines = " ".join(f"{fact.question()} {fact.statement()}" for fact in shown)
    return f"Questions and answers. {lines} {asked.question()}", asked.statement()


def _rewrite(before: str, after: str, labels: tuple[str, str], forms: dict[str, tuple[str, ...]]):
    def make(rng: random.Random) -> tuple[str, str]:
        pairs = []
        for form in rng.choices(list(forms), k=SHOTS + 1):
            fields = pick(rng, *forms[form])
            pairs.append((render(f"{before}.{form}", **fields), render(f"{after}.{form}", **fields)))
        *shown, (old, new) = pairs
        lines = " ".join(exercise(labels, *pair) for pair in shown)
        return f"Exercises. {lines} {exercise(labels, old, '')}".rstrip(), new

    return make


def _bought(rng: random.Random) -> tuple[str, str]:
    fields, text = shopping(rng)
    answer = render("bought", person=fields["person"], thing=fields["thing"])
    return f"{text} What did {fields['person']} buy?", answer


def _summary(rng: random.Random) -> tuple[str, str]:
    fields, text = passage(rng)
    return f"{text} In short:", render("summary", **fields)


def _copy(rng: random.Random) -> tuple[str, str]:
    words = join(rng.sample([word for words in WORDS.values() for word in words], 6))
    return f"Words to learn. {words}. Once more:", f"{words}."


_TASKS = {
    "facts": _fact,
    "polite": _rewrite(
        "rude", "polite", ("Rude", "Polite"), {"give": ("thing",), "bring": ("food",), "show": ("place",)}
    ),
    "past": _rewrite(
        "present", "past", ("Now", "Past"),
        {"walk": ("person", "place"), "find": ("person", "thing"), "cook": ("person", "food")},
    ),
    "bought": _bought,
    "summary": _summary,
    "copy": _copy,
}  # fmt: skip
