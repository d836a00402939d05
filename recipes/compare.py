"""Prints what base, SFT, RLHF and any other adapters on the same base answer to one prompt, or to those of a file.

    rlhf compare runs/sandbox --prompt "Say this politely: Give me the glove."
    rlhf compare runs/mine --prompts questions.txt --adapters other=runs/other/ppo --output answers.jsonl

Decodes greedily unless --temperature is given. Adapters in other folders or on the Hub replace those of the run:
--sft_model_path me/sft --ppo_model_path me/rlhf. For models on other bases there is `rlhf evaluate`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TextIO

from trl import ModelConfig

from rlhf.cli import parse, run
from rlhf.data.checks import RowError
from rlhf.data.encode import Prompt, prompt_text
from rlhf.data.prompt_style import resolve_style, styled_prompt
from rlhf.data.schemas import check_prompt
from rlhf.errors import InputError, first_line, require_at_least
from rlhf.evaluation.compare import answers_to_all, as_text, rows_of, totals
from rlhf.evaluation.systems import NAME, STAGES
from rlhf.models.adapter_files import check_policy_adapter
from rlhf.models.stages import load_adapters, stage_folders, trained_style
from rlhf.options import READ_ADAPTERS
from rlhf.runs.checks import check_model_options


@dataclass
class CompareArguments:
    prompt: str | None = field(default=None, metadata={"help": "The instruction."})
    prompts: str | None = field(
        default=None,
        metadata={"help": "File with several: text, one a line, or .jsonl with a column prompt (text or messages)."},
    )
    adapters: list[str] | None = field(
        default=None,
        metadata={"help": "Further adapters on the same base, as NAME=FOLDER or NAME=HUB_ID, separated by spaces."},
    )
    output: str | None = field(default=None, metadata={"help": "A .jsonl file for the answers, one a line."})
    run: str | None = field(
        default=None, metadata={"help": "Folder of a run, such as runs/sandbox. Read if no adapter is given."}
    )
    sft_model_path: str | None = field(default=None, metadata={"help": "Folder or Hub id of the SFT adapter."})
    ppo_model_path: str | None = field(default=None, metadata={"help": "Folder or Hub id of the RLHF adapter."})
    reward_model_path: str | None = field(default=None, metadata={"help": "Folder or Hub id of the reward adapter."})
    temperature: float = field(default=0.0, metadata={"help": "Temperature of sampling. 0 is greedy."})
    seed: int = field(default=0, metadata={"help": "Seed of sampling."})
    max_new_tokens: int = field(default=256, metadata={"help": "Tokens of an answer, at most."})
    prompt_style: Literal["chat", "text"] | None = field(
        default=None,
        metadata={
            "help": "chat: the instruction is a message. text: it is continued as it is. None: as the adapters were "
            "trained."
        },
    )

    def __post_init__(self):
        if (self.prompt is None) == (self.prompts is None):
            raise InputError("Pass either --prompt with an instruction or --prompts with a file of them.")
        if self.prompt is not None and not self.prompt.strip():
            raise InputError(
                'The prompt is empty. Pass one: rlhf compare runs/mine --prompt "Say this politely: Give me the glove."'
            )
        if self.output is not None and not self.output.endswith(".jsonl"):
            raise InputError(f"output is {self.output}; the answers are JSON lines. Name a .jsonl file.")
        if self.temperature < 0:
            raise InputError(f"temperature is {self.temperature}; it must be 0 (greedy) or positive.")
        require_at_least(self, 1, "max_new_tokens")


def main() -> None:
    args, model_args = parse(CompareArguments, ModelConfig, options=READ_ADAPTERS, positional="run")
    check_model_options(model_args)
    asked = [args.prompt] if args.prompts is None else read_prompts(args.prompts)
    given = {"sft": args.sft_model_path, "ppo": args.ppo_model_path, "reward": args.reward_model_path}
    adapters = {name: path for name, path in given.items() if path}
    if args.run and not adapters:
        adapters = stage_folders(args.run)
        if "ppo" not in adapters:
            print("PPO has not finished in this run. Base and SFT answer.\n")
    adapters |= named_adapters(args.adapters or [], adapters)
    output = open_output(args.output) if args.output else None
    shared, tokenizer = load_adapters(model_args, adapters)
    trained = trained_style(adapters.values())
    style = resolve_style(args.prompt_style or trained or "chat", trained, tokenizer)
    prompts = [styled_prompt(prompt, style) if isinstance(prompt, str) else prompt for prompt in asked]
    options = {"max_new_tokens": args.max_new_tokens, "temperature": args.temperature, "seed": args.seed}
    results = answers_to_all(shared, tokenizer, prompts, **options)
    print("\n\n\n".join(as_text(prompt_text(p), found) for p, found in zip(asked, results, strict=True)))
    if len(results) > 1:
        print(f"\n\nOf {len(results)} prompts:\n\n{totals(results)}")
    if output is not None:
        with output:
            output.truncate(0)
            output.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows_of(asked, results))


def read_prompts(name: str) -> list[Prompt]:
    """Returns the prompts of a file.

    Raises:
        InputError: there is no such file, or no prompt in it, or a line is none.
    """
    try:
        lines = Path(name).expanduser().read_text(encoding="utf-8-sig").split("\n")  # Windows writes a BOM
    except UnicodeDecodeError as error:
        raise InputError(f"prompts: {name} is not UTF-8 text. Save it as UTF-8.") from error
    except OSError as error:
        raise InputError(f"prompts: {name} cannot be read: {first_line(error)}. Check its path.") from error
    prompts: list[Prompt] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if not name.endswith(".jsonl"):
            prompts.append(line.strip())
            continue
        try:
            prompts.append(check_prompt(json.loads(line)["prompt"]))
        except (ValueError, KeyError, TypeError) as error:
            reason = error if isinstance(error, RowError) else "it is no JSON object with a prompt"
            raise InputError(f"prompts: {name}, line {number}: {reason}. Correct the line.") from error
    if not prompts:
        raise InputError(f"prompts: {name} holds no prompt. Write one a line.")
    return prompts


def named_adapters(specs: list[str], taken: Mapping[str, str]) -> dict[str, str]:
    """Returns {name: folder or Hub id} of NAME=FOLDER.

    Raises:
        InputError: a spec of another form, or a name that is taken.
    """
    adapters: dict[str, str] = {}
    for spec in specs:
        name, equals, path = spec.partition("=")
        if not equals or not NAME.fullmatch(name) or not path:
            raise InputError(f"adapters: {spec} has no name. Write NAME=FOLDER, such as other=runs/other/ppo.")
        if name in (*STAGES, "reward", *taken, *adapters):
            raise InputError(f"adapters: the name {name} is taken. Write another: other={path}")
        check_policy_adapter(path)
        adapters[name] = path
    return adapters


def open_output(name: str) -> TextIO:
    """Opens the file for the answers before any model is loaded. Earlier ones stay until there are new ones.

    Raises:
        InputError: it cannot be written.
    """
    try:
        Path(name).expanduser().parent.mkdir(parents=True, exist_ok=True)
        return Path(name).expanduser().open("a", encoding="utf-8")
    except OSError as error:
        raise InputError(f"output: {name} cannot be written: {error.strerror}. Name another file.") from error


if __name__ == "__main__":
    run(main)
