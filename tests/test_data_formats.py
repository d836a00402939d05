"""Published formats: rows as their authors publish them are recognized and become rows of our schemas."""

import gzip
import json
from pathlib import Path

import datasets
import pytest

from rlhf.data import DataArguments, load_comparisons, load_demonstrations, load_pretraining, load_prompts
from rlhf.data.formats import FORMATS, detect
from rlhf.errors import InputError

LOADERS = {"demonstrations": load_demonstrations, "comparisons": load_comparisons, "prompts": load_prompts}
REAL = Path(__file__).parent.parent.parent / "shared" / "data"
pytestmark = pytest.mark.usefixtures("all_train")


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


HH = {
    "chosen": "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Name a fruit.\n\nAssistant: A plum.",
    "rejected": "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Name a fruit.\n\nAssistant: No.",
}
POST = {"id": "t3_1", "post": "My cat ran off.", "title": "Cat", "subreddit": "pets", "site": None, "article": None}
ARTICLE = {"id": "a", "post": None, "title": "Storm", "subreddit": None, "site": "cnn", "article": "It blew."}
SUMMARIES = {
    "info": POST,
    "summaries": [{"text": " Cat gone.", "policy": "sup1", "note": ""}, {"text": "Cats!", "policy": "ref", "note": ""}],
    "choice": 1,
    "worker": "w7",
    "batch": "batch3.json",
    "split": "train",
    "extra": {"confidence": 8},
}
TLDR = "SUBREDDIT: r/pets\n\nTITLE: Cat\n\nPOST: My cat ran off.\n\nTL;DR:"
AXIS = [
    {
        "info": info,
        "summary": {"text": text, "policy": "p", "note": "", "axes": axes},
        "worker": worker,
        "split": "train",
    }
    for info, text, worker, axes in [
        (POST, "Cat gone.", "w1", {"overall": 6, "accuracy": 7, "coverage": 5, "coherence": 7}),
        (ARTICLE, "Storm.", "w1", {"overall": 2}),
        (POST, "Cats!", "w1", {"overall": 3}),
        (POST, "Cats!", "w2", {"overall": 4}),
        (POST, "A cat left.", "w1", {"overall": 6}),
        (POST, "Unrated.", "w1", {"overall": None}),
    ]
]
ULTRA = {
    "source": "flan_v2",
    "instruction": "Name a fruit.",
    "models": ["alpaca-7b", "gpt-4", "bard", "falcon"],
    "completions": [
        {
            "annotations": {"helpfulness": {"Rating": "4", "Rationale": "ok"}},
            "custom_system_prompt": "Be brief.",
            "critique": "fine",
            "fine-grained_score": 4.0,
            "model": "m",
            "overall_score": score,
            "principle": "helpfulness",
            "response": text,
        }
        for text, score in [("No.", 2.0), ("A plum.", 8.5), ("Plum", 7.0), ("Pear", 7.0)]
    ],
    "correct_answers": ["None"],
    "incorrect_answers": ["None"],
}
STEER = [
    {"prompt": p, "response": r, "helpfulness": h, "correctness": 4, "coherence": 4, "complexity": 1, "verbosity": 1}
    for p, r, h in [
        ("c#", "A language.", 3),
        ("c#", "A note.", 1),
        ("Hi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\nBye", "Bye!", 4),
    ]
]
STEER_PREFERENCE = {
    "split": "train",
    "prompt": "Hi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\nBye",
    "response_1": "Bye!",
    "response_2": "No.",
    "preference_strength": -2,
    "preference_statement": "Response 1 is better",
    "preference_elaboration": "polite",
    "three_most_similar_preferences": [],
    "all_preferences_unprocessed": [],
}
STEER3 = {
    "domain": "code",
    "language": "python",
    "context": [user("Hi"), assistant("Hello"), user("Bye")],
    "response1": "No.",
    "response2": "Bye!",
    "overall_preference": 3,
    "individual_preference": [{"score": 3, "reasoning": "", "feedback1": "", "feedback2": ""}],
}
ALPACA = [
    {"instruction": "Add.", "input": "1, 2", "output": "3"},
    {"instruction": "Hi", "input": "", "output": "Ho"},
]
DOLLY = {"instruction": "When?", "context": "In 1950 it rained.", "response": "In 1950.", "category": "closed_qa"}
SEED = {
    "id": "seed_task_1",
    "name": "antonyms",
    "instruction": "Is it rude?",
    "instances": [{"input": "Hi", "output": "No"}, {"input": "", "output": "What?"}],
    "is_classification": True,
}
CHAT = {"id": "0", "data": ["Hi", "Hello", "Bye", "Bye!"]}
CONVERSATION = [user("Hi"), assistant("Hello"), user("Bye")]
PKU = {
    "prompt": "Q", "response_0": "A", "response_1": "B", "better_response_id": 1, "safer_response_id": 1,
    "prompt_source": "p", "response_0_source": "m", "is_response_0_safe": False, "is_response_1_safe": True,
    "response_0_harm_category": {"Violence": True}, "response_1_severity_level": 0, "response_0_sha256": "ab",
}  # fmt: skip
OPENAI = {
    "input": {"messages": CONVERSATION, "tools": [], "parallel_tool_calls": True},
    "preferred_output": [assistant("Bye!")],
    "non_preferred_output": [assistant("No.")],
}
NECTAR = {
    "prompt": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Bye\n\nAssistant: ",
    "answers": [
        {"answer": text, "model": "m", "rank": float(rank)}
        for text, rank in zip("abcdefg", [4, 1, 2, 3, 7, 6, 5], strict=True)
    ],
    "turns": 2,
    "num_responses": 7,
    "source": ["lmsys-chat-1m"],
    "good_natured": True,
}
BREAD = user("Why is bread soft?")
STACK = {
    "qid": 1,
    "question": "How to sort?",
    "date": "2012/01/01",
    "metadata": ["https://stackoverflow.com/questions/1"],
    "response_j": "Use sorted.",
    "response_k": "No.",
}
SHP = {
    "post_id": "p",
    "domain": "askculinary_test",
    "upvote_ratio": 0.98,
    "history": "Why is bread soft?",
    "c_root_id_A": "a",
    "c_root_id_B": "b",
    "created_at_utc_A": 2,
    "created_at_utc_B": 1,
    "score_A": 340,
    "score_B": 166,
    "human_ref_A": "Air.",
    "human_ref_B": "No.",
    "labels": 1,
    "seconds_difference": 1.0,
    "score_ratio": 2.0,
}
WEBGPT = {
    "question": {"dataset": "eli5", "id": "q", "full_text": "Why?"},
    "quotes_0": {"title": ["t"], "extract": ["e"]},
    "answer_0": "So.",
    "tokens_0": {"prefix": [1], "completion": [2]},
    "score_0": -0.5,
    "quotes_1": {"title": ["t"], "extract": ["e"]},
    "answer_1": "No.",
    "tokens_1": {"prefix": [1], "completion": [2]},
    "score_1": 0.5,
}
ARENA = {
    "question_id": "q",
    "model_a": "m",
    "model_b": "n",
    "winner": "model_b",
    "judge": "arena_user_1",
    "conversation_a": [user("Hi"), assistant("No.")],
    "conversation_b": [user("Hi"), assistant("Hello")],
    "turn": 1,
    "anony": True,
    "language": "English",
    "tstamp": 1.0,
    "openai_moderation": {"flagged": False},
    "toxic_chat_tag": {"roberta-large": {"flagged": False, "probability": 0.01}},
}
ARENA_55K = {
    "id": 30192,
    "model_a": "m",
    "model_b": "n",
    "prompt": '["Hi"]',
    "response_a": '["Hello"]',
    "response_b": '["No."]',
    "winner_model_a": 1,
    "winner_model_b": 0,
    "winner_tie": 0,
}
CAPYBARA = {
    "source": "Airoboros",
    "conversation": [{"input": "Hi", "output": "Hello"}, {"input": "Bye", "output": "Bye!"}],
    "original_response": "Bye!",
    "generation_prompt": ["<s>Hi"],
    "raw_generation_responses": ["x"],
    "new_generations": ["No."],
    "prompt": "Hi Hello Bye",
    "chosen": [*CONVERSATION, assistant("Bye!")],
    "rejected": [*CONVERSATION, assistant("No.")],
    "rating_chosen": 5,
    "rating_rejected": 2,
    "chosen_model": "c",
    "rejected_model": "r",
}
UNPAIRED = [
    {"prompt": "Q", "completion": "good", "label": True},
    {"prompt": "R", "completion": "fine", "label": True},
    {"prompt": "Q", "completion": "bad", "label": False},
    {"prompt": "Q", "completion": "great", "label": True},
]
FRUIT = [user("Hi"), assistant("Hello!"), user("Name a fruit.")]
C_SHARP = {"prompt": [user("c#")], "completions": ["A language.", "A note."], "ranks": [0, 1], "ratings": [3.0, 1.0]}

# format, rows as published, {kind: rows of the schema}
CASES = [
    ("hh_rlhf", [HH], {
        "comparisons": [{"prompt": FRUIT, "completions": ["A plum.", "No."], "ranks": [0, 1]}],
        "demonstrations": [{"prompt": FRUIT, "completion": [assistant("A plum.")]}],
        "prompts": [{"prompt": FRUIT}],
    }),
    ("summarize_from_feedback", [SUMMARIES], {
        "comparisons": [{"prompt": TLDR, "completions": [" Cat gone.", " Cats!"], "ranks": [1, 0], "labeler_id": "w7"}],
        "prompts": [{"prompt": TLDR}],
    }),
    ("summarize_from_feedback_axis", AXIS, {
        "comparisons": [{
            "prompt": TLDR, "completions": [" Cat gone.", " Cats!", " A cat left."], "ranks": [0, 1, 0],
            "ratings": [6.0, 3.0, 6.0], "labeler_id": "w1",
        }],
        "prompts": [{"prompt": p} for p in (TLDR, "TITLE: Storm\n\nARTICLE: It blew.\n\nTL;DR:", TLDR)],
    }),
    ("ultrafeedback", [ULTRA], {
        "comparisons": [{
            "prompt": [user("Name a fruit.")], "completions": ["No.", "A plum.", "Plum", "Pear"], "ranks": [2, 0, 1, 1],
            "ratings": [2.0, 8.5, 7.0, 7.0], "source": "flan_v2",
        }],
        "demonstrations": [
            {"prompt": [user("Name a fruit.")], "completion": [assistant("A plum.")], "source": "flan_v2"}
        ],
        "prompts": [{"prompt": [user("Name a fruit.")], "source": "flan_v2"}],
    }),
    ("helpsteer2", STEER, {
        "comparisons": [C_SHARP],
        "prompts": [{"prompt": [user("c#")]}, {"prompt": CONVERSATION}],
    }),
    ("helpsteer2_preference", [STEER_PREFERENCE, STEER_PREFERENCE | {"preference_strength": 0}], {
        "comparisons": [
            {"prompt": CONVERSATION, "completions": ["Bye!", "No."], "ranks": ranks} for ranks in ([0, 1], [0, 0])
        ],
        "prompts": [{"prompt": CONVERSATION}] * 2,
    }),
    ("helpsteer3", [STEER3], {
        "comparisons": [
            {"prompt": CONVERSATION, "completions": ["No.", "Bye!"], "ranks": [1, 0], "category": "code"}
        ],
        "prompts": [{"prompt": CONVERSATION, "category": "code"}],
    }),
    ("alpaca", ALPACA, {
        "demonstrations": [
            {"prompt": [user("Add.\n\n1, 2")], "completion": [assistant("3")]},
            {"prompt": [user("Hi")], "completion": [assistant("Ho")]},
        ],
        "prompts": [{"prompt": [user("Add.\n\n1, 2")]}, {"prompt": [user("Hi")]}],
    }),
    ("dolly", [DOLLY], {
        "demonstrations": [{
            "prompt": [user("When?\n\nIn 1950 it rained.")], "completion": [assistant("In 1950.")],
            "category": "closed_qa",
        }],
        "prompts": [{"prompt": [user("When?\n\nIn 1950 it rained.")], "category": "closed_qa"}],
    }),
    ("self_instruct", [SEED], {
        "demonstrations": [
            {"prompt": [user("Is it rude?\n\nHi")], "completion": [assistant("No")], "category": "classification"},
            {"prompt": [user("Is it rude?")], "completion": [assistant("What?")], "category": "classification"},
        ],
        "prompts": [{"prompt": [user(t)], "category": "classification"} for t in ("Is it rude?\n\nHi", "Is it rude?")],
    }),
    ("nectar", [NECTAR], {
        "comparisons": [{"prompt": CONVERSATION, "completions": list("abcdefg"), "ranks": [3, 0, 1, 2, 6, 5, 4]}],
        "prompts": [{"prompt": CONVERSATION}],
    }),
    ("stack_exchange_paired", [STACK], {
        "comparisons": [{"prompt": [user("How to sort?")], "completions": ["Use sorted.", "No."], "ranks": [0, 1]}],
        "prompts": [{"prompt": [user("How to sort?")]}],
    }),
    ("shp", [SHP, SHP | {"labels": 0}], {
        "comparisons": [
            {"prompt": [BREAD], "completions": ["Air.", "No."], "ranks": r, "category": "askculinary_test"}
            for r in ([0, 1], [1, 0])
        ],
        "prompts": [{"prompt": [BREAD], "category": "askculinary_test"}] * 2,
    }),
    ("webgpt", [WEBGPT], {
        "comparisons": [
            {"prompt": [user("Why?")], "completions": ["So.", "No."], "ranks": [1, 0], "ratings": [-0.5, 0.5]}
        ],
        "prompts": [{"prompt": [user("Why?")]}],
    }),
    ("arena", [ARENA, ARENA | {"winner": "tie (bothbad)"}, ARENA | {"winner": "model_a"}], {
        "comparisons": [
            {"prompt": [user("Hi")], "completions": texts, "ranks": ranks}
            for texts, ranks in ((["Hello", "No."], [0, 1]), (["No.", "Hello"], [0, 0]), (["No.", "Hello"], [0, 1]))
        ],
        "prompts": [{"prompt": [user("Hi")]}] * 3,
    }),
    ("arena_55k", [ARENA_55K, ARENA_55K | {"winner_model_a": 0, "winner_model_b": 0, "winner_tie": 1}], {
        "comparisons": [
            {"prompt": [user("Hi")], "completions": ["Hello", "No."], "ranks": ranks} for ranks in ([0, 1], [0, 0])
        ],
        "prompts": [{"prompt": [user("Hi")]}] * 2,
    }),
    ("capybara", [CAPYBARA, CAPYBARA | {"rating_rejected": 5}], {
        "comparisons": [
            {"prompt": CONVERSATION, "completions": ["Bye!", "No."], "ranks": ranks} for ranks in ([0, 1], [0, 0])
        ],
        "prompts": [{"prompt": CONVERSATION}] * 2,
    }),
    ("pku_saferlhf", [PKU, PKU | {"better_response_id": 0.0, "safer_response_id": None}], {
        "comparisons": [
            {"prompt": "Q", "completions": pair, "ranks": [0, 1]} for pair in (["B", "A"], ["A", "B"])
        ],
        "prompts": [{"prompt": "Q"}] * 2,
    }),
    ("openai_preferences", [OPENAI], {
        "comparisons": [{"prompt": CONVERSATION, "completions": ["Bye!", "No."], "ranks": [0, 1]}],
        "prompts": [{"prompt": CONVERSATION}],
    }),
    ("lima", [{"conversations": CHAT["data"], "source": "stackexchange"}], {
        "demonstrations": [{"prompt": CONVERSATION, "completion": [assistant("Bye!")]}],
        "prompts": [{"prompt": CONVERSATION}],
    }),
    ("ultrachat", [CHAT], {
        "demonstrations": [{"prompt": CONVERSATION, "completion": [assistant("Bye!")]}],
        "prompts": [{"prompt": CONVERSATION}],
    }),
    ("trl_unpaired", UNPAIRED, {
        "comparisons": [{"prompt": "Q", "completions": ["good", "bad", "great"], "ranks": [0, 1, 0]}],
        "demonstrations": [
            {"prompt": p, "completion": c} for p, c in (("Q", "good"), ("Q", "great"), ("R", "fine"))
        ],
        "prompts": [{"prompt": "Q"}, {"prompt": "R"}],
    }),
]  # fmt: skip
IDS = [name for name, _, _ in CASES]


def write(path: Path, rows: list[dict]) -> DataArguments:
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataArguments(dataset_name=str(path))


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize(("name", "rows", "expected"), CASES, ids=IDS)
def test_rows_as_published(tmp_path, name, rows, expected, suffix):
    args = write(tmp_path / f"rows.{suffix}", rows)
    for kind, converted in expected.items():
        assert [dict(row) for row in LOADERS[kind](args, "train")] == converted, kind


@pytest.mark.parametrize(("name", "rows", "expected"), CASES, ids=IDS)
def test_columns_tell_one_format_from_all_others(name, rows, expected):
    for row in rows:
        assert [other for other, form in FORMATS.items() if form.matches(row)] == [name]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q"},
        {"prompt": "Q", "completion": "A"},
        {"prompt": "Q", "chosen": "A", "rejected": "B"},
        {"prompt": "Q", "completions": ["A", "B"], "ranks": [0, 1], "labeler_id": 1},
        {"messages": CONVERSATION},
        {"text": "T", "id": 3},
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        {"prompt": "Q", "prompt_id": "1", "messages": CONVERSATION},
    ],
)
def test_our_own_and_trls_formats_need_none(row):
    assert detect(row) is None


def test_trls_preferences_with_the_prompt_inside(tmp_path):
    text = {"chosen": "User: Sky?\nAssistant: It is blue.", "rejected": "User: Sky?\nAssistant: It is black."}
    (row,) = load_comparisons(write(tmp_path / "text.jsonl", [text]), "train")
    assert row == {
        "prompt": "User: Sky?\nAssistant:",
        "completions": [" It is blue.", " It is black."],
        "ranks": [0, 1],
    }
    # HuggingFaceH4/ultrafeedback_binarized: the prompt as text beside conversations that hold it
    both = {"prompt": "Hi", "chosen": [user("Hi"), assistant("Hello")], "rejected": [user("Hi"), assistant("No.")]}
    (row,) = load_comparisons(write(tmp_path / "both.jsonl", [both | {"score_chosen": 9.0}]), "train")
    assert row == {"prompt": [user("Hi")], "completions": ["Hello", "No."], "ranks": [0, 1]}


def test_ultrachat_200k_is_a_demonstration(tmp_path):
    row = {"prompt": "Hi", "prompt_id": "f0", "messages": [*CONVERSATION, assistant("Bye!")]}
    (got,) = load_demonstrations(write(tmp_path / "a.jsonl", [row]), "train")
    assert got == {"prompt": CONVERSATION, "completion": [assistant("Bye!")]}


def test_prompts_are_those_of_the_same_rows_demonstrations_and_comparisons(tmp_path):
    """PPO prompts like SFT: with all turns, a system message, and the chat template."""
    system = {"role": "system", "content": "Be brief."}
    talk = {"prompt": "Hi", "messages": [system, *CONVERSATION, assistant("Bye!")]}
    pair = {"prompt": "Hi", "chosen": [*CONVERSATION, assistant("A")], "rejected": [*CONVERSATION, assistant("B")]}
    without = {"chosen": [user("Hi"), assistant("A")], "rejected": [user("Hi"), assistant("B")]}
    texts = {"chosen": "User: Hi\nAssistant: dag", "rejected": "User: Hi\nAssistant: nee"}
    for number, (load, row) in enumerate(
        [
            (load_demonstrations, talk),
            (load_comparisons, pair),
            (load_comparisons, without),
            (load_comparisons, texts),
            (load_comparisons, pair | {"messages": pair["chosen"], "score_chosen": 9.0, "score_rejected": 8.0}),
        ]
    ):
        args = write(tmp_path / f"{number}.jsonl", [row])
        assert load_prompts(args, "train")["prompt"][:] == load(args, "train")["prompt"][:]


def test_binarized_ratings_that_are_equal_are_a_tie(tmp_path):
    row = {"prompt": "Q", "chosen": "a", "rejected": "b", "score_chosen": 7.0, "score_rejected": 7.0}
    rows = [row, row | {"score_rejected": 6.0}, row | {"score_chosen": None, "score_rejected": None}]
    assert load_comparisons(write(tmp_path / "a.jsonl", rows), "train")["ranks"][:] == [[0, 0], [0, 1], [0, 1]]


@pytest.mark.parametrize(("good", "bad"), [(True, False), (1, 0), ("true", "False"), ("1", "0")])
def test_labels_of_unpaired_preferences_as_files_spell_them(tmp_path, good, bad):
    rows = [{"prompt": "Q", "completion": "yes", "label": good}, {"prompt": "Q", "completion": "no", "label": bad}]
    args = write(tmp_path / "a.jsonl", rows)
    assert load_demonstrations(args, "train")["completion"][:] == ["yes"]
    assert load_comparisons(args, "train")["ranks"][:] == [[0, 1]]


def test_dolly_copies_with_an_input(tmp_path):
    row = {"instruction": "Translate.", "input": "Bonjour", "response": "Hello"}
    (got,) = load_demonstrations(write(tmp_path / "a.jsonl", [row]), "train")
    assert got["prompt"] == [user("Translate.\n\nBonjour")]


def test_rows_that_belong_together_may_be_in_two_files(tmp_path):
    rows = [{"prompt": "Q", "completion": "yes", "label": True}, {"prompt": "Q", "completion": "no", "label": False}]
    for number, row in enumerate(rows):
        write(tmp_path / f"train-{number}.jsonl", [row])
    (got,) = load_comparisons(DataArguments(dataset_name=str(tmp_path)), "train")
    assert got == {"prompt": "Q", "completions": ["yes", "no"], "ranks": [0, 1]}


def test_a_format_can_be_named_and_a_wrong_name_is_an_error(tmp_path):
    args = write(tmp_path / "a.jsonl", [{"instruction": "Add.", "output": "3"}])
    args.dataset_format = "dolly"
    with pytest.raises(
        InputError, match=r"column output may change .*; its columns are those of alpaca, but dataset_f"
    ):
        load_demonstrations(args, "train")
    with pytest.raises(InputError, match=r"dataset_format dollies is unknown. Choose from oasst, oasst_messages, hh_"):
        DataArguments(dataset_name="a", dataset_format="dollies")


def test_a_kind_that_a_format_does_not_have_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"a.jsonl holds Dolly instructions, which have no comparisons"):
        load_comparisons(write(tmp_path / "a.jsonl", [DOLLY]), "train")
    with pytest.raises(InputError, match=r"a.jsonl holds hh-rlhf transcripts, which have no pretraining"):
        load_pretraining(write(tmp_path / "a.jsonl", [HH]), "train")


@pytest.mark.parametrize(
    ("kind", "rows", "reason"),
    [
        (
            "comparisons",
            [HH | {"rejected": "\n\nHuman: Hey\n\nAssistant: A"}],
            "line 1: columns chosen and rejected differ",
        ),
        ("comparisons", [HH | {"rejected": "A"}], "line 1: column rejected does not begin with"),
        ("comparisons", [HH | {"chosen": "\n\nHuman: Hi\n\nAssistant: "}], "line 1: the last answer .* is empty"),
        ("comparisons", [SUMMARIES | {"choice": 2}], "line 1: column choice is 2; 0 or 1"),
        ("comparisons", [SUMMARIES | {"choice": True}], "line 1: column choice is True"),
        ("comparisons", [SUMMARIES | {"summaries": ["a"]}], "line 1: column summaries is not a list of two"),
        ("comparisons", [SUMMARIES | {"info": {"title": "T"}}], "line 1: no text in column post"),
        ("comparisons", [AXIS[0], AXIS[1] | {"summary": "x"}], "line 2: a summary is not an object with text"),
        (
            "comparisons",
            [AXIS[0] | {"summary": {"text": "a", "axes": {"overall": "7"}}}],
            "line 1: the overall rating is '7'",
        ),
        ("comparisons", [ULTRA | {"completions": ["a", "b"]}], "line 1: column completions is not a list of objects"),
        ("comparisons", [STEER[0], STEER[1] | {"helpfulness": "3"}], "line 2: column helpfulness is '3'"),
        ("comparisons", [STEER_PREFERENCE | {"preference_strength": 4}], "line 1: column preference_strength is 4;"),
        ("comparisons", [STEER3 | {"context": "Hi"}], "line 1: column context is not a list of messages"),
        ("demonstrations", [{"instruction": "", "input": "", "output": "a"}], "line 1: column instruction is empty"),
        ("demonstrations", [DOLLY | {"response": None}], "line 1: no text in column response"),
        ("demonstrations", [SEED | {"instances": [3]}], "line 1: column instances is not a list of objects"),
        ("demonstrations", [CHAT | {"data": ["Hi"]}], "line 1: column messages has no message of the user with"),
        ("demonstrations", [CHAT | {"data": ["Hi", 3]}], r"line 1: content of messages\[1\] is a number"),
        ("comparisons", [UNPAIRED[0], UNPAIRED[2] | {"prompt": ""}], "line 2: column prompt is empty"),
        ("comparisons", [*UNPAIRED[:2], UNPAIRED[2] | {"completion": 4}], "line 3: column completion is a number"),
    ],
)
def test_faults_are_named(tmp_path, kind, rows, reason):
    with pytest.raises(InputError, match=reason):
        LOADERS[kind](write(tmp_path / "a.jsonl", rows), "train")


@pytest.mark.skipif(not (REAL / "hh_rlhf").exists(), reason="needs the hh-rlhf sample")
def test_real_hh_rlhf(tmp_path):
    (path,) = (REAL / "hh_rlhf").glob("*.gz")
    args = DataArguments(dataset_name=str(path), on_bad_rows="skip")
    rows = load_comparisons(args, "train", str(tmp_path))
    skipped = [json.loads(line) for line in (tmp_path / "skipped_rows.jsonl").read_text().splitlines()]
    with gzip.open(path) as file:
        assert len(rows) + len(skipped) == sum(1 for _ in file) == 1500
    assert len(skipped) < 30
    assert all(row["ranks"] == [0, 1] and row["prompt"][-1]["role"] == "user" for row in rows)


def test_two_verdicts_that_differ_are_refused_until_one_is_chosen(tmp_path):
    args = write(tmp_path / "rows.jsonl", [PKU | {"safer_response_id": 0}])
    with pytest.raises(InputError, match=r"choose one verdict.*--columns ignore=safer_response_id"):
        load_comparisons(args, "train")
    args.columns = ["ignore=safer_response_id"]
    assert load_comparisons(args, "train")["completions"][:] == [["B", "A"]]


@pytest.mark.skipif(not (REAL / "self_instruct").exists(), reason="needs the self-instruct tasks")
@pytest.mark.parametrize(("name", "count"), [("seed_tasks", 175), ("user_oriented_instructions", 252)])
def test_real_self_instruct(name, count):
    args = DataArguments(dataset_name=str(REAL / "self_instruct" / f"{name}.jsonl"))
    rows = load_demonstrations(args, "train")
    assert len(rows) >= count and all(row["completion"][0]["content"].strip() for row in rows)


@pytest.mark.skipif(not (REAL / "truthfulqa").exists(), reason="needs TruthfulQA")
def test_real_prompt_completion():
    args = DataArguments(dataset_name=str(REAL / "truthfulqa" / "finetune_truth.jsonl"))
    rows = load_demonstrations(args, "train")
    assert len(rows) == 22_434 and {row["completion"] for row in rows} == {" yes", " no"}
