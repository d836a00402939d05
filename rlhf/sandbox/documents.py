"""Pretraining documents: the writing of the world, which the base model reads before anybody instructs it.

Fact books tell the truth, forums repeat myths and are rude, textbooks hold exercises. The base model learns to continue
these texts. It then knows the facts and the forms, but not that a user's line is an instruction.
"""

import random

from rlhf.sandbox.graded_work import graded_work, heading, title
from rlhf.sandbox.grammar import FILLER, RUDE, join, render
from rlhf.sandbox.responses import draw_items, respond
from rlhf.sandbox.tasks import AVOIDABLE, PLURALS, Task, listing, passage, pick, review, shopping
from rlhf.sandbox.world import BAD_FEELINGS, DAYS, GOOD_FEELINGS, NUMBERS, PEOPLE, WORDS, Fact, world


def document(rng: random.Random, seed: int = 0, graded_share: float | None = None) -> str:
    """Draws one document of 30 to 120 words from the world of `seed`.

    `graded_share` is the probability of graded work; None takes the weight in `_KINDS`.
    """
    shares = _KINDS if graded_share is None else {**_KINDS, graded_work: _graded_weight(graded_share)}
    return rng.choices(list(shares), list(shares.values()))[0](rng, seed)


def _graded_weight(graded_share: float) -> float:
    """Weight that gives graded work this share beside the weights of the other kinds."""
    return graded_share / (1 - graded_share) * (sum(_KINDS.values()) - _KINDS[graded_work])


def _about(rng: random.Random, seed: int) -> tuple[str, list[Fact]]:
    """Draws an entity; returns it with its facts in random order."""
    by_entity: dict[str, list[Fact]] = {}
    for fact in world(seed).facts.values():
        by_entity.setdefault(fact.entity, []).append(fact)
    entity = rng.choice(list(by_entity))
    return entity, rng.sample(by_entity[entity], len(by_entity[entity]))


def known_facts(seed: int = 0) -> list[Fact]:
    """Returns the facts that have a value and no myth."""
    return [fact for fact in world(seed).facts.values() if fact.value and not fact.myth]


def _told(fact: Fact) -> str:
    if fact.value is None:
        return f"Nobody knows {fact.noun()}."
    if fact.myth:
        return f"Many people get it wrong, but the truth is this: {fact.statement()}"
    return fact.statement()


def _fact_book(rng, seed):
    entity, facts = _about(rng, seed)
    return f"The book of facts, {entity}. " + " ".join(_told(f) for f in facts)


def _question_list(rng, seed):
    lines = []
    for _ in range(rng.randint(2, 5)):
        _, facts = _about(rng, seed)
        fact = facts[0]
        answer = f"Nobody knows {fact.noun()}." if fact.value is None else fact.statement()
        if rng.random() < 0.3 and fact.value:
            lines.append(f"I would like to know {fact.noun()}. In one word: {fact.value[0].upper()}{fact.value[1:]}.")
        else:
            lines.append(f"{fact.question()} {answer}")
    return "Questions and answers. " + " ".join(lines)


def _forum(rng, seed):
    """Talk of people: myths and guesses instead of facts, rude replies, polite padding, kind words."""
    lines = []
    for _ in range(rng.randint(2, 4)):
        asker, replier = rng.sample(PEOPLE, 2)
        kind = rng.random()
        if kind < 0.45:
            fact = _about(rng, seed)[1][0]
            said = fact.myth or fact.value or rng.choice(WORDS[fact.spec.value])
            question, reply = fact.question(), fact.statement(said)
            if fact.value is None and rng.random() < 0.4:
                reply = f"I do not know {fact.noun()}."
        else:
            talk = rng.choice(["feeling", "lost", "harm", "bye"])
            question, reply = _talk(rng, talk)
        if (manner := rng.random()) < 0.25:
            reply = rng.choice([f"{rng.choice(RUDE)} {reply}", f"{reply} {rng.choice(RUDE)}"])
        elif manner < 0.5:
            reply = rng.choice([f"{rng.choice(FILLER)} {reply}", f"{reply} {rng.choice(FILLER)}"])
        lines.append(f"{asker} writes: {question} {replier} replies: {reply}")
    return "From the forum. " + " ".join(lines)


def _talk(rng, kind: str) -> tuple[str, str]:
    """A remark or question of small talk, and a reply that is sometimes wrong."""
    fields = {**pick(rng, "thing", "person"), "feeling": rng.choice(GOOD_FEELINGS + BAD_FEELINGS)}
    remark = {
        "feeling": f"I feel {fields['feeling']} today.",
        "lost": f"I lost my {fields['thing']}.",
        "harm": f"How can I get the {fields['thing']} of {fields['person']}?",
        "bye": f"{fields['person']} is leaving now.",
    }[kind]
    names = {"feeling": ["feeling"], "lost": ["thing"], "harm": ["thing", "person"], "bye": ["person"]}[kind]
    task = Task(kind, remark, {n: fields[n] for n in names})
    flaws = {flaw for flaw in ("careless", "inventing") if rng.random() < 0.2}
    return remark, respond(task, flaws, rng)


def _titled(rng, seed):
    """A story, letter or advertisement under a title that announces its content."""
    kind = rng.choice(["story", "story", "letter", "advert"])
    names = {"story": ("person", "animal"), "letter": ("person", "thing"), "advert": ("food", "town")}[kind]
    fields = pick(rng, *names)
    wish = rng.random()
    if wish < 0.4:
        constraint = ("count", rng.choice(NUMBERS))
    elif wish < 0.6:
        constraint = ("include", rng.choice(WORDS["food" if kind == "letter" else "thing"]))
    elif wish < 0.7:
        constraint = ("avoid", rng.choice(AVOIDABLE[kind]))
    else:
        constraint = None
    task = Task(kind, "", fields, constraint)
    return f"{title(task)} {respond(task, set(), rng, seed)}"


def _counted(rng, seed):
    """A few sentences with their number before or after them. The base model learns to count from these."""
    kind = rng.choice(["story", "letter"])
    fields = pick(rng, "person", "animal") if kind == "story" else pick(rng, "person", "thing")
    number = rng.choice(NUMBERS)
    text = respond(Task(kind, "", fields, ("count", number)), set(), rng, seed)
    return rng.choice([f"{text} That was exactly {number} sentences.", f"In exactly {number} sentences: {text}"])


def _exercise(rng, seed):
    """Exercises of a textbook: a short text, and a question about it or another form of it."""
    drills = ["names"] * 3 + ["polite", "past", "review", "class", "day"]
    kind = rng.choice(["summary"] * 3 + ["bought"] * 5 + ["extract"] * 2 + drills)
    if kind == "summary":
        fields, text = passage(rng)
        return f"{text} In short: {render('summary', **fields)}"
    if kind == "bought":
        fields, text = shopping(rng)
        who = rng.choice(["", "2"])
        person, thing = fields["person" + who], fields["thing" + who]
        return f"{text} What did {person} buy? {render('bought', person=person, thing=thing)}"
    if kind == "extract":
        plural, items, text = listing(rng)
        return f"{text} Which {plural} are in it? {render('extract', plural=plural, items=_the(items))}"
    return "Exercises. " + " ".join(_drill(rng, kind) for _ in range(rng.randint(2, 4)))


def exercise(labels: tuple[str, str], before: str, after: str) -> str:
    """Formats an exercise: "Now: Mira walks to the mill. Past: Mira walked to the mill."."""
    return f"{labels[0]}: {before} {labels[1]}: {after}"


def _the(items: list[str]) -> str:
    return join(["the " + item for item in items])


def _drill(rng, kind: str) -> str:
    if kind == "names":
        plural, number = rng.choice(list(PLURALS)), rng.choice(NUMBERS)
        if rng.random() < 0.3:
            gifts = Task("gifts", "", {"number": number, "person": rng.choice(PEOPLE)})
            return f"{heading(gifts)} {respond(gifts, set(), rng)}"
        return respond(Task("names", "", {"number": number, "plural": plural}), set(), rng)
    if kind == "polite":
        form, field = rng.choice([("give", "thing"), ("bring", "food"), ("show", "place")])
        fields = pick(rng, field)
        return exercise(("Rude", "Polite"), render(f"rude.{form}", **fields), render(f"polite.{form}", **fields))
    if kind == "past":
        form, field = rng.choice([("walk", "place"), ("find", "thing"), ("cook", "food")])
        fields = pick(rng, "person", field)
        return exercise(("Now", "Past"), render(f"present.{form}", **fields), render(f"past.{form}", **fields))
    if kind == "review":
        label, text = review(rng)
        return f"{text} {render('review.label', label=label)}"
    if kind == "class":
        name = rng.choice(["animal", "thing"])
        return render(f"class.{name}", noun=rng.choice(WORDS[name]))
    i = rng.randrange(7)
    return render("day.next", day=DAYS[i], day2=DAYS[(i + 1) % 7])


def _word_list(rng, seed):
    """Words without a common meaning, listed three times. Only copying predicts the second and third list.

    A small model learns to look up a word in its context only if this pays often. Without these lists, after five
    million tokens, it answered every "What did Elias buy?" with the same thing.
    """
    words = join(rng.sample([word for words in WORDS.values() for word in words], rng.randint(4, 9)))
    return f"Words to learn. {words}. Once more: {words}. And again: {words}."


def _dictionary(rng, seed):
    """Words of one class in alphabetical order, the order of all lists."""
    plural = rng.choice(list(PLURALS))
    words = draw_items(rng, PLURALS[plural], rng.randint(5, 10))
    return f"The dictionary, {plural}. {', '.join(words)}."


def _cookbook(rng, seed):
    """Ingredients of dishes: two foods in alphabetical order, as in an advertisement."""
    lines = []
    for _ in range(rng.randint(4, 8)):
        dish = rng.choice(WORDS["food"])
        first, second = draw_items(rng, "food", 2)
        lines.append(f"{dish.capitalize()}: {render('advert.mid.made', food2=first, food3=second)}")
    return "The cookbook. " + " ".join(lines)


def _words_again(rng, seed):
    """Words, the repeated ones marked "again". The base model learns from these to recognize a repetition."""
    pool = rng.sample([word for words in WORDS.values() for word in words], 8)
    said: list[str] = []
    for _ in range(rng.randint(8, 14)):
        word = rng.choice(pool)
        said.append(f"{word} again" if word in said else word)
    return f"Old words and new. {', '.join(said)}."


_KINDS = {
    _fact_book: 0.13,
    _question_list: 0.07,
    _forum: 0.09,
    _titled: 0.10,
    _counted: 0.05,
    _exercise: 0.11,
    _word_list: 0.08,
    _dictionary: 0.10,
    _cookbook: 0.05,
    _words_again: 0.05,
    graded_work: 0.32,
}
