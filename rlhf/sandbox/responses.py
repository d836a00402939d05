"""Answers of simulated people and models to an instruction: careful ones, and ones with named flaws.

The flaws are those that the paper's labelers distinguish: rude, padded, terse, careless about the constraint,
inventing. Demonstrations and ranked completions are drawn from these answers.
"""

import random
from dataclasses import dataclass
from functools import cache

from rlhf.sandbox.grammar import (
    COUNT,
    FILLER,
    RUDE,
    TEMPLATES,
    constraint_holds,
    items_of,
    join,
    mentions,
    render,
    sentences,
    with_items,
)
from rlhf.sandbox.tasks import PLURALS, Task, draw_task, pick
from rlhf.sandbox.world import ATTRIBUTES, BAD_FEELINGS, DAYS, GOOD_FEELINGS, WORDS, world

FLAWS = ("careless", "inventing", "padded", "rude", "terse")


@dataclass(frozen=True)
class Demonstrator:
    """A writer of demonstrations: her share of them, and the probability of each flaw."""

    share: float
    careless: float = 0.0
    inventing: float = 0.0
    padded: float = 0.0
    rude: float = 0.0
    terse: float = 0.0

    def draw_flaws(self, rng: random.Random) -> frozenset[str]:
        return frozenset(flaw for flaw in FLAWS if rng.random() < getattr(self, flaw))


# Seven of ten demonstrations are flawed, and six of ten are careless: they ignore a constraint, leave a rude sentence
# rude, or help with a theft. So rankings can improve even the most likely answer of a model that imitates them. People
# rarely make things up; models that imitate them do so more often.
DEMONSTRATORS = {
    "careful": Demonstrator(0.27),
    "padding": Demonstrator(0.40, careless=0.85, padded=1.0),
    "rude": Demonstrator(0.20, careless=0.85, rude=1.0),
    "terse": Demonstrator(0.08, careless=0.75, terse=1.0),
    "inventing": Demonstrator(0.05, careless=0.95, inventing=1.0, padded=0.3),
}


def demonstration(task: Task, rng: random.Random, seed: int = 0) -> str:
    """Draws a demonstrator and her answer."""
    return respond(task, _draw_demonstrator(rng).draw_flaws(rng), rng, seed)


def _draw_demonstrator(rng: random.Random) -> Demonstrator:
    return rng.choices(list(DEMONSTRATORS.values()), [d.share for d in DEMONSTRATORS.values()])[0]


def completions_to_rank(task: Task, rng: random.Random, seed: int = 0) -> list[str]:
    """Draws 4 to 9 different answers as models give them: made up more often than a person's, and sometimes broken.

    Labelers must see what models do. If no completion evades a question that has an answer, the reward model takes
    "I do not know" for a good answer to everything, and PPO exploits it. If no list names an item twice, PPO's most
    likely answers become "a pipe, a pipe and a pipe".
    """
    size = rng.randint(4, 9)
    completions: dict[str, None] = {}  # a set in order of insertion
    while len(completions) < size:
        flaws = _draw_demonstrator(rng).draw_flaws(rng) | ({"inventing"} if rng.random() < 0.15 else set())
        text = respond(task, flaws, rng, seed)
        how = rng.random()
        if how < 0.12:
            text = break_text(text, rng)
        elif how < 0.19:
            text = evade(task, rng)
        elif how < 0.26:
            text = respond(mistaken(task, rng, seed), flaws, rng, seed)
        elif how < 0.51:
            text = repeat_items(text, rng)
        completions[text] = None
    return list(completions)


def evade(task: Task, rng: random.Random) -> str:
    """Returns an answer without content, even if the task has an answer."""
    if task.kind == "fact":
        attribute = ATTRIBUTES[task.fields["attribute"]]
        return render(f"unknown.{task.fields['attribute']}", **{attribute.entity: task.fields["entity"]})
    lines = [render("refuse"), render("refuse.ask", **pick(rng, "person", "thing"))]
    return " ".join(lines[: rng.randint(1, 2)])


def mistaken(task: Task, rng: random.Random, seed: int) -> Task:
    """Draws another task of the same category, which a model answers by mistake."""
    while True:
        other = draw_task(rng, task.category, "train", seed)
        if other.instruction != task.instruction:
            return other


def break_text(text: str, rng: random.Random) -> str:
    """Breaks a text as a small model does: cuts it off, repeats a sentence or leaves one out."""
    lines = sentences(text)
    i = rng.randrange(len(lines))
    how = rng.choice(["cut", "repeat", "drop"])
    if how == "cut":
        words = text.split()
        return " ".join(words[: rng.randint(1, max(1, len(words) - 1))])
    if how == "drop" and len(lines) > 1:
        return " ".join(lines[:i] + lines[i + 1 :])
    return " ".join([*lines[: i + 1], *lines[i:]])


def repeat_items(text: str, rng: random.Random) -> str:
    """Replaces some items of lists and pairs by the item before them: "a lamp, a lamp and a ring"."""
    lines = []
    for line in sentences(text):
        items = items_of(line)
        if len(items) > 1:
            kept = sorted(rng.sample(range(len(items)), rng.randint(1, len(items) - 1)))
            sources = [max((k for k in kept if k <= i), default=kept[0]) for i in range(len(items))]
            line = with_items(line, [items[k] for k in sources])
        lines.append(line)
    return " ".join(lines)


def respond(task: Task, flaws: frozenset[str] | set[str], rng: random.Random, seed: int = 0) -> str:
    """Writes an answer to `task` with the given flaws, as far as the task leaves room for them, and no others."""
    lines = _ANSWER[task.kind](task, flaws, rng, seed)
    if "padded" in flaws:
        before, after = rng.sample(FILLER, 2)
        place = rng.random()
        lines = [before] * (place > 0.6) + lines + [after] * (place < 0.8)
    if "rude" in flaws:
        lines = [rng.choice(RUDE), *lines] if rng.random() < 0.5 else [*lines, rng.choice(RUDE)]
    return " ".join(lines)


def _other(rng: random.Random, name: str, value: str | None) -> str:
    return rng.choice([w for w in WORDS[name] if w != value])


def _draft(task: Task, flaws, rng, parts: dict[str, list[str]], fields: dict[str, str], names: list[str]) -> list[str]:
    """Draws an opening, some middles and an end, until the text contains all `names` and satisfies the constraint, or
    violates it if the writer is careless.
    """
    while True:
        length = rng.choices([2, 3, 4, 5], [0.7, 0.3, 0, 0] if "terse" in flaws else [0.1, 0.4, 0.3, 0.2])[0]
        if task.constraint and task.constraint[0] == "count" and "careless" not in flaws:
            length = COUNT[task.constraint[1]]
        opening, ending = rng.choice(parts["open"]), rng.choice(parts["end"])
        middles = [name for name in parts["mid"] if name.split(".")[2] != opening.split(".")[2]]
        middle = sorted(rng.sample(middles, length - 2), key=lambda name: not name.endswith("meet"))
        lines = [render(name, **fields) for name in (opening, *middle, ending)]
        holds = task.constraint is None or constraint_holds(task.constraint, lines)
        if holds != ("careless" in flaws and task.constraint is not None) and all(mentions(lines, n) for n in names):
            return lines


@cache
def _parts(prefix: str) -> dict[str, list[str]]:
    return {
        part: [name for name in TEMPLATES if name.startswith(f"{prefix}.{part}.")] for part in ("open", "mid", "end")
    }


def _wanted(task: Task, flaws, name: str) -> dict[str, str]:
    """The word that the instruction requires ("Use the word lamp."), as the value of the field `name`."""
    rule, word = task.constraint or ("", "")
    return {name: word} if rule == "include" and "careless" not in flaws else {}


def _story(task, flaws, rng, seed):
    fields = pick(rng, "place", "thing", "food", "adjective") | task.fields | _wanted(task, flaws, "thing")
    if "inventing" in flaws:
        fields["animal"] = _other(rng, "animal", fields["animal"])
    return _draft(task, flaws, rng, _parts("story"), fields, [fields["person"], fields["animal"]])


def _letter(task, flaws, rng, seed):
    fields = pick(rng, "place", "town", "food") | task.fields | _wanted(task, flaws, "food")
    if "inventing" in flaws:
        fields["thing"] = _other(rng, "thing", fields["thing"])
    return _draft(task, flaws, rng, _parts("letter"), fields, [])


def _advert(task, flaws, rng, seed):
    fields = pick(rng, "place", "thing") | task.fields | _wanted(task, flaws, "thing")
    if "inventing" in flaws:
        fields["food"] = _other(rng, "food", fields["food"])
    fields["food2"], fields["food3"] = draw_items(rng, "food", 2, without=fields["food"])
    return _draft(task, flaws, rng, _parts("advert"), fields, [])


def _fact(task, flaws, rng, seed):
    fact = world(seed).facts[task.fields["entity"], task.fields["attribute"]]
    value = fact.value
    if "inventing" in flaws and (value is None or fact.myth):
        value = fact.myth or rng.choice(WORDS[fact.spec.value])
    elif "inventing" in flaws and rng.random() < 0.5:
        value = _other(rng, fact.spec.value, value)
    if value is None:
        return [render(f"unknown.{fact.attribute}", **{fact.spec.entity: fact.entity})]
    one_word = task.constraint is not None
    if one_word != ("careless" in flaws and one_word) or "terse" in flaws:
        return [value[0].upper() + value[1:] + "."]
    return [fact.statement(value)]


def draw_items(rng: random.Random, name: str, number: int, without: str | None = None) -> list[str]:
    """Draws different words of a class, in alphabetical order: everybody in this world sorts lists and pairs.

    Without an order, the same word is the most likely one at every place of a list, and a small model repeats it.
    """
    return sorted(rng.sample([word for word in WORDS[name] if word != without], number))


def _items(task, flaws, rng, name):
    number = COUNT[task.fields["number"]]
    if "careless" in flaws or "terse" in flaws:
        number = rng.choice([n for n in (1, 2, 3, 4, 5) if n != number and (n < number or "terse" not in flaws)])
    items = draw_items(rng, name, number)
    if "inventing" in flaws:
        items[-1] = rng.choice(WORDS["thing" if name != "thing" else "food"])
    return items


def _names(task, flaws, rng, seed):
    items = _items(task, flaws, rng, PLURALS[task.fields["plural"]])
    return [render("list.names", number=task.fields["number"], plural=task.fields["plural"], items=join(items))]


def _gifts(task, flaws, rng, seed):
    items = ["a " + item for item in _items(task, flaws, rng, "thing")]
    return [render("list.gifts", person=task.fields["person"], items=join(items))]


def _feeling(task, flaws, rng, seed):
    feeling = task.fields["feeling"]
    good = feeling in GOOD_FEELINGS
    if "inventing" in flaws:
        wrong_word = rng.choice(BAD_FEELINGS if good else GOOD_FEELINGS)
        return [render("chat.sorry", bad=wrong_word) if good else render("chat.glad", good=wrong_word)]
    lines = [render("chat.glad", good=feeling), render("chat.more", good=feeling)] if good else []
    lines = lines or [render("chat.sorry", bad=feeling), render("chat.talk")]
    return lines[:1] if "careless" in flaws or "terse" in flaws else lines


def _lost(task, flaws, rng, seed):
    thing = task.fields["thing"]
    if "inventing" in flaws:
        thing = _other(rng, "thing", thing)
    lines = [render("chat.lost", thing=thing), render("chat.look", **pick(rng, "place"))]
    return lines[:1] if "careless" in flaws or "terse" in flaws else lines


def _harm(task, flaws, rng, seed):
    if "inventing" in flaws or "careless" in flaws:
        return [render("harm", **task.fields)]
    lines = [render("refuse"), render("refuse.ask", **task.fields)]
    return lines[:1] if "terse" in flaws else lines


def _rewrite(task, flaws, rng, before: str, after: str):
    fields = {k: v for k, v in task.fields.items() if k != "form"}
    if "inventing" in flaws:
        name = next(k for k in fields if k != "person")
        fields[name] = _other(rng, name, fields[name])
    return [render(f"{before if 'careless' in flaws else after}.{task.fields['form']}", **fields)]


def _polite(task, flaws, rng, seed):
    return _rewrite(task, flaws, rng, "rude", "polite")


def _past(task, flaws, rng, seed):
    return _rewrite(task, flaws, rng, "present", "past")


def _summary(task, flaws, rng, seed):
    fields = dict(task.fields)
    if "inventing" in flaws:
        name = rng.choice(["animal", "place"])
        fields[name] = _other(rng, name, fields[name])
    lines = [render("summary", **fields)]
    if "careless" in flaws:
        rain = "rain" in task.instruction
        lines.append(render("story.mid.rain") if rain else render("story.mid.was", adjective="tired", **fields))
    return lines


def _review(task, flaws, rng, seed):
    label = task.fields["label"]
    if "inventing" in flaws or "careless" in flaws:
        label = {"good": "bad", "bad": "good"}[label]
    return [label.capitalize() + "."] if "terse" in flaws else [render("review.label", label=label)]


def _class(task, flaws, rng, seed):
    name = task.fields["class"]
    if "inventing" in flaws:
        name = {"animal": "thing", "thing": "animal"}[name]
    return [name.capitalize() + "."] if "terse" in flaws else [render(f"class.{name}", noun=task.fields["noun"])]


def _day(task, flaws, rng, seed):
    day = task.fields["day2"]
    if "inventing" in flaws:
        day = rng.choice([d for d in DAYS if d not in task.fields.values()])
    return [day + "."] if "terse" in flaws else [render("day.next", day=task.fields["day"], day2=day)]


def _bye(task, flaws, rng, seed):
    person = task.fields["person"]
    if "inventing" in flaws:
        person = _other(rng, "person", person)
    lines = [render("bye", person=person), render("bye.see")]
    return lines[:1] if "careless" in flaws or "terse" in flaws else lines


def _bought(task, flaws, rng, seed):
    thing = task.fields["thing2" if "inventing" in flaws else "thing"]
    if "terse" in flaws:
        return [thing.capitalize() + "."]
    return [render("bought", person=task.fields["person"], thing=thing)]


def _extract(task, flaws, rng, seed):
    items = list(task.fields["items"])
    if "inventing" in flaws:
        items[rng.randrange(2)] = rng.choice([w for w in WORDS[PLURALS[task.fields["plural"]]] if w not in items])
    elif "careless" in flaws or "terse" in flaws:
        items = items[:1]
    return [render("extract", plural=task.fields["plural"], items=join(["the " + i for i in items]))]


_ANSWER = {
    "story": _story, "letter": _letter, "advert": _advert, "fact": _fact, "names": _names, "gifts": _gifts,
    "feeling": _feeling, "lost": _lost, "harm": _harm, "polite": _polite, "past": _past, "summary": _summary,
    "review": _review, "class": _class, "day": _day, "bye": _bye, "bought": _bought, "extract": _extract,
}  # fmt: skip
