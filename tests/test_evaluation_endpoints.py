"""Systems behind an endpoint, against a server of the OpenAI-compatible API on this machine."""

import logging
import time

import pytest
from chat_server import DROP, chat_server
from small_systems import answered
from trl import ModelConfig

from rlhf.errors import InputError
from rlhf.evaluation.endpoints import check_endpoint
from rlhf.evaluation.local_systems import Run
from rlhf.evaluation.systems import parse_system

PROMPTS = [f"Question {i}" for i in range(12)]
KEY = "sk-" + "x" * 20


def answers_of(server, folder, *options, prompts=PROMPTS):
    spec = ",".join([f"api={server.url}", "model=llama", *options])
    run = Run(ModelConfig(), {}, None)
    return {row["prompt"]: row for row in answered(run, [spec], prompts, folder, max_new_tokens=5)}


def echo(number, text, body):
    return f"Answer to {text}"


def slow_echo(number, text, body):
    time.sleep(0.1)
    return echo(number, text, body)


def test_an_endpoint_answers_with_its_options_and_only_once(tmp_path):
    with chat_server(slow_echo) as server:
        rows = answers_of(server, tmp_path, "temperature=0.5", "stop=Q:")
        assert {prompt: row["response"] for prompt, row in rows.items()} == {p: f"Answer to {p}" for p in PROMPTS}
        body = server.bodies[0]
        assert (body["model"], body["temperature"], body["max_tokens"], body["stop"]) == ("llama", 0.5, 5, ["Q:"])
        assert 1 < server.most_at_work <= 8
        asked = len(server.bodies)
        assert answers_of(server, tmp_path, "temperature=0.5", "stop=Q:") == rows
        answers_of(server, tmp_path, "temperature=0.5", "stop=Q:", prompts=[*PROMPTS, "New"])
        assert len(server.bodies) == asked + 1


def test_failures_that_pass_are_tried_again(tmp_path):
    failures = {1: 429, 3: 500, 5: DROP, 7: (200, "{no json"), 9: (200, {"choices": []})}
    with chat_server(lambda number, text, body: failures.pop(number, f"Answer to {text}")) as server:
        rows = answers_of(server, tmp_path)
    assert not failures
    assert {prompt: row["response"] for prompt, row in rows.items()} == {p: f"Answer to {p}" for p in PROMPTS}


def test_a_server_that_breaks_keeps_the_answers_so_far(tmp_path):
    with chat_server(lambda number, text, body: echo(number, text, body) if number < 6 else 400) as server:
        with pytest.raises(InputError, match=r"refuses a request: .*400.* of 12 answers are kept; run again"):
            answers_of(server, tmp_path)
        kept = len((tmp_path / "answers" / "api.jsonl").read_text().splitlines())
        assert kept >= 1
        server.behave, before = echo, len(server.bodies)
        assert len(answers_of(server, tmp_path)) == 12
        assert len(server.bodies) == before + 12 - kept


def test_keys_and_unreachable_urls_are_refused_in_one_sentence(monkeypatch, tmp_path):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(InputError, match="System api needs a key: the environment variable OPENAI_API_KEY is not set"):
        check_endpoint(parse_system("api=https://api.openai.com/v1,model=m"))
    with pytest.raises(InputError, match="System api has no key for"):
        check_endpoint(parse_system("api=https://example.invalid/v1,model=m"))
    with pytest.raises(InputError, match="System api cannot reach"):
        check_endpoint(parse_system("api=http://127.0.0.1:9/v1,model=m"))


def test_the_key_is_sent_and_is_nowhere_else(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MY_KEY", KEY)
    caplog.set_level(logging.DEBUG, "rlhf")
    with chat_server(lambda number, text, body: f"Answer with {KEY}") as server:
        answers_of(server, tmp_path, "key=MY_KEY")
        assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert KEY not in caplog.text
    assert all(KEY not in path.read_text() for path in tmp_path.rglob("*.json*"))
