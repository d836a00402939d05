"""Lets systems answer the same held-out prompts, lets judges compare the answers, and writes the report.

    rlhf evaluate sandbox
    rlhf evaluate sandbox --systems sft ppo small=HuggingFaceTB/SmolLM2-135M-Instruct theirs=answers.jsonl

Without --systems these are base, SFT and RLHF of the run, sampled and greedy; `rlhf/evaluation/systems.py` has all
forms. Every answer is kept in `output_dir`/answers as it comes: a killed evaluation goes on, and a further system or
judge makes nobody answer again. Writes completions.jsonl (every answer with its verdicts) to `output_dir`, and
summary.json and the report (report.html, report.md, report/*.csv) to the folder above. A stage without a path is
reported as not run; RLHF's model card beside the report gets its tables. Only `dataset_name: sandbox` has a gold judge;
elsewhere the reward model judges alone unless --judges names others, and the report says so. Each process of the launch
answers a share of the prompts.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from datasets import Dataset
from trl import ModelConfig

from rlhf import cli
from rlhf.cli import parse
from rlhf.data import load_prompts
from rlhf.data.arguments import DataArguments
from rlhf.data.encode import prompt_key
from rlhf.data.lengths import drop_long_rows
from rlhf.data.prompt_style import in_prompt_style
from rlhf.errors import InputError, require_at_least
from rlhf.evaluation.answers import answer_all, check_systems
from rlhf.evaluation.completion_files import read_completions
from rlhf.evaluation.gold import labeler_limits
from rlhf.evaluation.judges import Judge, find_judges
from rlhf.evaluation.judging import judge_answers
from rlhf.evaluation.local_systems import LocalSystem, Run, load_run
from rlhf.evaluation.power import detectable_difference, win_rate_deviation
from rlhf.evaluation.report import write_report
from rlhf.evaluation.report_card import card_evaluation
from rlhf.evaluation.report_stages import read_stages
from rlhf.evaluation.seen import unseen_prompts
from rlhf.evaluation.summary import as_text, read_summary, summarize
from rlhf.evaluation.systems import STAGES, default_specs, parse_systems, resolve
from rlhf.generation.score_options import PolicyOptions
from rlhf.models.adapter_files import adapter_digest, adapter_folder
from rlhf.models.loading import load_config, resolve_model_name
from rlhf.options import READ_ADAPTERS
from rlhf.ppo.rollout import longest_prompt
from rlhf.runs.artifacts import is_first_process, start_run, write_result
from rlhf.runs.checks import check_model_options, check_writable
from rlhf.runs.console import duration, say, show, show_title
from rlhf.runs.folders import check_output
from rlhf.runs.hub import write_model_card
from rlhf.runs.listing import EVALUATED

DEFAULT_BASELINE = "sft"


@dataclass
class EvaluateArguments:
    output_dir: str = field(metadata={"help": "Folder of this stage, such as runs/sandbox/evaluate."})
    sft_model_path: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of the SFT adapter. None leaves it out."}
    )
    ppo_model_path: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of the RLHF adapter. None leaves it out."}
    )
    reward_model_path: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of the reward adapter. None gives no rewards."}
    )
    systems: list[str] | None = field(
        default=None,
        metadata={
            "help": "Systems that answer, one-line specs: sft sft,temperature=0 other=path_or_Hub_id theirs=file.jsonl "
            "api=URL,model=NAME. None: base, sft and ppo, sampled and greedy."
        },
    )
    judges: list[str] | None = field(
        default=None,
        metadata={"help": "Judges of the answers, one-line specs. None: gold for the sandbox, and the reward model."},
    )
    baseline: str | None = field(
        default=None,
        metadata={
            "help": "System that the others are compared with; a greedy one with its greedy answers, if any. None: "
            "sft, else the first system."
        },
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
            "help": "Samples per prompt of the system sft_best, which keeps the highest reward. 0 leaves it out."
        },
    )
    seed: int = field(default=0, metadata={"help": "Seed of sampling."})
    temperature: float | None = field(
        default=None,
        metadata={"help": "Temperature of the systems that name none. None: that of the PPO run, else 1."},
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
        if self.best_of_n and self.systems:
            raise InputError(f"best_of_n is {self.best_of_n}; among systems, write sft,best_of={self.best_of_n}.")
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
    recipe_dir, output_dir = Path(args.recipe_dir or Path(args.output_dir).parent), args.output_dir
    check_output(output_dir, args, data_args, model_args)
    check_writable(recipe_dir, "recipe_dir")
    other_runs = [read_summary(folder) for folder in args.other_runs or ()]

    # Systems and judges, checked before a model is loaded
    paths = {"sft": args.sft_model_path, "ppo": args.ppo_model_path, "reward": args.reward_model_path}
    stages = {name: path for name, path in paths.items() if path}
    specs = args.systems or default_specs(stages, args.best_of_n)
    run = load_run(model_args, stages)
    options = with_options(run.options, args)
    run = replace(run, options=options)
    systems = [
        resolve(system, options.temperature, args.max_new_tokens, args.reward_model_path)
        for system in parse_systems(specs)
    ]
    baseline = baseline_of(args.baseline, [system.name for system in systems])
    local = check_systems(systems, run, data_args.prompt_style)
    judges = judges_of(args, data_args.dataset_name, run, local)
    start_run(output_dir, args, data_args, model_args, stage="evaluate")
    adapters = {name: adapter_digest(adapter_folder(folder)) for name, folder in run.stages.items()}

    # Prompts
    show_title("evaluate", output_dir)
    prompts, seen = load_asked(args, data_args, run, local)
    files = {s.name: read_completions(s, prompts["prompt"][:]) for s in systems if s.kind == "file"}

    distinct = len({prompt_key(prompt) for prompt in prompts["prompt"][:]})
    if distinct > 1 and is_first_process():
        smallest = detectable_difference(distinct, win_rate_deviation())
        detected = f"they detect a win rate that differs from 50 % by {100 * smallest:.1f} points"
        show("prompts", f"{distinct} distinct; {detected if smallest < 0.5 else 'too few to tell systems apart'}")

    # Answers and verdicts
    rows = answer_all(systems, local, files, prompts, run, output_dir, batch_size=args.batch_size, seed=args.seed)
    entries = judge_answers(rows, judges, baseline)
    if not is_first_process():
        return
    with open(Path(output_dir) / "completions.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    # Numbers and report
    folders = read_stages(recipe_dir)
    settings = {
        "dataset": data_args.dataset_name,
        "split": data_args.dataset_test_split or "test",
        "model": run.model_args.model_name_or_path,
        "prompts_seen_in_training": seen,
        "seed": args.seed,
        "max_new_tokens": args.max_new_tokens,
        "temperature": options.temperature,
        "systems": {system.name: system.spec() for system in systems},
        "baseline": baseline,
        **labeler_limits(data_args.dataset_name, data_args.dataset_seed),
    }
    results = {name: stage.result for name, stage in folders.items()}
    seconds = round(time.monotonic() - started, 1)
    summary = summarize(rows, entries, results, settings, seconds, other_runs)
    recipe_dir.mkdir(parents=True, exist_ok=True)
    (recipe_dir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    result = {"seconds": summary["seconds"]["evaluate"], "prompts": summary["prompts"], EVALUATED: adapters}
    write_result(output_dir, result)
    report = write_report(recipe_dir, rows)
    for stage in ("sft", "ppo"):
        if found := card_evaluation(recipe_dir / stage, stage):
            write_model_card(recipe_dir / stage, stage, found)
    say("", as_text(summary), "")
    show("time", duration(seconds))
    show("files", f"{report}, the numbers in {recipe_dir / 'summary.json'}")


def with_options(options: PolicyOptions, args: EvaluateArguments) -> PolicyOptions:
    """Returns the policy's options with those that are given in their place."""
    if args.temperature is not None:
        options = replace(options, temperature=args.temperature)
    if args.missing_eos_penalty is not None:
        options = replace(options, missing_eos_penalty=args.missing_eos_penalty, missing_eos_reward=None)
    return options


def baseline_of(baseline: str | None, names: Sequence[str]) -> str:
    """Returns the system that the others are compared with."""
    if baseline is not None and baseline not in names:
        raise InputError(f"baseline {baseline} is no system that answers. Choose from {', '.join(names)}.")
    return baseline or (DEFAULT_BASELINE if DEFAULT_BASELINE in names else names[0])


def judges_of(args: EvaluateArguments, dataset_name: str, run: Run, local: Mapping[str, LocalSystem]) -> list[Judge]:
    """Returns the judges that are asked for; without any, the sandbox's gold judge and the run's reward model."""
    specs = args.judges
    if specs is None:
        own = [f"reward={args.reward_model_path}"] if args.reward_model_path else []
        specs = [*(["gold"] if dataset_name == "sandbox" else []), *own]
    return find_judges(
        specs,
        dataset_name=dataset_name,
        folder=Path(args.output_dir) / "verdicts",
        adapters={name: parts.adapter for name, parts in local.items() if parts.adapter},
        chosen_by={name: parts.system.reward for name, parts in local.items() if parts.system.reward},
        options=run.options,
        style=run.style,
    )


def load_asked(
    args: EvaluateArguments, data_args: EvaluationData, run: Run, local: Mapping[str, LocalSystem]
) -> tuple[Dataset, int | None]:
    """Returns the prompts that fit every system and that none was trained on, and how many were trained on."""
    split = data_args.dataset_test_split or "test"
    prompts = load_prompts(data_args, "test", args.output_dir, named=data_args.dataset_test_split)
    first = next(iter(local.values()), None)
    if run.tokenizer is not None:
        prompts = in_prompt_style(prompts, data_args, run.tokenizer, split, run.style, args.output_dir)
    elif first is not None:
        prompts = in_prompt_style(prompts, data_args, first.tokenizer, split, first.style, args.output_dir)
    prompts = prompts.add_column("prompt_id", list(range(len(prompts))))  # pyright: ignore[reportCallIssue]
    own = {
        name: str(parts.adapter) for name, parts in local.items() if parts.adapter and parts.system.source not in STAGES
    }
    prompts, seen = unseen_prompts(prompts, dict(run.stages) | own, data_args.dataset_name)
    askers = {(parts.base, id(parts.tokenizer), parts.prefix, parts.style, parts.system.max_new_tokens): parts
              for parts in local.values()}  # fmt: skip
    for parts in askers.values():
        config = load_config(resolve_model_name(parts.model_args.model_name_or_path), parts.model_args.model_revision)
        prompts = drop_long_rows(
            prompts,
            [len(ids) for ids in parts.encode(prompts["prompt"][:])],
            longest_prompt(config, None, parts.system.max_new_tokens or 1, "max_new_tokens"),
            f"{data_args.dataset_name} ({split} split)",
            data_args.on_bad_rows,
            args.output_dir,
            option="the context less max_new_tokens",
        )
    return prompts, seen


if __name__ == "__main__":
    cli.run(main)
