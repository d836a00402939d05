"""Reward functions of TRL's GRPOTrainer, in Python and on the command line."""

import json
import os
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from test_ppo_trainer import train
from toys import EOS, causal, classifier, logged, ppo_config, prompts, separate, trainer
from toys import word_tokenizer as tokenizer
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer, LlamaForSequenceClassification

from rlhf.data.text_rewards import load_text_reward
from rlhf.errors import InputError
from rlhf.ppo.reward_functions import find_reward_functions, function_scores, function_table

ROOT = Path(__file__).resolve().parent.parent
AT_0 = {"learning_rate": 0.0, "value_learning_rate": 0.0}


def run(folder, functions, dataset=None, layout=None, **options):
    layout = separate() | {"reward_model": None} if layout is None else layout
    dataset = prompts() if dataset is None else dataset
    ppo, _ = train(ppo_config(folder, **AT_0, **options), layout, reward_funcs=functions, train_dataset=dataset)
    return ppo


def test_seam_i6_a_function_gets_what_grpo_gives_it(tmp_path):
    seen = []

    def judge(prompts, completions, completion_ids, trainer_state, log_extra, log_metric, tag, **rest):
        seen.append((prompts, completions, completion_ids, trainer_state.global_step, tag, rest))
        log_extra("first", [text.split()[:1] for text in completions])
        log_metric("words", sum(len(text.split()) for text in completions) / len(completions))
        return [float(len(ids)) for ids in completion_ids]

    data = prompts().add_column("tag", list(range(16)))
    ppo = run(tmp_path, judge, data, num_sample_generations=1)
    ((asked, answers, ids, step, tags, rest),) = seen  # once per rollout
    assert len(asked) == len(answers) == len(ids) == len(tags) == 8
    assert (step, rest) == (0, {})
    assert all(prompt == data["prompt"][tag] for prompt, tag in zip(asked, tags, strict=True))
    assert any(row[-1] == EOS for row in ids)
    for text, row in zip(answers, ids, strict=True):
        assert text == tokenizer().decode(row, skip_special_tokens=True)
    assert logged(ppo, "rewards/judge/mean") == pytest.approx(logged(ppo, "objective/score"))
    assert logged(ppo, "rewards/judge/std")[0] > 0 and logged(ppo, "words")[0] > 0
    first = json.loads((tmp_path / "samples.jsonl").read_text().splitlines()[0])
    assert first["first"] == first["response"].split()[:1]


def test_seam_i6_messages_stay_messages(tmp_path):
    def judge(prompts, completions, **_):
        assert all(prompt[-1]["role"] == "user" for prompt in prompts)
        assert all(len(c) == 1 and c[0]["role"] == "assistant" for c in completions)
        return [float(len(c[0]["content"])) for c in completions]

    words = tokenizer()
    words.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    rows = [[{"role": "user", "content": text}] for text in prompts()["prompt"]]
    layout = separate() | {"reward_model": None}
    data = Dataset.from_dict({"prompt": rows})
    ppo = trainer(ppo_config(tmp_path), layout, reward_funcs=judge, train_dataset=data, processing_class=words)
    ppo.train()
    assert logged(ppo, "objective/score")[0] > 0


def test_seam_i6_none_counts_nothing_and_async_functions_run_together(tmp_path, caplog):
    import asyncio

    started = asyncio.Event()

    async def first(prompts, **_):
        await asyncio.wait_for(started.wait(), 5)
        return [1.0] * len(prompts)

    async def second(prompts, **_):
        started.set()
        return [None, 2.0]

    class Third:
        async def __call__(self, completions, **_):
            return [None] * len(completions)

    def forth(completions):
        return [None, 4.0]

    table = function_table([first, second, Third(), forth], ["p", "q"], ["a", "b"])
    assert table.scores.tolist() == [[1, 0, 0, 0], [1, 2, 0, 4]]
    assert table.judged.tolist() == [[True, False, False, False], [True, True, False, True]]
    scores = function_scores([forth, lambda **_: [None, 1.0]], [10.0, 1.0], ["p", "q"], ["a", "b"])
    assert scores.tolist() == [0.0, 41.0]
    assert "no reward function judged 1 of 2 completions" in caplog.text

    async def inside_a_loop():  # as in a notebook
        return function_table([Third()], ["p"], ["a"])

    assert not asyncio.run(inside_a_loop()).judged.any()


@pytest.mark.parametrize("score", [float("nan"), float("inf"), "1"])
def test_seam_i10_a_score_that_is_no_finite_number_is_an_error_that_names_the_function(tmp_path, score):
    def judge(completions, **_):
        return [1.0] * (len(completions) - 1) + [score]

    with pytest.raises(InputError, match=f"reward function judge gave {score!r} for a completion; return a finite"):
        run(tmp_path, judge)


def test_seam_i6_a_function_that_needs_what_there_is_not_is_refused_before_training(tmp_path):
    def judge(completions, answer):
        return [0.0]

    with pytest.raises(InputError, match="reward function judge needs `answer`, which is no column of the prompts"):
        run(tmp_path, judge)
    run(tmp_path, judge_default)
    with pytest.raises(InputError, match="3 is no reward function"):
        run(tmp_path, [3])


def judge_default(completions, answer="x"):
    return [0.0] * len(completions)


def encoder(folder):
    """Writes a toy BERT with one label and its tokenizer."""
    (folder / "vocab.txt").parent.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(4, 40))]))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=40)
    torch.manual_seed(0)
    BertForSequenceClassification(BertConfig(**sizes, num_labels=1)).save_pretrained(folder)
    return str(folder)


def test_seam_i6_classifiers_by_name_and_as_objects_with_one_tokenizer_or_a_list(tmp_path):
    """Kinds of GRPO's list: a folder's name, a model, a single one, mixed with functions, weighted."""
    classifier(seed=3).save_pretrained(tmp_path / "decoder")
    tokenizer().save_pretrained(tmp_path / "decoder")
    name, bert = str(tmp_path / "decoder"), encoder(tmp_path / "bert")
    by_name = logged(run(tmp_path, name), "objective/score")
    as_model = run(tmp_path, classifier(seed=3))
    assert logged(as_model, "objective/score") == pytest.approx(by_name, rel=1e-5)
    loaded = LlamaForSequenceClassification.from_pretrained(name)  # its tokenizer lies beside it
    assert logged(run(tmp_path, [loaded]), "objective/score") == pytest.approx(by_name, rel=1e-5)
    args = ppo_config(tmp_path, **AT_0)
    layout = separate() | {"reward_model": None}
    one, _ = train(args, layout, reward_funcs=classifier(seed=3), reward_processing_classes=tokenizer())
    assert logged(one, "objective/score") == pytest.approx(by_name, rel=1e-5)
    mixed = run(tmp_path, [name, judge_default, bert], reward_weights=[2.0, 1.0, 0.0])
    assert logged(mixed, "objective/score") == pytest.approx([2 * score for score in by_name], rel=1e-5)
    assert logged(mixed, "rewards/decoder/mean") == pytest.approx(by_name, rel=1e-5)
    assert logged(mixed, "rewards/bert/mean")[0] != 0


def test_seam_i6_an_encoder_reads_the_pair(tmp_path):
    reward = load_text_reward(encoder(tmp_path / "bert"))
    pair = reward.tokenizer("w5 w6", "w7", return_tensors="pt")
    expected = reward.model(**pair).logits.item()
    texts = ["w5 w6", "w5 w6 w8 w9"], ["w7", "w4"]
    assert reward(*texts, [True, True])[0] == pytest.approx(expected, abs=1e-5)
    chat = [[{"role": "user", "content": "w5 w6"}]]
    assert reward(chat, ["w7"], [True])[0] == pytest.approx(expected, abs=1e-5)


def test_seam_i6_what_is_no_trained_classifier_is_refused(tmp_path):
    causal().save_pretrained(tmp_path / "causal")
    tokenizer().save_pretrained(tmp_path / "causal")
    with pytest.raises(InputError, match=r"causal lacks the weights score\.weight; pass a trained"):
        load_text_reward(str(tmp_path / "causal"))
    classifier(num_labels=2).save_pretrained(tmp_path / "two")
    tokenizer().save_pretrained(tmp_path / "two")
    with pytest.raises(InputError, match="two is no sequence classifier with one label"):
        load_text_reward(str(tmp_path / "two"))
    with pytest.raises(InputError, match="nobody/nothing is no sequence classifier"):
        load_text_reward("nobody/nothing")


def test_seam_i6_functions_of_the_command_line(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text("def short(completions, **_):\n    return [-len(c) for c in completions]\n")
    (tmp_path / "broken.py").write_text("import nowhere\n")
    monkeypatch.chdir(tmp_path)
    file, module, folder, hub = find_reward_functions(
        ["my_rewards.py:short", "my_rewards.short", str(tmp_path), "owner/name"]
    )
    assert file(completions=["ab"]) == module(completions=["ab"]) == [-2]
    assert (folder, hub) == (str(tmp_path), "owner/name")
    messages = {
        "my_rewards.py:long": "AttributeError",
        "none.py:short": "there is no file none.py",
        "broken.py:f": "needs the module nowhere",
        "my_rewards.py": "write file.py:function, module.function",
        "short": "write file.py:function, module.function",
        "no_module.f": "no_module",
    }
    for name, message in messages.items():
        with pytest.raises(InputError, match=message):
            find_reward_functions([name])


@pytest.mark.slow
def test_seam_i6_the_recipe_trains_on_a_function_alone(tmp_path, monkeypatch):
    """Without a reward model: the value head starts at zero, and the function's scores are the score."""
    import subprocess
    import sys

    from toys import save_word_stages

    save_word_stages(tmp_path)
    prompts(16).to_json(tmp_path / "prompts" / "train.jsonl")
    (tmp_path / "my_rewards.py").write_text(
        "def short(completions):\n    return [-float(len(c)) for c in completions]\n"
    )
    options = {
        "dataset_name": "prompts", "sft_model_path": "sft", "reward_funcs": "my_rewards.py:short", "output_dir": "ppo",
        "batch_size": 8, "mini_batch_size": 4, "per_device_train_batch_size": 4, "total_episodes": 8, "use_cpu": True,
        "response_length": 6, "bf16": False, "gradient_checkpointing": False, "report_to": "none",
        "save_strategy": "no", "learning_rate": 1e-3,
    }  # fmt: skip
    arguments = [str(text) for name, value in options.items() for text in (f"--{name}", value)]
    command = [sys.executable, str(ROOT / "recipes" / "ppo.py"), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    row = json.loads((tmp_path / "ppo" / "result.json").read_text())
    assert row["rewards/short/mean"] == pytest.approx(row["objective/score"])
    assert abs(row["val/explained_variance"]) < 1e-6  # of zero values

    broken = subprocess.run([*command, "--reward_funcs", "my_rewards.py:long"], cwd=tmp_path, env=environment,
                            capture_output=True, text=True)  # fmt: skip
    assert broken.returncode != 0
    assert "reward function my_rewards.py:long cannot be imported" in broken.stderr
