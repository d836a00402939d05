"""Graded work: an answer and its grades. The base model learns from it to judge, before anybody ranks for it.

A model of billions of parameters has read reviews, corrections and grades. A reward model that starts from it only has
to learn which of the faults it sees people mind. Without graded work the sandbox's base sees no fault, and with too
little of it no wrong name: docs/sandbox.md shows how its grades improve with training.

The grades depend on how the answer was written, not on the gold judge. They name a fault, not how much it matters.
"""

import random
import re
from collections.abc import Callable

from rlhf.sandbox.grammar import COUNT, join, parse, render, sentences, split_items
from rlhf.sandbox.responses import break_text, evade, mistaken, respond
from rlhf.sandbox.tasks import CONSTRAINTS, PLURALS, Task, draw_category, draw_task
from rlhf.sandbox.world import WORDS, world

EOS = "<|eos|>"  # ends every document; the grades follow the work as a document of their own

GRADES = {
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
# Weights of the intended faults. A work has at most one of them, and at most one of the manners besides. Much of it
# turns out right: a story without a constraint leaves nothing to be careless about. No list names an item twice. With
# a repeated item in one list of ten, a repetition was as likely as any other item, so the most likely list of the base
# and of every model trained from it was "a cup, a cup and a cup".
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


def graded_work(rng: random.Random, seed: int = 0) -> str:
    """Draws a heading, an answer to it, EOS and the grades: one word for each fault, in random order."""
    fault, manner = (rng.choices(list(table), list(table.values()))[0] for table in (FAULTS, MANNERS))
    task = draw_task(rng, draw_category(rng), rng.choice(["train", "validation", "test"]), seed)
    manner = None if fault == "evading" else manner
    text, fault = answer_with_fault(task, fault, manner, rng, seed)
    if rng.random() < 0.5:
        text = corrected(task, text)
    grades = [GRADES[name] for name in (fault, manner) if name] or [GRADES[None]]
    return f"{heading(task)} {text}{EOS}{' '.join(rng.sample(grades, len(grades)))}"


def answer_with_fault(
    task: Task, fault: str | None, manner: str | None, rng: random.Random, seed: int = 0
) -> tuple[str, str | None]:
    """Writes an answer; returns its text and its fault, None if the task left no room for `fault`."""
    draw = rng.random()
    flaws = {"inventing", "careless", "terse", "padded", "rude"} & {fault, manner}
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
    """Adds corrections to the text.

    A name that differs from the heading's is followed by the right one: "met a horse (not camel)". The word that the
    task requires is followed by (yes). What does not belong is followed by (no): an item of another class, the word
    that the task forbids, a sentence beyond the number asked for.
    """
    lines = []
    for i, line in enumerate(sentences(text)):
        name, words = parse(line) or (None, ())
        notes = {field: _note_field(task, field, word) for field, word in words}
        lines.append(_note_constraint(task, i, render(name, **notes) if name else line))
    return " ".join(lines)


def _note_constraint(task: Task, i: int, line: str) -> str:
    rule, word = task.constraint or ("", "")
    if rule == "count":
        return line if i < COUNT[word] else f"{line} (no)"
    if rule in ("include", "avoid"):
        return re.sub(rf"\b{word}\b", f"{word} ({'yes' if rule == 'include' else 'no'})", line)
    return line


def _note_field(task: Task, field: str, word: str) -> str:
    if field != "items":
        right = task.fields.get(field, word)
        return word if word == right else f"{word} (not {right})"
    belong = task.fields.get("items") or WORDS[PLURALS.get(task.fields.get("plural", ""), "thing")]
    return join([item if item.split(" ")[-1] in belong else f"{item} (no)" for item in split_items(word)])


def heading(task: Task) -> str:
    """Announces what `task` asks for as a text would. Not an instruction: nobody instructs the base model."""
    if task.kind in TITLES:
        return title(task)
    if task.kind in ("summary", "review", "bought", "extract"):
        text = task.instruction.split("? " if task.kind == "review" else ": ", 1)[1]
        return {
            "summary": f"{text} In short:",
            "review": text,
            "bought": text,  # ends with the question
            "extract": f"{text} Which {task.fields.get('plural')} are in it?",
        }[task.kind]
    return _HEADING[task.kind](task)


TITLES = {
    "story": "A story of {person} and a {animal}",
    "letter": "A letter to {person} about a {thing}",
    "advert": "An advertisement for the {food} of {town}",
}


def title(task: Task) -> str:
    """Title of a story, letter or advertisement: "A letter to Mira about a hat. Do not use the word rain."."""
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
