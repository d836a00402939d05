"""School work with a teacher's mark under it: what the base model can learn judging from, before anybody ranks for it.

A model of billions of parameters has read reviews, corrections and grades, and a reward model made from it has only to
learn which of the faults that it sees people mind. Without these pages the sandbox's base saw none, and with too few of
them it did not see a wrong name: docs/sandbox.md has how its marks grew with training.

The marks come from what the pupil did, not from the gold judge, and say what is wrong, not how much it matters.
"""

import random
import re
from collections.abc import Callable

from rlhf.sandbox.grammar import COUNT, join, parse, render, sentences, split_items
from rlhf.sandbox.responses import break_text, evade, mistaken, respond
from rlhf.sandbox.tasks import CONSTRAINTS, PLURALS, Task, draw_category, draw_task
from rlhf.sandbox.world import WORDS, world

EOS = "<|eos|>"  # closes every document; the mark stands below the work, as a document of its own

MARKS = {
    None: "Right.",
    "inventing": "Wrong.",
    "mistaken": "Wrong.",
    "evading": "Wrong.",
    "careless": "Careless.",
    "terse": "Short.",
    "broken": "Broken.",
    "padded": "Wordy.",
    "rude": "Rude.",
}
# Weights of the faults that the work is meant to have; at most one of these, and one of the manners may come on top.
# Much of it turns out right: in a story without a constraint there is nothing to be careless about. No list names an
# item again: in the first versions one in ten did, which made an item again as likely as any other, and so the most
# likely list of the base, and of all that was trained from it, "a cup, a cup and a cup".
FAULTS = {
    None: 0.16,
    "careless": 0.28,
    "inventing": 0.22,
    "mistaken": 0.08,
    "broken": 0.08,
    "terse": 0.05,
    "evading": 0.03,
}
MANNERS = {None: 0.7, "padded": 0.15, "rude": 0.15}


def marked_work(rng: random.Random, seed: int = 0) -> str:
    """A heading, what a pupil wrote under it, EOS, and the teacher's mark: a word for each fault, in any order."""
    fault, manner = (rng.choices(list(table), list(table.values()))[0] for table in (FAULTS, MANNERS))
    task = draw_task(rng, draw_category(rng), rng.choice(["train", "validation", "test"]), seed)
    manner = None if fault == "evading" else manner
    text, fault = work(task, fault, manner, rng, seed)
    if rng.random() < 0.5:
        text = corrected(task, text)
    marks = [MARKS[name] for name in (fault, manner) if name] or [MARKS[None]]
    return f"{heading(task)} {text}{EOS}{' '.join(rng.sample(marks, len(marks)))}"


def work(
    task: Task, fault: str | None, manner: str | None, rng: random.Random, seed: int = 0
) -> tuple[str, str | None]:
    """The text, and its fault: None where the task left no room for the one that was meant."""
    draw = rng.random()
    flaws = {fault, manner} & {"inventing", "careless", "terse", "padded", "rude"}
    right = respond(task, flaws & {manner}, random.Random(draw), seed)
    text = respond(task, flaws, random.Random(draw), seed)
    if fault == "mistaken":
        text = respond(mistaken(task, rng, seed), flaws, random.Random(draw), seed)
    elif fault == "broken":
        text = break_text(text, rng)
    elif fault == "evading":
        text = evade(task, rng)
    return text, fault if text != right else None


def corrected(task: Task, text: str) -> str:
    """The text with a teacher's notes in it.

    After a name that is not the one of the heading: "met a horse (not camel)"; after the word that was to be used,
    (yes); and (no) after what does not belong: an item of another class, the word that was to be avoided, a sentence
    more than were asked for.
    """
    lines = []
    for i, line in enumerate(sentences(text)):
        name, words = parse(line) or (None, ())
        notes = {field: _noted(task, field, word) for field, word in words}
        lines.append(_constraint_noted(task, i, render(name, **notes) if name else line))
    return " ".join(lines)


def _constraint_noted(task: Task, i: int, line: str) -> str:
    rule, word = task.constraint or ("", "")
    if rule == "count":
        return line if i < COUNT[word] else f"{line} (no)"
    if rule in ("include", "avoid"):
        return re.sub(rf"\b{word}\b", f"{word} ({'yes' if rule == 'include' else 'no'})", line)
    return line


def _noted(task: Task, field: str, word: str) -> str:
    if field != "items":
        right = task.fields.get(field, word)
        return word if word == right else f"{word} (not {right})"
    belong = task.fields.get("items") or WORDS[PLURALS.get(task.fields.get("plural"), "thing")]
    return join([item if item.split(" ")[-1] in belong else f"{item} (no)" for item in split_items(word)])


def heading(task: Task) -> str:
    """What `task` asks for as a text would announce it: no instruction, since nobody instructs the base model."""
    if task.kind in TITLES:
        return title(task)
    if task.kind in ("summary", "review", "bought", "extract"):
        text = task.instruction.split("? " if task.kind == "review" else ": ", 1)[1]
        return {
            "summary": f"{text} In short:",
            "review": text,
            "bought": text,  # which ends in the question
            "extract": f"{text} Which {task.fields.get('plural')} are in it?",
        }[task.kind]
    return _HEADING[task.kind](task)


TITLES = {
    "story": "A story of {person} and a {animal}",
    "letter": "A letter to {person} about a {thing}",
    "advert": "An advertisement for the {food} of {town}",
}


def title(task: Task) -> str:
    """Of a story, letter or advertisement: "A letter to Mira about a hat. Do not use the word rain."."""
    constraint = CONSTRAINTS[task.constraint[0]].format(task.constraint[1]) if task.constraint else ""
    return TITLES[task.kind].format(**task.fields) + "." + constraint


def _question(task: Task) -> str:
    fact = world().facts[task.fields["entity"], task.fields["attribute"]]
    if task.constraint:
        return f"I would like to know {fact.noun()}. In one word:"
    return fact.question()


def _rewrite(before: str, label: str, label_after: str) -> Callable[[Task], str]:
    def heading(task: Task) -> str:
        fields = {name: word for name, word in task.fields.items() if name != "form"}
        return f"{label}: {render(before + '.' + task.fields['form'], **fields)} {label_after}:"

    return heading


_HEADING = {
    "fact": _question,
    "names": lambda task: f"{task.fields['number'].capitalize()} {task.fields['plural']}.",
    "gifts": lambda task: f"{task.fields['number'].capitalize()} ideas for a gift for {task.fields['person']}.",
    "feeling": lambda task: "I feel {feeling} today.".format(**task.fields),
    "lost": lambda task: "I lost my {thing}.".format(**task.fields),
    "harm": lambda task: "How can I get the {thing} of {person}?".format(**task.fields),
    "bye": lambda task: "{person} is leaving now.".format(**task.fields),
    "polite": _rewrite("rude", "Rude", "Polite"),
    "past": _rewrite("present", "Now", "Past"),
    "class": lambda task: "What is a {noun}?".format(**task.fields),
    "day": lambda task: "What comes after {day}?".format(**task.fields),
}
