"""Before and after recipes/smollm2-135m-sentiment: scores on held-out prompts, perplexity, KL, lengths, samples.

    for seed in 0 1 2; do
        make ppo RECIPE=smollm2-135m-sentiment ARGS="--seed $seed --output_dir runs/sentiment/$seed/ppo"
    done
    python benchmarks/sentiment.py --runs runs/sentiment/0 runs/sentiment/1 runs/sentiment/2 --text wiki.valid.txt

Base and policy answer the prompts of the recipe that are held out for test, `--samples` times each, sampled as in
training. `vader` is the reward, `textblob` a scorer of another word list that training did not see. Needs the packages
vaderSentiment and textblob. JSON on the last line; with --plot the rewards and KL of the trainings as a picture.
"""

import argparse
import importlib.util
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from textblob import TextBlob
from trl import ModelConfig

from rlhf.data import DataArguments, load_prompts
from rlhf.data.encode import encode_prompt, prompt_key
from rlhf.data.prompt_style import in_prompt_style
from rlhf.generation.completions import sample_completions
from rlhf.models.stages import load_adapters
from rlhf.plots import STYLE, plt
from rlhf.statistics import cluster_difference, cluster_mean

HERE = Path(__file__).parent
PROMPTS = HERE.parent / "recipes/smollm2-135m-sentiment/prompts.jsonl"
SYSTEMS = {"base": None, "ppo": "ppo"}


def vader(texts: list[str]) -> list[float]:
    spec = importlib.util.spec_from_file_location("sentiment", HERE.parent / "examples/sentiment.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.positive(texts)


def textblob(texts: list[str]) -> list[float]:
    return [float(TextBlob(text).sentiment.polarity) for text in texts]  # pyright: ignore[reportAttributeAccessIssue]


SCORERS = {"vader": vader, "textblob": textblob}


def measure(run: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Returns metric -> {base, ppo, difference} of one run, with intervals over prompts, and a few answers."""
    shared, tokenizer = load_adapters(
        ModelConfig(model_name_or_path=args.model, dtype="float32"), {"ppo": str(run / "ppo")}
    )
    data = DataArguments(dataset_name=str(PROMPTS))
    rows: Dataset = in_prompt_style(load_prompts(data, "test"), data, tokenizer, "test")
    keys = [prompt_key(prompt) for prompt in rows["prompt"]]
    ids = [encode_prompt(tokenizer, prompt) for prompt in rows["prompt"]]
    clusters = keys * args.samples
    values: dict[str, dict[str, list[float]]] = {}
    texts: dict[str, list[str]] = {}
    for system, adapter in SYSTEMS.items():
        options = {"max_new_tokens": args.tokens, "temperature": 1.0, "seed": args.seed, "progress": False}
        completions = sample_completions(shared, adapter, ids * args.samples, tokenizer, **options)
        texts[system] = [completion.text for completion in completions]
        values.setdefault("tokens", {})[system] = [float(len(completion.ids)) for completion in completions]
        for name, scorer in SCORERS.items():
            values.setdefault(name, {})[system] = scorer(texts[system])
        if system == "ppo":
            kl = [
                sum(token_kl(shared, prompt, completion.ids))
                for prompt, completion in zip(ids * args.samples, completions, strict=True)
            ]
    result: dict[str, Any] = {
        name: {
            "base": asdict(cluster_mean(by_system["base"], clusters)),
            "ppo": asdict(cluster_mean(by_system["ppo"], clusters)),
            "difference": asdict(cluster_difference(by_system["ppo"], by_system["base"], clusters)),
        }
        for name, by_system in values.items()
    }
    result["kl"] = {"ppo": asdict(cluster_mean(kl, clusters))}
    if args.text:
        blocks = text_blocks(tokenizer, args.text.read_text(encoding="utf-8"), args.blocks)
        result["perplexity"] = {system: perplexity(shared, adapter, blocks) for system, adapter in SYSTEMS.items()}
    shown = range(0, len(keys), max(1, len(keys) // 6))
    result["samples"] = [[keys[i], texts["base"][i], texts["ppo"][i]] for i in shown]
    return result


@torch.no_grad()
def token_kl(shared: Any, prompt: list[int], response: list[int]) -> list[float]:
    """Returns log pi(t) - log pi_base(t) of each token of a response that the policy has sampled, in nats."""
    ids = torch.tensor([prompt + response])
    logprobs = []
    for adapter in ("ppo", None):
        with shared.use(adapter):
            logits = shared.lm(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
        logprobs.append(logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0])
    return (logprobs[0] - logprobs[1]).tolist()


def text_blocks(tokenizer: Any, text: str, count: int, length: int = 512) -> torch.Tensor:
    """Returns the first `count` blocks of `length` tokens, [count, length] int64."""
    ids = tokenizer(text[: count * length * 12])["input_ids"]
    count = min(count, len(ids) // length)
    return torch.tensor(ids[: count * length]).view(count, length)


@torch.no_grad()
def perplexity(shared: Any, adapter: str | None, blocks: torch.Tensor) -> float:
    """Returns exp of the mean loss of a token."""
    total = 0.0
    with shared.use(adapter):
        for block in blocks:
            logits = shared.lm(input_ids=block[None]).logits[0, :-1].float()
            total += torch.nn.functional.cross_entropy(logits, block[1:]).item()
    return math.exp(total / len(blocks))


def plot(runs: list[Path], path: Path) -> None:
    """Draws reward and KL of each rollout, one line a run."""
    plt.rcParams.update(STYLE | {"svg.fonttype": "path"})
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.8), constrained_layout=True)
    for run in runs:
        lines = (run / "ppo/metrics.jsonl").read_text(encoding="utf-8").splitlines()
        logs = [row for row in map(json.loads, lines) if "objective/score" in row]
        columns = {name: [row[name] for row in logs] for name in ("episode", "objective/score", "objective/kl")}
        axes[0].plot(columns["episode"], columns["objective/score"], marker="o", ms=3, label=f"seed {run.name}")
        axes[1].plot(columns["episode"], columns["objective/kl"], marker="o", ms=3)
        axes[2].plot(columns["objective/kl"], columns["objective/score"], marker="o", ms=3)
    for axis, title, label in zip(axes, ("Reward", "KL to the base, nats", "Reward against KL"), LABELS, strict=True):
        axis.set(title=title, xlabel=label)
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=150)


LABELS = ("episodes", "episodes", "KL, nats")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", type=Path, required=True, help="Folders that hold ppo/, one a seed.")
    parser.add_argument("--model", help="Folder or Hub id of the base. Default: as the adapter says.")
    parser.add_argument("--samples", type=int, default=2, help="Answers to each prompt.")
    parser.add_argument("--tokens", type=int, default=48, help="Tokens of an answer, at most.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the answers.")
    parser.add_argument("--text", type=Path, help="File of text for the perplexity.")
    parser.add_argument("--blocks", type=int, default=32, help="Blocks of 512 tokens of the text.")
    parser.add_argument("--plot", type=Path, help="Picture of the trainings.")
    args = parser.parse_args()
    if args.plot:
        plot(args.runs, args.plot)
    results = {run.name: measure(run, args) for run in args.runs}
    for name, result in results.items():
        print(f"\n## Seed {name}")
        for prompt, before, after in result.pop("samples"):
            print(f"\n> {prompt}\n\nbase: {before}\n\nppo: {after}")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
