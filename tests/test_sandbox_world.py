"""The closed world: deterministic, in the paper's shares, with data for the filters to find and no gold verdicts."""

import ast
import random
from collections import Counter
from pathlib import Path

import pytest

from rlhf.sandbox import datasets
from rlhf.sandbox.documents import document
from rlhf.sandbox.graded_work import EOS, FAULTS, GRADES, answer_with_fault, corrected, graded_work
from rlhf.sandbox.grammar import TEMPLATES, items_of, parse, sentences
from rlhf.sandbox.judge import judge
from rlhf.sandbox.labelers import attainable_accuracy, labeler_agreement
from rlhf.sandbox.responses import demonstration, repeat_items, respond
from rlhf.sandbox.tasks import CATEGORIES, pick, sample_task, task_of
from rlhf.sandbox.world import World, world

LOADERS = ("pretraining", "demonstrations", "comparisons", "prompts")
ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", LOADERS)
def test_rows_are_deterministic_and_a_smaller_set_is_a_prefix(name):
    load = getattr(datasets, name)
    assert load("train", 30, seed=1).to_list() == load("train", 40, seed=1).to_list()[:30]
    assert load("train", 30, seed=1).to_list() != load("train", 30, seed=2).to_list()
    assert load("train", 30).to_list() != load("test", 30).to_list()


def test_worlds_differ_by_seed_and_have_unknown_facts_and_myths():
    assert World(0).facts == world(0).facts != World(1).facts
    facts = list(world(0).facts.values())
    assert 0.10 < sum(f.value is None for f in facts) / len(facts) < 0.20
    assert 0.08 < sum(f.myth is not None for f in facts) / len(facts) < 0.16
    assert all(f.myth != f.value for f in facts if f.myth)


def test_an_instruction_is_parsed_into_its_task():
    rng = random.Random(3)
    for _ in range(2000):
        task = sample_task(rng, "train")
        assert task_of(task.instruction) == task
        assert task_of(task.instruction + " My number is 555-0123.").fields == task.fields


def test_categories_have_the_papers_shares():
    rng = random.Random(4)
    counts = Counter(sample_task(rng, "train").category for _ in range(6000))
    for category, (share, _) in CATEGORIES.items():
        assert counts[category] / 60 == pytest.approx(share, abs=2.2)


def test_no_question_and_no_user_is_in_two_splits():
    asked = {"train": set(), "validation": set(), "test": set()}
    users = {split: set() for split in asked}
    for split in asked:
        for row in datasets.prompts(split, 1500):
            task = task_of(row["prompt"][-1]["content"])
            users[split].add(row["user_id"])
            asked[split].add(
                (task.kind, task.instruction if task.kind == "review" else repr(sorted(task.fields.items())))
            )
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert asked[one] and not asked[one] & asked[other]
        assert users[one] and not users[one] & users[other]


def test_prompts_contain_duplicates_and_personal_data_for_the_filters():
    rows = datasets.prompts("train", 2000)
    texts = [row["prompt"][-1]["content"] for row in rows]
    personal = [t for t in texts if "My number is" in t or "Write to me at" in t]
    assert 20 < len(personal) < 90
    assert len(texts) - len(set(texts)) > 40
    assert not any("My number is" in row["prompt"][-1]["content"] for row in datasets.prompts("test", 1000))


def test_every_sentence_of_a_demonstration_can_be_parsed():
    rng = random.Random(5)
    for _ in range(1500):
        for sentence in sentences(demonstration(sample_task(rng, "train"), rng)):
            assert parse(sentence) or " " not in sentence, sentence


def test_the_grammar_is_unambiguous():
    """A rendered sentence is parsed back into its own template and fields."""
    rng = random.Random(6)
    for name, template in TEMPLATES.items():
        if "{items}" in template:
            continue
        fields = pick(rng, *[part.split("}")[0] for part in template.split("{")[1:]])
        assert parse(template.format(**fields)) == (name, tuple(fields.items())), name


def test_comparisons_are_ranked_with_ties_by_the_right_labelers():
    rows = datasets.comparisons("validation", 200)
    assert {len(row["completions"]) for row in rows} == set(range(4, 10))
    assert {row["labeler_group"] for row in rows} == {"training", "heldout"}
    assert set(datasets.comparisons("train", 100)["labeler_group"]) == {"training"}
    for row in rows:
        assert len(row["ranks"]) == len(row["completions"]) == len(set(row["completions"]))
        assert min(row["ranks"]) == 0 and max(row["ranks"]) == len(set(row["ranks"])) - 1
    assert any(len(set(row["ranks"])) < len(row["ranks"]) for row in rows)


def test_labelers_agree_as_often_as_the_papers():
    assert labeler_agreement(size=1500) == pytest.approx(0.73, abs=0.03)
    assert labeler_agreement(size=1500, group="training") == pytest.approx(0.73, abs=0.03)
    # Their rankings are worth learning from: gold quality predicts them better than they predict each other.
    assert attainable_accuracy(datasets.comparisons("train", 400)) > 0.77


def test_documents_have_no_instructions_but_myths_and_rudeness():
    rng = random.Random(7)
    text = " ".join(document(rng) for _ in range(3000))
    assert "Assistant" not in text and "User:" not in text
    myths = [f for f in world(0).facts.values() if f.myth]
    assert sum(f.statement(f.myth) in text for f in myths) > 0.1 * len(myths)
    assert sum(f.statement() in text for f in myths) > 0.5 * len(myths)
    assert "What a silly question." in text


def test_training_code_cannot_reach_the_gold_judge():
    """Only the sandbox itself and the evaluation may import the judge, the labelers or the tasks' solutions."""
    secret = (
        "rlhf.sandbox.judge",
        "rlhf.sandbox.labelers",
        "rlhf.sandbox.tasks",
        "rlhf.sandbox.responses",
        "rlhf.sandbox.world",
    )
    allowed = ("rlhf/sandbox/", "rlhf/evaluation/", "recipes/evaluate.py")
    files = [*ROOT.glob("rlhf/**/*.py"), *ROOT.glob("recipes/**/*.py")]
    assert len(files) > 20
    for path in files:
        if path.relative_to(ROOT).as_posix().startswith(allowed):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""] + [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):  # importlib.import_module("...")
                names = [node.value]
            assert not [name for name in names if name.startswith(secret)], path


def test_comparisons_and_demonstrations_carry_no_gold():
    assert set(datasets.comparisons("train", 5).column_names) == {
        "prompt", "completions", "ranks", "labeler_id", "labeler_group"
    }  # fmt: skip
    assert set(datasets.demonstrations("train", 5).column_names) == {"prompt", "completion"}
    assert set(datasets.prompts("train", 5).column_names) == {"prompt", "user_id", "category", "source"}


@pytest.mark.parametrize("fault", FAULTS)
def test_graded_faults_lower_the_gold_quality(fault):
    rng = random.Random(f"graded-{fault}")
    quality = {True: [], False: []}  # of the work that is graded as faulty, and of the rest
    for _ in range(200):
        task = sample_task(rng, "train")
        text, actual = answer_with_fault(task, fault, None, rng)
        assert actual in (fault, None)
        quality[actual is not None].append(judge(task, text)["overall"])
    assert all(q >= 0.7 for q in quality[False])  # a story of two sentences scores 0.7
    if fault:  # a terse text of three sentences is faultless, and a missing sentence may cost nothing
        assert sum(q < 1 for q in quality[True]) > {"terse": 0.7, "broken": 0.9}.get(fault, 0.99) * len(quality[True])
    else:
        assert not quality[True]


def test_grades_follow_the_work_as_documents_of_their_own():
    rng = random.Random(8)
    for _ in range(300):
        work, grades = graded_work(rng).split(EOS)
        assert work and {word + "." for word in grades.rstrip(".").split(". ")} <= set(GRADES.values())


def test_corrections_name_the_right_word():
    task = task_of("Write a story about Mira and a cat.")
    text = "There Mira met a horse. The horse carried a lamp. Mira never forgot the cat."
    right = "There Mira met a horse (not cat). The horse (not cat) carried a lamp. Mira never forgot the cat."
    assert corrected(task, text) == right


def test_corrections_of_a_list_name_items_of_another_class():
    task = task_of("Name three foods.")
    text = "Here are three foods: bread, lamp and rice."
    assert corrected(task, text) == "Here are three foods: bread, lamp (no) and rice."
    gifts = task_of("Give me two ideas for a gift for Mira.")
    text = "You could give Otto a hat and a rice."
    assert corrected(gifts, text) == "You could give Otto (not Mira) a hat and a rice (no)."


@pytest.mark.parametrize(
    ("wish", "text", "right"),
    [
        (" Use the word lamp.", "Mira wanted to find a lamp.", "Mira wanted to find a lamp (yes)."),
        (" Do not use the word rain.", "It began to rain.", "It began to rain (no)."),
        (" Do not use the word tree.", "It began to rain.", "It began to rain."),
        (
            " Use exactly two sentences.",
            "There Mira met a cat. The cat was old. It began to rain.",
            "There Mira met a cat. The cat was old. It began to rain. (no)",
        ),
    ],
)
def test_corrections_say_where_a_constraint_holds_or_not(wish, text, right):
    task = task_of("Write a story about Mira and a cat." + wish)
    assert corrected(task, text) == right


def test_a_repeated_item_replaces_a_later_one():
    text = "Here are three foods: bread, rice and soup."
    repeating = {repeat_items(text, random.Random(i)) for i in range(300)}
    lists = [["bread", "bread", "bread"], ["rice", "rice", "rice"], ["soup", "soup", "soup"]]
    lists += [["bread", "bread", "soup"], ["bread", "rice", "rice"], ["rice", "rice", "soup"]]
    assert repeating == {f"Here are three foods: {a}, {b} and {c}." for a, b, c in lists}
    assert all(judge(task_of("Name three foods."), text)["overall"] < 0.7 for text in repeating)


def test_lists_are_in_alphabetical_order():
    rng = random.Random(5)
    tasks = [task_of("Name four animals."), task_of("Give me four ideas for a gift for Mira.")]
    lists = [items_of(respond(task, set(), rng)) for task in tasks for _ in range(50)]
    assert all(len(items) == 4 and items == sorted(items) for items in lists)


def test_the_two_foods_of_an_advertisement_are_in_alphabetical_order():
    rng = random.Random(6)
    task = task_of("Write an advertisement for the bread of Foxley.")
    lines = [line for _ in range(100) for line in sentences(respond(task, set(), rng))]
    pairs = list(filter(None, map(items_of, lines)))
    assert len(pairs) > 20 and all(first < second for first, second in pairs)
    repeating = repeat_items("It is made with corn and rice. You will love it.", rng)
    assert repeating in {f"It is made with {food} and {food}. You will love it." for food in ("corn", "rice")}


def test_no_document_has_a_list_that_names_an_item_twice():
    """From repeating lists the base model learns that a repetition is as likely as any item; greedily it repeats."""
    rng = random.Random(11)
    lists = repeating = 0
    for _ in range(5000):
        text = document(rng, graded_share=0.8).split(EOS)[0]
        for items in filter(None, map(items_of, sentences(text.replace(" (no)", "")))):
            lists += 1
            repeating += len(set(items)) < len(items)
    assert lists > 300 and repeating == 0


def test_the_share_of_graded_work_is_the_one_asked_for():
    rng = random.Random(3)
    graded = sum(EOS in document(rng, graded_share=0.8) for _ in range(2000))
    assert graded / 2000 == pytest.approx(0.8, abs=0.03)
