"""A full round on the sandbox: three simulated labelers, the reward model on their labels, the evaluation by them."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from labeler_client import LabelerClient, TaskPage
from small_stages import COMMON, run_recipe, write_rows

pytest.importorskip("uvicorn")

from rlhf.data.label_stores import read_label_rows
from rlhf.errors import InputError
from rlhf.labeling.items import check_judgment, read_judgment
from rlhf.runs.artifacts import read_result
from rlhf.sandbox.judge import judge
from rlhf.sandbox.labelers import TRAINING, Labeler, rank
from rlhf.sandbox.tasks import task_of

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"http://\S+/login\?token=\S+")
FLAGS = ("hallucination", "inappropriate")  # of the gold judge that are flags of the page
LABELERS = {labeler.name: labeler for labeler in TRAINING[:3]}


def command(run: Path, *options: object) -> list[str]:
    arguments = ["--run", str(run), "--recipe", "recipes/sandbox", *map(str, options)]
    return [sys.executable, str(ROOT / "recipes" / "label.py"), *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def label(run: Path, *options: object) -> str:
    """Runs the command to its end and returns what it prints."""
    done = subprocess.run(command(run, *options), cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def labeled(tmp_path_factory):
    """Returns a run's folder whose labels.db three labelers have filled through the server, beside it their pages."""
    run = tmp_path_factory.mktemp("round")
    port = free_port()
    share = ("--share_for_several", 0.2, "--size", 150, "--port", port)
    server = subprocess.Popen(command(run, *share), cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        begun = next(line for line in server.stdout if LINK.search(line))
        links = dict(line.split(": ") for line in label(run, "--port", port, "--invite", *LABELERS).splitlines()[:3])
        with ThreadPoolExecutor(3) as pool:
            counts = dict(zip(links, pool.map(work, links, links.values()), strict=True))
        admin = LabelerClient(LINK.search(begun)[0])  # pyright: ignore[reportOptionalSubscript]
        response, page = admin.request("GET", "/admin")
        assert response.status == 200 and all(name in page for name in LABELERS)
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)
    assert server.returncode == 130
    return run, counts


def work(name: str, link: str) -> int:
    """Judges until there is nothing to do; returns the number of judgments."""
    labeler, rng, client = LABELERS[name], random.Random(name), LabelerClient(link.strip())
    for number in range(1000):
        page = client.next_task()
        if page is None:
            return number
        judgment = judged(labeler, page, rng)
        answer = client.submit(page, **judgment)
        assert answer["new"] and not client.submit(page, **judgment)["new"]  # a double click
    raise AssertionError("the queue has no end")


def judged(labeler: Labeler, page: TaskPage, rng: random.Random) -> dict:
    task = task_of(page.prompt)
    assert task is not None, page.prompt
    verdicts = [judge(task, text) for text in page.completions]
    flags = [{name: bool(verdict[name]) for name in FLAGS} for verdict in verdicts]
    ratings = [{"rating": v["likert"], "flags": f, "notes": ""} for v, f in zip(verdicts, flags, strict=True)]
    judgment = {"ranks": rank(labeler, task, page.completions, rng), "ratings": ratings if rng.random() < 0.5 else None}
    try:
        check_judgment("comparison", len(verdicts), read_judgment(judgment))
    except InputError:  # her noise has turned an order round that the ratings, which have none, say
        judgment["ratings"] = None
    return judgment


@pytest.mark.slow
def test_every_item_is_judged_by_as_many_labelers_as_it_wants(labeled):
    run, counts = labeled
    rows = [row.content for row in read_label_rows(run / "labels.db", "comparison")]
    assert len(rows) == sum(counts.values()) and min(counts.values()) > 10
    judges: dict[str, list[str]] = {}
    for row in rows:
        judges.setdefault(json.dumps([row["prompt"], sorted(row["completions"])]), []).append(row["labeler_id"])
    assert all(len(set(names)) == len(names) for names in judges.values())
    several = [names for names in judges.values() if len(names) > 1]
    assert {len(names) for names in several} == {3} and len(several) == round(0.2 * len(judges))


@pytest.mark.slow
def test_the_reward_model_trains_on_the_store_and_the_evaluation_reads_it(labeled, tmp_path):
    run, _ = labeled
    store = run / "labels.db"
    options = COMMON | {
        "model_name_or_path": "sandbox", "dtype": "float32", "dataset_name": store, "lora_r": 8, "batch_size": 8,
        "max_length": 256, "learning_rate": 2e-3, "output_dir": tmp_path / "reward",
    }  # fmt: skip
    run_recipe("reward", options)
    result = read_result(tmp_path / "reward")
    assert result["n_train"] > 100 and result["n_pairs"] > 20
    assert result["accuracy"] > 0.5

    # Two systems whose answers the labelers have ranked: the best and the worst of each item by the first labeler
    best, worst = [], []
    for row in (row.content for row in read_label_rows(store, "comparison")):
        ranked = sorted(zip(row["ranks"], row["completions"], strict=True))
        best.append({"prompt": row["prompt"], "response": ranked[0][1]})
        worst.append({"prompt": row["prompt"], "response": ranked[-1][1]})
    evaluation = tmp_path / "evaluation" / "evaluate"
    arguments = ["evaluate.py", "--dataset_name", str(store), "--output_dir", str(evaluation), "--baseline", "worst"]
    arguments += ["--systems", f"best={write_rows(tmp_path / 'best.jsonl', best)}"]
    arguments += [f"worst={write_rows(tmp_path / 'worst.jsonl', worst)}", "--judges", f"people={store}"]
    subprocess.run([sys.executable, f"recipes/{arguments[0]}", *arguments[1:]], cwd=ROOT, env=environment(), check=True)
    summary = json.loads((evaluation.parent / "summary.json").read_text())
    people, ratings = summary["judges"]["people"], summary["judges"]["people_ratings"]
    assert people["win_rate"]["best"]["n"] == summary["prompts"] >= 5
    assert people["win_rate"]["best"]["mean"] > 0.7
    assert ratings["likert"]["best"]["mean"] > ratings["likert"]["worst"]["mean"]
    assert ratings["flags"].keys() == set(FLAGS)
