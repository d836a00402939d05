"""Measures how long a person waits for the first token of each answer in a chat.

    python benchmarks/first_token.py runs/mine

Short turns, a message of 300 words, and then the same conversation read by another model for the first time.
"""

import argparse
import time

import torch
from trl import ModelConfig

from rlhf.cli import run
from rlhf.inference.chat import Answer, Chat
from rlhf.models.stages import load_adapters, stage_folders

MESSAGES = ("What is the capital of France?", "And of Italy? Tell me about it.", "word " * 300, "Thanks. And of Spain?")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="Folder of a run.")
    shared, tokenizer = load_adapters(ModelConfig(), stage_folders(parser.parse_args().run))
    chat = Chat(shared, tokenizer, max_new_tokens=64)
    print(f"{torch.get_num_threads()} threads\nsystem  prompt  first token  others")
    for message in MESSAGES:
        answer = chat.ask(message)
        measure(chat, answer)
        chat.turns.append(answer)
    for system in chat.systems:
        if system != chat.system:
            measure(chat, chat.ask_again(system))


def measure(chat: Chat, answer: Answer) -> None:
    """Samples an answer and prints seconds of its first token, and milliseconds of each further one."""
    times = [time.monotonic()]
    times += [time.monotonic() for _ in chat.grow(answer)]
    rest = 1000 * (times[-1] - times[1]) / max(len(times) - 3, 1)  # the last piece comes without a token
    print(f"{answer.system:<7} {len(answer.prompt_ids):>6}  {times[1] - times[0]:>9.2f} s  {rest:>3.0f} ms", flush=True)


if __name__ == "__main__":
    run(main)
