"""Prints the answers of base, SFT and RLHF to one instruction.

    rlhf compare runs/sandbox --prompt "Say this politely: Give me the glove."

Decodes greedily unless --temperature is given. For adapters in other folders or on the Hub:

    rlhf compare --prompt "..." --sft_model_path me/sft --ppo_model_path me/rlhf
"""

from dataclasses import dataclass, field
from typing import Literal

from trl import ModelConfig

from rlhf.cli import parse, run
from rlhf.data.prompt_style import resolve_style, styled_prompt
from rlhf.errors import InputError, require_at_least
from rlhf.evaluation.compare import answers, as_text
from rlhf.models.stages import load_adapters, stage_folders, trained_style
from rlhf.options import READ_ADAPTERS
from rlhf.runs.checks import check_model_options


@dataclass
class CompareArguments:
    prompt: str = field(metadata={"help": "The instruction."})
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
        if not self.prompt.strip():
            raise InputError(
                'The prompt is empty. Pass one: rlhf compare runs/mine --prompt "Say this politely: Give me the glove."'
            )
        if self.temperature < 0:
            raise InputError(f"temperature is {self.temperature}; it must be 0 (greedy) or positive.")
        require_at_least(self, 1, "max_new_tokens")


def main() -> None:
    args, model_args = parse(CompareArguments, ModelConfig, options=READ_ADAPTERS, positional="run")
    check_model_options(model_args)
    given = {"sft": args.sft_model_path, "ppo": args.ppo_model_path, "reward": args.reward_model_path}
    adapters = {name: path for name, path in given.items() if path}
    if args.run and not adapters:
        adapters = stage_folders(args.run)
        if "ppo" not in adapters:
            print("PPO has not finished in this run. Base and SFT answer.\n")
    shared, tokenizer = load_adapters(model_args, adapters)
    trained = trained_style(adapters.values())
    prompt = styled_prompt(args.prompt, resolve_style(args.prompt_style or trained or "chat", trained, tokenizer))
    options = {"max_new_tokens": args.max_new_tokens, "temperature": args.temperature, "seed": args.seed}
    print(as_text(args.prompt, answers(shared, tokenizer, prompt, **options)))


if __name__ == "__main__":
    run(main)
