"""Writes rows with a known meaning in every layout and kind of file, and reads them; the last line is JSON.

    python benchmarks/read_rows_property.py --rows 10000

Each file holds rows of one layout (TRL's, ours, published formats, names that users have), written as pandas, `json` or
`csv` write them, with some of: lists as text, labels and ranks as floats or words, missing values, renamed columns,
columns that change the meaning, other delimiters, a BOM, an index. A row passes if it is read as meant, or reported in
`skipped_rows.jsonl`. It fails if it is read as anything else, if it is neither read nor reported, and if it is read
though its meaning has no place in our rows (tools, images, weights, a missing answer). The first failures are printed.
"""

import argparse
import csv
import json
import logging
import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import pandas as pd

from rlhf.data import DataArguments
from rlhf.data.bad_rows import BadRows
from rlhf.data.loading import checked_rows, find_rows
from rlhf.errors import InputError

Row = dict[str, Any]
PIECES = (
    *(
        "river",
        "Sea",
        "'",
        '"',
        "it's",
        "[",
        "]",
        "{",
        "}",
        "(1)",
        ",",
        ";",
        "\t",
        "|",
        "\n",
        "\n\n",
        "\\n",
        "\\",
        "é",
        "😀",
    ),
    *("nan", "None", "0", "1.0", "true", "#", "Human:", "Assistant:", "role", "from", "<b>", "[1, 2]", '{"a": 1}', ":"),
)


@dataclass
class Meant:
    """The meaning of one row: (role, content) of the turns before the answer, answers, ranks (one answer: none)."""

    turns: list[tuple[str, str]]
    answers: list[str]
    ranks: list[int] = field(default_factory=list)


class Failure(Exception):
    """A row was read as something else than it means."""


def text(rng: random.Random, tag: str) -> str:
    """Returns text with the tag in it, which begins and ends with a word."""
    middle = " ".join(rng.choice(PIECES) for _ in range(rng.randrange(5)))
    return rng.choice(["", "[", "{", '"', "'", "- "]) + f"{rng.choice(['Name', 'is', 'a'])} {middle} {tag}"


def meant_row(rng: random.Random, number: int, kind: str, k: int, turns: int, system: bool) -> Meant:
    """Returns a meaning; the number stands in every text, so that rows and answers can be told apart."""
    said = [(("user", "assistant")[i % 2], text(rng, f"<{number}.{i}>")) for i in range(2 * turns - 1)]
    said = ([("system", text(rng, f"<{number}.s>"))] if system else []) + said
    answers = [text(rng, f"<{number}.a{i}>") for i in range(k if kind == "comparisons" else 1)]
    ranks = [rng.randrange(k) for _ in range(k)]
    places = {rank: place for place, rank in enumerate(sorted(set(ranks)))}
    return Meant(said, answers, [places[rank] for rank in ranks] if kind == "comparisons" else [])


def messages(turns: list[tuple[str, str]], *answer: str) -> list[Row]:
    return [{"role": role, "content": content} for role, content in [*turns, *(("assistant", one) for one in answer)]]


def shared(turns: list[tuple[str, str]], *answer: str) -> list[Row]:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return [{"from": names[one["role"]], "value": one["content"]} for one in messages(turns, *answer)]


def transcript(turns: list[tuple[str, str]], answer: str) -> str:
    names = {"user": "Human", "assistant": "Assistant"}
    return "".join(f"\n\n{names[role]}: {content}" for role, content in turns) + f"\n\nAssistant: {answer}"


def asked(m: Meant) -> str:
    return m.turns[-1][1]


def before(m: Meant) -> Row:
    """Returns the columns system and history."""
    said = [content for role, content in m.turns[:-1] if role != "system"]
    history = [[said[i], said[i + 1]] for i in range(0, len(said), 2)]
    return {"system": m.turns[0][1] if m.turns[0][0] == "system" else "", "history": history}


def ordered(m: Meant) -> list[str]:
    """Returns two answers, the better one first."""
    return [answer for _, answer in sorted(zip(m.ranks, m.answers, strict=True), key=lambda pair: pair[0])]


def rated(m: Meant) -> list[float]:
    return [float(10 - rank) for rank in m.ranks]


# layout: (kind, K, most turns, may have a system message, row or rows of a meaning). K = 0 is any number from 2 to 5.
LAYOUTS: dict[str, tuple[str, int, int, bool, Callable[[Meant], Any]]] = {
    "prompt, completion": ("demonstrations", 1, 1, False, lambda m: {"prompt": asked(m), "completion": m.answers[0]}),
    "question, answer": ("demonstrations", 1, 1, False, lambda m: {"question": asked(m), "answer": m.answers[0]}),
    "query, response": ("demonstrations", 1, 1, False, lambda m: {"query": asked(m), "response": m.answers[0]}),
    "prompt, response, system": (
        *("demonstrations", 1, 1, True),
        lambda m: {"prompt": asked(m), "response": m.answers[0], "system_prompt": before(m)["system"]},
    ),
    "alpaca": ("demonstrations", 1, 1, False, lambda m: {"instruction": asked(m), "input": "", "output": m.answers[0]}),
    "alpaca, history": (
        *("demonstrations", 1, 3, True),
        lambda m: {"instruction": asked(m), "input": None, "output": m.answers[0], **before(m)},
    ),
    "dolly": (
        *("demonstrations", 1, 1, False),
        lambda m: {"instruction": asked(m), "context": "", "response": m.answers[0], "category": "open_qa"},
    ),
    "messages": ("demonstrations", 1, 3, True, lambda m: {"messages": messages(m.turns, *m.answers)}),
    "prompt in messages": (
        *("demonstrations", 1, 3, True),
        lambda m: {"prompt": messages(m.turns), "completion": messages([], *m.answers)},
    ),
    "continuation": (
        *("demonstrations", 1, 3, False),
        lambda m: {"prompt": messages(m.turns[:1]), "completion": messages(m.turns[1:], *m.answers)},
    ),
    "sharegpt": ("demonstrations", 1, 3, True, lambda m: {"conversations": shared(m.turns, *m.answers)}),
    "ultrachat": (
        *("demonstrations", 1, 3, False),
        lambda m: {"id": "0", "data": [content for _, content in m.turns] + m.answers},
    ),
    "good and bad": (
        *("demonstrations", 1, 1, False),
        lambda m: [
            {"prompt": asked(m), "completion": m.answers[0], "label": True},
            {"prompt": asked(m), "completion": "bad " + m.answers[0], "label": False},
        ],
    ),
    "alpaca, kto": (
        *("demonstrations", 1, 1, False),
        lambda m: [
            {"instruction": asked(m), "input": "", "output": m.answers[0], "kto_tag": True},
            {"instruction": asked(m), "input": "", "output": "bad " + m.answers[0], "kto_tag": False},
        ],
    ),
    "ranks": (
        *("comparisons", 0, 1, False),
        lambda m: {"prompt": asked(m), "completions": m.answers, "ranks": [rank + 1 for rank in m.ranks]},
    ),
    "ratings": (
        "comparisons",
        0,
        1,
        False,
        lambda m: {"prompt": asked(m), "completions": m.answers, "ratings": rated(m)},
    ),
    "responses, scores": (
        *("comparisons", 0, 1, True),
        lambda m: {"question": asked(m), "responses": m.answers, "scores": rated(m), "system": before(m)["system"]},
    ),
    "completions of messages": (
        *("comparisons", 0, 3, True),
        lambda m: {
            "prompt": messages(m.turns),
            "completions": [messages([], answer) for answer in m.answers],
            "ranks": m.ranks,
        },
    ),
    "votes": (
        *("comparisons", 2, 1, False),
        lambda m: {
            "prompt": asked(m),
            "completions": m.answers,
            "votes": [{"better": m.ranks.index(min(m.ranks)), "worse": m.ranks.index(max(m.ranks))}],
        },
    ),
    "ultrafeedback": (
        *("comparisons", 4, 1, False),
        lambda m: {
            "source": "flan",
            "instruction": asked(m),
            "models": ["a", "b"],
            "completions": [
                {"response": answer, "overall_score": score} for answer, score in zip(m.answers, rated(m), strict=True)
            ],
            "correct_answers": ["None"],
        },
    ),
    "helpsteer2": (
        *("comparisons", 2, 1, False),
        lambda m: [
            {"prompt": asked(m), "response": answer, "helpfulness": int(10 - rank), "correctness": 4, "verbosity": 1}
            for answer, rank in zip(m.answers, m.ranks, strict=True)
        ],
    ),
    "helpsteer2 preference": (
        *("comparisons", 2, 1, False),
        lambda m: {
            "prompt": asked(m),
            "response_1": m.answers[0],
            "response_2": m.answers[1],
            "preference_strength": m.ranks[0] - m.ranks[1],
            "preference_statement": "x",
        },
    ),
    "helpsteer3": (
        *("comparisons", 2, 3, True),
        lambda m: {
            "domain": "code",
            "context": messages(m.turns),
            "response1": m.answers[0],
            "response2": m.answers[1],
            "overall_preference": m.ranks[0] - m.ranks[1],
        },
    ),
    "nectar": (
        *("comparisons", 7, 3, False),
        lambda m: {
            "prompt": transcript(m.turns, ""),
            "answers": [
                {"answer": answer, "model": "m", "rank": float(rank + 1)}
                for answer, rank in zip(m.answers, m.ranks, strict=True)
            ],
            "turns": 1,
            "num_responses": 7,
        },
    ),
    "arena": (
        *("comparisons", 2, 1, False),
        lambda m: {
            "model_a": "m",
            "model_b": "n",
            "winner": {-1: "model_a", 0: "tie", 1: "model_b"}[m.ranks[0] - m.ranks[1]],
            "conversation_a": messages(m.turns, m.answers[0]),
            "conversation_b": messages(m.turns, m.answers[1]),
            "turn": 1,
        },
    ),
}
# Layouts of one better and one worse answer; their meaning has the better one first and no tie.
PAIRS: dict[str, tuple[int, bool, Callable[[Meant, str, str], Row]]] = {
    "chosen, rejected": (1, False, lambda m, good, bad: {"prompt": asked(m), "chosen": good, "rejected": bad}),
    "question and pair": (1, False, lambda m, good, bad: {"question": asked(m), "chosen": good, "rejected": bad}),
    "alpaca dpo": (
        3,
        True,
        lambda m, good, bad: {"instruction": asked(m), "chosen": good, "rejected": bad, **before(m)},
    ),
    "orca dpo": (
        *(1, True),
        lambda m, good, bad: {"system": before(m)["system"], "question": asked(m), "chosen": good, "rejected": bad},
    ),
    "chosen_response": (
        *(1, False),
        lambda m, good, bad: {"instruction": asked(m), "chosen_response": good, "rejected_response": bad},
    ),
    "pair of conversations": (
        *(3, True),
        lambda m, good, bad: {"chosen": messages(m.turns, good), "rejected": messages(m.turns, bad)},
    ),
    "binarized": (
        *(3, False),
        lambda m, good, bad: {
            "prompt": m.turns[0][1],
            "prompt_id": "x",
            "chosen": messages(m.turns, good),
            "rejected": messages(m.turns, bad),
            "messages": messages(m.turns, good),
            "score_chosen": 8.0,
            "score_rejected": 7.5,
        },
    ),
    "sharegpt dpo": (
        *(3, True),
        lambda m, good, bad: {
            "conversations": shared(m.turns),
            "chosen": shared([], good)[0],
            "rejected": shared([], bad)[0],
        },
    ),
    "continued pair": (
        *(3, False),
        lambda m, good, bad: {
            "prompt": messages(m.turns[:1]),
            "chosen": messages(m.turns[1:], good),
            "rejected": messages(m.turns[1:], bad),
        },
    ),
    "hh": (3, False, lambda m, good, bad: {"chosen": transcript(m.turns, good), "rejected": transcript(m.turns, bad)}),
    "stack exchange": (
        *(1, False),
        lambda m, good, bad: {"qid": 1, "question": asked(m), "response_j": good, "response_k": bad, "metadata": ["u"]},
    ),
    "shp": (
        *(1, False),
        lambda m, good, bad: {"history": asked(m), "human_ref_A": bad, "human_ref_B": good, "labels": 0, "score_A": 1},
    ),
}
TRANSCRIPTS = ("hh", "nectar", "continued pair")  # "Human:" after a blank line would be another turn

HARMLESS: dict[str, Any] = {
    "id": 3,
    "language": "en",
    "model": "m",
    "created_at": "2024",
    "url": "http://x",
    "split": "a",
}
NO_PLACE: dict[str, list[Any]] = {  # columns whose meaning our rows cannot hold
    "tools": ["[{'name': 'f'}]", "search"],
    "images": ["a.png"],
    "weight": [0.5, 0.0],
    "chat_template_kwargs": ['{"enable_thinking": true}'],
    "documents": ["It rained."],
    "margin": [2.0],
    "tool_calls": ["search"],
}


def write_as_text(rng: random.Random, value: Any) -> str:
    """Returns a list as JSON, as Python prints it, or as numpy prints arrays."""
    way = rng.randrange(4)
    if way == 0:
        return json.dumps(value, ensure_ascii=rng.random() < 0.5)
    if way == 3:
        return "[" + "\n ".join(map(repr, value)) + "]"
    return str(value)


def label_as(way: int, value: bool) -> Any:
    return [
        value,
        int(value),
        float(value),
        str(value),
        str(float(value)),
        str(int(value)),
        "good" if value else "bad",
    ][way]


def mangle(rng: random.Random, rows: list[Row]) -> list[Row]:
    """Writes values as other tools would; the meaning stays the same."""
    as_text = {name for name in rows[0] if rng.random() < 0.3}
    label_way, rank_way = rng.randrange(7), rng.randrange(3)
    mangled = []
    for row in rows:
        new = {}
        for name, value in row.items():
            if name in ("label", "kto_tag"):
                value = label_as(label_way, value)
            elif name == "ranks" and rank_way:
                value = [float(rank) for rank in value]
            if isinstance(value, list) and name in as_text:
                value = write_as_text(rng, value)
            new[name] = value
        mangled.append(new)
    return mangled


def write(rng: random.Random, folder: Path, rows: list[Row]) -> Path:
    """Writes rows into a file of some kind."""
    way = rng.choice(["jsonl", "jsonl", "json", "data.json", "csv", "csv", "pandas.csv", "pandas.jsonl", "parquet"])
    path = folder / f"a.{way.rsplit('.', 1)[-1]}"
    lists = any(isinstance(value, list | dict) for row in rows for value in row.values())
    if way == "jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=rng.random() < 0.5) + "\n" for row in rows), "utf-8")
    elif way in ("json", "data.json"):
        whole: Any = rows if way == "json" else {"data": rows}
        path.write_text(json.dumps(whole, indent=rng.choice([None, 1])), "utf-8")
    elif way == "csv":
        delimiter = rng.choice([",", ";", "\t"])
        encoding = rng.choice(["utf-8", "utf-8-sig"])
        with path.open("w", newline="", encoding=encoding) as file:
            writer = csv.writer(file, delimiter=delimiter, lineterminator=rng.choice(["\n", "\r\n"]))
            writer.writerow(rows[0])
            for row in rows:
                cells = [
                    write_as_text(rng, v) if isinstance(v, list) else json.dumps(v) if isinstance(v, dict) else v
                    for v in row.values()
                ]
                writer.writerow(["" if cell is None or cell != cell else cell for cell in cells])
    elif way == "pandas.csv":
        pd.DataFrame(rows).to_csv(path, index=rng.random() < 0.5)
    elif way == "pandas.jsonl":
        pd.DataFrame(rows).to_json(path, orient="records", lines=True)
    else:
        try:
            pd.DataFrame(rows).to_parquet(path)
        except Exception:  # a column of several types
            path = folder / "a.jsonl"
            pd.DataFrame(rows).to_json(path, orient="records", lines=True)
    assert lists or path.exists()
    return path


def file_case(rng: random.Random, folder: Path, num_rows: int) -> tuple[str, Counter[str]]:
    """Writes and reads one file; returns its layout, and how many rows were read, and how many reported.

    Raises:
        Failure: a row was read as something else than it means.
    """
    layout = rng.choice([*LAYOUTS, *PAIRS])
    kind, rows, meanings = layout_rows(rng, layout, num_rows)
    columns = None
    fate = rng.choice(["as it is", "as it is", "renamed", "no place", "missing", "unknown name"])
    flat = [row for group in rows for row in group]
    if fate == "renamed":  # --columns says what each is
        names = {name: f"col {i}" for i, name in enumerate(flat[0])}
        columns = [f"{old}={new}" for old, new in names.items() if old in READ_NAMES]
        rows = [
            [{names[name] if name in READ_NAMES else name: v for name, v in row.items()} for row in g] for g in rows
        ]
    extra = {name: value for name, value in HARMLESS.items() if rng.random() < 0.3 and name not in flat[0]}
    flat = (
        mangle(rng, [row | extra for group in rows for row in group])
        if fate != "renamed"
        else [row | extra for group in rows for row in group]
    )
    groups = [number for number, group in enumerate(rows) for _ in group]
    impossible: set[int] = set()
    if fate == "no place":
        name = rng.choice(sorted(NO_PLACE))
        for row, group in zip(flat, groups, strict=True):
            has = rng.random() < 0.5
            row[name] = rng.choice(NO_PLACE[name]) if has else rng.choice([None, float("nan")])
            impossible |= {group} if has else set()
    if fate == "missing":
        answers = [
            name for name in flat[0] if name in ANSWER_NAMES and not (name == "prompt" and "messages" in flat[0])
        ]
        for row, group in zip(flat, groups, strict=True):
            if answers and rng.random() < 0.5:
                row[rng.choice(answers)] = rng.choice([None, float("nan"), ""])
                impossible.add(group)
    if fate == "unknown name" and READ_NAMES & flat[0].keys():
        old = rng.choice(sorted(set(flat[0]) & READ_NAMES))
        new = rng.choice([old.upper(), f"my {old}", f"{old}s2"])
        flat = [{new if name == old else name: value for name, value in row.items()} for row in flat]
    if rng.random() < 0.5:
        order = rng.sample(sorted(flat[0]), len(flat[0]))
        flat = [{name: row[name] for name in order} for row in flat]
    args = DataArguments(dataset_name=str(write(rng, folder, flat)), on_bad_rows="skip", columns=columns)
    return layout, compare(kind, args, folder, layout, fate, meanings, impossible, flat, groups)


def layout_rows(rng: random.Random, layout: str, num_rows: int) -> tuple[str, list[list[Row]], list[Meant]]:
    """Returns the kind, the rows of each meaning as its layout has them, and the meanings."""
    system = rng.random() < 0.5
    if layout in PAIRS:
        most, may_have_system, make = PAIRS[layout]
        kind, k = "comparisons", 2
    else:
        kind, k, most, may_have_system, plain = LAYOUTS[layout]
    meanings, rows = [], []
    for number in range(num_rows):
        width = k or rng.randrange(2, 6)
        m = meant_row(rng, number, kind, width, rng.randrange(1, most + 1), system and may_have_system)
        if layout in TRANSCRIPTS:
            m = Meant(
                [(r, c.replace("\n\n", " ")) for r, c in m.turns], [a.replace("\n\n", " ") for a in m.answers], m.ranks
            )
        if layout == "votes":
            m.ranks = rng.choice([[0, 1], [1, 0]])
        if layout in PAIRS:
            m.ranks = [0, 1]
            rows.append([make(m, *m.answers)])
        else:
            made = plain(m)
            rows.append(made if isinstance(made, list) else [made])
        meanings.append(m)
    return kind, rows, meanings


READ_NAMES = frozenset(
    [
        "prompt",
        "completion",
        "question",
        "answer",
        "query",
        "response",
        "instruction",
        "output",
        "messages",
        "conversations",
        "completions",
        "ranks",
        "ratings",
        "responses",
        "scores",
        "chosen",
        "rejected",
        "system_prompt",
        "system",
        "chosen_response",
        "rejected_response",
    ]
)
ANSWER_NAMES = READ_NAMES - {"system_prompt", "system", "completions", "messages", "conversations", "ranks", "ratings"}


def compare(
    kind: str,
    args: DataArguments,
    folder: Path,
    layout: str,
    fate: str,
    meanings: list[Meant],
    impossible: set[int],
    flat: list[Row],
    groups: list[int],
) -> Counter[str]:
    bad_rows = BadRows("skip", folder)
    try:
        loaded = list(checked_rows(kind, find_rows(kind, args)["train"](), args, bad_rows))
    except InputError as error:  # the file as a whole is refused, by a sentence
        if not str(error).strip().endswith("."):
            raise Failure(f"{layout}, {fate}: not a sentence: {error}") from error
        return Counter(reported=len(meanings))
    bad_rows.report()
    path = folder / "skipped_rows.jsonl"
    reported = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    found: dict[int, Row] = {}
    for row in loaded:
        number = number_of(row)
        where = f"{layout}, {fate}, {Path(args.dataset_name).name}: "
        if number in found:
            raise Failure(f"{where}row {number} was read twice, as {row} and {found[number]}")
        found[number] = row
        if number in impossible and len([g for g in groups if g == number]) == 1:
            raise Failure(
                f"{where}row {number} has no meaning that can be read, and became {row}; columns {flat[number]}"
            )
        if number not in impossible and plain_of(row) != expected_of(meanings[number], row):
            raise Failure(f"{where}row {number} means {meanings[number]}, and became {row}")
    lost = [number for number in range(len(meanings)) if number not in found]
    if len(lost) > len(reported):
        raise Failure(f"{layout}, {fate}: rows {lost} were neither read nor reported; {reported}")
    reasons = Counter(read=len(found), reported=len(lost))
    if fate in ("as it is", "renamed"):
        reasons[f"clean {layout}"] += len(meanings)
        reasons[f"clean read {layout}"] += len(found)
    return reasons


def number_of(row: Row) -> int:
    """Returns the number of the meaning, which every text has."""
    texts = [row["prompt"]] if isinstance(row["prompt"], str) else [message["content"] for message in row["prompt"]]
    tags = [
        part.split(".")[0]
        for one in texts
        for part in one.split("<")[1:]
        if "." in part and part.split(".")[0].isdigit()
    ]
    if not tags or len(set(tags)) != 1:
        raise Failure(f"the prompt of {row} is of no row, or of several")
    return int(tags[0])


def plain_of(row: Row) -> tuple[Any, ...]:
    prompt = (
        [("user", row["prompt"])]
        if isinstance(row["prompt"], str)
        else [(m["role"], m["content"]) for m in row["prompt"]]
    )
    if "completions" in row:
        return prompt, row["completions"], row["ranks"]
    completion = row["completion"]
    return prompt, [completion if isinstance(completion, str) else completion[0]["content"]], []


def expected_of(m: Meant, row: Row) -> tuple[Any, ...]:
    """Returns the meaning; answers may have another order in formats that say which is better."""
    if "completions" in row and row["completions"] != m.answers and sorted(row["completions"]) == sorted(m.answers):
        order = [m.answers.index(answer) for answer in row["completions"]]
        return m.turns, [m.answers[i] for i in order], [m.ranks[i] for i in order]
    return m.turns, m.answers, m.ranks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--rows_per_file", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    total: Counter[str] = Counter()
    layouts: set[str] = set()
    for number in range(-(-args.rows // args.rows_per_file)):
        rng = random.Random(f"{args.seed}-{number}")
        with tempfile.TemporaryDirectory() as folder:
            try:
                layout, counts = file_case(rng, Path(folder), args.rows_per_file)
                layouts.add(layout)
                total += counts
            except Failure as failure:
                total["failures"] += 1
                if total["failures"] <= 8:
                    print(f"file {number}: {str(failure)[:1500]}")
    clean = {
        name: total[f"clean read {name}"] / total[f"clean {name}"] for name in sorted(layouts) if total[f"clean {name}"]
    }
    print({name: round(share, 2) for name, share in clean.items()})
    names = ("read", "reported", "failures")
    print(json.dumps({"rows": args.rows, "layouts": len(layouts), **{name: total[name] for name in names}}))


if __name__ == "__main__":
    main()
