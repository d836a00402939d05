"""Loading: the same rows from every kind of file, splits without overlap, bad rows reported by place."""

import csv
import gzip
import json
from itertools import islice
from pathlib import Path

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlhf.data import DataArguments, files, load_comparisons, load_demonstrations, load_pretraining, load_prompts
from rlhf.data.encode import prompt_key
from rlhf.data.formats import FORMATS
from rlhf.data.splits import SPLITS, conversation_id, split_of
from rlhf.errors import InputError


def of_split(split: str, count: int) -> list[dict]:
    """Returns prompts whose conversations are in this split."""
    rows = ({"prompt": f"Question {i}"} for i in range(100 * count))
    return list(islice((row for row in rows if split_of(row) == split), count))


LOADERS = [load_demonstrations, load_comparisons, load_prompts, load_pretraining]
RANKED = [{"prompt": f"Q{i}, é", "completions": ["a", "b\nc", "d"], "ranks": [0, 2, 1]} for i in range(30)]


def write_jsonl(path: Path, rows: list) -> Path:
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    data = b"".join(line + b"\n" for line in lines)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            cells = [{k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()} for row in rows]
            writer.writerows(cells)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    else:
        write_jsonl(path, rows)
    return path


def arguments(path: Path, **kwargs) -> DataArguments:
    return DataArguments(dataset_name=str(path), **kwargs)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.parquet", "lines.json.gz"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name):
    args = arguments(write(tmp_path / name, RANKED))
    rows = [row for split in ("train", "validation", "test") for row in load_comparisons(args, split)]
    assert sorted(rows, key=lambda row: row["prompt"]) == sorted(RANKED, key=lambda row: row["prompt"])


def test_files_of_a_folder_are_split_by_their_names(tmp_path):
    (tmp_path / "valid").mkdir()
    rows = [{"prompt": f"Question {i}"} for i in range(400)]
    write_jsonl(tmp_path / "train-00000-of-00002.jsonl", rows[:100])
    write_jsonl(tmp_path / "train-00001-of-00002.jsonl", rows[100:200])
    write_jsonl(tmp_path / "valid" / "part.jsonl", rows[200:300])
    write_jsonl(tmp_path / "my_test.jsonl", rows[300:])
    (tmp_path / "README.md").write_text("not data")
    train, validation, test = rows[:200], rows[200:300], rows[300:]
    usable = {"train": train, "validation": validation + train, "test": test + validation + train}
    for split, candidates in usable.items():
        assert list(load_prompts(arguments(tmp_path), split)) == [row for row in candidates if split_of(row) == split]
    assert list(load_prompts(arguments(tmp_path), "test", named="test")) == test


def test_a_file_without_a_split_beside_files_with_one_is_an_error(tmp_path):
    """A clone of HelpSteer2 has such a file: preference/preference.jsonl, with rows of both splits."""
    (d,), (b, c) = of_split("train", 1), of_split("validation", 2)
    write_jsonl(tmp_path / "validation.jsonl", [b])
    (tmp_path / "v1-training").mkdir()
    write_jsonl(tmp_path / "v1-training" / "validation.jsonl", [c])  # its own name comes first
    write_jsonl(tmp_path / "more.jsonl", [d])
    assert list(load_prompts(arguments(tmp_path), "train")) == [d]
    assert list(load_prompts(arguments(tmp_path), "validation")) == [c, b]
    write_jsonl(tmp_path / "train.jsonl", [{"prompt": "a"}])
    with pytest.raises(
        InputError, match=r"files named after a split \(.*train.jsonl\) and a file that names none \(.*more.jsonl\)"
    ):
        load_prompts(arguments(tmp_path), "train")


def test_names_that_no_file_can_have():
    for name in ("~nobody-of-that-name/data.jsonl", "a" * 5000):
        with pytest.raises(InputError, match="is neither a path nor a name on the Hub"):
            load_prompts(arguments(name), "train")


def test_names_in_capital_letters(tmp_path):
    (tmp_path / "A.CSV").write_text("prompt\nq\n")
    assert load_prompts(arguments(tmp_path / "A.CSV"), "train")["prompt"][:] == ["q"]


def test_lists_and_indices_in_csv_cells(tmp_path):
    best = {"prompt": "Q", "completions": ["a", "b", "c"], "best": 2, "worst": 0}
    votes = [{"labeler_id": "ann", "better": 1, "worse": 0}]
    voted = {"prompt": [{"role": "user", "content": "Q"}], "completions": ["a", "b"], "votes": votes}
    for number, (row, ranks) in enumerate([(best, [2, 1, 0]), (voted, [1, 0])]):
        (got,) = load_comparisons(arguments(write(tmp_path / f"{number}.csv", [row])), "train")
        assert (got["prompt"], got["ranks"]) == (row["prompt"], ranks)
    write(tmp_path / "text.csv", [{"prompt": "[{ is a bracket"}])
    assert load_prompts(arguments(tmp_path / "text.csv"), "train")["prompt"][:] == ["[{ is a bracket"]


def test_a_first_row_unlike_all_others_is_an_error(tmp_path):
    messages = [{"prompt": [{"role": "user", "content": f"Q{i}"}]} for i in range(200)]
    args = arguments(write_jsonl(tmp_path / "a.jsonl", [{"prompt": "odd"}, *messages]), on_bad_rows="skip")
    with pytest.raises(InputError, match=r"1 rows are like the first one, 200 are not. Write all in one way"):
        load_prompts(args, "train")
    write_jsonl(tmp_path / "a.jsonl", [*messages, {"prompt": "odd"}])
    assert sum(len(load_prompts(args, split)) for split in SPLITS) == 200


def test_a_loading_script_on_the_hub(monkeypatch):
    def load(*args, **kwargs):
        raise RuntimeError("Dataset scripts are no longer supported, but found summarize.py")

    monkeypatch.setattr("datasets.load_dataset", load)
    with pytest.raises(InputError, match=r"no longer supported.*Download the Hub's Parquet conversion"):
        load_prompts(DataArguments(dataset_name="openai/summarize"), "train")


def test_transcripts_in_a_text_prompt_are_one_conversation():
    first = "\n\nHuman: Hi\n\nAssistant:"
    keys = {conversation_id({"prompt": text}) for text in (first, first + " Hello\n\nHuman: Bye\n\nAssistant:")}
    assert len(keys) == 1


def test_columns_that_only_late_rows_have(tmp_path):
    """The first batch that is written does not have all the columns."""
    rows = [{"prompt": f"Q{i}"} | ({"user_id": i} if i > 2000 else {}) for i in range(2500)]
    train = load_prompts(arguments(write_jsonl(tmp_path / "train.jsonl", rows)), "train")
    assert train.column_names == ["prompt", "user_id"]
    assert all(row["user_id"] == (row["prompt"][1:] if int(row["prompt"][1:]) > 2000 else None) for row in train)


def test_text_files_are_one_document_a_line(tmp_path, all_train):
    (tmp_path / "train.txt").write_text("one\n\n  two  \n", encoding="utf-8")
    assert load_pretraining(arguments(tmp_path), "train")["text"][:] == ["one", "two"]


def test_sizes_and_names_of_splits(tmp_path):
    train, validation, test = (of_split(split, 9) for split in SPLITS)
    write_jsonl(tmp_path / "train.jsonl", train + validation)
    write_jsonl(tmp_path / "test.jsonl", test)
    args = arguments(tmp_path, dataset_size=3, dataset_eval_size=2)
    assert list(load_prompts(args, "train")) == train[:3]
    assert list(load_prompts(args, "validation")) == validation[:2]
    assert list(load_prompts(args, "test")) == test[:2] == list(load_prompts(args, "test", named="test"))
    with pytest.raises(InputError, match=r"has no split dev, only test, train; name one"):
        load_prompts(args, "test", named="dev")
    with pytest.raises(InputError, match=r"has no split train_sft, only test, train. Name the split to train on"):
        load_prompts(arguments(tmp_path, dataset_train_split="train_sft"), "train")
    with pytest.raises(ValueError, match="split is 'dev'; it must be one of train, validation, test"):
        load_prompts(args, "dev")


@pytest.mark.parametrize("count", [50, 1000])
def test_held_out_splits_share_no_conversation_and_lose_no_row(count):
    def messages(i, turns):
        texts = ["Be kind.", f"Question {i}", "Answer", "And?"]
        roles = ["system", "user", "assistant", "user"]
        return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)][: 2 * turns]

    rows = [{"prompt": messages(i, turns)} for i in range(count) for turns in (1, 2)]
    splits = {s: [row for row in rows if split_of(row) == s] for s in SPLITS}
    firsts = {s: {row["prompt"][1]["content"] for row in members} for s, members in splits.items()}
    assert sum(map(len, splits.values())) == len(rows) and all(splits.values())
    assert sum(map(len, firsts.values())) == count
    if count == 1000:
        assert 70 < len(firsts["validation"]) < 130 and 70 < len(firsts["test"]) < 130


BAD = [
    (b'{"prompt": "a"', "line 2: not valid JSON"),
    (b'{"prompt": "caf\xe9"}', r"line 2: not UTF-8 text \(byte 0xe9 at position 16 of the line\)"),
    (b'["prompt"]', "line 2: a JSON list; an object"),
    (b"[" * 100_000, "line 2: not usable JSON"),
    (b'{"prompt": ' + b"9" * 5000 + b"}", "line 2: not usable JSON"),
    (b'{"text": "a"}', "line 2: no column prompt"),
    (b'{"prompt": "\\ud83d"}', "line 2: column prompt holds half"),
    (b'{"prompt": [{"role": "user", "content": "x"}]}', "line 2: column prompt is text in some rows and messages"),
]


@pytest.mark.parametrize(("line", "reason"), BAD)
def test_bad_row_ends_the_run_or_is_skipped_and_listed(tmp_path, caplog, line, reason):
    (first,), (other,) = of_split("train", 1), of_split("validation", 1)
    path = write_jsonl(tmp_path / "a.jsonl", [first, line, other, {"prompt": "c"}])
    with pytest.raises(InputError, match=reason) as caught:
        load_prompts(arguments(path), "train")
    assert str(caught.value).startswith(str(path)) and "--on_bad_rows skip" in str(caught.value)

    out = tmp_path / "out"
    for split in ("train", "validation"):  # the rows are read twice, and listed once
        load_prompts(arguments(path, on_bad_rows="skip"), split, str(out))
    (record,) = map(json.loads, (out / "skipped_rows.jsonl").read_text().splitlines())
    assert record["file"] == str(path) and record["row"] == "line 2"
    assert reason.split(": ", 1)[1].replace("\\", "") in record["reason"]
    assert "skipped 1 of 4 rows" in caplog.text


def test_list_of_skipped_rows_forgets_rows_that_were_corrected(tmp_path):
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    good = [{"prompt": c} for c in "abcd"]
    for path in (first, second):
        write_jsonl(path, [*good, {"prompt": ""}])
        load_prompts(arguments(path, on_bad_rows="skip"), "train", tmp_path)
    write_jsonl(first, good)
    load_prompts(arguments(first, on_bad_rows="skip"), "train", tmp_path)
    records = [json.loads(line) for line in (tmp_path / "skipped_rows.jsonl").read_text().splitlines()]
    assert [record["file"] for record in records] == [str(second)]


def test_nothing_left_is_an_error(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": ""}, {"prompt": " "}])
    with pytest.raises(InputError, match=r"has no prompts to use \(2 of 2 rows were skipped\)"):
        load_prompts(arguments(path, on_bad_rows="skip"), "train")


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.csv", b"prompt\nok\n\xff\n", r"a.csv, line 3: not UTF-8 text"),
        ("a.csv", b'prompt\nok\n"open\nquote', r"line 3 is not valid CSV"),
        (
            "a.csv",
            b"prompt\na,b\n",
            r"line 2: 2 cells under 1 columns; put cells that hold delimiters or newlines in quotes",
        ),
        ("a.csv", b"prompt,ranks\na,1;2\n", r"line 2: column ranks is not a list in JSON; write it like \[0, 1, 2\]"),
        ("a.json", b'[{"prompt": "a"},\n{"prompt": }]', r"line 2 is not valid JSON"),
        ("a.json", b'[{"prompt": "a"}, 3]', r"row 2: a JSON int"),
        ("a.jsonl.gz", b"no gzip", r"a.jsonl.gz cannot be read"),
        ("a.jsonl.gz", gzip.compress(b'{"prompt": "a"}\n' * 99, mtime=0)[:-12], r"a.jsonl.gz cannot be read"),
        ("a.parquet", b"PAR1 no parquet", r"a.parquet is not a readable Parquet file"),
        ("a.jsonl", b"", r"has no prompts to use"),
        ("a.jsonl", '{"prompt": "a"}\n'.encode("utf-16"), r"line 1: not UTF-8 text"),
        ("a.xlsx", b"", r"a.xlsx is of an unknown type. Data files must end in .jsonl"),
    ],
)
def test_unreadable_files(tmp_path, name, data, reason):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=reason):
        load_prompts(arguments(tmp_path / name), "train")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("./missing", "does not exist"),
        ("missing.jsonl", "does not exist"),
        ("data/missing.jsonl", "does not exist"),
        ("owner/name", "readable from the Hub"),  # tests run offline
        ("owner/name/file.jsonl", "nor one on the Hub"),
    ],
)
def test_sources_that_are_not_there(name, reason):
    with pytest.raises(InputError, match=reason):
        load_prompts(DataArguments(dataset_name=name), "train")


def test_folders_without_data(tmp_path):
    with pytest.raises(InputError, match="holds no data"):
        load_prompts(arguments(tmp_path), "train")
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(InputError, match=r"was written by save_to_disk and cannot be read \(.*\). Write it again."):
        load_prompts(arguments(tmp_path), "train")


def test_folders_written_by_save_to_disk(tmp_path):
    rows = {split: of_split("train", 3) + of_split("test", 2) for split in ("train", "test")}
    parts = {split: datasets.Dataset.from_list(own) for split, own in rows.items()}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "both")
    parts["train"].save_to_disk(tmp_path / "one")
    for name, count in (("both", 4), ("one", 2)):
        assert list(load_prompts(arguments(tmp_path / name), "train")) == rows["train"][:3]
        assert len(load_prompts(arguments(tmp_path / name), "test")) == count


def test_the_seed_draws_the_rows_of_the_sandbox():
    rows = [load_prompts(DataArguments("sandbox", dataset_size=5, dataset_seed=seed), "train") for seed in (0, 0, 1)]
    first, again, other = (list(one["prompt"]) for one in rows)
    assert first == again != other


def test_arguments_out_of_range():
    for wrong in ({"dataset_size": 0}, {"dataset_eval_size": -1}, {"dataset_train_split": "test_sft"}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            DataArguments(dataset_name="sandbox", **wrong)
    with pytest.raises(InputError, match="dataset_name is empty"):
        DataArguments(dataset_name="")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=[])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": JSON})
TREE = st.deferred(
    lambda: st.fixed_dictionaries(
        {"text": st.text(max_size=3) | JSON, "role": st.sampled_from(["prompter", "assistant"])},
        optional={"replies": st.lists(TREE, max_size=3) | JSON, "rank": st.integers(-1, 3) | JSON, "deleted": JSON},
    )
)
VALUE = st.text(max_size=5) | st.lists(MESSAGE, max_size=3) | st.lists(st.text(max_size=3), max_size=3) | TREE | JSON
COLUMNS = ["prompt", "completion", "messages", "completions", "chosen", "rejected", "text", "labeler_id", "ratings"]
ROW = st.dictionaries(st.sampled_from([*COLUMNS, "message_tree_id"]), VALUE, max_size=5)
ROWS = st.lists(
    ROW | st.builds(lambda row, n: row | {"ranks": n}, ROW, st.lists(st.integers(-1, 4)) | JSON), max_size=6
)


def loads_or_explains(path: Path, **kwargs) -> None:
    """Every loader returns a data set with a key for each row, or raises an InputError that ends in a full stop."""
    for load in LOADERS:
        try:
            for row in load(arguments(path, **kwargs), "train"):
                prompt_key(row["prompt"] if "prompt" in row else row["text"]).encode()
        except InputError as error:
            assert str(error).strip().endswith(".")


PUBLISHED = {
    "oasst_messages": ["message_id", "message_tree_id", "parent_id", "text", "role", "rank"],
    "hh_rlhf": ["chosen", "rejected"],
    "summarize_from_feedback": ["info", "summaries", "choice", "worker"],
    "summarize_from_feedback_axis": ["info", "summary", "worker"],
    "ultrafeedback": ["instruction", "completions", "source"],
    "helpsteer2": ["prompt", "response", "helpfulness"],
    "helpsteer2_preference": ["prompt", "response_1", "response_2", "preference_strength"],
    "helpsteer3": ["context", "response1", "response2", "overall_preference", "domain"],
    "alpaca": ["instruction", "input", "output"],
    "dolly": ["instruction", "context", "response", "category"],
    "self_instruct": ["instruction", "instances", "is_classification"],
    "nectar": ["prompt", "answers", "turns"],
    "stack_exchange_paired": ["question", "response_j", "response_k"],
    "shp": ["history", "human_ref_A", "human_ref_B", "labels", "domain"],
    "webgpt": ["question", "answer_0", "answer_1", "score_0", "score_1"],
    "arena": ["conversation_a", "conversation_b", "winner", "turn"],
    "arena_55k": ["prompt", "response_a", "response_b", "winner_model_a", "winner_model_b", "winner_tie"],
    "capybara": ["conversation", "original_response", "chosen", "rejected"],
    "pku_saferlhf": ["prompt", "response_0", "response_1", "better_response_id", "safer_response_id"],
    "openai_preferences": ["input", "preferred_output", "non_preferred_output"],
    "ultrachat": ["id", "data"],
    "lima": ["conversations", "source"],
    "trl_unpaired": ["prompt", "completion", "label"],
    "votes": ["prompt", "completions", "votes"],
    "best_answer": ["prompt", "completions", "ranks", "chosen", "rejected"],
}
KEYS = "text post article title axes overall response overall_score input output better worse tied labeler_id"
OBJECT = st.dictionaries(
    st.sampled_from(KEYS.split()),
    st.text(max_size=4) | st.integers(-1, 3) | st.lists(st.integers(0, 2), max_size=3) | JSON, max_size=5,
)  # fmt: skip
CELL = (
    st.text(max_size=5) | st.integers(-1, 3) | OBJECT | st.lists(OBJECT, max_size=3) | st.booleans() | JSON
    | st.sampled_from(["q", "\n\nHuman: a"]) | st.lists(st.text(max_size=3), max_size=4) | st.lists(MESSAGE, max_size=3)
)  # fmt: skip


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), name=st.sampled_from(sorted(PUBLISHED)), forced=st.booleans())
def test_any_cells_of_a_published_format_are_read_or_explained(tmp_path_factory, data, name, forced):
    columns = PUBLISHED[name]
    cells = st.fixed_dictionaries(dict.fromkeys(columns, CELL)) | st.dictionaries(st.sampled_from(columns), CELL)
    path = write_jsonl(tmp_path_factory.mktemp("published") / "a.jsonl", data.draw(st.lists(cells, max_size=4)))
    policy = data.draw(st.sampled_from(["error", "skip"]))
    loads_or_explains(path, on_bad_rows=policy, dataset_format=name if forced else None)


def test_all_formats_are_tried():
    assert set(PUBLISHED) | {"oasst"} == set(FORMATS)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=ROWS, policy=st.sampled_from(["error", "skip"]), style=st.sampled_from([None, "oasst"]))
def test_any_rows_are_read_or_explained(tmp_path_factory, rows, policy, style):
    folder = tmp_path_factory.mktemp("rows")
    path = write_jsonl(folder / "a.jsonl", rows)
    loads_or_explains(path, on_bad_rows=policy, dataset_format=style)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), name=st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.jsonl.gz", "a.parquet", "a.txt"]))
def test_any_corruption_of_bytes_is_read_or_explained(tmp_path_factory, data, name):
    path = write(tmp_path_factory.mktemp("bytes") / name, RANKED[:4])
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        end = min(len(content), start + data.draw(st.integers(0, 8)))
        content[start:end] = data.draw(st.binary(max_size=8))
    path.write_bytes(content)
    loads_or_explains(path, on_bad_rows=data.draw(st.sampled_from(["error", "skip"])))


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=st.binary(max_size=200), name=st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.txt"]))
def test_any_bytes_are_read_or_explained(tmp_path_factory, content, name):
    path = tmp_path_factory.mktemp("noise") / name
    path.write_bytes(content)
    loads_or_explains(path)


def test_a_json_array_is_parsed_once(tmp_path, monkeypatch):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"prompt": f"Q{i}"} for i in range(60)]))
    parsed, whole_json = [], files._whole_json
    monkeypatch.setattr(files, "_whole_json", lambda path: parsed.append(path) or whole_json(path))
    load_prompts(DataArguments(dataset_name=str(path)), "train")
    assert parsed == [path]
