"""What base, SFT and RLHF answer to one instruction:  make compare PROMPT="Write a story about a fox." RECIPE=sandbox

Greedy unless --temperature is given. Without a run of our own, for adapters in any folder or on the Hub:

    python recipes/compare.py --prompt "..." --sft_model_path me/sft --ppo_model_path me/rlhf
"""

from dataclasses import dataclass, field

from trl import ModelConfig

import rlhf.startup  # noqa: F401
from rlhf.cli import parse, run
from rlhf.errors import InputError
from rlhf.evaluation.compare import answers, as_text
from rlhf.models.stages import load_adapters, stage_folders


@dataclass
class CompareArguments:
    prompt: str = field(metadata={"help": "The instruction."})
    run: str | None = field(default=None, metadata={"help": "Folder of a recipe's run, such as runs/sandbox."})
    sft_model_path: str | None = field(default=None, metadata={"help": "Folder or Hub id; default: that of the run."})
    ppo_model_path: str | None = field(default=None, metadata={"help": "Folder or Hub id; default: that of the run."})
    reward_model_path: str | None = field(default=None, metadata={"help": "Scores the answers; default: the run's."})
    temperature: float = field(default=0.0, metadata={"help": "0 is greedy."})
    seed: int = field(default=0, metadata={"help": "Of the sampling, where temperature is above 0."})
    max_new_tokens: int = field(default=256, metadata={"help": "Longest answer in tokens."})
    plain_text: bool = field(default=False, metadata={"help": "Continue the prompt as it is, without chat template."})

    def __post_init__(self):
        if not self.prompt.strip():
            raise InputError('the prompt is empty; try make compare PROMPT="Write a story about a fox."')
        if self.temperature < 0:
            raise InputError(f"temperature is {self.temperature}; it must be 0 (greedy) or positive.")
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1.")


def main() -> None:
    args, model_args = parse(CompareArguments, ModelConfig)
    given = {"sft": args.sft_model_path, "ppo": args.ppo_model_path, "reward": args.reward_model_path}
    adapters = {name: path for name, path in given.items() if path}
    if args.run and not adapters:
        adapters = stage_folders(args.run)
        if "ppo" not in adapters:
            print("PPO has not finished in this run; base and SFT answer.\n")
    shared, tokenizer = load_adapters(model_args, adapters)
    prompt = args.prompt if args.plain_text else [{"role": "user", "content": args.prompt}]
    options = {"max_new_tokens": args.max_new_tokens, "temperature": args.temperature, "seed": args.seed}
    print(as_text(args.prompt, answers(shared, tokenizer, prompt, **options)))


if __name__ == "__main__":
    run(main)
