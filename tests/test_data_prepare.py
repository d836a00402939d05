"""make data: each rule by itself, then the command."""

import itertools
import json
import runpy
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.data import DataArguments, load_prompts
from rlhf.data.card import DataCard
from rlhf.data.personal import PersonalData, mask
from rlhf.data.prepare import DUPLICATE, PERSONAL, TOO_LONG, TOO_MANY, PrepareArguments, decide, prefix_key
from rlhf.data.shards import ShardWriter
from rlhf.data.splits import SPLITS, split_of
from rlhf.errors import InputError

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def personal():
    pytest.importorskip("phonenumbers")
    pytest.importorskip("stdnum")
    return PersonalData("US")


def settings(**kwargs):
    return PrepareArguments(output_dir="out", model_name_or_path="sandbox", **kwargs)


def decisions(rows, personal=None, **kwargs):
    """Decides on rows, with words as tokens."""
    return list(decide(rows, settings(**kwargs), lambda prompt: len(prompt.split()), personal))


def reasons(rows, **kwargs):
    return [decision.reason for decision in decisions(rows, **kwargs)]


def prompt_on(split, start):
    """Returns a prompt of this split that begins with `start`."""
    prompts = (f"{start}{' so' * i}" for i in range(200))
    return next(prompt for prompt in prompts if split_of({"prompt": prompt}) == split)


def test_prompts_of_at_most_the_limit_stay():
    assert reasons([{"prompt": "a b c"}, {"prompt": "a b c d"}], max_prompt_length=3) == [None, TOO_LONG]


def test_duplicates_share_a_long_prefix():
    rows = [{"prompt": text} for text in ("Sum up: abc", "sum  UP: abd", "Sum up", "Sum up: xyz", "sum up ")]
    assert reasons(rows, duplicate_prefix=10) == [None, DUPLICATE, None, None, DUPLICATE]
    assert reasons(rows, duplicate_prefix=100) == [None, None, None, None, DUPLICATE]


def test_the_prefix_of_a_conversation_is_that_of_its_last_message():
    hello = [{"role": "user", "content": "Hello, how are you today?"}]
    follow_up = [*hello, {"role": "assistant", "content": "Well."}, {"role": "user", "content": "Good."}]
    other = [*hello, {"role": "assistant", "content": "Ill."}, {"role": "user", "content": "Good."}]
    assert len({prefix_key(prompt, 5) for prompt in (hello, follow_up, other)}) == 3
    assert prefix_key(hello, 5) == prefix_key([{"role": "user", "content": "hello there"}], 5)


def test_at_most_max_per_user_prompts_of_a_user_are_kept():
    rows = [{"prompt": f"Q{i // 2}", "user_id": "u"} for i in range(6)] + [{"prompt": "R", "user_id": "v"}]
    assert reasons(rows, max_per_user=2) == [None, DUPLICATE, None, DUPLICATE, TOO_MANY, TOO_MANY, None]
    assert reasons([{"prompt": f"Q{i}"} for i in range(300)]) == [None] * 300  # no user_id: no limit


def test_a_prompt_that_was_dropped_makes_no_other_a_duplicate():
    rows = [{"prompt": "A", "user_id": "u"}, {"prompt": "B", "user_id": "u"}, {"prompt": "B", "user_id": "v"}]
    assert reasons(rows, max_per_user=1) == [None, TOO_MANY, None]


@given(st.lists(st.tuples(st.text(max_size=3), st.integers(0, 50)), max_size=30))
def test_no_conversation_is_in_two_splits(asked):
    rows = [{"prompt": text or "Q", "user_id": str(user)} for text, user in asked]
    splits = {}
    for decision in decisions(rows):
        assert splits.setdefault(decision.row["prompt"].casefold(), decision.split) == decision.split


def test_shares_of_the_splits():
    splits = [decision.split for decision in decisions([{"prompt": f"Q{i}"} for i in range(5000)])]
    assert 420 < splits.count("validation") < 580 and 420 < splits.count("test") < 580


PERSONAL_TEXTS = [
    ("Write to me at mira12@example.org.", "Write to me at [email address]."),
    ("My number is 555-0142.", "My number is [telephone number]."),
    ("Call (212) 555-0123 or +49 30 901820 now", "Call [telephone number] or [telephone number] now"),
    ("card 4111 1111 1111 1111 please", "card [card number] please"),
    ("pay to DE89 3704 0044 0532 0130 00 AND go", "pay to [bank account] AND go"),
    ("pay to DE89370400440532013000", "pay to [bank account]"),
    ("ssn 536-90-4399.", "ssn [social security number]."),
    ("host 8.8.8.8 is up", "host [IP address] is up"),
]
HARMLESS = [
    "Hello!",
    "In 2020, 10 000 000 people",
    "1234567 things, 3.14159265358979",
    "card 4111 1111 1111 1112",
    "DE88 3704 0044 0532 0130 00",
    "router 192.168.0.1, loopback 127.0.0.1",
    "mail @home or a@b",
    "the years 1950-2010",
    "about 6.67 x 10-11 Nm2/kg2",  # an x may precede an extension
    "",
]


@pytest.mark.parametrize(("text", "masked"), PERSONAL_TEXTS)
def test_personal_data_is_found_and_masked(personal, text, masked):
    assert mask(text, personal.find(text)) == masked


@pytest.mark.parametrize("text", HARMLESS)
def test_text_that_only_looks_like_personal_data(personal, text):
    assert personal.find(text) == []


@given(st.text(st.sampled_from("0123456789 .-+()@aA:/\n"), max_size=80))
def test_any_text_can_be_searched_and_masked(text):
    pytest.importorskip("phonenumbers")
    pytest.importorskip("stdnum")
    spans = PersonalData("US").find(text)
    assert all(0 <= span.start < span.end <= len(text) for span in spans)
    assert all(span.end <= following.start for span, following in itertools.pairwise(spans))
    mask(text, spans)


def test_a_region_that_does_not_exist(personal):
    with pytest.raises(InputError, match="phone_region XX is not a country code"):
        PersonalData("XX")


def test_personal_data_is_dropped_from_the_training_split_alone(personal):
    rows = [{"prompt": prompt_on(split, "Write to mira@example.org")} for split in ("train", "validation")]
    first, second = decisions(rows, personal=personal)
    assert (first.reason, [span.kind for span in first.personal_data]) == (PERSONAL, ["email address"])
    assert (second.reason, second.split, second.personal_data) == (None, "validation", [])
    assert reasons(rows) == [None, None]


def test_the_card_masks_what_it_shows(personal):
    rows = [
        {"prompt": prompt_on("train", "Write to mira@example.org | now"), "user_id": "a"},
        {"prompt": prompt_on("train", "Name a fruit."), "user_id": "a", "category": "open|qa"},
        {"prompt": prompt_on("test", "Name a nut."), "user_id": "a"},
        {"prompt": prompt_on("test", "Name a tree."), "user_id": "b"},
    ]
    card = DataCard()
    for decision in decisions(rows, personal=personal):
        card.add(decision)
    page = card.render("raw.jsonl", settings(), rows_read=4, bad_rows=1)
    assert "mira" not in page and "> Write to [email address] | now" in page
    assert "| email address | 1 |" in page and "4 rows were read; 1 could not be used" in page
    assert "1 of 2 users are in more than one split." in page
    assert "| kept | 1 | 0 | 2 |" in page and "| dropped: personal data | 1 | 0 | 0 |" in page
    assert r"| open\|qa | 1 | 0 | 0 |" in page and "> Name a fruit." in page
    assert card.counts()["kept"] == {"train": 1, "test": 2}
    assert (card.counts()["users"], card.counts()["users_in_several_splits"]) == (2, 1)


def test_the_card_shows_personal_data_in_the_middle_of_a_long_text(personal):
    text = prompt_on("train", "x" * 900 + " call (212) 555-0123 " + "y" * 900)
    card = DataCard()
    for decision in decisions([{"prompt": text}], personal=personal):
        card.add(decision)
    shown = next(line for line in card.render("raw", settings(), 1, 0).splitlines() if line.startswith("> ..."))
    assert "x call [telephone number] y" in shown and len(shown) < 350


def test_the_cards_examples_are_drawn_evenly():
    card = DataCard(seed=1)
    for decision in decisions([{"prompt": f"Q{i}"} for i in range(5000)]):
        card.add(decision)
    numbers = [int(text[1:]) for text in card.examples]
    assert len(set(numbers)) == 10 and min(numbers) < 2500 < max(numbers)


def test_shards_hold_all_rows_in_files_of_bounded_size(tmp_path, monkeypatch):
    monkeypatch.setattr("rlhf.data.shards.ROWS_A_FILE", 2500)
    writer = ShardWriter(tmp_path / "train")
    for i in range(5200):
        writer.write({"prompt": f"Q{i}", "user_id": str(i)})
    writer.close()
    files = sorted((tmp_path / "train").glob("*.parquet"))
    assert [pyarrow.parquet.read_metadata(file).num_rows for file in files] == [2500, 2500, 200]
    written = [row for file in files for row in pyarrow.parquet.read_table(file).to_pylist()]
    assert [(row["prompt"], row["user_id"]) for row in written] == [(f"Q{i}", str(i)) for i in range(5200)]


@pytest.mark.parametrize("wrong", [{"max_per_user": 0}, {"max_prompt_length": 0}, {"duplicate_prefix": -1}])
def test_settings_out_of_range(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        settings(**wrong)


def prepare(monkeypatch, **options):
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    script = str(ROOT / "recipes" / "data.py")
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    runpy.run_path(script, run_name="__main__")


def test_the_command(monkeypatch, tmp_path, toy_folder):
    rows = [{"prompt": f"Question {i} of this user?", "user_id": i % 50, "category": "open_qa"} for i in range(300)]
    lines = [*map(json.dumps, rows), '{"prompt": ""}', json.dumps({"prompt": "long " * 200, "user_id": 1})]
    (tmp_path / "raw.jsonl").write_text("\n".join(lines))
    options = {
        "dataset_name": tmp_path / "raw.jsonl", "model_name_or_path": toy_folder, "output_dir": tmp_path / "out",
        "personal_data": "keep", "max_per_user": 4, "max_prompt_length": 100, "on_bad_rows": "skip",
    }  # fmt: skip
    for _ in range(2):  # the second run replaces the output of the first
        prepare(monkeypatch, **options)
        result = json.loads((tmp_path / "out" / "result.json").read_text())
        assert result["rows_read"] == 302 and result["bad_rows"] == 1
        assert sum(result["kept"].values()) == 200 and sum(result["dropped"][TOO_MANY].values()) == 100
        assert sum(result["dropped"][TOO_LONG].values()) == 1
    assert "Kept and dropped" in (tmp_path / "out" / "card.md").read_text()
    (bad,) = map(json.loads, (tmp_path / "out" / "skipped_rows.jsonl").read_text().splitlines())
    assert bad["row"] == "line 301"

    args = DataArguments(dataset_name=str(tmp_path / "out" / "prompts"))
    loaded = {split: load_prompts(args, split) for split in SPLITS}
    assert {split: len(rows) for split, rows in loaded.items()} == result["kept"]
    of_user = Counter(user for rows in loaded.values() for user in set(rows["user_id"]))
    assert result["users"] == len(of_user) == 50
    assert 0 < result["users_in_several_splits"] == sum(count > 1 for count in of_user.values())
    assert set(loaded["train"]["category"]) == {"open_qa"}


def test_a_split_without_conversations_is_an_error(monkeypatch, capsys, tmp_path, toy_folder):
    (tmp_path / "raw.jsonl").write_text('{"prompt": "Q", "user_id": "u"}\n')
    with pytest.raises(SystemExit):
        prepare(
            monkeypatch, dataset_name=tmp_path / "raw.jsonl", model_name_or_path=toy_folder,
            output_dir=tmp_path / "out", personal_data="keep",
        )  # fmt: skip
    assert "Give more conversations, at least 50" in capsys.readouterr().err
    assert not (tmp_path / "out" / "prompts").exists()
