"""The recipe smollm2-135m-sentiment: its options, prompts and reward fit together, with a stub in place of VADER."""

import json
import re
import runpy
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from trl import ModelConfig

from rlhf.data import DataArguments, load_prompts
from rlhf.errors import InputError
from rlhf.ppo import PPOConfig
from rlhf.ppo.reward_functions import check_functions, find_reward_functions, function_scores

ROOT = Path(__file__).resolve().parent.parent
RECIPE = "recipes/smollm2-135m-sentiment/ppo.yaml"


class Analyzer:
    """Counts two words, in the form of VADER's result."""

    def polarity_scores(self, text: str) -> dict[str, float]:
        words = Counter(re.findall("[a-z]+", text.lower()))
        return {"compound": max(-1.0, min(1.0, (words["good"] - words["bad"]) / 2))}


class Blob:
    def __init__(self, text: str):
        self.sentiment = ModuleType("sentiment")
        self.sentiment.polarity = Analyzer().polarity_scores(text)["compound"]


@pytest.fixture
def stubs(monkeypatch):
    """Puts stubs in the place of the extra's packages, which may be missing."""
    vader, package, textblob = (ModuleType(name) for name in ("vaderSentiment", "vaderSentiment", "textblob"))
    vader.SentimentIntensityAnalyzer, textblob.TextBlob = Analyzer, Blob
    monkeypatch.setitem(sys.modules, "vaderSentiment", package)
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", vader)
    monkeypatch.setitem(sys.modules, "textblob", textblob)


@pytest.fixture
def parsed(parse_recipe, monkeypatch):
    """Returns {class of a config, or of its base: the config} of the recipe, and the script's own as "script"."""
    monkeypatch.chdir(ROOT)
    _, (script, *configs) = parse_recipe("ppo", RECIPE)
    return {base: config for config in configs for base in type(config).__mro__} | {"script": script}


def test_the_base_is_the_reference_and_the_function_the_reward(parsed, stubs):
    args = parsed[PPOConfig]
    assert args.sft_model_path == "" and not args.reward_model_path
    assert parsed[ModelConfig].model_name_or_path == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert args.output_dir == "runs/smollm2-135m-sentiment/ppo"
    functions = find_reward_functions(parsed["script"].reward_funcs)
    rows = load_prompts(parsed[DataArguments], "train")
    check_functions(functions, rows.column_names)
    texts, prompts = ["A good, good day.", "It rained.", "Bad soup."], rows["prompt"][:3]
    assert function_scores(functions, None, prompts, texts).tolist() == [1.0, 0.0, -0.5]
    as_messages = [[{"role": "user", "content": prompt}] for prompt in prompts]
    assert function_scores(functions, None, as_messages, texts).tolist() == [1.0, 0.0, -0.5]


def test_the_prompts_are_800_of_their_own_with_enough_for_training_and_test(parsed):
    args, splits = parsed[PPOConfig], {}
    for split in ("train", "validation", "test"):
        splits[split] = set(load_prompts(parsed[DataArguments], split)["prompt"])
    assert len(set.union(*splits.values())) == sum(map(len, splits.values())) == 800
    assert len(splits["train"]) >= args.total_episodes  # none twice
    assert len(splits["test"]) >= 80
    assert args.total_episodes % args.batch_size == args.batch_size % args.mini_batch_size == 0


def test_a_missing_package_is_named_with_the_command_that_installs_it(parsed, monkeypatch):
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    monkeypatch.setitem(sys.modules, "vaderSentiment", None)
    with pytest.raises(InputError, match=r"sentiment.py:positive needs the module vaderSentiment.* pip install vaderS"):
        find_reward_functions(parsed["script"].reward_funcs)


def test_the_benchmark_measures_runs_before_and_after(stubs, small_run, tmp_path, monkeypatch, capsys):
    text = tmp_path / "text.txt"
    text.write_text("The rain fell on the town. " * 400, encoding="utf-8")
    options = ["--runs", small_run, "--model", small_run / "base", "--prompts", 6, "--tokens", 4, "--blocks", 1]
    options += ["--text", text, "--block_length", 32, "--plot", tmp_path / "plot.svg"]
    monkeypatch.setattr(sys, "argv", ["sentiment.py", *map(str, options)])
    runpy.run_path(str(ROOT / "benchmarks" / "sentiment.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(lines[-1])
    [run] = result["runs"].values()
    assert run["vader"]["base"]["n"] == 12 and run["vader"]["difference"]["low"] is not None
    assert run["perplexity"]["increase"] == pytest.approx(run["perplexity"]["ppo"] / run["perplexity"]["base"] - 1)
    assert run["kl"]["ppo"]["mean"] != 0 and run["surprise"]["base"]["mean"] > 0
    assert result["spread"]["tokens"]["runs"] == 1
    assert (tmp_path / "plot.svg").stat().st_size > 0
    assert len([line for line in lines if line.startswith("> ")]) == 3  # six prompts: each second
