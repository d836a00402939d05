"""Before and after recipes/smollm2-135m-sentiment: scores on held-out prompts, perplexity, KL, lengths, samples.

    for seed in 0 1 2; do
        rlhf ppo smollm2-135m-sentiment --seed $seed --output_dir runs/sentiment/$seed/ppo
    done
    python benchmarks/sentiment.py --runs runs/sentiment/0 runs/sentiment/1 runs/sentiment/2 --text wiki.valid.txt

The base and each policy answer the prompts of the recipe that are held out for test, `--samples` times each, sampled as
in training. `vader` is the reward; `textblob` is another word list, which training did not see. Two numbers would show
a policy that says the same everywhere, or talks nonsense: `distinct`, the share of different pairs of words among all
pairs in all answers, and `surprise`, the base's loss per token of the answers, in nats. `perplexity` is that of --text.
Needs the packages of the extra `sentiment`. JSON on the last line; with --plot the trainings as a picture.
"""

import argparse
import importlib.util
import json
import math
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from textblob import TextBlob
from trl import ModelConfig

from rlhf.data import DataArguments, load_prompts
from rlhf.data.encode import encode_prompt, prompt_key
from rlhf.data.prompt_style import in_prompt_style
from rlhf.generation.completions import Completion, completion_logprobs, sample_completions
from rlhf.models.shared_base import SharedBase
from rlhf.models.stages import load_adapters
from rlhf.plots import STYLE, plt
from rlhf.statistics import cluster_difference, cluster_mean, spread_over_runs

HERE = Path(__file__).parent
PROMPTS = HERE.parent / "recipes/smollm2-135m-sentiment/prompts.jsonl"
SHOWN = 5  # prompts whose answers are printed: every (number of prompts / 5)-th, from the first


def vader(texts: list[str]) -> list[float]:
    """Returns the reward of the recipe."""
    spec = importlib.util.spec_from_file_location("sentiment", HERE.parent / "examples/sentiment.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.positive(texts)


def textblob(texts: list[str]) -> list[float]:
    """Returns the polarity of each text, in [-1, 1]."""
    return [float(TextBlob(text).sentiment.polarity) for text in texts]  # pyright: ignore[reportAttributeAccessIssue]


def distinct(texts: list[str]) -> float:
    """Returns the share of different pairs of neighboring words among all pairs in all texts."""
    pairs = [pair for text in texts for pair in pairwise(text.lower().split())]
    return len(set(pairs)) / max(1, len(pairs))


def answer_all(shared: SharedBase, adapter: str | None, ids: list, tokenizer: Any, args: argparse.Namespace) -> dict:
    """Returns the answers' texts, and metric -> one number for each answer."""
    completions: list[Completion] = sample_completions(
        shared, adapter, ids, tokenizer, max_new_tokens=args.tokens, seed=args.seed, progress=False
    )
    texts, response_ids = [c.text for c in completions], [c.ids for c in completions]
    base = completion_logprobs(shared, None, ids, response_ids)
    metrics = {
        "vader": vader(texts),
        "textblob": textblob(texts),
        "tokens": [float(len(response)) for response in response_ids],
        "ended": [float(c.ended) for c in completions],
        "surprise": [-logprob / len(response) for logprob, response in zip(base, response_ids, strict=True)],
    }
    if adapter is not None:
        policy = completion_logprobs(shared, adapter, ids, response_ids)
        metrics["kl"] = [p - b for p, b in zip(policy, base, strict=True)]
    return {"texts": texts, "metrics": metrics}


def compare(before: dict, after: dict, clusters: list[str]) -> dict[str, Any]:
    """Returns metric -> {base, ppo, difference}, with 95 % intervals over prompts."""
    result: dict[str, Any] = {}
    for name, values in after["metrics"].items():
        result[name] = {"ppo": asdict(cluster_mean(values, clusters))}
        if base := before["metrics"].get(name):
            result[name]["base"] = asdict(cluster_mean(base, clusters))
            result[name]["difference"] = asdict(cluster_difference(values, base, clusters))
    result["distinct"] = {"ppo": distinct(after["texts"]), "base": distinct(before["texts"])}
    return result


def text_blocks(tokenizer: Any, text: str, count: int, length: int) -> torch.Tensor:
    """Returns the first `count` blocks of `length` tokens, [count, length] int64."""
    ids = tokenizer(text[: count * length * 12])["input_ids"]
    count = min(count, len(ids) // length)
    return torch.tensor(ids[: count * length]).view(count, length)


@torch.no_grad()
def perplexity(shared: SharedBase, adapter: str | None, blocks: torch.Tensor) -> float:
    """Returns exp of the mean loss of a token."""
    total = 0.0
    with shared.use(adapter):
        for block in blocks:
            logits = shared.lm(input_ids=block[None]).logits[0, :-1].float()
            total += torch.nn.functional.cross_entropy(logits, block[1:]).item()
    return math.exp(total / len(blocks))


def measure(args: argparse.Namespace) -> tuple[dict[str, Any], list[list[str]]]:
    """Returns {"runs": run -> `compare`, "spread": metric -> over the runs}, and rows of a prompt and its answers."""
    adapters = {f"run{i}": str(run / "ppo") for i, run in enumerate(args.runs)}
    shared, tokenizer = load_adapters(ModelConfig(model_name_or_path=args.model, dtype="float32"), adapters)
    data = DataArguments(dataset_name=str(PROMPTS))
    rows = load_prompts(data, "test")
    rows = rows.select(range(args.prompts or len(rows)))
    prompts = in_prompt_style(rows, data, tokenizer, "test")["prompt"]
    clusters = [prompt_key(prompt) for prompt in prompts] * args.samples
    ids = [encode_prompt(tokenizer, prompt) for prompt in prompts] * args.samples
    before, *after = (answer_all(shared, name, ids, tokenizer, args) for name in (None, *adapters))
    results = [compare(before, answers, clusters) for answers in after]
    if args.text:
        text = args.text.read_text(encoding="utf-8")
        blocks = text_blocks(tokenizer, text, args.blocks, args.block_length)
        base = perplexity(shared, None, blocks)
        for name, result in zip(adapters, results, strict=True):
            policy = perplexity(shared, name, blocks)
            result["perplexity"] = {"ppo": policy, "base": base, "increase": policy / base - 1}
    gains = ("vader", "textblob", "tokens", "surprise")
    spread = {name: spread_over_runs([result[name]["difference"]["mean"] for result in results]) for name in gains}
    shown = range(0, len(rows), math.ceil(len(rows) / SHOWN))
    samples = [[rows[i]["prompt"], *(answers["texts"][i] for answers in (before, *after))] for i in shown]
    return {"runs": {run.name: r for run, r in zip(args.runs, results, strict=True)}, "spread": spread}, samples


def plot(runs: list[Path], path: Path) -> None:
    """Draws the reward and the KL of each rollout of training, and one against the other, a line for each run."""
    with plt.rc_context(STYLE | {"svg.fonttype": "path"}):
        figure, axes = plt.subplots(1, 3, figsize=(9.6, 2.7))
        for run in runs:
            lines = (run / "ppo/metrics.jsonl").read_text(encoding="utf-8").splitlines()
            logs = [row for row in map(json.loads, lines) if "objective/score" in row]
            episodes, score, kl = ([row[k] for row in logs] for k in ("episode", "objective/score", "objective/kl"))
            for axis, x, y in zip(axes, (episodes, episodes, kl), (score, kl, score), strict=True):
                axis.plot(x, y, marker="o", ms=3, label=f"seed {run.name}")
        axes[0].set(title="Reward (VADER)", xlabel="episodes")
        axes[1].set(title="KL to the base, nats an answer", xlabel="episodes")
        axes[2].set(title="Reward against KL", xlabel="KL, nats")
        axes[0].legend()
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", type=Path, required=True, help="Folders that hold ppo/, one a seed.")
    parser.add_argument("--model", help="Folder or Hub id of the base. Default: as the adapter says.")
    parser.add_argument("--samples", type=int, default=2, help="Answers to each prompt.")
    parser.add_argument("--prompts", type=int, help="Held-out prompts. Default: all.")
    parser.add_argument("--tokens", type=int, default=48, help="Tokens of an answer, at most.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the answers.")
    parser.add_argument("--text", type=Path, help="File of text for the perplexity.")
    parser.add_argument("--blocks", type=int, default=32, help="Blocks of the text.")
    parser.add_argument("--block_length", type=int, default=512, help="Tokens of a block.")
    parser.add_argument("--plot", type=Path, help="Picture of the trainings.")
    args = parser.parse_args()
    if args.plot:
        plot(args.runs, args.plot)
    results, samples = measure(args)
    names = ["base", *(f"PPO, seed {run.name}" for run in args.runs)]
    for prompt, *answers in samples:
        print(f"\n> {prompt}\n")
        for name, answer in zip(names, answers, strict=True):
            print(f"- {name}: {' '.join(answer.split())}")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
