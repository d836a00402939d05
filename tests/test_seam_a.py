"""Seams, section A: what is evaluated was never trained on. Held out is a function of the conversation alone."""

import json
import logging
from collections import Counter
from itertools import combinations
from pathlib import Path

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_data_formats import assistant, user

from rlhf.cli import parse
from rlhf.data import DataArguments, load_comparisons, load_demonstrations, load_pretraining, load_prompts
from rlhf.data.arguments import PretrainingArguments
from rlhf.data.bad_rows import BadRows
from rlhf.data.loading import rows_by_split
from rlhf.data.prepare import PrepareArguments
from rlhf.data.pretraining import open_sources
from rlhf.data.selection import say_once
from rlhf.data.splits import RANGES, SPLITS, conversation_id, conversation_key, split_of
from rlhf.errors import InputError

ROOT = Path(__file__).parent.parent
REAL = ROOT.parent / "shared" / "data"


def write(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".parquet", ".csv"):
        rows_of = datasets.Dataset.from_list(rows)
        rows_of.to_parquet(path) if path.suffix == ".parquet" else rows_of.to_csv(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def demonstrations(numbers) -> list[dict]:
    return [{"prompt": f"Question {i}?", "completion": f"Answer {i}."} for i in numbers]


def source(path: Path, **options) -> DataArguments:
    return DataArguments(dataset_name=str(path), **options)


def conversations(load, args: DataArguments, split: str, **options) -> set[int]:
    return {conversation_id(row) for row in load(args, split, **options)}


def assert_held_out(args: DataArguments, load=load_demonstrations) -> None:
    """Nothing that is evaluated, or that choices are made on, is trained on."""
    train, validation = conversations(load, args, "train"), conversations(load, args, "validation")
    test = conversations(load_prompts, args, "test")
    assert train and validation and test
    assert not (train & test or train & validation or validation & test)


LAYOUTS = {
    "one file": {"rows.jsonl": range(400)},
    "train and validation": {"train.parquet": range(400), "validation.parquet": range(400, 440)},
    "train and test": {"train.csv": range(400), "test.csv": range(400, 440)},
    "all three": {"train.jsonl": range(400), "dev/a.jsonl": range(400, 440), "test/a.jsonl": range(440, 480)},
    "the same conversations in all three": {f"{name}.jsonl": range(400) for name in SPLITS},
    "two train files": {"train-0.jsonl": range(300), "train-1.jsonl": range(200, 400)},
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_seam_a1_no_layout_of_a_source_asks_a_trained_prompt(tmp_path, layout):
    for name, numbers in layout.items():
        write(tmp_path / name, demonstrations(numbers))
    args = source(tmp_path)
    assert_held_out(args)
    trained = conversations(load_demonstrations, args, "train")
    by_name = {name: {conversation_id(row) for row in demonstrations(rows)} for name, rows in layout.items()}
    held_out = {name: ids for name, ids in by_name.items() if name.startswith(("validation", "dev", "test"))}
    of_train_files = set().union(*(ids for name, ids in by_name.items() if name not in held_out))
    assert trained <= of_train_files
    # No choice is made on rows of the source's test split.
    chosen_on = conversations(load_demonstrations, args, "validation")
    assert chosen_on <= of_train_files.union(*(ids for name, ids in held_out.items() if not name.startswith("test")))


def test_seam_a1_evaluate_asks_what_no_stage_has_trained_on(tmp_path, parse_recipe):
    """The options of every recipe as they are parsed: stages and evaluate agree without any of them."""
    write(tmp_path / "train.jsonl", demonstrations(range(2000)))
    write(tmp_path / "validation.jsonl", demonstrations(range(2000, 2200)))
    (tmp_path / "data.yaml").write_text(f"dataset_name: {tmp_path}\noutput_dir: {tmp_path}/out\n")
    classes, parsed = parse_recipe("evaluate", str(tmp_path / "data.yaml"))
    data = parsed[[cls.__name__ for cls in classes].index("EvaluationData")]
    assert data.dataset_test_split is None
    asked = conversations(load_prompts, data, "test")
    assert len(asked) > 150 and not asked & conversations(load_demonstrations, source(tmp_path), "train")


def test_seam_a1_splits_of_the_hub_are_used_if_named_exactly(tmp_path, monkeypatch):
    """ultrachat_200k has train_sft, test_sft and others; only the named train split and exact words are read."""
    parts = {
        "train_sft": range(300),
        "train_gen": range(300, 400),
        "test_sft": range(400, 500),
        "test": range(500, 600),
    }
    loaded = {name: datasets.Dataset.from_list(demonstrations(rows)) for name, rows in parts.items()}
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **options: datasets.DatasetDict(loaded))
    args = DataArguments(dataset_name="owner/name", dataset_train_split="train_sft")
    assert_held_out(args)
    ids = {name: {conversation_id(row) for row in demonstrations(rows)} for name, rows in parts.items()}
    assert conversations(load_demonstrations, args, "train") < ids["train_sft"]
    assert conversations(load_demonstrations, args, "validation") < ids["train_sft"]
    assert conversations(load_prompts, args, "test") < ids["train_sft"] | ids["test"]
    assert conversations(load_prompts, args, "test", named="test_sft") == ids["test_sft"]


def test_seam_a1_a_split_in_full_is_never_one_to_train_or_choose_on(tmp_path):
    write(tmp_path / "train.jsonl", demonstrations(range(300)))
    write(tmp_path / "val.jsonl", demonstrations(range(300, 600)))
    args = source(tmp_path)
    with pytest.raises(InputError, match=r"dataset_test_split is train, a split to train on. Name one that the source"):
        load_prompts(args, "test", named="train")
    asked = conversations(load_prompts, args, "test", named="validation")
    assert len(asked) > 240 and not asked & conversations(load_demonstrations, args, "validation")
    with pytest.raises(InputError, match=r"The sandbox's test rows are its split test, not train"):
        load_prompts(DataArguments("sandbox"), "test", named="train")


@pytest.mark.parametrize("name", ["test.jsonl", "my-validation.csv", "eval.parquet"])
def test_seam_a1_a_file_named_as_held_out_is_never_trained_on(tmp_path, name):
    args = source(write(tmp_path / name, demonstrations(range(300))))
    with pytest.raises(InputError, match=r"has no split train, only .*files and splits named validation or test are n"):
        load_demonstrations(args, "train")
    assert conversations(load_prompts, args, "test") == {
        conversation_id(row) for row in demonstrations(range(300)) if split_of(row) == "test"
    }
    for split in ("test", "validation", "test_sft", "dev"):
        with pytest.raises(InputError, match=rf"dataset_train_split is {split}, a split that the source holds out"):
            DataArguments(dataset_name=str(tmp_path), dataset_train_split=split)


@pytest.mark.parametrize("recipe", ["sft", "reward", "ppo", "choose"])
@pytest.mark.parametrize("place", ["command line", "YAML"])
def test_seam_a2_stages_have_no_split_to_evaluate_on(tmp_path, load_recipe, monkeypatch, recipe, place):
    config, line = tmp_path / "old.yaml", "dataset_test_split: test\n" if place == "YAML" else ""
    config.write_text((ROOT / "recipes" / "sandbox" / f"{recipe}.yaml").read_text() + line)
    options = ["--dataset_test_split", "test"] if place == "command line" else []
    cpu = [] if recipe == "choose" else ["--use_cpu", "true"]
    monkeypatch.setattr("sys.argv", [f"{recipe}.py", "--config", str(config), *options, *cpu])
    where = f"config file {config}" if place == "YAML" else "the command line"
    with pytest.raises(
        InputError, match=f"dataset_test_split in {where} is not an option .* any more. Drop it: stages"
    ):
        load_recipe(recipe).main()


def test_seam_a3_make_data_and_the_stages_split_alike(tmp_path):
    """Also for raw prompts whose users are known, and for prompts that other sources hold in another form."""
    raw = [{"prompt": [user(f"Question {i}?")], "user_id": str(i % 40)} for i in range(400)]
    write(tmp_path / "raw" / "train.jsonl", raw[:350])
    write(tmp_path / "raw" / "test.jsonl", raw[350:])
    prepared = {split: [] for split in SPLITS}
    for own, split, row in rows_by_split("prompts", source(tmp_path / "raw"), BadRows("error", None)):
        assert (split is None) == (own == "test" and split_of(row) != "test")
        if split is not None:
            prepared[split].append(row)
    for split, rows in prepared.items():
        write(tmp_path / "prepared" / f"{split}.jsonl", rows)
    sft = source(write(tmp_path / "sft.jsonl", demonstrations(range(400))))
    for split, rows in prepared.items():
        loaded = load_prompts(source(tmp_path / "prepared"), split)
        assert len(loaded) == len(rows) > 20  # PPO uses all that make data has prepared
    trained = conversations(load_demonstrations, sft, "train")
    assert not trained & {conversation_id(row) for split in ("validation", "test") for row in prepared[split]}


def test_seam_a3_make_data_of_the_sandbox_keeps_its_held_out_tasks(tmp_path):
    args = DataArguments("sandbox", dataset_size=300)
    rows = list(rows_by_split("prompts", args, BadRows("error", None)))
    prepared = {split: {conversation_id(row) for _, use, row in rows if use == split} for split in SPLITS}
    stages = {s: conversations(load_prompts, DataArguments("sandbox", dataset_size=300), s) for s in SPLITS}
    for one, other in combinations(SPLITS, 2):
        assert not prepared[one] & stages[other] and not prepared[other] & stages[one]


def spellings(text: str) -> list:
    """Returns one prompt in the forms in which sources hold it."""
    return [
        text,
        [user(text)],
        [{"role": "system", "content": "Be kind."}, user(text)],
        [user(text), assistant("Yes."), user("And then?")],
        [assistant("How can I help?"), user(text)],
        f"\n\nHuman: {text}\n\nAssistant:",
        f"\n\nHuman: {text}\n\nAssistant: Yes.\n\nHuman: And then?\n\nAssistant:",
        f"User: {text}\nAssistant:",
        f"Be kind.\n\nUser: {text}\nAssistant: Yes.\nUser: And then?\nAssistant:",
        f"System: Be kind.\n\nUSER: {text}\n\nASSISTANT:",
        f"### Human: {text}### Assistant: Yes.",
        f"Below is an instruction.\n\n### Instruction:\n{text}\n\n### Response:\n",
        f"<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n",
        f"<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\n{text} [/INST]",
        f"<start_of_turn>user\n{text}<end_of_turn>\n<start_of_turn>model\n",
        f"  {text.upper()}\u00a0\n",
        text.replace("é", "e\u0301").replace(" ", "\n "),
    ]


@pytest.mark.parametrize("text", ["Name a café in Bergen.", "Sum this up:\n\nA sea is deep.\n- Human error: none", "7"])
def test_seam_a3_a_conversation_has_one_split_in_every_form(text):
    keys = {conversation_key({"prompt": form}) for form in spellings(text)}
    keys |= {conversation_key({"text": form}) for form in spellings(text) if isinstance(form, str)}
    assert len(keys) == 1


@given(st.text(min_size=1).filter(str.strip), st.text())
def test_seam_a3_text_and_message_are_one_conversation_for_any_text(text, system):
    """Whatever the system message, and whatever the text looks like."""
    message = [{"role": "system", "content": system}, user(text)]
    assert conversation_id({"prompt": text}) == conversation_id({"prompt": message}) == conversation_id({"text": text})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Name a sea.", "Name a lake."),
        ("Q: 1?\nA: 2\nQ: 3?\nA:", "Q: 1?\nA: 2\nQ: 4?\nA:"),  # examples before the question are no conversation
        ("Text: a b\nInstruction: Sum up.\nResponse:", "Text: c d\nInstruction: Sum up.\nResponse:"),
        ("User:", "Human:"),
        ("The report.\nUser: none", "Another report.\nUser: none"),
    ],
)
def test_seam_a3_other_conversations_have_other_keys(one, other):
    assert conversation_key({"prompt": one}) != conversation_key({"prompt": other})


def test_seam_a3_sources_with_the_same_conversations_never_cross(tmp_path):
    """One source for each stage, each in its own layout and form; the last one brings its own test file."""
    texts = [f"Tell me about number {i}." for i in range(300)]
    pairs = [{"prompt": [user(t)], "chosen": [assistant("a")], "rejected": [assistant("b")]} for t in texts]
    talks = [{"messages": [{"role": "system", "content": "Be brief."}, user(t), assistant("Well.")]} for t in texts]
    transcripts = [{s: f"\n\nHuman: {t}\n\nAssistant: {s}" for s in ("chosen", "rejected")} for t in texts]
    write(tmp_path / "talks.parquet", talks)
    write(tmp_path / "pairs" / "train.jsonl", pairs[100:])
    write(tmp_path / "pairs" / "validation.jsonl", pairs[:100])
    write(tmp_path / "hh" / "train.jsonl", transcripts[:200])
    write(tmp_path / "hh" / "test.jsonl", transcripts[200:])
    write(tmp_path / "bare.csv", [{"prompt": t.upper()} for t in texts])
    loads = [
        (load_demonstrations, source(tmp_path / "talks.parquet")),
        (load_comparisons, source(tmp_path / "pairs")),
        (load_comparisons, source(tmp_path / "hh")),
        (load_prompts, source(tmp_path / "bare.csv")),
    ]
    of = {split: [conversations(load, args, split) for load, args in loads] for split in SPLITS}
    assert all(map(all, of.values()))
    for one, other in combinations(SPLITS, 2):
        assert not set().union(*of[one]) & set().union(*of[other])


@pytest.mark.skipif(not REAL.exists(), reason="needs real data")
def test_seam_a3_real_sources_never_cross():
    trees = source(REAL / "oasst_trees" / "en_100_tree.jsonl")
    assert_held_out(trees)
    assert_held_out(trees, load_comparisons)
    of = {s: {load: conversations(load, trees, s) for load in (load_demonstrations, load_prompts)} for s in SPLITS}
    for one, other in combinations(SPLITS, 2):
        assert not set().union(*of[one].values()) & set().union(*of[other].values())
    assert_held_out(source(REAL / "self_instruct", on_bad_rows="skip"))
    (hh,) = (REAL / "hh_rlhf").glob("*.gz")
    assert_held_out(source(hh, on_bad_rows="skip"), load_comparisons)


def test_seam_a3_the_sandbox_keeps_the_promise():
    for load in (load_demonstrations, load_comparisons, load_prompts):
        of = {s: conversations(load, DataArguments("sandbox", None, "train", 400, 400), s) for s in SPLITS}
        assert all(of.values()) and not any(of[one] & of[other] for one, other in combinations(SPLITS, 2))


def test_seam_a3_pretraining_text_with_held_out_conversations(tmp_path, monkeypatch):
    """Transcripts of held-out conversations are left out; other documents have no conversation, and all are used."""
    transcripts = [{"text": f"### Human: Question {i}?### Assistant: Yes."} for i in range(300)]
    documents = [{"text": f"Document {i} is about apples."} for i in range(100)]
    path = write(tmp_path / "text.jsonl", transcripts + documents)
    train = [row["text"] for row in transcripts if split_of(row) == "train"] + [row["text"] for row in documents]
    args, data = PretrainingArguments([str(path)]), DataArguments("sandbox")
    assert open_sources(args, data)[0]["text"][:] == train
    stream = datasets.Dataset.from_list(transcripts + documents).to_iterable_dataset()
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **options: stream)
    hub = PretrainingArguments(["owner/text"])
    assert [row["text"] for row in open_sources(hub, data)[0]] == train
    # A source of which the stage has its own rows is held out as a whole.
    of_train = load_pretraining(source(path), "train")["text"][:]
    assert open_sources(args, source(path))[0]["text"][:] == of_train
    assert [row["text"] for row in open_sources(hub, DataArguments("owner/text"))[0]] == of_train
    assert set(of_train) < set(train)


def test_seam_a4_no_recipe_and_no_page_sends_a_choice_to_the_test_split():
    files = [*(ROOT / "recipes").glob("**/*.yaml"), *(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
    for path in files:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if "dataset_test_split" in line and path.name != "log.md":
                assert "evaluate" in line, f"{path.name}:{number} gives a stage dataset_test_split"


def test_seam_a4_calibration_and_the_choice_of_the_epoch_use_validation_rows_alone(tmp_path, monkeypatch):
    from rlhf.reward import calibration

    for name, numbers in {"train": range(300), "validation": range(300, 400), "test": range(400, 700)}.items():
        write(tmp_path / f"{name}.jsonl", demonstrations(numbers))
    monkeypatch.setattr(calibration, "in_prompt_style", lambda rows, *others: rows)
    monkeypatch.setattr(calibration, "_sequences", lambda rows, tokenizer, max_length: rows)

    class Args:
        calibration_dataset, calibration_dataset_config, calibration_size, max_length = str(tmp_path), None, 1000, None

    for data in (DataArguments("sandbox"), DataArguments("sandbox", dataset_train_split="train_sft")):
        rows = calibration.load_calibration_rows(Args(), data, tokenizer=None)
        wanted = [row for row in demonstrations([*range(300, 400), *range(300)]) if split_of(row) == "validation"]
        assert list(rows) == wanted == list(load_demonstrations(source(tmp_path), "validation"))


def test_seam_a5_ranges_are_fixed_and_an_empty_split_is_an_error(tmp_path):
    assert RANGES == {"validation": (0.0, 0.1), "test": (0.1, 0.2), "train": (0.2, 1.0)}
    shares = Counter(split_of({"prompt": f"Q{i}"}) for i in range(20_000))
    assert 1850 < shares["validation"] < 2150 and 1850 < shares["test"] < 2150
    assert conversation_id({"prompt": "Name a sea."}) == 760570515910760  # in every version, on every machine
    train = [row for row in demonstrations(range(100)) if split_of(row) == "train"]
    args = source(write(tmp_path / "small.jsonl", train[:7] * 2))
    assert len(load_demonstrations(args, "train")) == 14
    for split in ("validation", "test"):
        with pytest.raises(
            InputError,
            match=rf"small.jsonl has 7 different conversations that could be in the {split} split, and none of them "
            r"is \(0 of 14 rows were skipped\): .* one of ten are. Give more of them, at least 50",
        ):
            load_demonstrations(args, split)


def test_seam_a6_few_validation_conversations_are_a_warning(tmp_path, caplog):
    say_once.cache_clear()
    held_out = [row for row in demonstrations(range(1000)) if split_of(row) == "validation"]
    write(tmp_path / "few.jsonl", held_out[:29] * 2)
    write(tmp_path / "enough.jsonl", held_out[:30])
    for name in ("few", "few", "enough"):
        load_demonstrations(source(tmp_path / f"{name}.jsonl"), "validation")
    (warning,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert "few.jsonl has 29 validation conversations: what is chosen or calibrated on them is mostly" in warning


def test_seam_a6_the_log_says_once_where_the_rows_went(tmp_path, caplog):
    say_once.cache_clear()
    caplog.set_level(logging.INFO, logger="rlhf")
    write(tmp_path / "rows.jsonl", demonstrations(range(1000)))
    write(tmp_path / "both" / "train.jsonl", demonstrations(range(100)))
    write(tmp_path / "both" / "test.jsonl", demonstrations(range(100, 200)))
    for load, name, split in (
        (load_demonstrations, "rows.jsonl", "train"),
        (load_demonstrations, "rows.jsonl", "validation"),
        (load_prompts, "both", "test"),
    ):
        load(source(tmp_path / name), split)
    count = Counter(split_of(row) for row in demonstrations(range(1000)))
    first = Counter(split_of(row) for row in demonstrations(range(100)))
    test = Counter(split_of(row) for row in demonstrations(range(100, 200)))["test"]
    said = [record.message.removeprefix(f"{tmp_path}/") for record in caplog.records if "set aside" in record.message]
    assert said == [
        f"rows.jsonl: 1,000 rows: {count['train']} train, {count['validation']} validation, {count['test']} test, "
        "0 set aside",
        f"both (test split): 100 rows: 0 train, 0 validation, {test} test, {100 - test} set aside; recipes/evaluate.py "
        "asks all of them with --dataset_test_split test",
        f"both (train split): 100 rows: {first['train']} train, {first['validation']} validation, {first['test']} "
        "test, 0 set aside",
    ]


def test_seam_a7_splits_of_a_source_in_different_forms_are_an_error(tmp_path):
    write(tmp_path / "train.jsonl", [{"prompt": f"Q{i}"} for i in range(100)])
    write(tmp_path / "test.jsonl", [{"prompt": [user(f"R{i}")]} for i in range(100)])
    with pytest.raises(InputError, match="is text in some splits and messages in others"):
        load_prompts(source(tmp_path), "test")


def test_seam_a8_the_share_that_went_is_explained(tmp_path):
    options = ["--output_dir", str(tmp_path), "--model_name_or_path", "sandbox", "--dataset_name", "sandbox"]
    with pytest.raises(InputError, match=r"held_out_share in the command line is not an option .* any more. Drop it"):
        parse(PrepareArguments, DataArguments, args=[*options, "--held_out_share", "0.2"])


# ---- names of files, columns that name splits, configurations


@pytest.mark.parametrize(
    "name",
    [
        *("heldout.jsonl", "prompts_held_out.jsonl", "holdout/a.jsonl", "testset.jsonl", "evals.jsonl", "MyTest.jsonl"),
        *("devset.jsonl", "valData.jsonl", "unseen.jsonl", "benchmark.jsonl", "validate.jsonl", "eval split.jsonl"),
    ],
)
def test_seam_a9_held_out_files_have_many_names(tmp_path, name):
    write(tmp_path / "rows.jsonl", demonstrations(range(100)))
    write(tmp_path / name, demonstrations(range(1000, 1100)))
    numbers = {row["prompt"] for row in load_demonstrations(source(tmp_path), "train")}
    assert numbers and numbers <= {row["prompt"] for row in demonstrations(range(100))}
    assert_held_out(source(tmp_path))
    if "/" not in name:
        with pytest.raises(InputError, match="never trained on"):
            load_demonstrations(source(tmp_path / name), "train")


def test_seam_a9_words_that_only_hold_test_are_no_split(tmp_path):
    for name in ("latest.jsonl", "contest.jsonl", "developers.jsonl", "trainset.jsonl"):
        assert load_demonstrations(source(write(tmp_path / name, demonstrations(range(60)))), "train")


def test_seam_a9_a_folder_named_test_is_never_trained_on(tmp_path):
    write(tmp_path / "data" / "test" / "a.jsonl", demonstrations(range(60)))
    with pytest.raises(InputError, match="never trained on"):
        load_demonstrations(source(tmp_path / "data" / "test"), "train")


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_seam_a10_rows_that_a_column_names_as_held_out_are_never_trained_on(tmp_path, suffix):
    words = ("train", "dev", "test")
    rows = [row | {"split": words[i % 3]} for i, row in enumerate(demonstrations(range(600)))]
    args = source(write(tmp_path / f"rows.{suffix}", rows))
    named = {row["prompt"]: row["split"] for row in rows}
    loaded = {split: [named[row["prompt"]] for row in load_demonstrations(args, split)] for split in SPLITS}
    assert set(loaded["train"]) == {"train"} and set(loaded["validation"]) == {"train", "dev"}
    assert set(loaded["test"]) == set(words)
    assert_held_out(args)
    args = source(tmp_path / f"rows.{suffix}", columns=["ignore=split"])
    assert {named[row["prompt"]] for row in load_demonstrations(args, "train")} == set(words)


def test_seam_a10_a_column_that_names_no_row_to_train_on_is_an_error(tmp_path):
    path = write(tmp_path / "rows.jsonl", [row | {"split": "test"} for row in demonstrations(range(60))])
    with pytest.raises(InputError, match=r"column split of .* names no row to train on.*--columns ignore=split"):
        load_demonstrations(source(path), "train")


def test_seam_a11_a_folder_from_the_hub_has_the_splits_that_it_has_there(tmp_path):
    for n, name in enumerate(("train_sft", "train_prefs", "test_sft", "test_prefs")):
        write(tmp_path / "data" / f"{name}-00000-of-00001.parquet", demonstrations(range(1000 * n, 1000 * n + 100)))
    write(tmp_path / "dataset_infos.json", [{"rows": 100}])
    with pytest.raises(InputError, match="no split train, only test_prefs, test_sft, train_prefs, train_sft"):
        load_demonstrations(source(tmp_path), "train")
    args = source(tmp_path, dataset_train_split="train_sft")
    assert {row["prompt"] for row in load_demonstrations(args, "train")} <= {
        row["prompt"] for row in demonstrations(range(100))
    }
    assert len(load_prompts(args, "test", named="test_sft")) == 100


def test_seam_a11_dataset_config_chooses_a_folder_or_is_refused(tmp_path):
    for n, name in enumerate(("helpful", "harmless")):
        write(tmp_path / name / "train.jsonl", demonstrations(range(1000 * n, 1000 * n + 100)))
    args = source(tmp_path, dataset_config="helpful")
    assert {row["prompt"] for row in load_demonstrations(args, "train")} <= {
        row["prompt"] for row in demonstrations(range(100))
    }
    for path in (tmp_path, tmp_path / "helpful" / "train.jsonl"):
        with pytest.raises(InputError, match="has no folder of that name"):
            load_demonstrations(source(path, dataset_config="honest"), "train")


HELD_OUT_CELLS = {  # cells of rows to train on, to choose on and to evaluate, in a column of that name
    "SPLIT": ("Train", "DEV", "TEST"),
    "set": ("train", "val", "te"),
    "subset": ("train", "valid1", "test"),
    "fold": ("train_0", "val", "test"),
    "phase": ("training", "validation", "testing"),
    "usage": ("train", "validation", "heldout"),
    "ml_use": ("TRAIN", "VALIDATE", "TEST"),
    "anything": ("train", "dev", "test"),
    "split_list": (["train"], ["dev"], ["test"]),
    "metadata": ({"split": "train", "id": 1}, {"split": "dev", "id": 2}, {"split": "test", "id": 3}),
}


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
@pytest.mark.parametrize("name", HELD_OUT_CELLS)
def test_seam_a12_a_column_of_any_name_that_names_splits_holds_rows_out(tmp_path, name, suffix):
    cells = HELD_OUT_CELLS[name]
    rows = [row | {name: cells[i % 3]} for i, row in enumerate(demonstrations(range(300)))]
    if suffix == "csv":
        rows = [row | {name: json.dumps(row[name]) if isinstance(row[name], dict) else row[name]} for row in rows]
        rows = [row | {name: row[name][0] if isinstance(row[name], list) else row[name]} for row in rows]
    args = source(write(tmp_path / f"rows.{suffix}", rows))
    place = {row["prompt"]: i % 3 for i, row in enumerate(rows)}
    loaded = {split: {place[row["prompt"]] for row in load_demonstrations(args, split)} for split in SPLITS}
    assert loaded == {"train": {0}, "validation": {0, 1}, "test": {0, 1, 2}}


@pytest.mark.parametrize(
    ("kept", "held_out"),
    [
        ({"is_test": False}, {"is_test": True}),
        ({"isTest": "false"}, {"isTest": "true"}),
        ({"is_train": 1, "is_val": 0}, {"is_train": 0, "is_val": 0}),
        ({"held_out": False}, {"held_out": True}),
        ({"train": True, "test": False}, {"train": False, "test": True}),
        ({"meta": {"for_eval": False}}, {"meta": {"for_eval": True}}),
    ],
)
def test_seam_a12_flags_hold_rows_out(tmp_path, kept, held_out):
    rows = [row | (held_out if i % 2 else kept) for i, row in enumerate(demonstrations(range(300)))]
    args = source(write(tmp_path / "rows.jsonl", rows))
    odd = {row["prompt"] for row in rows[1::2]}
    assert not odd & {row["prompt"] for row in load_demonstrations(args, "train")}
    assert not odd & {row["prompt"] for row in load_demonstrations(args, "validation")}
    assert odd & {row["prompt"] for row in load_demonstrations(args, "test")}


def test_seam_a12_rows_to_choose_on_are_no_rows_to_evaluate_if_a_flag_says_so(tmp_path):
    flags = ({"is_train": True, "is_val": False}, {"is_train": False, "is_val": True})
    rows = [row | flags[i % 2] for i, row in enumerate(demonstrations(range(300)))]
    args = source(write(tmp_path / "rows.jsonl", rows))
    assert {row["prompt"] for row in rows[1::2]} & {row["prompt"] for row in load_demonstrations(args, "validation")}


@pytest.mark.parametrize(
    ("name", "value"), [("split", "a"), ("Partition", 3), ("set", "final"), ("is_test", "perhaps"), ("other", "blue")]
)
def test_seam_a12_a_word_that_names_no_split_is_an_error(tmp_path, name, value):
    known = (False, True) if name == "is_test" else ("train", "test")
    rows = [row | {name: known[i % 2]} for i, row in enumerate(demonstrations(range(60)))]
    path = write(tmp_path / "rows.jsonl", [*rows, demonstrations([99])[0] | {name: value}])
    reason = (
        rf"rows.jsonl, line 61: column {name} names the split of other rows, and is {value!r} here; .*ignore={name}"
    )
    with pytest.raises(InputError, match=reason):
        load_demonstrations(source(path), "train")
    skipped = load_demonstrations(source(path, on_bad_rows="skip"), "train")
    assert "Question 99?" not in {row["prompt"] for row in skipped}
    assert load_demonstrations(source(path, columns=[f"ignore={name}"]), "train")


def test_seam_a12_columns_of_other_words_name_no_split(tmp_path):
    more = {"set": "essays", "fold": 2, "lang": "te", "topic": "testing", "text_id": "test", "usage": {"n": 3}}
    rows = [row | more | {"text_id": f"test{'abc'[i % 3]}"} for i, row in enumerate(demonstrations(range(60)))]
    trained = load_demonstrations(source(write(tmp_path / "rows.jsonl", rows)), "train")
    plain = load_demonstrations(source(write(tmp_path / "b.jsonl", demonstrations(range(60)))), "train")
    assert trained["prompt"][:] == plain["prompt"][:]


def test_seam_a12_answers_that_are_such_words_name_no_split(tmp_path):
    rows = [{"prompt": f"Is {i} a train or a test?", "completion": ("train", "test")[i % 2]} for i in range(100)]
    trained = load_demonstrations(source(write(tmp_path / "rows.jsonl", rows)), "train")
    assert {row["completion"] for row in trained} == {"train", "test"}


def test_seam_a13_held_out_labelers_are_no_split(tmp_path):
    """Their rankings are trained on, and evaluated apart (section 3.4 of the paper)."""
    rows = [
        {
            "prompt": f"Question {i}?",
            "chosen": "Yes.",
            "rejected": "No.",
            "labeler_group": ("training", "heldout")[i % 2],
        }
        for i in range(40)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = load_comparisons(DataArguments(dataset_name=str(tmp_path / "rows.jsonl")), "train")
    assert set(loaded["labeler_group"]) == {"training", "heldout"}
