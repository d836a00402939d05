"""Chat in a terminal, or with lines from a pipe: messages, commands, and answers as they come."""

import json
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

from rlhf.errors import InputError
from rlhf.inference.chat import Answer, Chat
from rlhf.runs.console import paint

HELP = """\
{systems}  lets this model answer from here on
/compare          lets the others answer the last message, too; the conversation does not change
/reward           shows the reward model's score of each answer, or hides it again
/undo             takes the last message and its answer back
/reset            begins a new conversation
/save FILE        adds the conversation to a .jsonl file, as a row to train on
/help             shows this list
/exit             leaves, as Ctrl-D does

Ctrl-C stops an answer. A line that ends in \\ goes on in the next one; // begins a message with a slash."""


class Terminal:
    """Reads lines until there are no more, and lets `chat` answer them."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.is_terminal = sys.stdin.isatty()
        self.shows_reward = False

    def run(self) -> None:
        if self.is_terminal:
            with suppress(ImportError):  # arrow keys and earlier lines, where Python has it
                import readline  # noqa: F401  # pyright: ignore[reportUnusedImport]
        for line in self._lines():
            try:
                if line == "/exit":
                    return
                if line.startswith("/") and not line.startswith("//"):
                    self._command(line[1:])
                else:
                    self._message(line.removeprefix("/") if line.startswith("//") else line)
            except InputError as error:
                _print(" ".join(str(error).split()))
            except KeyboardInterrupt:  # between two answers, or while one is scored
                if not self.is_terminal:
                    raise
                _print("\n(stopped)")

    # -- lines --------------------------------------------------------------------------------------------------------

    def _lines(self) -> Iterator[str]:
        """Yields messages and commands that are not empty."""
        while True:
            try:
                line = self._read()
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                if not self.is_terminal:
                    raise
                _print("\nCtrl-D or /exit leaves.")
                continue
            if line.strip():
                yield line.strip()

    def _read(self) -> str:
        prompt, lines = "you> ", [""]
        while True:
            line = input(prompt if self.is_terminal else "")
            if not self.is_terminal:
                _print(f"{prompt}{line}")
            lines[-1] = line
            if not line.endswith("\\"):
                return "\n".join(lines)
            lines[-1] = line[:-1]
            lines.append("")
            prompt = "...> "

    # -- answers ------------------------------------------------------------------------------------------------------

    def _message(self, message: str) -> None:
        answer = self.chat.ask(message)
        self._show(answer)
        if answer.ids:
            self.chat.turns.append(answer)

    def _show(self, answer: Answer) -> bool:
        """Prints an answer as it comes; returns False if Ctrl-C has stopped it."""
        finished = True
        print(f"{_dim(answer.system)}> ", end="", flush=True)
        try:
            with closing(self.chat.grow(answer)) as pieces:
                for piece in pieces:
                    print(piece, end="", flush=True)
        except KeyboardInterrupt:
            finished = False
        note = "" if answer.ended else _dim(" … (cut)" if finished else " … (stopped)")
        _print(note if answer.text else f"{_dim('(empty)')}{note}")
        if self.shows_reward and finished:
            self._show_reward(answer)
        return finished

    def _show_reward(self, answer: Answer) -> None:
        reward = self.chat.reward(answer)
        _print(_dim("no reward model in this run" if reward is None else f"reward {reward:+.2f}"))

    # -- commands -----------------------------------------------------------------------------------------------------

    def _command(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        commands = {
            "compare": self._compare, "reward": self._reward, "undo": self._undo, "reset": self._reset,
            "help": self._help,
        }  # fmt: skip
        if name == "save":
            self._save(rest.strip())
        elif name in self.chat.systems:
            self.chat.system = name
            _print(f"{name} answers from here on.")
        elif name in commands:
            commands[name]()
        else:
            raise InputError(f"There is no command /{name}. /help lists them; // begins a message with a slash.")

    def _compare(self) -> None:
        turn = self._last()
        shown, self.shows_reward = self.shows_reward, "reward" in self.chat.shared.heads
        try:
            _print(f"{_dim(turn.system)}> {turn.text or _dim('(empty)')}{'' if turn.ended else _dim(' … (cut)')}")
            if self.shows_reward:
                self._show_reward(turn)
            for system in self.chat.systems:
                if system != turn.system and not self._show(self.chat.ask_again(system)):
                    return
        finally:
            self.shows_reward = shown

    def _reward(self) -> None:
        if "reward" not in self.chat.shared.heads:
            raise InputError("This run has no reward model. Train one with the reward stage.")
        self.shows_reward = not self.shows_reward
        if self.shows_reward and self.chat.turns:
            self._show_reward(self.chat.turns[-1])
        else:
            _print(f"The score of each answer is {'shown' if self.shows_reward else 'hidden'} from here on.")

    def _undo(self) -> None:
        self._last()
        turn = self.chat.turns.pop()
        _print(f"Taken back: {turn.message}")

    def _reset(self) -> None:
        self.chat.turns.clear()
        _print("A new conversation begins.")

    def _save(self, name: str) -> None:
        self._last()
        if not name.endswith(".jsonl"):
            raise InputError("Name a .jsonl file: /save conversations.jsonl")
        rows = self.chat.rows()
        try:
            with Path(name).expanduser().open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        except OSError as error:
            raise InputError(f"{name} cannot be written: {error.strerror}. Name another file.") from error
        turns = len(self.chat.turns)
        _print(f"{name} has {len(rows)} row{'s' * (len(rows) > 1)} more: {turns} turn{'s' * (turns > 1)}.")

    def _help(self) -> None:
        _print(HELP.format(systems=", ".join(f"/{name}" for name in self.chat.systems).ljust(16)))

    def _last(self) -> Answer:
        if not self.chat.turns:
            raise InputError("There is no message yet. Type one.")
        return self.chat.turns[-1]


def _print(text: str) -> None:
    print(text, flush=True)


def _dim(text: str) -> str:
    return paint(text, "2")
