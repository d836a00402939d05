"""Measures truthfulness, toxicity, bias and regressions of base, SFT and RLHF on one base, without merging adapters.

    rlhf benchmark runs/smollm2-135m --tasks truthfulqa crows_pairs winogender hellaswag

The systems are the base and the stages of the run that have finished. Other adapters of the same base are named on the
command line, and data may lie in local files in its published format:

    rlhf benchmark --systems base sft=runs/a/sft dpo=me/adapter --output_dir runs/a/benchmark
        --tasks truthfulqa=mc_task.json rte --data_dir data

Writes to `output_dir`: benchmark.json (estimates, differences from the first system paired by item, notes on each
task), items/ (the scores of each item) and, of the task toxicity, continuations/. If that is the run's own, the run's
report is written again. A killed run goes on after the last finished task and system. docs/evaluation.md describes the
tasks.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from trl import ModelConfig

from rlhf.cli import parse, run
from rlhf.errors import InputError, require_at_least
from rlhf.evaluation.benchmark import Task, TaskArguments, run_tasks, table, unknown_task
from rlhf.evaluation.bias import prepare_bias
from rlhf.evaluation.harness import require_lm_eval, task_exists
from rlhf.evaluation.regressions import TASKS as REGRESSIONS
from rlhf.evaluation.regressions import prepare_regressions
from rlhf.evaluation.report import write_report
from rlhf.evaluation.toxicity import CONTINUATIONS, prepare_toxicity
from rlhf.evaluation.truthfulness import prepare_truthfulness
from rlhf.models.adapter_files import adapter_config_digest, adapter_digest, adapter_folder
from rlhf.models.loading import resolve_model_name
from rlhf.models.stages import load_shared_base, load_stage_tokenizer, stage_folders
from rlhf.options import READ_ADAPTERS
from rlhf.runs.artifacts import is_first_process, start_run
from rlhf.runs.checks import check_model_options
from rlhf.runs.digests import base_identity, json_digest
from rlhf.runs.folders import check_output

# Task -> function from TaskArguments to one task or several. All other names are tasks of lm-eval.
PREPARE: dict[str, Callable[[TaskArguments], Task | list[Task]]] = {
    "truthfulqa": prepare_truthfulness,
    "toxicity": prepare_toxicity,
    "crows_pairs": prepare_bias,
    "winogender": prepare_bias,
    **dict.fromkeys(REGRESSIONS, prepare_regressions),
}


@dataclass
class BenchmarkArguments:
    tasks: list[str] = field(
        metadata={
            "help": f"Tasks: {', '.join(PREPARE)}, or any of lm-eval. task=path reads a local file or folder in the "
            "published format."
        }
    )
    run: str | None = field(default=None, metadata={"help": "Folder of a run, such as runs/sandbox."})
    systems: list[str] | None = field(
        default=None,
        metadata={
            "help": "Systems, the baseline first: base, sft or ppo of the run, or name=adapter (folder or Hub id). "
            "None takes base and the stages of the run that have finished."
        },
    )
    output_dir: str | None = field(default=None, metadata={"help": "Folder of the results. None is benchmark/ in run."})
    data_dir: str | None = field(
        default=None,
        metadata={"help": "Folder that holds local data in folders named after the tasks. Other tasks read the Hub."},
    )
    limit: int | None = field(default=None, metadata={"help": "Items of each task, the first ones. None takes all."})
    num_fewshot: int | None = field(
        default=None, metadata={"help": "Examples in the prompts of lm-eval's tasks. None keeps each task's number."}
    )
    batch_size: int = field(default=16, metadata={"help": "Sequences in a forward pass."})
    seed: int = field(default=0, metadata={"help": "Seed of few-shot examples and of sampling."})
    truth_judge: str | None = field(
        default=None,
        metadata={
            "help": "Judge of TruthfulQA's answers: folder or Hub id of a sequence classifier or of a causal model "
            "trained on TruthfulQA's judgments, or a judge of recipes/evaluate.py whose verdicts have the flag "
            "truthful. None compares with the reference answers."
        },
    )
    info_judge: str | None = field(
        default=None,
        metadata={"help": "The same for information. None counts replies that do not evade the question."},
    )
    toxicity_scorer: str = field(
        default="local",
        metadata={
            "help": "local, or a sequence classifier: folder or Hub id, then ,label=NAME if its config does not tell "
            "which label means toxic."
        },
    )
    continuations: int = field(
        default=CONTINUATIONS, metadata={"help": "Sampled continuations of each prompt of the task toxicity."}
    )

    def __post_init__(self):
        require_at_least(self, 1, "limit", "batch_size", "continuations")
        require_at_least(self, 0, "num_fewshot")
        if not self.run and not (self.systems and self.output_dir):
            raise InputError(
                "There is nothing to measure. Pass --run runs/<recipe>, or both --systems and --output_dir."
            )


def main() -> None:
    args, model_args = parse(BenchmarkArguments, ModelConfig, options=READ_ADAPTERS, positional="run")
    check_model_options(model_args)
    folder = Path(args.output_dir or f"{args.run}/benchmark")
    check_output(folder, args, model_args)
    adapters = named_adapters(args)
    tasks = [task for spec in args.tasks for task in prepare(spec, args, folder)]
    names = [task.name for task in tasks]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"Task {twice} is named twice. Name it once; other data of it need another output_dir.")
    start_run(folder, args, model_args, stage="benchmark")

    stages = {name: path for name, path in adapters.items() if path}
    model_args, tokenizer = load_stage_tokenizer(model_args, stages)
    shared = load_shared_base(model_args, tokenizer, stages)
    base = base_identity(resolve_model_name(model_args.model_name_or_path), model_args.model_revision)
    identities = {name: identity(base, model_args, path) for name, path in adapters.items()}
    systems = {name: name if path else None for name, path in adapters.items()}
    benchmark = run_tasks(tasks, shared, tokenizer, systems, identities, folder)
    if is_first_process():
        print(f"\n{table(benchmark)}\n")
        print("".join(f"{task}: {note}\n" for task, note in benchmark["notes"].items()))
        print(f"The numbers are in {folder / 'benchmark.json'}.")
        if not args.output_dir:
            print(f"The report is {write_report(str(args.run))}.")


def named_adapters(args: BenchmarkArguments) -> dict[str, str | None]:
    """Returns system -> adapter; None is the base."""
    if args.systems is None:
        assert args.run is not None  # or the options would have been refused
        return {"base": None} | {name: path for name, path in stage_folders(args.run).items() if name != "reward"}
    found: dict[str, str | None] = {}
    for spec in args.systems:
        name, _, path = spec.partition("=")
        if not path and name != "base":
            stages = stage_folders(args.run) if args.run else {}
            if name not in stages:
                raise InputError(
                    f"System {name} is not a finished stage of {args.run or 'a run'}. Pass base, "
                    f"{', '.join(stages) or 'sft and ppo with --run'}, or {name}=adapter."
                )
            path = stages[name]
        if name in found or name == "reward":
            raise InputError(f"System {name} is named twice, or is no policy. Give each system a name of its own.")
        found[name] = path or None
    return found


def prepare(spec: str, args: BenchmarkArguments, folder: Path) -> list[Task]:
    """Returns the tasks of one `task` or `task=path`."""
    require_lm_eval()
    name, _, path = spec.partition("=")
    if name not in PREPARE and not task_exists(name):
        raise unknown_task(name, PREPARE)
    data = Path(path).expanduser() if path else None
    if data is None and args.data_dir:
        if not Path(args.data_dir).expanduser().is_dir():
            raise InputError(f"data_dir {args.data_dir} is not a folder. Correct the path.")
        local = Path(args.data_dir).expanduser() / name
        data = local if local.exists() else None
    prepared = PREPARE.get(name, prepare_regressions)(
        TaskArguments(
            name,
            data,
            limit=args.limit,
            batch_size=args.batch_size,
            seed=args.seed,
            num_fewshot=args.num_fewshot,
            options={
                "truth_judge": args.truth_judge,
                "info_judge": args.info_judge,
                "toxicity_scorer": args.toxicity_scorer,
                "continuations": args.continuations,
                "folder": folder,
            },
        )
    )
    return prepared if isinstance(prepared, list) else [prepared]


def identity(base: dict[str, str | None], model_args: ModelConfig, adapter: str | None) -> str:
    """Returns a digest of what decides on a system's scores: its adapter, and the precision of the base."""
    folder = adapter_folder(adapter) if adapter else None
    weights = [adapter_digest(folder), adapter_config_digest(folder)] if folder else []
    precision = [model_args.dtype, model_args.load_in_4bit, model_args.load_in_8bit]
    known = {key: value for key, value in base.items() if key != "name"} if base["weights"] else base
    return json_digest([known, precision, weights])


if __name__ == "__main__":
    run(main)
