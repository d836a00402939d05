"""PPO-ptx on the sandbox: the gold quality that each coefficient costs, and the abilities that it preserves.

    python benchmarks/ptx_sweep.py --run runs/sandbox --coefficients 0 0.3 2 27.8

Runs PPO once per coefficient from the SFT and reward adapters of a finished run (recipes/sandbox/ppo.yaml; 0 is plain
PPO; options after `--` go to every run). Measures the base, SFT and each policy by

- gold: mean quality and win rate against SFT, sampled at temperature 1, on validation prompts, since a
  coefficient is chosen by it;
- text_loss: nats per token on held-out documents of the kind that the base was trained on;
- few_shot: greedy accuracy on tasks in the form of these documents.

Regressions are measured from the base: SFT causes most of them already. Writes the figure to `--figure`. The last line
is JSON.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from trl import ModelConfig

from rlhf.data.encode import encode_prompt
from rlhf.evaluation.regressions import few_shot_accuracy, text_loss
from rlhf.generation.completions import sample_completions
from rlhf.models.stages import load_adapters
from rlhf.sandbox import datasets
from rlhf.sandbox.few_shot import few_shot_items
from rlhf.sandbox.judge import GoldJudge
from rlhf.statistics import cluster_mean, win_rate

ROOT = Path(__file__).parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/sandbox"), help="Folder with sft/ and reward/.")
    parser.add_argument("--coefficients", type=float, nargs="+", default=[0, 0.3, 2, 27.8])
    parser.add_argument("--prompts", type=int, default=800)
    parser.add_argument("--documents", type=int, default=600)
    parser.add_argument("--items", type=int, default=600)
    parser.add_argument("--figure", type=Path, default=Path("docs/ptx_sweep.png"))
    parser.add_argument("options", nargs="*", help="After --: options of recipes/ppo.py for all runs.")
    args = parser.parse_args()
    measure = Measure(args)
    rows = [{"policy": name} | measure(name, args.run / "sft") for name in ("base", "sft")]
    for coefficient in args.coefficients:
        folder = args.run / f"ptx-{coefficient:g}"
        train(coefficient, args.run, folder, args.options)
        rows.append({"policy": "ppo", "ptx_coef": coefficient} | measure("ppo", folder))
        print(json.dumps(rows[-1]), flush=True)
    plot(rows, args.figure)
    print(json.dumps(rows))


def train(coefficient: float, run: Path, folder: Path, options: list[str]) -> None:
    """Runs PPO, unless this run has finished already."""
    if (folder / "result.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        *(sys.executable, "recipes/ppo.py", "--config", "recipes/sandbox/ppo.yaml"),
        *("--sft_model_path", run / "sft", "--reward_model_path", run / "reward", "--output_dir", folder),
        *("--ptx_coef", coefficient),
        *options,
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(os.cpu_count())}
    with (folder / "log.txt").open("w") as log:
        if subprocess.run([*map(str, command)], cwd=ROOT, env=environment, stdout=log, stderr=log).returncode:
            sys.exit(f"PPO with ptx_coef {coefficient} failed. Read {log.name}.")


class Measure:
    """Measures gold, text loss and few-shot tasks of a policy; win rates are against the answers of SFT."""

    def __init__(self, args: argparse.Namespace):
        self.prompts = datasets.prompts("validation", args.prompts)["prompt"]
        self.texts = datasets.pretraining("validation", args.documents)["text"]
        self.items = few_shot_items(args.items)
        self.judge = GoldJudge().score
        self.keys = [prompt[-1]["content"] for prompt in self.prompts]
        self.sft_scores = self.gold("sft", args.run / "sft")

    def __call__(self, name: str, folder: Path) -> dict:
        shared, tokenizer = self.load(name, folder)
        adapter = None if name == "base" else name
        scores = self.sft_scores if name == "sft" else self.gold(name, folder)
        few_shot = few_shot_accuracy(shared, adapter, tokenizer, self.items)
        return {
            "gold": asdict(cluster_mean(scores, self.keys)),
            "win_rate_vs_sft": None if name == "sft" else asdict(win_rate(scores, self.sft_scores, self.keys)),
            "text_loss": asdict(text_loss(shared, adapter, tokenizer, self.texts)),
            "few_shot": {task: estimate.mean for task, estimate in few_shot.items()},
        }

    def load(self, name: str, folder: Path):
        adapters = {} if name == "base" else {name: folder}
        return load_adapters(ModelConfig(model_name_or_path="sandbox", dtype="float32"), adapters)

    def gold(self, name: str, folder: Path) -> list[float]:
        shared, tokenizer = self.load(name, folder)
        completions = sample_completions(
            shared, None if name == "base" else name, [encode_prompt(tokenizer, p) for p in self.prompts], tokenizer,
            max_new_tokens=72, seed={"base": 1, "sft": 2}.get(name, 3), batch_size=256, description=name,
        )  # fmt: skip
        pairs = zip(self.prompts, completions, strict=True)
        return [self.judge(prompt, c.text, ended=c.ended)["overall"] for prompt, c in pairs]


def plot(rows: list[dict], path: Path) -> None:
    """Plots the gold win rate over the two regressions from the base: one point per coefficient, one line for SFT."""
    base, sft = (next(row for row in rows if row["policy"] == name) for name in ("base", "sft"))
    runs = [row for row in rows if row["policy"] == "ppo"]
    measures = {
        "held-out text: loss above the base's, nats per token": lambda row: (
            row["text_loss"]["mean"] - base["text_loss"]["mean"]
        ),
        "few-shot tasks: accuracy below the base's": lambda row: base["few_shot"]["all"] - row["few_shot"]["all"],
    }
    figure, panels = plt.subplots(1, 2, figsize=(9.6, 3.8), constrained_layout=True, sharey=True)
    for axes, (label, regression) in zip(panels, measures.items(), strict=True):
        for row in runs:
            win, x = row["win_rate_vs_sft"], regression(row)
            error = [[win["mean"] - win["low"]], [win["high"] - win["mean"]]]
            axes.errorbar(x, win["mean"], yerr=error, fmt="o", color="#d0702b")
            axes.annotate(f"{row['ptx_coef']:g}", (x, win["mean"]), xytext=(6, 4), textcoords="offset points")
        axes.axvline(regression(sft), color="#3b73b0", linewidth=1, linestyle="--", label="SFT")
        axes.axvline(0, color="#8b95a3", linewidth=1, label="base")
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel(label)
    panels[0].set_ylabel("gold win rate against SFT")
    panels[0].legend(frameon=False)
    figure.suptitle("PPO-ptx on the sandbox, by coefficient", fontsize=11)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
