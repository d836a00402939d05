"""Judges base, SFT and RLHF on held-out prompts and writes the report.

    make evaluate RECIPE=sandbox

Reads the adapters and, for the report, the folders of the stages beside `output_dir`. Writes completions.jsonl (every
answer with its verdicts) to `output_dir`, and summary.json and report.html to the folder above. A stage without a path
is reported as not run. Only `dataset_name: sandbox` has a gold judge. Other data is judged by the reward model, and the
report says so. Each process of the launch answers a share of the prompts.
"""

import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from trl import ModelConfig

from rlhf.cli import parse, run
from rlhf.data import load_prompts
from rlhf.data.arguments import DataArguments
from rlhf.data.encode import encode_prompt
from rlhf.data.lengths import drop_long_rows
from rlhf.data.prompt_style import in_prompt_style
from rlhf.errors import InputError, require_at_least
from rlhf.evaluation.answers import judged_answers
from rlhf.evaluation.gold import gold_judge, labeler_limits
from rlhf.evaluation.report import read_stages, write_report
from rlhf.evaluation.seen import unseen_prompts
from rlhf.evaluation.summary import read_summary, summarize
from rlhf.generation.score_options import policy_options
from rlhf.models.loading import load_config, resolve_model_name
from rlhf.models.stages import load_shared_base, load_stage_tokenizer, trained_style
from rlhf.options import READ_ADAPTERS
from rlhf.ppo.rollout import longest_prompt
from rlhf.runs.artifacts import is_first_process, start_run, write_result
from rlhf.runs.checks import check_model_options


@dataclass
class EvaluateArguments:
    output_dir: str = field(metadata={"help": "Folder of this stage, such as runs/sandbox/evaluate."})
    sft_model_path: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of the SFT adapter. None leaves the arm out."}
    )
    ppo_model_path: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of the RLHF adapter. None leaves the arm out."}
    )
    reward_model_path: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of the reward adapter. None gives no rewards."}
    )
    recipe_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder that holds the stages' folders and gets the report. None is the parent of output_dir."
        },
    )
    max_new_tokens: int = field(default=256, metadata={"help": "Tokens of an answer, at most."})
    batch_size: int = field(default=64, metadata={"help": "Prompts per batch."})
    best_of_n: int = field(
        default=0,
        metadata={
            "help": "Samples per prompt of the arm sft_best, which keeps the highest reward. 0 leaves the arm out."
        },
    )
    seed: int = field(default=0, metadata={"help": "Seed of sampling."})
    temperature: float | None = field(
        default=None,
        metadata={"help": "Temperature of the sampled arms and of the KL. None: that of the PPO run, else 1."},
    )
    missing_eos_penalty: float | None = field(
        default=None,
        metadata={
            "help": "Positive number subtracted from the reward of an answer without EOS, also in best of n. None: "
            "that of the PPO run, if it has one."
        },
    )
    other_runs: list[str] | None = field(
        default=None,
        metadata={
            "help": "Folders of other runs of this recipe, each with a summary.json. The report then has the range of "
            "the numbers over all runs."
        },
    )

    def __post_init__(self):
        require_at_least(self, 1, "max_new_tokens", "batch_size")
        if self.temperature is not None and self.temperature <= 0:
            raise InputError(f"temperature is {self.temperature}; greedy answers come anyway: make it positive.")
        if self.best_of_n and (self.best_of_n < 2 or not (self.sft_model_path and self.reward_model_path)):
            raise InputError(
                f"best_of_n is {self.best_of_n}; it must be 0, or at least 2 with sft_model_path and reward_model_path."
            )


@dataclass
class EvaluationData(DataArguments):
    dataset_test_split: str | None = field(
        default=None,
        metadata={
            "help": "Name of a split that the source holds out, to ask all of its prompts and no others. None asks the "
            "tenth of all conversations that is held out for test."
        },
    )
    dataset_eval_size: int | None = field(default=1000, metadata={"help": "Prompts, at most. None takes all."})


def main() -> None:
    started = time.monotonic()
    args, data_args, model_args = parse(EvaluateArguments, EvaluationData, ModelConfig, options=READ_ADAPTERS)
    check_model_options(model_args)
    recipe_dir = Path(args.recipe_dir or Path(args.output_dir).parent)
    options = policy_options(args.ppo_model_path)
    if args.temperature is not None:
        options = replace(options, temperature=args.temperature)
    if args.missing_eos_penalty is not None:
        options = replace(options, missing_eos_penalty=args.missing_eos_penalty, missing_eos_reward=None)
    other_runs = [read_summary(folder) for folder in args.other_runs or ()]
    start_run(args.output_dir, args, data_args, model_args, stage="evaluate")

    # Models and prompts
    paths = {"sft": args.sft_model_path, "ppo": args.ppo_model_path, "reward": args.reward_model_path}
    adapters = {name: path for name, path in paths.items() if path}
    split = data_args.dataset_test_split or "test"
    prompts = load_prompts(data_args, "test", args.output_dir, named=data_args.dataset_test_split)
    style = trained_style(adapters.values())
    model_args, tokenizer = load_stage_tokenizer(model_args, adapters)
    prompts = in_prompt_style(prompts, data_args, tokenizer, split, style, args.output_dir)
    prompts, seen = unseen_prompts(prompts, adapters, data_args.dataset_name)
    config = load_config(resolve_model_name(model_args.model_name_or_path), model_args.model_revision)
    lengths = [len(encode_prompt(tokenizer, prompt)) for prompt in prompts["prompt"]]
    prompts = drop_long_rows(
        prompts,
        lengths,
        longest_prompt(config, None, args.max_new_tokens, "max_new_tokens"),
        f"{data_args.dataset_name} ({split} split)",
        data_args.on_bad_rows,
        args.output_dir,
        option="the context less max_new_tokens",
    )
    shared = load_shared_base(model_args, tokenizer, adapters)

    # Answers
    rows = judged_answers(
        shared,
        tokenizer,
        prompts,
        models=["base", *(name for name in ("sft", "ppo") if name in adapters)],
        judge=gold_judge(data_args.dataset_name),
        max_new_tokens=args.max_new_tokens,
        options=options,
        batch_size=args.batch_size,
        seed=args.seed,
        best_of=args.best_of_n,
    )
    if not is_first_process():
        return
    with open(Path(args.output_dir) / "completions.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    # Numbers and report
    stages = read_stages(recipe_dir)
    settings = {
        "dataset": data_args.dataset_name,
        "split": split,
        "model": model_args.model_name_or_path,
        "prompts_seen_in_training": seen,
        "seed": args.seed,
        "max_new_tokens": args.max_new_tokens,
        "temperature": options.temperature,
        "best_of_n": args.best_of_n,
        **labeler_limits(data_args.dataset_name, data_args.dataset_seed),
    }
    results = {name: stage.result for name, stage in stages.items()}
    summary = summarize(rows, results, settings, seconds=round(time.monotonic() - started, 1), other_runs=other_runs)
    (recipe_dir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    write_result(args.output_dir, {"seconds": summary["seconds"]["evaluate"], "prompts": summary["prompts"]})
    title = f"InstructGPT’s recipe: {recipe_dir.resolve().name}"
    write_report(recipe_dir / "report.html", title, summary, rows, stages)
    print(f"\nThe report is {recipe_dir / 'report.html'}, the numbers are in {recipe_dir / 'summary.json'}.")


if __name__ == "__main__":
    run(main)
