"""recipes/label.py: where items come from, what is checked before anything is loaded, and work on the store."""

import json
import socket
import sys

import pytest
from small_stages import write_rows
from small_systems import write_run

import rlhf.cli
from rlhf.labeling import people, queue
from rlhf.labeling.arguments import LabelArguments
from rlhf.labeling.items import Judgment
from rlhf.labeling.store import Store


@pytest.fixture
def label(load_recipe, monkeypatch, tmp_path, capsys):
    """Returns a function that runs the recipe as the command line does; it returns what is printed, also as refusal."""
    recipe = load_recipe("label")

    def run(*options: object) -> str:
        monkeypatch.setattr(sys, "argv", ["label.py", "--run", str(tmp_path / "run"), *map(str, options)])
        try:
            rlhf.cli.run(recipe.main)
        except SystemExit as end:
            assert end.code == 2
        printed = capsys.readouterr()
        return printed.out + printed.err

    return run


def items(tmp_path) -> list[dict]:
    with Store(tmp_path / "run" / "labels.db") as store, store.read() as db:
        rows = db.execute(
            "select b.name as batch, b.priority, i.kind, i.prompt, i.completions, i.sources, i.gold "
            "from items i join batches b on b.id = i.batch"
        ).fetchall()
        return [dict(row) for row in rows]


def test_a_first_look_is_at_the_recipes_comparisons(label, tmp_path):
    assert "There is no recipe sandbx. Did you mean sandbox?" in label("--recipe", "sandbx", "--serve", "false")
    assert "Batch first look: 6 new items" in label("--recipe", "sandbox", "--size", 6, "--serve", "false")
    assert all(row["kind"] == "comparison" and row["sources"] is None for row in items(tmp_path))
    assert label("--recipe", "recipes/sandbox", "--serve", "false") == ""  # a store with items goes on


def test_without_anything_to_label_the_sources_are_named(label):
    assert "There is nothing to label. Give --completions FILE" in label("--serve", "false")


def test_systems_share_the_answers_and_a_second_run_samples_none_again(label, tmp_path, monkeypatch):
    write_run(tmp_path / "run")
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"question {i}"} for i in range(4)])
    options = ("--systems", "sft", "ppo", "--prompts", prompts, "--k", 3, "--max_new_tokens", 8, "--serve", "false")
    options += ("--batch", "mine", "--priority", 2)
    assert "Batch mine: " in label(*options)
    found = items(tmp_path)
    assert {row["batch"] for row in found} == {"mine"} and {row["priority"] for row in found} == {2}
    for row in found:
        assert 2 <= len(json.loads(row["completions"])) <= 3
        assert set(json.loads(row["sources"])) <= {"sft", "ppo"}
    monkeypatch.setattr("rlhf.evaluation.local_answers.sample_completions", None)
    assert "0 new items" in label(*options)


def test_a_stage_that_has_not_finished_is_named(label, tmp_path):
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "Why?"}])
    printed = label("--systems", "sft", "--prompts", prompts, "--serve", "false")
    assert "has no finished stage sft. Run `make sft` first" in printed


def test_completions_demonstrations_and_gold_become_batches(label, tmp_path):
    rows = [{"prompt": "Why?", "completions": ["a", "b"]}]
    completions = write_rows(tmp_path / "mine.jsonl", rows)
    gold = write_rows(tmp_path / "gold.jsonl", [{"prompt": "Who?", "completions": ["a", "b"], "ranks": [0, 1]}])
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "How?"}])
    label("--completions", completions, "--gold", gold, "--demonstrations", prompts, "--serve", "false")
    found = {row["batch"]: row for row in items(tmp_path)}
    assert found.keys() == {"mine", "gold", "demonstrations"}
    assert json.loads(found["gold"]["gold"]) == {"ranks": [0, 1]} and found["mine"]["gold"] is None


def test_gold_flags_that_the_page_does_not_ask_are_refused(label, tmp_path):
    pytest.importorskip("jinja2")
    row = {"prompt": "Who?", "completions": ["a", "b"], "ranks": [0, 1], "flags": [{"rude": True}, {"rude": False}]}
    gold = write_rows(tmp_path / "gold.jsonl", [row])
    assert "the flag 'rude', which the page does not ask" in label("--gold", gold, "--serve", "false")
    flags = tmp_path / "flags.yaml"
    flags.write_text("rude: {label: Rude}")
    assert "Batch gold: 1 new items" in label("--gold", gold, "--serve", "false", "--flags", flags)


def test_labelers_are_invited_screened_held_out_and_revoked(label, tmp_path):
    printed = label("--invite", "anna", "ben", "--held_out", "true", "--port", 8123)
    links = [line for line in printed.splitlines() if line.startswith(("anna: ", "ben: "))]
    assert len(links) == 2 and all("http://127.0.0.1:8123/login?token=" in link for link in links)
    assert "https://label.example.org/login?token=" in label(
        "--invite", "cleo", "--screened", "true", "--url", "https://label.example.org/"
    )
    assert "anna is logged out" in label("--revoke", "anna")
    with Store(tmp_path / "run" / "labels.db") as store:
        known = {one.name: one for one in people.labelers(store)}
        token = links[1].split("token=")[1]
        assert people.log_in(store, token) and not people.log_in(store, links[0].split("token=")[1])
        with store.read() as db:
            held_out = {name for (name,) in db.execute("select name from labelers where held_out")}
    assert (known["cleo"].screening, known["anna"].revoked, held_out) == ("pending", True, {"anna", "ben"})
    assert "There is no labeler 'dan'" in label("--revoke", "dan")


def test_rankings_come_in_and_labels_go_out(label, tmp_path):
    assert "does not exist. Run `rlhf label` first" in label("--export", tmp_path / "out")
    rows = [{"prompt": "Why?", "completions": ["a", "b"], "ranks": [0, 1], "labeler_id": "ann"}]
    source = write_rows(tmp_path / "old.jsonl", rows)
    assert "Batch old: 1 new judgments of 1 rankings." in label("--import_rankings", source)
    assert "1 comparisons, 0 demonstrations" in label("--export", tmp_path / "out")
    assert "1 records" in label("--export", tmp_path / "records.json", "--export_format", "argilla")
    assert json.loads((tmp_path / "out" / "comparisons.jsonl").read_text())["labeler_id"] == "ann"
    other = write_rows(tmp_path / "again.jsonl", [{"prompt": "How?", "chosen": "a", "rejected": "b"}])
    assert "Batch again: 1 new items" in label("--import_rankings", other, "--import_as", "items")
    with Store(tmp_path / "run" / "labels.db") as store:
        people.add_labeler(store, "bob")
        bob = people.find_labeler(store, "bob").id
        task = queue.next_task(store, bob)
        assert task is not None and task.prompt == "How?"
        assert queue.submit(store, task.key, bob, Judgment(ranks=[0, 1]))


@pytest.mark.parametrize(
    "options, message",
    [
        (["--k", "10"], "k is 10; people rank 2 to 9"),
        (["--k", "2", "--systems", "a=x", "b=x", "c=x"], "3 systems share k = 2"),
        (["--prompts", "sandbox"], "Add --systems"),
        (["--screened", "true"], "screened is for those whom --invite names"),
        (["--ssl_keyfile", "key.pem"], "ssl_keyfile is given without ssl_certfile"),
        (["--ssl_certfile", "none.pem"], "none.pem and its key cannot be read"),
        (["--flags", "none.yaml"], "none.yaml cannot be read"),
        (["--instructions", "none.md"], "none.md cannot be read"),
        (["--url", "example.org"], "must begin with http"),
        (["--port", "0"], "port is 0"),
    ],
)
def test_a_mistake_is_one_sentence_before_anything_is_made(label, tmp_path, options, message):
    port = [] if "--port" in options else ["--port", str(free_port())]
    assert message in label(*options, *port)
    assert not (tmp_path / "run").exists()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_a_port_in_use_and_a_missing_package_are_one_sentence(label, tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        printed = label("--recipe", "recipes/sandbox", "--port", port)
        assert f"127.0.0.1:{port} cannot be listened on: " in printed and f"--port, such as {port + 1}" in printed
    monkeypatch.setattr("rlhf.labeling.serving.find_spec", lambda name: None if name == "uvicorn" else name)
    assert "needs the package uvicorn. Run pip install 'instruct-rlhf[label]'" in label("--recipe", "recipes/sandbox")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options, loud", [([], False), (["--host", "0.0.0.0"], True)])
def test_a_server_without_tls_that_others_reach_says_so(label, tmp_path, monkeypatch, options, loud):
    served = []
    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: served.append((self.config, sockets)))
    printed = label("--recipe", "recipes/sandbox", "--size", 2, "--port", free_port(), *options)
    assert ("WITHOUT TLS" in printed) == loud and "http://127.0.0.1:" in printed and len(served) == 1
    printed = label("--port", free_port(), *options, "--url", "https://label.example.org")
    assert "TLS" not in printed and "https://label.example.org/login?token=" in printed


def test_addresses_with_brackets_and_tls():
    assert LabelArguments("run", host="::1", port=1).address == "http://[::1]:1"
    assert LabelArguments("run", host="::", port=1, ssl_certfile="c").address == "https://[::1]:1"
