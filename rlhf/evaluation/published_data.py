"""Reads benchmarks from local files in the formats in which their authors or GLUE publish them.

Each reader returns rows with the columns of the data set on the Hub, since lm-eval's tasks read those. A file that has
these columns already (JSON lines, CSV, TSV, Parquet) is taken as it is.
"""

import csv
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rlhf.data.files import SUFFIXES, sound_rows
from rlhf.errors import InputError
from rlhf.runs.digests import file_digest

Row = dict[str, Any]
MC_TARGETS = ("mc1_targets", "mc2_targets")
EVALUATION = ("test", "validation", "valid", "val", "dev", "evaluation")  # parts of file names, in order of preference


def find_files(task: str, path: Path, names: Iterable[str] = ()) -> dict[str, Path]:
    """Returns role ("evaluation" and, where there is one, "train") -> file.

    Args:
        task: name, for messages.
        path: file, or folder of files named after the splits.
        names: file names under which the benchmark is published; the first that a folder has is for evaluation.

    Raises:
        InputError: there is no such file or folder, or nothing in the folder is for evaluation.
    """
    if path.is_file():
        return {"evaluation": path}
    if not path.is_dir():
        raise InputError(f"The data of task {task}, {path}, does not exist. Check the path after {task}=.")
    found = {}
    for name in names:
        if (path / name).is_file():
            found["evaluation"] = path / name
            break
    files = sorted(file for file in path.iterdir() if file.name.lower().endswith((*SUFFIXES, ".sgm")))
    for file in files:
        if "train" in file.name.lower():
            found.setdefault("train", file)
    for split in EVALUATION:
        for file in files:
            if split in re.split(r"[^a-z0-9]|_", file.name.lower()):
                found.setdefault("evaluation", file)
    rest = [file for file in files if file != found.get("train")]
    if "evaluation" not in found and len(rest) == 1:
        found["evaluation"] = rest[0]
    if "evaluation" not in found:
        known = f" (published as {', '.join(names)})" if names else ""
        raise InputError(
            f"Folder {path} has no file for task {task}{known}. Name one after its split, such as test.jsonl, or pass "
            f"the file: {task}=path."
        )
    return found


def read_published(task: str, path: Path) -> tuple[dict[str, list[Row]], str]:
    """Returns role -> rows of a task, and a digest of its files.

    Raises:
        InputError: a file is missing, cannot be read, or has other columns.
    """
    form = FORMS.get(task)
    files = find_files(task, path, form.names if form else ())
    rows = {role: _read(task, file) for role, file in files.items()}
    return rows, " ".join(file_digest(file) for file in files.values())


def _read(task: str, file: Path) -> list[Row]:
    form = FORMS.get(task)
    rows = form.read(file) if form else read_table(file)
    if not rows:
        raise InputError(f"{file} has no rows for task {task}. Pass the published file.")
    if form:
        for number, row in enumerate(rows, 1):
            if missing := [column for column in form.columns if row.get(column) is None]:
                raise InputError(
                    f"{file}, row {number}: no {', '.join(missing)}. Task {task} needs the published file or rows with "
                    f"the columns {', '.join(form.columns)}."
                )
    return rows


def read_table(file: Path) -> list[Row]:
    """Returns the rows of a table.

    Raises:
        InputError: the file, or one of its rows, cannot be read.
    """
    if not file.name.lower().endswith(SUFFIXES):
        raise InputError(f"{file} has an unknown ending. Pass a file that ends in one of {', '.join(SUFFIXES)}.")
    return [row.content for row in sound_rows(file)]


# ---- one reader per published format


def _drop(file: Path) -> list[Row]:
    """Reads drop_dataset_dev.json: passages with `qa_pairs`."""
    content = _json(file)
    if not isinstance(content, dict) or not all(isinstance(v, dict) and "qa_pairs" in v for v in content.values()):
        return read_table(file)
    rows = []
    for section, passage in content.items():
        for pair in passage["qa_pairs"]:
            validated = [_drop_answer(answer) for answer in pair.get("validated_answers", ())]
            rows.append(
                {
                    "section_id": section,
                    "query_id": pair.get("query_id", f"{section}-{len(rows)}"),
                    "passage": passage["passage"],
                    "question": pair["question"],
                    "answer": _drop_answer(pair["answer"]),
                    "validated_answers": {
                        key: [answer[key] for answer in validated] for key in ("number", "date", "spans")
                    },
                }
            )
    return rows


def _drop_answer(answer: Row) -> Row:
    date = answer.get("date") or {}
    return {
        "number": str(answer.get("number") or ""),
        "date": {key: str(date.get(key) or "") for key in ("day", "month", "year")},
        "spans": [str(span) for span in answer.get("spans") or ()],
    }


def _squad(file: Path) -> list[Row]:
    """Reads dev-v2.0.json: `data` of articles with paragraphs and questions."""
    content = _json(file)
    if not _is_nested(content):
        return read_table(file)
    return [
        {
            "id": question["id"],
            "title": article.get("title", ""),
            "context": paragraph["context"],
            "question": question["question"],
            "answers": {"text": [answer["text"] for answer in question["answers"]]},
        }
        for article in content["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]


def _quac(file: Path) -> list[Row]:
    """Reads val_v0.2.json: one dialogue in each paragraph."""
    content = _json(file)
    if not _is_nested(content):
        return read_table(file)
    return [
        {
            "dialogue_id": paragraph.get("id", f"{article['title']}, {number}"),
            "wikipedia_page_title": article["title"],
            "section_title": article.get("section_title", ""),
            # The text ends in CANNOTANSWER, which is the answer where there is none.
            "context": paragraph["context"],
            "questions": [question["question"] for question in paragraph["qas"]],
            "answers": {"texts": [[a["text"] for a in question["answers"]] for question in paragraph["qas"]]},
        }
        for article in content["data"]
        for number, paragraph in enumerate(article["paragraphs"])
    ]


def _rte(file: Path) -> list[Row]:
    """Reads GLUE's dev.tsv or SuperGLUE's val.jsonl."""
    labels = {"entailment": 0, "not_entailment": 1}
    return [
        {
            "sentence1": row.get("sentence1", row.get("premise")),
            "sentence2": row.get("sentence2", row.get("hypothesis")),
            "label": _label(row.get("label"), labels),
        }
        for row in _glue(file)
    ]


def _sst2(file: Path) -> list[Row]:
    """Reads GLUE's dev.tsv."""
    return [
        {"sentence": row.get("sentence"), "label": _label(row.get("label"), {"negative": 0, "positive": 1})}
        for row in _glue(file)
    ]


def _wsc(file: Path) -> list[Row]:
    """Reads SuperGLUE's val.jsonl, in which the spans are under `target`."""
    rows = read_table(file)
    return [
        {"text": row.get("text"), "label": _label(row.get("label"), {}), **(row.get("target") or _spans(row))}
        for row in rows
    ]


def _spans(row: Row) -> Row:
    return {key: row.get(key) for key in ("span1_index", "span1_text", "span2_index", "span2_text")}


def _hellaswag(file: Path) -> list[Row]:
    """Reads hellaswag_val.jsonl."""
    return [row | {"label": str(row["label"])} if row.get("label") is not None else row for row in read_table(file)]


def _wmt(file: Path) -> list[Row]:
    """Reads the sgm file of a test set's source (...-src.fr.sgm), with the reference (...-ref.en.sgm) beside it."""
    if file.suffix != ".sgm":
        return [_translation(row) for row in read_table(file)]
    source = file if "src" in file.name else file.with_name(file.name.replace("-ref.en", "-src.fr"))
    reference = file.with_name(source.name.replace("-src.fr", "-ref.en"))
    french, english = _segments(source), _segments(reference)
    if len(french) != len(english):
        raise InputError(
            f"{source} has {len(french)} segments and {reference} {len(english)}. Pass files of one test set."
        )
    return [{"translation": {"fr": fr, "en": en}} for fr, en in zip(french, english, strict=True)]


def _translation(row: Row) -> Row:
    return {"translation": {"fr": row["fr"], "en": row["en"]}} if row.get("fr") and row.get("en") else row


def _segments(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{file} cannot be read: {error}. A test set is one file -src.fr.sgm, one -ref.en.sgm."
        ) from error
    return [segment.strip() for segment in re.findall(r"<seg[^>]*>(.*?)</seg>", text, flags=re.DOTALL)]


def _tldr(file: Path) -> list[Row]:
    """Reads rows of trl-lib/tldr (prompt, completion) or of the paper (subreddit, title, post, summary)."""
    return [
        {
            "prompt": f"SUBREDDIT: r/{row['subreddit']}\n\nTITLE: {row['title']}\n\nPOST: {row['post']}\n\nTL;DR:",
            "completion": row.get("summary"),
        }
        if row.get("post")
        else row
        for row in read_table(file)
    ]


def _truthfulqa(file: Path) -> list[Row]:
    """Reads mc_task.json, whose targets are answer -> 1 or 0, or TruthfulQA.csv, whose answers end in semicolons."""
    return [truthfulqa_row(row) for row in read_table(file)]


def truthfulqa_row(row: Row) -> Row:
    """Returns the question and the targets of a row; None in place of targets that it does not have."""
    return {"question": row.get("question", row.get("Question")), **{key: _targets(row, key) for key in MC_TARGETS}}


def _targets(row: Row, key: str) -> dict[str, list] | None:
    """Returns choices and labels of `mc1_targets` (the best true answer) or `mc2_targets` (all true answers)."""
    if isinstance(targets := row.get(key), dict):
        return targets if "choices" in targets else {"choices": list(targets), "labels": list(targets.values())}
    true, false = (
        [answer.strip() for answer in (row.get(name) or "").split(";") if answer.strip()]
        for name in ("Best Answer" if key == "mc1_targets" else "Correct Answers", "Incorrect Answers")
    )
    return {"choices": true + false, "labels": [1] * len(true) + [0] * len(false)} if true and false else None


# ---- helpers


def _glue(file: Path) -> list[Row]:
    """Returns the rows of GLUE's tab-separated files, in which quotes mean nothing, or of another table."""
    if file.suffix != ".tsv":
        return read_table(file)
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))


def _label(value: Any, names: dict[str, int]) -> int | None:
    """Returns the number of a label, which may be its name, a truth value or a digit."""
    if value in names:
        return names[value]
    text = str(value).lower()
    return {"true": 1, "false": 0, "0": 0, "1": 1}.get(text)


def _json(file: Path) -> Any:
    """Returns the content of a file that is one JSON value; None if it is none, such as JSON lines."""
    if file.suffix != ".json":
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}. Check the file.") from error
    except json.JSONDecodeError:
        return None  # `read_table` names the line


def _is_nested(content: Any) -> bool:
    articles = content.get("data") if isinstance(content, dict) else None
    return bool(
        isinstance(articles, list) and articles and isinstance(articles[0], dict) and "paragraphs" in articles[0]
    )


class _Form:
    """A published format: the names of its files for evaluation, its reader, and the columns that a row must have."""

    def __init__(self, read: Callable[[Path], list[Row]], columns: str, *names: str) -> None:
        self.read, self.columns, self.names = read, tuple(columns.split()), names


TRUTHFULQA = _Form(_truthfulqa, "question mc1_targets mc2_targets", "mc_task.json", "TruthfulQA.csv")
FORMS = {
    "drop": _Form(_drop, "passage question answer validated_answers query_id", "drop_dataset_dev.json"),
    "squadv2": _Form(_squad, "title context question answers", "dev-v2.0.json"),
    "quac": _Form(_quac, "context questions answers", "val_v0.2.json"),
    "hellaswag": _Form(_hellaswag, "activity_label ctx_a ctx_b endings label", "hellaswag_val.jsonl"),
    "rte": _Form(_rte, "sentence1 sentence2 label", "dev.tsv", "val.jsonl"),
    "sst2": _Form(_sst2, "sentence label", "dev.tsv"),
    "wsc": _Form(_wsc, "text span1_text span2_index span2_text label", "val.jsonl"),
    "wmt15_fr-en": _Form(_wmt, "translation", "newsdiscusstest2015-fren-src.fr.sgm"),
    "cnn_dailymail": _Form(read_table, "article highlights", "test.csv"),
    "tldr": _Form(_tldr, "prompt completion", "test.jsonl"),
    **dict.fromkeys(("truthfulqa", "truthfulqa_mc1", "truthfulqa_mc2"), TRUTHFULQA),
    "crows_pairs": _Form(read_table, "sent_more sent_less", "crows_pairs_anonymized.csv"),
    "winogender": _Form(read_table, "sentid sentence", "all_sentences.tsv"),
}
