"""The pretraining stream: nothing is lost or repeated within a pass, weights are shares, the position is exact."""

import json
from collections import Counter
from itertools import islice

import pytest
from datasets import Dataset, load_dataset
from toys import EOS, word_tokenizer

from rlhf.data import DataArguments
from rlhf.data.arguments import PretrainingArguments
from rlhf.data.pretraining import PretrainingStream, open_sources, permutation
from rlhf.errors import InputError
from rlhf.models.loading import load_tokenizer, resolve_model_name
from rlhf.sandbox.base_model import pack
from rlhf.sandbox.datasets import pretraining as sandbox_documents
from rlhf.sandbox.graded_work import EOS as EOS_TEXT


def documents(count=9, words=4, first=4) -> Dataset:
    """Documents of 1 to `words` words w{first}, w{first+1}, ..., each in one document only."""
    names = iter(range(first, 40))
    return Dataset.from_dict(
        {"text": [" ".join(f"w{next(names)}" for _ in range(1 + i % words)) for i in range(count)]}
    )


def streamed(tmp_path, rows: Dataset):
    """The rows as a stream of two files, as from the Hub."""
    for shard in range(2):
        rows.shard(2, shard, contiguous=True).to_json(tmp_path / f"{shard}.jsonl")
    return load_dataset("json", data_files=str(tmp_path / "*.jsonl"), split="train", streaming=True)


@pytest.fixture(params=["rows", "stream"])
def source(request, tmp_path):
    rows = documents()
    return rows if request.param == "rows" else streamed(tmp_path, rows)


def take(stream, count):
    return list(islice(stream, count))


def test_blocks_are_the_documents_end_to_end(source):
    texts = [word_tokenizer()(text)["input_ids"] for text in documents()["text"]]
    length = sum(map(len, texts)) + len(texts)  # one pass is one block
    stream = PretrainingStream(source, word_tokenizer(), length, buffer_size=4)
    orders = []
    for block in take(stream, 3):
        split = [[]]
        for token in block:
            split.append([]) if token == EOS else split[-1].append(token)
        assert split.pop() == []
        assert sorted(split) == sorted(texts)
        orders.append([texts.index(document) for document in split])
    assert len(set(map(tuple, orders))) == 3, "each pass has its own order"
    assert orders[0] != sorted(orders[0])


@pytest.mark.parametrize("done", [0, 1, 2, 5, 9, 14])
def test_the_position_is_exact(source, done):
    def stream():
        return PretrainingStream([source, documents(5)], word_tokenizer(), 7, weights=[2, 1], seed=3, buffer_size=4)

    blocks = take(stream(), 20)  # several passes over each source
    first = stream()
    take(first, done)
    state = json.loads(json.dumps(first.state_dict()))
    take(first, 3)  # a state is a copy
    again = stream()
    take(again, 4)
    again.load_state_dict(state)
    assert take(again, 20 - done) == blocks[done:]


def test_the_seed_decides(source):
    streams = [PretrainingStream(source, word_tokenizer(), 8, seed=seed) for seed in (0, 0, 1)]
    first, again, other = (take(stream, 6) for stream in streams)
    assert first == again != other


def test_weights_are_shares_of_tokens():
    short = Dataset.from_dict({"text": ["w4"] * 10})
    long = Dataset.from_dict({"text": ["w5 " * 30] * 10})
    blocks = take(PretrainingStream([short, long], word_tokenizer(), 16, weights=[3, 1]), 400)
    counts = Counter(4 if 4 in block else 5 for block in blocks)
    assert counts[4] / 400 == pytest.approx(0.75, abs=0.06)


def test_arguments_that_are_refused(tmp_path):
    with pytest.raises(InputError, match="for 1 sources"):
        PretrainingStream(documents(), word_tokenizer(), 8, weights=[1, 2])
    with pytest.raises(InputError, match="one positive number each"):
        PretrainingStream(documents(), word_tokenizer(), 8, weights=[0])
    with pytest.raises(InputError, match="at least 2"):
        PretrainingStream(documents(), word_tokenizer(), 1)
    with pytest.raises(InputError, match="no rows"):
        PretrainingStream(Dataset.from_dict({"text": []}), word_tokenizer(), 8)
    with pytest.raises(InputError, match=r"row 1 of the pretraining text.*text"):
        next(PretrainingStream(Dataset.from_dict({"body": ["w4"]}), word_tokenizer(), 8))
    with pytest.raises(InputError, match="same sources"):
        state = PretrainingStream(documents(), word_tokenizer(), 8).state_dict()
        PretrainingStream([documents(), documents()], word_tokenizer(), 8).load_state_dict(state)
    no_eos = word_tokenizer()
    no_eos.eos_token = None
    with pytest.raises(InputError, match="no EOS"):
        PretrainingStream(documents(), no_eos, 8)


def test_seam_b13_grades_of_the_sandbox_are_documents_of_their_own():
    tokenizer, rows = load_tokenizer(resolve_model_name("sandbox")), sandbox_documents("train", 60)
    order = permutation(len(rows), 0, 0, 0)
    expected = pack([EOS_TEXT.join(rows[int(i)]["text"]) for i in order], tokenizer, 64).tolist()
    assert any(len(text) == 2 for text in rows["text"])
    assert take(PretrainingStream(rows, tokenizer, 64), len(expected)) == expected


def test_blank_documents_of_a_stream_are_left_out_if_asked(monkeypatch):
    """The Hub's wikitext sets have blank rows. A resumed stream continues like one that was never stopped."""
    texts = [text for row in documents(12, 3) for text in ("", row["text"], " ")]
    rows = Dataset.from_dict({"text": texts}).to_iterable_dataset()
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **options: rows)
    args = PretrainingArguments(pretrain_dataset_name=["owner/wikitext"])

    def stream(policy):
        sources = open_sources(args, DataArguments(dataset_name="sandbox", on_bad_rows=policy))
        return PretrainingStream(sources, word_tokenizer(), 8, buffer_size=7)

    with pytest.raises(InputError, match=r"row 1 of the pretraining text: column text is empty.* --on_bad_rows skip"):
        next(stream("error"))
    blocks = take(stream("skip"), 30)
    stopped = stream("skip")
    assert take(stopped, 11) == blocks[:11]
    resumed = stream("skip")
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    assert [next(resumed) for _ in range(19)] == blocks[11:]


def test_sources_by_name(tmp_path, monkeypatch):
    asked = {}

    def load(name, config, **options):
        asked.update(name=name, config=config, **options)
        return documents(6).to_iterable_dataset()

    monkeypatch.setattr("datasets.load_dataset", load)
    documents(12, 3).to_json(tmp_path / "train.jsonl")
    args = PretrainingArguments(
        pretrain_dataset_name=["sandbox", str(tmp_path), "owner/corpus"],
        pretrain_dataset_config=["-", "-", "en"],
        pretrain_dataset_size=3,
    )
    sources = open_sources(args, DataArguments(dataset_name="sandbox"))
    assert [len(list(rows)) for rows in sources] == [3, 3, 3]
    assert asked == {"name": "owner/corpus", "config": "en", "split": "train", "streaming": True}
    assert open_sources(PretrainingArguments(), DataArguments(dataset_name="sandbox")) is None
    (tmp_path / "train.jsonl").rename(tmp_path / "all.jsonl")  # nothing is held out of pretraining text
    args = PretrainingArguments(pretrain_dataset_name=[str(tmp_path)])
    assert [len(rows) for rows in open_sources(args, DataArguments(dataset_name="sandbox"))] == [12]
    with pytest.raises(InputError, match="2 pretrain_dataset_config for 1"):
        PretrainingArguments(pretrain_dataset_name=["a/b"], pretrain_dataset_config=["x", "y"])
