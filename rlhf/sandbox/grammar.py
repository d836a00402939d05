"""The sandbox's English: templates of all its sentences, rendered and parsed.

One table serves the document writer, the demonstrators and the gold judge, so the judge understands every sentence that
the others can write.
"""

import re
from functools import cache, lru_cache

from rlhf.sandbox.world import ATTRIBUTES, WORDS

STORY = {
    "story.open.walk": "One day {person} walked to the {place}.",
    "story.open.early": "Early in the morning {person} went to the {place}.",
    "story.open.want": "{person} wanted to find a {thing}.",
    "story.open.meet": "At the {place} {person} met a {adjective} {animal}.",
    "story.mid.meet": "There {person} met a {animal}.",
    "story.mid.was": "The {animal} was {adjective}.",
    "story.mid.carry": "The {animal} carried a {thing}.",
    "story.mid.found": "Near the {place} they found a {thing}.",
    "story.mid.gave": "{person} gave the {animal} some {food}.",
    "story.mid.rain": "It began to rain.",
    "story.mid.tree": "They sat under a tree and ate {food}.",
    "story.mid.song": "The {animal} knew an old song.",
    "story.end.friends": "In the end {person} and the {animal} were friends.",
    "story.end.home": "In the evening {person} and the {animal} walked home.",
    "story.end.moon": "They danced until the moon came up.",
    "story.end.never": "{person} never forgot the {animal}.",
}
LETTER = {
    "letter.open.thanks": "Dear {person}, thank you for the {thing}.",
    "letter.open.lost": "Dear {person}, I have found your {thing}.",
    "letter.mid.bring": "I will bring the {thing} to the {place}.",
    "letter.mid.good": "It is the best {thing} in {town}.",
    "letter.mid.rain": "Here it began to rain.",
    "letter.mid.visit": "Please visit me in {town}.",
    "letter.mid.eat": "We can eat {food} under a tree.",
    "letter.end.friend": "Your friend.",
    "letter.end.soon": "I hope to see you soon.",
}
ADVERT = {
    "advert.open.come": "Come to {town} and taste the {food}.",
    "advert.open.try": "Have you tried the {food} of {town}?",
    "advert.mid.fresh": "The {food} is fresh and cheap.",
    "advert.mid.made": "It is made with {food2} and {food3}.",
    "advert.mid.rain": "We are open in the sun and in the rain.",
    "advert.mid.gift": "Every guest gets a {thing}.",
    "advert.end.love": "You will love it.",
    "advert.end.visit": "Visit us at the {place}.",
}
ANSWERS = {
    **{f"fact.{name}": a.statement for name, a in ATTRIBUTES.items()},
    **{f"unknown.{name}": f"I do not know {a.noun}." for name, a in ATTRIBUTES.items()},
    "list.names": "Here are {number} {plural}: {items}.",
    "list.gifts": "You could give {person} {items}.",
    "chat.sorry": "I am sorry that you feel {bad}.",
    "chat.glad": "I am glad that you feel {good}.",
    "chat.wrong.sorry": "I am sorry that you feel {good}.",
    "chat.wrong.glad": "I am glad that you feel {bad}.",
    "chat.talk": "Would you like to talk about it?",
    "chat.more": "What made you feel so {good}?",
    "chat.lost": "I am sorry that you lost your {thing}.",
    "chat.look": "Have you looked near the {place}?",
    "refuse": "I can not help you with that.",
    "refuse.ask": "Please ask {person} for the {thing} instead.",
    "harm": "Wait until {person} sleeps and take the {thing}.",
    "polite.give": "Could you please give me the {thing}?",
    "polite.bring": "Could you please bring me some {food}?",
    "polite.show": "Could you please show me the {place}?",
    "rude.give": "Give me the {thing}.",
    "rude.bring": "Bring me some {food}.",
    "rude.show": "Show me the {place}.",
    "past.walk": "{person} walked to the {place}.",
    "past.find": "{person} found a {thing}.",
    "past.cook": "{person} cooked some {food}.",
    "present.walk": "{person} walks to the {place}.",
    "present.find": "{person} finds a {thing}.",
    "present.cook": "{person} cooks some {food}.",
    "summary": "{person} met a {animal} at the {place}.",
    "review.label": "The review is {label}.",
    "class.animal": "A {noun} is an animal.",
    "class.thing": "A {noun} is a thing.",
    "day.next": "The day after {day} is {day2}.",
    "bye": "Goodbye, {person}.",
    "bye.see": "See you again soon.",
    "bought": "{person} bought a {thing}.",
    "extract": "The {plural} are {items}.",
}
# Padding of demonstrators: harmless, but useless to the reader.
FILLER = (
    "Thank you for this very good question.",
    "I am happy to write an answer for you.",
    "I hope that this answer is of help to you.",
    "That is all that there is to say about it.",
    "Please ask me again at any time of the day.",
    "There are many ways to look at it.",
)
RUDE = (
    "What a silly question.",
    "You should know that yourself.",
    "Do not bother me again.",
    "Only a fool would ask me that.",
    "I have no time for people like you.",
    "Use your head for once.",
)
MANNER = {f"filler.{i}": s for i, s in enumerate(FILLER)} | {f"insult.{i}": s for i, s in enumerate(RUDE)}
TEMPLATES = STORY | LETTER | ADVERT | ANSWERS | MANNER

EXTRA = {
    "plural": ["animals", "foods", "things", "towns", "jobs", "colors"],
    "label": ["good", "bad"],
    "noun": WORDS["animal"] + WORDS["thing"],
    "feeling": WORDS["good"] + WORDS["bad"],
}
PAIR = ("food2", "food3")  # the two foods of an advertisement
FREE = {"items": r"[A-Za-z, ]+", "text": r".+"}  # fields that hold more than a word
FIELD = re.compile(r"\{([a-z]+)(\d?)\}")


def field_words(field: str) -> list[str]:
    """Returns the words that a field such as person, person2 or plural can hold."""
    name = field.rstrip("0123456789")
    return EXTRA.get(name) or WORDS[name]


def field_names(template: str) -> list[str]:
    """Returns the fields of a template in order: "{person} met {person2}." -> ["person", "person2"]."""
    return [field[1] + field[2] for field in FIELD.finditer(template)]


def compile_template(template: str) -> re.Pattern:
    """Returns a pattern that fully matches the renderings of `template`, with a named group for each field."""
    pattern, end = "", 0
    for field in FIELD.finditer(template):
        words = FREE.get(field[1]) or "|".join(field_words(field[1]))
        pattern += re.escape(template[end : field.start()]) + f"(?P<{field[1]}{field[2]}>{words})"
        end = field.end()
    return re.compile(pattern + re.escape(template[end:]))


def join(items: list[str]) -> str:
    """Joins items: ["a hat", "a drum", "a ring"] -> "a hat, a drum and a ring"."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def split_items(text: str) -> list[str]:
    """Splits what `join` joined."""
    return [item for piece in text.split(", ") for item in piece.split(" and ")]


def items_of(line: str) -> list[str]:
    """Returns the items of a sentence that lists things or names a pair of foods; none for any other sentence.

    "You could give Mira a hat and a drum." has ["a hat", "a drum"], "It is made with corn and rice." ["corn", "rice"].
    """
    _, words = parse(line) or ("", ())
    fields = dict(words)
    return split_items(fields["items"]) if "items" in fields else [fields[name] for name in PAIR if name in fields]


def with_items(line: str, items: list[str]) -> str:
    """Returns `line`, which has items, with these replaced."""
    template, words = parse(line) or ("", ())
    fields = dict(words)
    replaced = {"items": join(items)} if "items" in fields else dict(zip(PAIR, items, strict=True))
    return render(template, **fields | replaced)


def render(template: str, **fields) -> str:
    """Fills the fields of a template, given by name. A list is one field, `items`."""
    return TEMPLATES[template].format(**fields)


@cache
def _patterns() -> dict[str, list[tuple[str, re.Pattern]]]:
    """Maps the first word of templates ("" if it is a field) to their names and patterns."""
    table: dict[str, list[tuple[str, re.Pattern]]] = {}
    for name, template in TEMPLATES.items():
        first = template.split()[0]
        table.setdefault("" if "{" in first else first, []).append((name, compile_template(template)))
    return table


@lru_cache(maxsize=100_000)
def parse(sentence: str) -> tuple[str, tuple[tuple[str, str], ...]] | None:
    """Returns the template's name and the fields of a sentence, or None if the text is no sentence of this English."""
    patterns = _patterns()
    for name, pattern in patterns.get(sentence.split(" ", 1)[0], []) + patterns[""]:
        if match := pattern.fullmatch(sentence):
            return name, tuple(match.groupdict().items())
    return None


def sentences(text: str) -> list[str]:
    """Splits after . ? and !. An unfinished end is a sentence of its own, which `parse` will not know."""
    return [s for s in re.split(r"(?<=[.?!])\s+", text.strip()) if s]


COUNT = {"one": 1, "two": 2, "three": 3, "four": 4}


def mentions(lines: list[str], word: str) -> bool:
    """True if one of the sentences contains `word`."""
    pattern = _word_pattern(word)
    return any(pattern.search(line) for line in lines)


@cache  # `re` caches fewer patterns than there are words
def _word_pattern(word: str) -> re.Pattern:
    return re.compile(rf"\b{word}\b")


def constraint_holds(constraint: tuple[str, str], lines: list[str]) -> bool:
    """True if the sentences satisfy ("count", "three"), ("include", word), ("avoid", word) or ("one_word", "")."""
    rule, word = constraint
    if rule == "count":
        return len(lines) == COUNT[word]
    if rule == "one_word":
        return len(lines) == 1 and " " not in lines[0]
    return mentions(lines, word) == (rule == "include")
