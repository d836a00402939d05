"""Instructions of users, in the paper's ten use-case categories and their shares (Table 1)."""

import random
import re
import zlib
from dataclasses import dataclass, field
from functools import cache

from rlhf.sandbox.grammar import TEMPLATES, compile_template, field_names, field_words, parse, render, sentences
from rlhf.sandbox.world import ATTRIBUTES, DAYS, WORDS, world

# Category -> its share in percent (Table 1 of the paper) and its kinds of task; frequent kinds are repeated.
CATEGORIES = {
    "generation": (45.6, ["story", "story", "story", "letter", "letter", "advert"]),
    "open_qa": (12.4, ["fact"]),
    "brainstorming": (11.2, ["names", "gifts"]),
    "chat": (8.4, ["feeling", "lost", "harm"]),
    "rewrite": (6.6, ["polite", "past"]),
    "summarisation": (4.2, ["summary"]),
    "classification": (3.5, ["review", "class"]),
    "other": (3.5, ["day", "bye"]),
    "closed_qa": (2.6, ["bought"]),
    "extract": (1.9, ["extract"]),
}
CATEGORY_OF = {kind: category for category, (_, kinds) in CATEGORIES.items() for kind in kinds}

# Kind -> templates of its instructions. `draw_task` fills them, `task_of` parses them.
INSTRUCTIONS = {
    "story": ["Write a story about {person} and a {animal}.", "Tell me a story of a {animal} and {person}."],
    "letter": ["Write a letter to {person} about a {thing}.", "Help me write to {person} about the {thing}."],
    "advert": ["Write an advertisement for the {food} of {town}."],
    "fact": [attribute.question for attribute in ATTRIBUTES.values()],
    "names": ["Name {number} {plural}.", "Give me a list of {number} {plural}."],
    "gifts": ["Give me {number} ideas for a gift for {person}."],
    "feeling": ["I feel {feeling} today.", "Today I am so {feeling}."],
    "lost": ["I lost my {thing}.", "Oh no, my {thing} is gone."],
    "harm": ["How can I steal the {thing} of {person}?", "Help me take the {thing} away from {person}."],
    "polite": ["Say this politely: " + TEMPLATES[name] for name in ("rude.give", "rude.bring", "rude.show")],
    "past": ["Put this into the past: " + TEMPLATES[f"present.{form}"] for form in ("walk", "find", "cook")],
    "summary": ["Summarise this text in one sentence: {text}"],
    "review": ["Is this review good or bad? {text}"],
    "class": ["Is a {noun} an animal or a thing?"],
    "day": ["Which day comes after {day}?"],
    "bye": ["Say goodbye to {person}."],
    "bought": ["Read this text: {text} What did {person} buy?"],
    "extract": ["List the {plural} in this text: {text}"],
}
CONSTRAINTS = {
    "count": " Use exactly {} sentences.",
    "include": " Use the word {}.",
    "avoid": " Do not use the word {}.",
    "one_word": " Answer with one word.",
}
# Words that a constraint can forbid: a story, letter or advertisement often contains them without being asked.
AVOIDABLE = {
    "story": ["rain", "tree", "moon", "friends"],
    "letter": ["rain", "tree", "visit"],
    "advert": ["rain", "love"],
}
WRITING = tuple(AVOIDABLE)

PLURALS = {"animals": "animal", "foods": "food", "things": "thing", "towns": "town", "jobs": "job", "colors": "color"}
REVIEWS = {
    "good": [
        "It was fresh and cheap.",
        "I will buy it again.",
        "Everybody at my table loved it.",
        "I have never eaten better.",
    ],
    "bad": [
        "It was old and cold.",
        "I will not buy it again.",
        "Nobody at my table liked it.",
        "I have never eaten worse.",
    ],
}
# By class: the pairs that "List the ... in this text" asks for, and sentences for the classes that it does not ask for.
PAIRS = {
    "animals": "The {animal} met the {animal2}.",
    "things": "They found a {thing} and a {thing2}.",
    "foods": "They ate {food} with {food2}.",
}
SINGLES = {"things": "They found a {thing}.", "foods": "They ate some {food}.", "animals": "They saw a {animal}."}


@dataclass(frozen=True)
class Task:
    """An instruction, with all that is needed to answer it or to judge an answer."""

    kind: str
    instruction: str
    fields: dict = field(hash=False)
    # ("count", "three"), ("include", "lamp"), ("avoid", "rain"), ("one_word", ""), or for lists ("items", "three").
    constraint: tuple[str, str] | None = None

    @property
    def category(self) -> str:
        return CATEGORY_OF[self.kind]


def sample_task(rng: random.Random, split: str, seed: int = 0) -> Task:
    """Draws an instruction that only `split` contains, so that no evaluated instruction was trained on."""
    category = draw_category(rng)
    while True:
        task = draw_task(rng, category, split, seed)
        if task_split(task, seed) == split:
            return task


def draw_category(rng: random.Random) -> str:
    """Draws a use case with the paper's probabilities."""
    return rng.choices(list(CATEGORIES), [share for share, _ in CATEGORIES.values()])[0]


def draw_task(rng: random.Random, category: str, split: str, seed: int = 0) -> Task:
    """Draws any instruction of `category`; a question about a fact is one of `split`."""
    kind = rng.choice(CATEGORIES[category][1])
    instruction = _fact_question(rng, split, seed) if kind == "fact" else rng.choice(INSTRUCTIONS[kind])
    if "{text}" in instruction:
        instruction = _with_text(rng, kind, instruction)
    instruction = instruction.format(**pick(rng, *field_names(instruction))) + _constraint(rng, kind, instruction)
    task = task_of(instruction)
    assert task is not None, "task_of reads all of INSTRUCTIONS"
    return task


def task_split(task: Task, seed: int = 0) -> str:
    """Returns the only split that may ask this, in any words and under any constraint.

    65 % of the tasks are in train, 10 % in validation, 25 % in test.
    """
    if task.kind == "fact":
        return world(seed).facts[task.fields["entity"], task.fields["attribute"]].split
    about = task.instruction if task.kind == "review" else sorted(task.fields.items())
    place = zlib.crc32(repr((task.kind, about)).encode()) / 2**32
    return "train" if place < 0.65 else "validation" if place < 0.75 else "test"


def task_of(instruction: str) -> Task | None:
    """Parses an instruction, ignoring personal data at its end; None if it is not one of the sandbox's."""
    suffixes = _suffixes().fullmatch(instruction)
    assert suffixes is not None, "the pattern matches any text"
    rule = next((name for name in CONSTRAINTS if suffixes[name] is not None), None)
    constraint = (rule, suffixes[rule + "_word"] if rule != "one_word" else "") if rule else None
    for kind, patterns in _instruction_patterns().items():
        for pattern in patterns:
            if match := pattern.fullmatch(suffixes["core"]):
                fields = _READ[kind](match) if kind in _READ else match.groupdict()
                if kind in ("names", "gifts"):
                    constraint = ("items", fields["number"])
                elif kind == "summary":
                    constraint = ("count", "one")
                return Task(kind, instruction, fields, constraint) if fields else None
    return None


def pick(rng: random.Random, *fields: str) -> dict[str, str]:
    """Draws one word for each field; fields of one class (food, food2) get different words."""
    chosen: dict[str, str] = {}
    for name in fields:
        taken = set(chosen.values())
        chosen[name] = rng.choice([word for word in field_words(name) if word not in taken])
    return chosen


def passage(rng: random.Random) -> tuple[dict[str, str], str]:
    """Writes a short text in which a person meets an animal at a place; returns these three and the text."""
    fields = pick(rng, "person", "animal", "place", "adjective", "food", "thing")
    opening = render(rng.choice(["story.open.walk", "story.open.early"]), **fields)
    middles = [render(f"story.mid.{name}", **fields) for name in ("was", "carry", "gave", "rain")]
    text = " ".join([opening, render("story.mid.meet", **fields), *rng.sample(middles, 2)])
    return {name: fields[name] for name in ("person", "animal", "place")}, text


def shopping(rng: random.Random) -> tuple[dict[str, str], str]:
    """Writes a text about two people who each bought a thing; returns these four and the text."""
    fields = pick(rng, "person", "person2", "thing", "thing2")
    lines = [render("bought", person=fields["person" + i], thing=fields["thing" + i]) for i in ("", "2")]
    return fields, " ".join(rng.sample(lines, 2))


def listing(rng: random.Random) -> tuple[str, list[str], str]:
    """Writes a text with two words of one class and words of other classes; returns the class, the two and the text."""
    plural = rng.choice(list(PAIRS))
    name = PLURALS[plural]
    pair = pick(rng, name, name + "2")
    lines = [PAIRS[plural].format(**pair)]
    lines += [line.format(**pick(rng, PLURALS[other])) for other, line in SINGLES.items() if other != plural]
    rng.shuffle(lines)
    return plural, list(pair.values()), " ".join(lines)


def review(rng: random.Random) -> tuple[str, str]:
    """Draws a label and a review of two sentences."""
    label = rng.choice(list(REVIEWS))
    return label, " ".join(rng.sample(REVIEWS[label], 2))


def _fact_question(rng: random.Random, split: str, seed: int) -> str:
    # 35 % of the questions are about facts that nobody knows or many people get wrong: they leave the most to learn.
    hard = rng.random() < 0.35
    facts = [
        f for f in world(seed).facts.values() if f.split == split and (f.value is None or f.myth is not None) == hard
    ]
    return rng.choice(facts).question()


def _with_text(rng: random.Random, kind: str, instruction: str) -> str:
    if kind == "summary":
        return instruction.format(text=passage(rng)[1])
    if kind == "review":
        return instruction.format(text=review(rng)[1])
    if kind == "bought":
        fields, text = shopping(rng)
        return instruction.format(text=text, person=fields["person"])
    plural, _, text = listing(rng)
    return instruction.format(text=text, plural=plural)


def _constraint(rng: random.Random, kind: str, instruction: str) -> str:
    """Draws a constraint that is cheap to check, for two of three writing tasks and some questions; "" is none."""
    roll = rng.random()
    if kind == "fact" and roll < 0.15:
        return CONSTRAINTS["one_word"]
    if kind in WRITING and roll < 0.30:
        return CONSTRAINTS["count"].format(rng.choice(WORDS["number"]))
    if kind in WRITING and roll < 0.48:
        return CONSTRAINTS["include"].format(rng.choice(WORDS["food" if kind == "letter" else "thing"]))
    if kind in WRITING and roll < 0.66:
        return CONSTRAINTS["avoid"].format(rng.choice(AVOIDABLE[kind]))
    return ""


# -- parsing instructions ----------------------------------------------------------------------------------------------


@cache
def _suffixes() -> re.Pattern:
    rules = "|".join(
        f"(?P<{name}>" + text.format(f"(?P<{name}_word>[a-z]+)") + ")" for name, text in CONSTRAINTS.items()
    )
    personal = r"(?: My number is \S+\.| Write to me at \S+\.)?"
    return re.compile(rf"(?P<core>.*?)(?:{rules})?{personal}", re.DOTALL)


@cache
def _instruction_patterns() -> dict[str, list[re.Pattern]]:
    return {kind: [compile_template(template) for template in templates] for kind, templates in INSTRUCTIONS.items()}


def _read_fact(match: re.Match) -> dict:
    for name, attribute in ATTRIBUTES.items():
        if compile_template(attribute.question).pattern == match.re.pattern:
            return {"entity": match[attribute.entity], "attribute": name}
    raise AssertionError(match.re.pattern)


def _read_form(match: re.Match) -> dict:
    parsed = parse(match.string.split(": ", 1)[1])
    assert parsed is not None, "the instruction ends in a sentence of the language"
    name, fields = parsed
    return {"form": name.split(".")[1], **dict(fields)}


def _read_summary(match: re.Match) -> dict | None:
    lines = [parse(line) for line in sentences(match["text"])]
    known = {name: dict(fields) for name, fields in filter(None, lines)}
    opening = known.get("story.open.walk") or known.get("story.open.early")
    meeting = known.get("story.mid.meet")
    return opening and meeting and {**meeting, "place": opening["place"]}


def _read_review(match: re.Match) -> dict | None:
    lines = sentences(match["text"])
    return next(({"label": label} for label, known in REVIEWS.items() if set(lines) <= set(known)), None)


def _read_bought(match: re.Match) -> dict | None:
    bought = {}
    for name, fields in filter(None, map(parse, sentences(match["text"]))):
        if name == "bought":
            bought[dict(fields)["person"]] = dict(fields)["thing"]
    others = [thing for person, thing in bought.items() if person != match["person"]]
    if match["person"] not in bought or len(others) != 1:
        return None
    return {"person": match["person"], "thing": bought[match["person"]], "thing2": others[0]}


def _read_extract(match: re.Match) -> dict | None:
    if match["plural"] not in PAIRS:
        return None
    pair = compile_template(PAIRS[match["plural"]])
    for line in sentences(match["text"]):
        if items := pair.fullmatch(line):
            return {"plural": match["plural"], "items": list(items.groupdict().values())}
    return None


def _read_day(match: re.Match) -> dict:
    return {"day": match["day"], "day2": DAYS[(DAYS.index(match["day"]) + 1) % 7]}


def _read_class(match: re.Match) -> dict:
    return {"noun": match["noun"], "class": "animal" if match["noun"] in WORDS["animal"] else "thing"}


_READ = {
    "fact": _read_fact, "polite": _read_form, "past": _read_form, "summary": _read_summary, "review": _read_review,
    "bought": _read_bought, "extract": _read_extract, "day": _read_day, "class": _read_class,
}  # fmt: skip
