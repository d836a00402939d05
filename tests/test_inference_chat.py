"""Chat on toy adapters: streamed tokens, the cache between turns, commands, Ctrl-C, lines from a pipe."""

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys

import pytest
from test_evaluation_compare import ROOT, load_main, run  # noqa: F401
from transformers import GenerationConfig
from trl import ModelConfig

from rlhf.data import load_demonstrations
from rlhf.data.arguments import DataArguments
from rlhf.errors import InputError
from rlhf.generation.completions import completion_rewards, sample_completions
from rlhf.generation.streaming import PastTokens, stream
from rlhf.inference.chat import Chat
from rlhf.inference.terminal import Terminal
from rlhf.models.stages import load_adapters, stage_folders


@pytest.fixture(scope="module")
def models(run):  # noqa: F811
    return load_adapters(ModelConfig(), stage_folders(run))


def chat_of(models, **options):
    return Chat(*models, **{"max_new_tokens": 8, **options})


def said(chat, message):
    """Sends a message and keeps the answer, as the terminal does."""
    answer = chat.ask(message)
    pieces = list(chat.grow(answer))
    chat.turns.append(answer)
    assert "".join(pieces) == answer.text
    return answer


def talk(chat, monkeypatch, capsys, *lines):
    """Returns what the terminal prints for lines from a pipe."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    Terminal(chat).run()
    return capsys.readouterr().out


# -- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", ["base", "sft", "ppo"])
def test_streamed_answer_is_the_greedy_one_of_the_sampler(models, system):
    chat = chat_of(models, temperature=0.0)
    chat.system = system
    answer = said(chat, "Name three fruits.")
    adapter = None if system == "base" else system
    [expected] = sample_completions(
        models[0], adapter, [answer.prompt_ids], models[1], max_new_tokens=8, temperature=0.0, progress=False
    )
    assert (answer.ids, answer.text, answer.ended) == (expected.ids, expected.text, expected.ended)


def test_later_turns_reuse_the_cache_and_answer_as_without_one(models):
    chat = chat_of(models, temperature=0.0)
    said(chat, "Name three fruits.")
    past = chat._past["ppo"]
    kept = len(past.ids)
    answer = chat.ask("And a color?")
    past.rewind(answer.prompt_ids)
    assert len(past.ids) >= kept - 8 > 0  # all of the first prompt is read already
    list(chat.grow(answer))
    fresh = stream(
        models[0].lm, answer.prompt_ids, lambda logits, _: logits.argmax(-1), chat.stops, 8, PastTokens(models[0].lm)
    )
    with models[0].use("ppo"):
        assert list(fresh) == answer.ids


def test_cache_is_whole_after_a_pass_that_was_interrupted(models):
    shared = models[0]
    chat = chat_of(models, temperature=0.0)
    expected = said(chat, "Name three fruits.").ids

    def stopped(*_):
        raise KeyboardInterrupt

    again = chat_of(models, temperature=0.0)
    answer = again.ask("Name three fruits.")
    pieces = again.grow(answer)
    next(pieces)
    handle = shared.lm.model.layers[1].register_forward_pre_hook(stopped)  # the first layer has read the next token
    with pytest.raises(KeyboardInterrupt):
        next(pieces)
    handle.remove()
    assert answer.ids == expected[:1]
    assert list(again.grow(again.ask("Name three fruits."))) and again._past["ppo"].ids[-1] == expected[-2]


def test_conversation_holds_the_turns_of_all_systems(models):
    chat = chat_of(models, temperature=0.0)
    first = said(chat, "Name three fruits.")
    chat.system = "base"
    second = chat.ask("And a color?")
    text = models[1].decode(second.prompt_ids)
    assert "Name three fruits." in text and first.text in text and text.rstrip().endswith("Assistant:")
    assert chat.ask_again("sft").prompt_ids == first.prompt_ids


def test_next_message_gets_other_random_numbers_and_a_repeated_one_the_same(models):
    chat = chat_of(models)
    answers = []
    for _ in range(3):
        answers.append(said(chat, "Once").ids)
        again = chat.ask_again("ppo")
        list(chat.grow(again))
        assert again.ids == answers[-1]
        chat.turns.clear()
    assert len({tuple(ids) for ids in answers}) == 3


def test_plain_text_stands_alone(models):
    chat = chat_of(models, style="text", temperature=0.0)
    said(chat, "Once upon a time")
    assert chat.ask("The dog").prompt_ids == models[1]("The dog")["input_ids"]
    assert chat.rows() == [{"prompt": "Once upon a time", "completion": chat.turns[0].text, "source": "ppo"}]


def test_full_context_is_refused_with_a_remedy(models):
    chat = chat_of(models)
    with pytest.raises(InputError, match=r"only 256\. Shorten the message"):
        chat.ask("fruit " * 300)


# -- the terminal -----------------------------------------------------------------------------------------------------


def test_commands_switch_compare_score_undo_and_save(models, monkeypatch, capsys, tmp_path):
    chat, file = chat_of(models, temperature=0.0), tmp_path / "saved.jsonl"
    lines = ["Name three fruits.", "/reward", "/sft", "And a color?", "/compare", "/undo", f"/save {file}"]
    out = talk(chat, monkeypatch, capsys, *lines)
    [turn] = chat.turns
    [reward] = completion_rewards(models[0], "reward", [turn.prompt_ids], [turn.ids])
    assert f"ppo> {turn.text}" in out and f"reward {reward:+.2f}" in out
    assert "sft answers from here on." in out and "Taken back: And a color?" in out
    assert [out.count(f"{name}> ") for name in ("base", "sft", "ppo")] == [1, 2, 2]
    assert out.count("reward ") == 1 + 1 + 3  # of /reward, of the next answer, of /compare
    assert json.loads(file.read_text())["source"] == "ppo"


def test_saved_conversation_is_a_row_to_train_on(models, monkeypatch, capsys, tmp_path):
    chat, file = chat_of(models), tmp_path / "saved.jsonl"
    for number in range(30):
        talk(chat, monkeypatch, capsys, f"Name fruit {number}.", f"/save {file}", "/reset")
    rows = load_demonstrations(DataArguments(dataset_name=str(file)), "train")
    assert rows["prompt"][0][0]["content"].startswith("Name fruit")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/undo", "no message yet"),
        ("/compare", "no message yet"),
        ("/colour", "There is no command /colour. /help lists them"),
        ("/help", "/base, /sft, /ppo  lets this model answer"),
        ("fruit " * 300, "the model's context only 256"),
    ],
)
def test_mistakes_are_one_line_and_the_chat_goes_on(models, monkeypatch, capsys, line, message):
    out = talk(chat_of(models), monkeypatch, capsys, line, "Once")
    assert message in out and "ppo> " in out


def test_slash_and_newline_can_be_typed(models, monkeypatch, capsys):
    chat = chat_of(models)
    talk(chat, monkeypatch, capsys, "//etc is a folder", "Once \\", "upon a time", "/exit", "never read")
    assert [turn.message for turn in chat.turns] == ["/etc is a folder", "Once \nupon a time"]


def test_ctrl_c_stops_the_answer_and_not_the_chat(models, monkeypatch, capsys):
    chat, grow = chat_of(models, max_new_tokens=30), Chat.grow

    def stopped(self, answer):
        for count, piece in enumerate(grow(self, answer)):
            yield piece
            if count == 2 and answer.message == "Name three fruits.":
                raise KeyboardInterrupt

    monkeypatch.setattr(Chat, "grow", stopped)
    out = talk(chat, monkeypatch, capsys, "Name three fruits.", "Once")
    assert "(stopped)" in out and len(chat.turns) == 2
    assert len(chat.turns[0].ids) == 3 and not chat.turns[0].ended


def test_ctrl_c_in_a_terminal_comes_back_to_the_prompt(run):  # noqa: F811
    ours, theirs = pty.openpty()
    command = [sys.executable, str(ROOT / "recipes" / "chat.py"), str(run), "--max_new_tokens", "150"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1", "TERM": "dumb"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    shown = ""

    def read_until(text: str) -> None:
        nonlocal shown
        start = len(shown)
        while text not in shown[start:] and process.poll() is None:
            if select.select([ours], [], [], 1)[0]:
                shown += os.read(ours, 4096).decode(errors="replace")

    read_until("you> ")
    for _ in range(2):  # within a second
        os.write(ours, b"Once\n")
        read_until("ppo> ")
        process.send_signal(signal.SIGINT)
        read_until("you> ")
    os.write(ours, b"/exit\n")
    assert process.wait(timeout=60) == 0 and "Traceback" not in shown
    assert "(stopped)" in shown or "Ctrl-D or /exit leaves." in shown


def test_recipe_chats_with_a_run_and_with_one_stage(run, monkeypatch, capsys):  # noqa: F811
    for folder, systems in ((run, "base, sft, ppo, reward"), (run / "sft", "base, adapter")):
        monkeypatch.setattr(sys, "stdin", io.StringIO("Once\n"))
        main = load_main("chat", [folder, "--max_new_tokens", 4], monkeypatch)
        monkeypatch.setattr(sys.modules["recipe_chat"], "set_signals", lambda: None)
        main()
        out = capsys.readouterr().out
        assert systems in out and "you> Once" in out


def test_a_whole_model_is_sampled_at_its_own_temperature(run, monkeypatch):  # noqa: F811
    load_main("chat", [run], monkeypatch)
    own = sys.modules["recipe_chat"].own_temperature
    assert own(GenerationConfig(do_sample=True, temperature=0.7)) == 0.7
    assert own(GenerationConfig()) == own(GenerationConfig(temperature=0.3)) == own(None) == 1.0


def test_recipe_refuses_a_folder_without_a_model(tmp_path, monkeypatch):
    main = load_main("chat", [tmp_path], monkeypatch)
    with pytest.raises(InputError, match=r"neither finished stages nor a model.*such as runs/mine"):
        main()
    (tmp_path / "smoke" / "sft").mkdir(parents=True)
    (tmp_path / "smoke" / "sft" / "adapter_config.json").touch()
    with pytest.raises(InputError, match=f"such as {tmp_path / 'smoke'}, which is there"):
        main()
