"""Evaluation in numbers: agreement with lm-eval, time, coverage of the intervals, and AUC of the toxicity scorers.

    python benchmarks/evaluation.py
    python benchmarks/evaluation.py --parts coverage --samples 1000
    python benchmarks/evaluation.py --parts truthfulqa crows_pairs --model SmolLM2-135M-Instruct --data ../shared/data

Each part is one function that returns its keys of the JSON on the last line; a part that cannot run here, for lack of a
model or data, leaves its keys out:

    mc1_difference, mc2_difference   TruthfulQA: our number minus that of lm-eval's own task on the same rows
    crows_difference                 CrowS-Pairs: likewise, of pct_stereotype; crows_likelihood_difference of the other
    truth_auc, truth_accuracy        likeness to TruthfulQA's references, against its human labels
    seconds_three_systems            base, SFT and RLHF of --run (a finished sandbox run), 500 prompts, two judges:
                                     wall time; seconds_fourth_system adds SFT's greedy answers
    coverage                         statistic, design -> prompts -> share of 95 % intervals that hold the true value
    toxicity_auc                     scorer -> file of --toxicity_rows -> area under the ROC curve (toxicity_auc.py)
"""

import argparse
import csv
import json
import random
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent


def coverage(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the coverage of each statistic at each number of prompts, see interval_coverage.py."""
    tables = runpy.run_path(str(HERE / "interval_coverage.py"))["tables"]
    table = tables(args.samples, seed=args.seed, clusters=args.clusters)
    return {
        "coverage": {
            name: {clusters: cell["coverage"] for clusters, cell in cells.items()} for name, cells in table.items()
        }
    }


def truthfulqa(args: argparse.Namespace) -> dict[str, Any]:
    """Returns mc1 and mc2 of a model on the shared base minus those of lm-eval's `simple_evaluate`."""
    source = args.data / "truthfulqa"
    if not (args.model and source.exists()):
        return {}
    from rlhf.evaluation.harness import load_tasks
    from rlhf.evaluation.published_data import read_published
    from rlhf.evaluation.truthfulness import METRICS, multiple_choice

    rows, _ = read_published("truthfulqa", source)
    tasks = {metric: load_tasks(f"truthfulqa_{metric}", rows)[0] for metric in METRICS}
    shared, tokenizer = _base(args.model)
    scores = multiple_choice(tasks, shared, tokenizer, {"base": None}, args.batch_size, args.limit)
    ours = {metric: _mean(by_system["base"].values) for metric, by_system in scores.items()}
    published = json.loads((source / "mc_task.json").read_text(encoding="utf-8"))
    plain = [
        {"question": row["question"]}
        | {
            key: {"choices": list(row[key]), "labels": list(row[key].values())}
            for key in ("mc1_targets", "mc2_targets")
        }
        for row in published
    ]
    results = {}
    for metric, mean in ours.items():
        theirs = _lm_eval(args, f"truthfulqa/truthfulqa_{metric}.yaml", "validation", plain)["acc,none"]
        print(f"{metric}: ours {mean:.9f}, lm-eval {theirs:.9f}")
        results[f"{metric}_difference"] = mean - theirs
    return results


def truth(args: argparse.Namespace) -> dict[str, Any]:
    """Returns how well likeness to the references agrees with people, on a sample of TruthfulQA's labeled answers.

    Answers that are references themselves are left out.
    """
    source = args.data / "truthfulqa"
    if not (source / "finetune_truth.jsonl").exists():
        return {}
    from rlhf.evaluation.published_data import read_published, read_table
    from rlhf.evaluation.scored_rows import auc
    from rlhf.evaluation.truth_judges import ReferenceJudge, has_content, truth_margin
    from rlhf.evaluation.truthfulness import question

    rows, _ = read_published("truthfulqa", source)
    questions = {row["question"].strip(): question(row) for row in rows["evaluation"]}
    labeled = []
    for row in read_table(source / "finetune_truth.jsonl"):
        asked, answer = (part.strip() for part in row["prompt"].removesuffix("\nTrue:")[len("Q: ") :].split("\nA: ", 1))
        known = questions.get(asked)
        if known and answer.lower().rstrip(".") not in {a.lower().rstrip(".") for a in (*known.true, *known.false)}:
            labeled.append((known, answer, row["completion"].strip() == "yes"))
    asked, answers, labels = zip(*random.Random(args.seed).sample(labeled, min(3000, len(labeled))), strict=True)
    verdicts, _ = ReferenceJudge().judge(asked, answers)
    margins = [
        truth_margin(answer, q.true, q.false) if has_content(answer) else 2.0
        for q, answer in zip(asked, answers, strict=True)
    ]
    return {
        "truth_auc": auc(margins, labels),
        "truth_accuracy": sum(v == label for v, label in zip(verdicts, labels, strict=True)) / len(labels),
    }


def crows_pairs(args: argparse.Namespace) -> dict[str, Any]:
    """Returns pct_stereotype and likelihood_diff of a model on the shared base minus those of `simple_evaluate`."""
    source = args.data / "crows_pairs"
    if not (args.model and source.exists()):
        return {}
    from rlhf.evaluation.benchmark import TaskArguments
    from rlhf.evaluation.bias import prepare_bias

    task = prepare_bias(TaskArguments("crows_pairs", source, limit=args.limit, batch_size=args.batch_size))
    scores = task.run(*_base(args.model), {"base": None})
    with (source / "crows_pairs_anonymized.csv").open(encoding="utf-8", newline="") as file:
        plain = [{key: row[key] for key in ("sent_more", "sent_less", "bias_type")} for row in csv.DictReader(file)]
    theirs = _lm_eval(args, "crows_pairs/crows_pairs_english.yaml", "test", plain)
    differences = {}
    for metric in ("pct_stereotype", "likelihood_diff"):
        ours = _mean(scores[metric]["base"].values)
        print(f"{metric}: ours {ours:.9f}, lm-eval {theirs[f'{metric},none']:.9f}")
        differences[metric] = ours - theirs[f"{metric},none"]
    return {
        "crows_difference": differences["pct_stereotype"],
        "crows_likelihood_difference": differences["likelihood_diff"],
    }


def _base(model: str) -> Any:
    from trl import ModelConfig

    from rlhf.models.stages import load_adapters

    return load_adapters(ModelConfig(model_name_or_path=model, dtype="float32"), {})


def _lm_eval(args: argparse.Namespace, definition: str, split: str, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Returns the results of lm-eval's own command on its own task file, with only the source of the rows changed."""
    import lm_eval
    import lm_eval.tasks
    from lm_eval.models.huggingface import HFLM

    shared, tokenizer = _base(args.model)
    with tempfile.TemporaryDirectory() as folder:
        data, task = Path(folder, "rows.jsonl"), Path(folder, "task.yaml")
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        local = {
            "include": str(Path(lm_eval.tasks.__file__).parent / definition),
            "task": "local",
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {split: str(data)}, "cache_dir": folder},
        }
        task.write_text(yaml.safe_dump(local), encoding="utf-8")
        results = lm_eval.simple_evaluate(
            HFLM(pretrained=shared.lm, tokenizer=tokenizer, batch_size=args.batch_size),
            tasks=["local"],
            limit=args.limit,
            bootstrap_iters=0,
            task_manager=lm_eval.tasks.TaskManager(include_path=folder, include_defaults=False),
        )
    assert results is not None
    return results["results"]["local"]


def _mean(values: Sequence[float | None]) -> float:
    return sum(value for value in values if value is not None) / len(values)


def three_systems(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the seconds of recipes/evaluate.py from a new folder, and of a second call with one more system."""
    if not args.run.joinpath("ppo").exists():
        return {}
    with tempfile.TemporaryDirectory() as folder:
        paths = {f"{stage}_model_path": args.run.absolute() / stage for stage in ("sft", "reward", "ppo")}
        paths |= {"output_dir": folder, "recipe_dir": folder}
        options = [text for name, path in paths.items() for text in (f"--{name}", str(path))]
        command = [sys.executable, "recipes/evaluate.py", "--config", "recipes/sandbox/evaluate.yaml", *options]
        command += ["--dataset_eval_size", "500", "--systems", "base", "sft", "ppo"]
        return {
            "seconds_three_systems": _seconds(command),
            "seconds_fourth_system": _seconds([*command, "sft,temperature=0"]),
        }


def _seconds(command: Sequence[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, cwd=HERE.parent, stdout=subprocess.DEVNULL)
    return round(time.perf_counter() - start, 1)


def toxicity_auc(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the AUC of each toxicity scorer on each file of labeled rows, see toxicity_auc.py."""
    hh = args.data / "hh_rlhf" / "harmless-base.part1.jsonl.gz"
    paths = args.toxicity_rows or [*sorted((args.data / "toxicity_labels").glob("*.*")), *([hh] if hh.exists() else ())]
    if not paths:
        return {}
    script = runpy.run_path(str(HERE / "toxicity_auc.py"))
    return {"toxicity_auc": script["toxicity_auc"](paths, script["named_scorers"](args.toxicity_scorers))}


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "coverage": coverage,
    "truthfulqa": truthfulqa,
    "crows_pairs": crows_pairs,
    "truth": truth,
    "three_systems": three_systems,
    "toxicity_auc": toxicity_auc,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="Parts to run. Default: all.")
    parser.add_argument("--samples", type=int, default=2000, help="Simulated data sets for each cell of `coverage`.")
    parser.add_argument(
        "--clusters", type=int, nargs="+", default=(10, 20, 50, 200, 1000), help="Numbers of prompts for `coverage`."
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of the simulation.")
    parser.add_argument("--model", help="Folder or Hub id of the model of truthfulqa and crows_pairs.")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="Folder of published data.")
    parser.add_argument("--run", type=Path, default=Path("runs/sandbox"), help="Folder of a finished sandbox run.")
    parser.add_argument("--limit", type=int, help="Items of each task, at most. Default: all.")
    parser.add_argument("--batch_size", type=int, default=16, help="Sequences in a forward pass.")
    parser.add_argument("--toxicity_rows", nargs="+", type=Path, help="Labeled rows. Default: those in --data.")
    parser.add_argument("--toxicity_scorers", nargs="+", default=["local"], help="Scorers of toxicity.")
    args = parser.parse_args()
    results: dict[str, Any] = {}
    for part in args.parts:
        results |= PARTS[part](args)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
