"""The LLM judge against a local server: order, failures of every kind, what is kept, cost, and the secret key."""

import asyncio
import json
import logging
import os
import re
import signal
import threading
import time

import pytest

from rlhf.cli import run
from rlhf.errors import InputError
from rlhf.evaluation import chat_api
from rlhf.evaluation.chat_api import ChatServer
from rlhf.evaluation.judges import find_judges
from rlhf.evaluation.llm_judge import TEMPLATE, LLMJudge, read_template, read_verdict
from tests.chat_server import DROP, chat_server, completion
from tests.small_stages import messages

KEY = "sk-secret-0123456789"
PROMPTS = ["Why?", messages("How?"), "When?"]
LONG, SHORT = ["because it is so", "by doing it well", "at noon tomorrow"], ["so", "well", "noon"]


def answers_of(text):
    """Returns the two answers in a filled template."""
    return [re.search(rf"<answer_{x}>\n(.*)\n</answer_{x}>", text, re.DOTALL)[1] for x in "ab"]


def longer(_number, text, _body):
    a, b = answers_of(text)
    return f"One is longer.\n\n**Verdict: {'A' if len(a) > len(b) else 'B' if len(b) > len(a) else 'tie'}**"


def first(*_):
    return "The first.\nVerdict: A"


def at_first(answer, times=1):
    """Behaves badly for some requests, and then prefers the longer answer."""
    return lambda number, text, body: answer if number < times else longer(number, text, body)


def judge_of(server, folder=None, **options):
    own = {name: options.pop(name) for name in ("template", "temperature", "max_tokens", "prices") if name in options}
    return LLMJudge(ChatServer(server.url, "judge", **{"timeout": 5.0, **options}), folder=folder, **own)


def test_each_pair_is_asked_in_both_orders():
    with chat_server(longer) as server:
        judge = judge_of(server)
        assert judge.prefer(PROMPTS, LONG, SHORT) == [1.0] * 3
        asked = [answers_of(body["messages"][0]["content"]) for body in server.bodies]
        pairs = [list(pair) for pair in zip(LONG, SHORT, strict=True)]
        assert sorted(asked) == sorted(pairs + [pair[::-1] for pair in pairs])
        assert judge.consistency(PROMPTS, LONG, SHORT) == [1.0] * 3
        assert judge.prefer(PROMPTS, SHORT, LONG) == [0.0] * 3  # known, from the same six calls
        assert judge.prefer(PROMPTS[:1], ["same"], ["same"]) == [0.5]
        assert judge.consistency(PROMPTS[:1], ["same"], ["same"]) == [None]
        assert len(server.bodies) == 6
        assert {body["temperature"] for body in server.bodies} == {0.0}
        assert "How?" in "".join(body["messages"][0]["content"] for body in server.bodies)


def test_a_judge_that_prefers_a_place_finds_ties_alone():
    with chat_server(first) as server:
        judge = judge_of(server)
        assert judge.prefer(PROMPTS, LONG, SHORT) == [0.5] * 3
        assert judge.consistency(PROMPTS, LONG, SHORT) == [0.0] * 3


def test_a_tie_in_one_order_is_a_disagreement():
    def behave(number, text, body):
        return "Verdict: tie" if answers_of(text)[0] == "so" else longer(number, text, body)

    with chat_server(behave) as server:
        judge = judge_of(server)
        assert judge.prefer(PROMPTS, LONG, SHORT) == [0.5, 1.0, 1.0]
        assert judge.consistency(PROMPTS, LONG, SHORT) == [0.0, 1.0, 1.0]


@pytest.mark.parametrize(
    "failure",
    [429, 500, 503, DROP, (200, "no JSON"), (200, {"choices": []}), (200, completion(None)), "I cannot decide.",
     (200, completion("Verdict: A", "length"))],
    ids=["429", "500", "503", "drop", "no-json", "no-choice", "no-text", "no-verdict", "cut-off"],
)  # fmt: skip
def test_a_failure_is_tried_again(failure):
    with chat_server(at_first(failure)) as server:
        assert judge_of(server, concurrency=1).prefer(PROMPTS, LONG, SHORT) == [1.0] * 3
        assert len(server.bodies) == 7


def test_a_time_out_is_tried_again():
    def behave(number, text, body):
        if number == 0:
            time.sleep(1.0)
        return longer(number, text, body)

    with chat_server(behave) as server:
        assert judge_of(server, timeout=0.3, concurrency=1).prefer(PROMPTS[:1], LONG[:1], SHORT[:1]) == [1.0]
        assert len(server.bodies) == 3


def test_an_answer_without_a_verdict_is_answered_with_a_reminder():
    with chat_server(at_first("Both are fine.")) as server:
        judge_of(server, concurrency=1).prefer(PROMPTS[:1], LONG[:1], SHORT[:1])
        [instruction, said, reminder] = server.bodies[1]["messages"]
        assert instruction == server.bodies[0]["messages"][0]
        assert said == {"role": "assistant", "content": "Both are fine."}
        assert reminder["role"] == "user" and "Verdict: tie" in reminder["content"]


def test_what_stays_unjudged_is_counted_and_asked_again_later(tmp_path, caplog):
    def behave(number, text, body):
        return "no idea" if "Why?" in text else longer(number, text, body)

    with chat_server(behave) as server:
        with caplog.at_level(logging.WARNING, "rlhf"):
            assert judge_of(server, tmp_path).prefer(PROMPTS, LONG, SHORT) == [None, 1.0, 1.0]
        assert "2 of 6 calls stayed without a verdict, the last one: 3 answers that cannot be read" in caplog.text
        assert len(server.bodies) == 4 + 2 * 3
        server.behave = longer
        judge = judge_of(server, tmp_path)
        assert judge.consistency(PROMPTS, LONG, SHORT) == [None, 1.0, 1.0]
        assert judge.prefer(PROMPTS, LONG, SHORT) == [1.0] * 3
        assert len(server.bodies) == 10 + 2


def test_one_prompt_that_the_server_refuses_does_not_end_the_run(caplog):
    def behave(number, text, body):
        return (400, {"error": {"message": "too long"}}) if "Why?" in text else longer(number, text, body)

    with chat_server(behave) as server, caplog.at_level(logging.WARNING, "rlhf"):
        assert judge_of(server).prefer(PROMPTS, LONG, SHORT) == [None, 1.0, 1.0]
        assert "too long" in caplog.text and len(server.bodies) == 6


def test_options_that_newer_models_refuse_are_replaced():
    def behave(number, text, body):
        for name in ("max_tokens", "temperature"):
            if name in body:
                return 400, {"error": {"message": f"unsupported: {name}", "param": name}}
        return longer(number, text, body)

    with chat_server(behave) as server:
        assert judge_of(server, max_tokens=99).prefer(PROMPTS[:1], LONG[:1], SHORT[:1]) == [1.0]
        assert server.bodies[-1]["max_completion_tokens"] == 99 and "max_tokens" not in server.bodies[-1]


def test_a_run_that_is_killed_goes_on_without_a_call_repeated(tmp_path):
    arrived, go_on = threading.Event(), threading.Event()

    def behave(number, text, body):
        if number == 3:
            arrived.set()
            go_on.wait(20)
        return longer(number, text, body)

    with chat_server(behave) as server:
        child = os.fork()
        if child == 0:  # asks one question at a time, and waits for the answer to the fourth
            try:
                judge_of(server, tmp_path, concurrency=1, timeout=30.0).prefer(PROMPTS, LONG, SHORT)
            finally:
                os._exit(0)
        assert arrived.wait(20)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        go_on.set()
        assert len((tmp_path / "llm.jsonl").read_text().splitlines()) == 3
        answered = [body["messages"] for body in server.bodies[:3]]
        judge = judge_of(server, tmp_path)
        assert judge.prefer(PROMPTS, LONG, SHORT) == [1.0] * 3
        later = [body["messages"] for body in server.bodies[4:]]
        assert len(later) == 3 and all(asked not in answered for asked in later)
        assert judge_of(server, tmp_path).prefer(PROMPTS, LONG, SHORT) == [1.0] * 3
        assert len(server.bodies) == 7


def test_another_template_model_or_server_is_asked_anew(tmp_path):
    template = tmp_path / "mine.txt"
    template.write_text(TEMPLATE.read_text() + "Be brief.\n")
    with chat_server(longer) as server:
        pair = (PROMPTS[:1], LONG[:1], SHORT[:1])
        judge_of(server, tmp_path).prefer(*pair)
        judge_of(server, tmp_path, template=template).prefer(*pair)
        judge_of(server, tmp_path, max_tokens=7).prefer(*pair)
        LLMJudge(ChatServer(server.url, "other"), folder=tmp_path).prefer(*pair)
        assert len(server.bodies) == 8


def test_calls_are_concurrent_up_to_the_bound():
    def behave(number, text, body):
        time.sleep(0.05)
        return longer(number, text, body)

    prompts = [f"Question {i}?" for i in range(10)]
    with chat_server(behave) as server:
        judge_of(server, concurrency=4).prefer(prompts, ["long one"] * 10, ["short"] * 10)
        assert server.most_at_work == 4


def test_requests_keep_to_the_rate_and_retries_count(monkeypatch):
    sent = []  # the first request to arrive is late by the time of its connection, so arrivals say less

    class Watched(chat_api.Pace):
        async def __call__(self, request):
            await super().__call__(request)
            sent.append(time.monotonic())

    monkeypatch.setattr(chat_api, "Pace", Watched)
    with chat_server(at_first(429, times=2)) as server:
        judge_of(server, requests_per_minute=1200, concurrency=6).prefer(PROMPTS, LONG, SHORT)  # one in 50 ms
        assert len(sent) == len(server.bodies) == 8
    assert sent[-1] - sent[0] >= 7 * 0.05 - 1e-3  # 6 calls alone would take 5 x 50 ms


def test_calls_and_cost_are_said_before_the_first_call(tmp_path, caplog):
    said = []

    def behave(number, text, body):
        said.append(caplog.text)
        return longer(number, text, body)

    with chat_server(behave) as server, caplog.at_level(logging.INFO, "rlhf"):
        judge_of(server, tmp_path).prefer(PROMPTS[:1], LONG[:1], SHORT[:1])
        assert "2 calls to judge (0 answers are kept)" in said[0] and "input_price" in said[0]
        caplog.clear()
        judge_of(server, tmp_path, prices=(2.0, 500.0), max_tokens=1024).prefer(PROMPTS, LONG, SHORT)
        assert re.search(r"4 calls to judge \(2 answers are kept\): about \d+ tokens of input, at most 4096", said[2])
        assert "about $0.00 of input and at most $2.05 of output" in said[2]  # 4 x 1024 x 500 / 1e6
        assert "used 400 tokens of input and 40 of output, $0.00 and $0.02" in caplog.text


def test_a_server_that_keeps_failing_ends_the_run_and_keeps_the_answers(tmp_path, monkeypatch):
    monkeypatch.setattr(chat_api, "GIVE_UP", 3)
    with chat_server(lambda number, text, body: longer(number, text, body) if number < 2 else 400) as server:
        with pytest.raises(InputError, match=r"has failed 3 times in a row.*state 400.*are kept; run again to go on"):
            judge_of(server, tmp_path, concurrency=1).prefer(PROMPTS, LONG, SHORT)
        assert len(server.bodies) == 5
        assert len((tmp_path / "llm.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_ends_the_run_at_once_and_the_key_is_nowhere(tmp_path, status, monkeypatch, caplog):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    caplog.set_level(logging.DEBUG)

    def behave(*_):
        return status, {"error": {"message": f"Incorrect API key provided: {KEY}"}}

    with chat_server(behave) as server:
        judge = judge_of(server, tmp_path, key="JUDGE_KEY", concurrency=1)
        with pytest.raises(InputError, match="refuses model judge") as refused:
            judge.prefer(PROMPTS, LONG, SHORT)
        assert server.headers[0]["authorization"] == f"Bearer {KEY}" and len(server.bodies) == 1
    texts = [str(refused.value), repr(judge.server), judge.about, caplog.text]
    assert all(KEY not in text for text in texts)


def test_an_answer_that_repeats_the_key_is_kept_without_it(tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with chat_server(lambda *_: f"Your key is {KEY}.\nVerdict: A") as server:
        judge_of(server, tmp_path, key="JUDGE_KEY").prefer(PROMPTS, LONG, SHORT)
    assert KEY not in (tmp_path / "llm.jsonl").read_text() and "***" in (tmp_path / "llm.jsonl").read_text()


def test_it_works_where_an_event_loop_runs_already():
    async def notebook():
        return judge_of(server).prefer(PROMPTS, LONG, SHORT)

    with chat_server(longer) as server:
        assert asyncio.run(notebook()) == [1.0] * 3


# ---- From the command line, before a model is loaded


def refusal(spec, **env):
    with pytest.raises(InputError) as refused:
        find_judges([spec], dataset_name="any")
    message = str(refused.value)
    assert "\n" not in message and message.endswith(".")
    return message


def test_a_judge_is_found_by_its_specification(tmp_path):
    with chat_server(longer) as server:
        spec = f"llm={server.url},model=judge,name=gpt,concurrency=2,temperature=none,input_price=1,output_price=2"
        [judge] = find_judges([spec], dataset_name="any", folder=tmp_path)
        assert judge.prefer(PROMPTS, LONG, SHORT) == [1.0] * 3
        assert (judge.name, judge.prices) == ("gpt", (1.0, 2.0)) and (tmp_path / "gpt.jsonl").exists()
        assert "temperature" not in server.bodies[0]
        assert "judge at 127.0.0.1" in judge.about and "llm_judge.txt" in judge.about


def test_a_judge_without_its_key_is_refused(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    spec = "llm=https://api.openai.com/v1,model=m"
    assert "the environment variable OPENAI_API_KEY is not set" in refusal(spec)
    assert "the environment variable MY_KEY is not set" in refusal(spec + ",key=MY_KEY")
    message = refusal(f"{spec},key={KEY}")
    assert "no name of an environment variable" in message and KEY not in message


def test_the_key_of_one_service_goes_to_no_other(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert "has no key for judges.example" in refusal("llm=https://judges.example/v1,model=m")
    with chat_server(longer) as server:
        judge_of(server).prefer(PROMPTS[:1], LONG[:1], SHORT[:1])
        assert KEY not in str(server.headers)


def test_a_server_that_does_not_answer_is_refused():
    with chat_server(longer) as server:
        url = server.url
    message = refusal(f"llm={url},model=m")
    assert f"Judge llm cannot reach {url}" in message and "Start the server" in message


def test_a_server_that_refuses_the_key_is_refused(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with chat_server(longer) as server:
        server.RequestHandlerClass = type("Refusing", (server.RequestHandlerClass,), {})
        server.RequestHandlerClass.do_GET = lambda self: self._send(401, {"error": {"message": f"bad key {KEY}"}})
        message = refusal(f"llm={server.url},model=m,key=JUDGE_KEY")
    assert "refuses the key" in message and KEY not in message


@pytest.mark.parametrize(
    "options, message",
    [
        ("", "Judge llm needs the model's name"),
        (",model=m,template=none.txt", "none.txt, which is no readable text"),
        (",model=m,template=empty.txt", "lacks the placeholder {response_a} and {response_b}"),
        (",model=m,template=silent.txt", "does not ask for a last line"),
        (",model=m,concurrency=0", "concurrency=0; it must be a number of at least 1"),
        (",model=m,concurrency=1.5", "it must be a whole number"),
        (",model=m,timeout=soon", "timeout=soon"),
        (",model=m,input_price=1", "Give both"),
        (",model=m,top_p=1", "no option top_p"),
    ],
)
def test_a_wrong_option_is_refused(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("{prompt}")
    (tmp_path / "silent.txt").write_text("{prompt} {response_a} {response_b}")
    assert message in refusal("llm=http://localhost:1/v1" + options)


@pytest.mark.parametrize("url", ["localhost:8000", f"http://me:{KEY}@localhost/v1", "ftp://localhost", "http://[::1"])
def test_a_url_of_another_form_is_refused_and_not_repeated(url):
    message = refusal(f"llm={url},model=m")
    assert "needs a URL such as http://localhost:8000/v1" in message and KEY not in message


def test_the_refusal_is_one_line_on_the_command_line(capsys):
    with pytest.raises(SystemExit):
        run(lambda: find_judges(["llm=http://localhost:1/v1,model=m,retries=0"], dataset_name="any"))
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "Judge llm cannot reach http://localhost:1/v1" in line


# ---- Template and verdict


def test_answers_that_hold_placeholders_stay_as_they_are():
    with chat_server(first) as server:
        judge_of(server).prefer(["{response_a}"], ["{response_b}"], ["{prompt}"])
        assert ["{response_b}", "{prompt}"] in [answers_of(body["messages"][0]["content"]) for body in server.bodies]


def test_the_default_template_fits_its_own_rules():
    text = read_template(TEMPLATE)
    assert [read_verdict(line) for line in text.splitlines() if line.startswith("Verdict:")] == [1.0, 0.0, 0.5]


@pytest.mark.parametrize(
    "text, verdict",
    [
        ("Verdict: A", 1.0),
        ("verdict: b.", 0.0),
        ("**Verdict:** Tie", 0.5),
        ("Verdict: A\nOn reflection:\nVerdict: B\n", 0.0),
        ("Verdict: [[A]]", 1.0),
        ("My verdict: A is better", None),
        ("Verdict: Answer A", None),
        ("A", None),
        ("", None),
    ],
)
def test_the_last_line_with_a_verdict_counts(text, verdict):
    assert read_verdict(text) == verdict


def test_each_answer_is_a_line_with_its_text_and_tokens(tmp_path):
    with chat_server(first) as server:
        judge_of(server, tmp_path).prefer(PROMPTS[:1], LONG[:1], SHORT[:1])
    [line, _] = map(json.loads, (tmp_path / "llm.jsonl").read_text().splitlines())
    assert line.pop("key") and line == {"verdict": 1.0, "text": "The first.\nVerdict: A", "tokens": [100, 10]}
