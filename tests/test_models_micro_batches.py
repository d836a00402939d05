"""`per_device_train_batch_size: auto`: rows of a pass by tokens and memory; the result is that of the same number."""

import logging
import shutil
from dataclasses import replace

import pytest
import torch
import toys
import yaml
from accelerate.utils import set_seed
from datasets import Dataset
from small_stages import run_stage

from rlhf.cli import parse
from rlhf.errors import InputError
from rlhf.models import micro_batches, recomputation
from rlhf.models.fitting import USABLE, Divisions, choose_division, divisions, in_process, tokens_wanted
from rlhf.models.loading import load_base, load_sequence_classifier, lora_config
from rlhf.models.memory import Memory
from rlhf.models.micro_batches import memory_text
from rlhf.models.model_sizes import shape_of
from rlhf.ppo import PPOConfig
from rlhf.reward import KWiseRewardConfig, KWiseRewardTrainer
from rlhf.runs.artifacts import read_result, resolved_config, start_run
from rlhf.runs.decisive_options import decisive_options
from rlhf.runs.resume import complete_checkpoints
from rlhf.sft.trainer import SFTArguments, SFTModelConfig, SFTTrainer, tokenize_demonstrations

PLAIN = dict(
    bf16=False, use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no", eval_strategy="no",
    gradient_checkpointing=False, learning_rate=1e-2,
)  # fmt: skip
ROWS = Dataset.from_list([{"prompt": f"What is {i}?", "completion": f"A number, {i}." * (1 + i % 3)} for i in range(8)])
RANKED = Dataset.from_list(
    [
        {"prompt": f"What is {i}?", "completions": ["A.", "Two." * (1 + i % 2), "Or C?"], "ranks": [1, 0, 2]}
        for i in range(8)
    ]
)


@pytest.fixture
def free(monkeypatch):
    """Sets the free memory: so many bytes more than model and libraries, which are there, take."""
    return lambda size: monkeypatch.setattr(recomputation, "free_memory", lambda device: size)


@pytest.fixture
def passes(monkeypatch, free):
    """Sets the tokens at which this machine is as fast as it gets; the memory is enough for all."""
    free(10**12)
    return lambda tokens: monkeypatch.setattr(micro_batches, "pass_limits", lambda lm, device: (tokens, 1))


def sft(folder, tokenizer, output, rows="auto", **changes) -> SFTTrainer:
    sizes = dict(batch_size=4, per_device_train_batch_size=rows, max_steps=4)
    args = SFTArguments(output_dir=str(output), **PLAIN | sizes | changes)
    model_args = SFTModelConfig(str(folder), lora_r=4, lora_dropout=0.2)
    return SFTTrainer(
        load_base(model_args, tokenizer), args, train_dataset=tokenize_demonstrations(ROWS, tokenizer),
        processing_class=tokenizer, peft_config=lora_config(model_args),
    )  # fmt: skip


def reward(folder, tokenizer, output, rows="auto") -> KWiseRewardTrainer:
    args = KWiseRewardConfig(
        output_dir=str(output), batch_size=4, per_device_train_batch_size=rows, max_steps=2, **PLAIN
    )
    model_args = SFTModelConfig(str(folder), lora_r=4, lora_dropout=0.2)
    set_seed(0)  # the head is random
    return KWiseRewardTrainer(
        load_sequence_classifier(model_args, tokenizer), args, train_dataset=RANKED, eval_dataset=RANKED,
        processing_class=tokenizer, peft_config=lora_config(model_args, "SEQ_CLS"),
    )  # fmt: skip


def ppo(output, rows="auto", **changes):
    sizes = dict(batch_size=8, mini_batch_size=4, per_device_train_batch_size=rows)
    return toys.trainer(toys.ppo_config(output, **sizes | changes))


def trained(trainer, checkpoint: str | None = None) -> list[torch.Tensor]:
    """Trains; returns the trained weights."""
    trainer.train(resume_from_checkpoint=checkpoint)
    return [p.detach().clone() for p in trainer.model.parameters() if p.requires_grad]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ---- The choice


def test_a_gpu_wants_more_tokens_than_a_cpu_which_pads():
    assert tokens_wanted(16384, "cuda", padded=False) == tokens_wanted(16384, "gpu", padded=True) == (2048, 16384)
    assert tokens_wanted(512, "cpu", padded=True) == (512, 1024)
    assert tokens_wanted(512, "cpu", padded=False) == (512, 4096)


@pytest.mark.parametrize(
    ("share", "tokens", "wanted", "enough", "fewer"),
    [
        (32, 500, (2048, 16384), [32, 16, 8], [4, 2, 1]),
        (32, 600, (2048, 16384), [16, 8, 4], [2, 1]),
        (12, 2000, (2048, 16384), [6, 4, 3, 2], [1]),
        (4, 10, (2048, 16384), [4], [2, 1]),  # all rows of a step are few
        (8, 20000, (2048, 16384), [1], []),
        (7, 3000, (2048, 16384), [1], []),
        (32, 100, (512, 1024), [8], [4, 2, 1]),
        (32, 256, (512, 1024), [4, 2], [1]),
        (1, 5, (512, 1024), [1], []),
    ],
)
def test_rows_divide_a_step_and_have_no_more_tokens_than_help(share, tokens, wanted, enough, fewer):
    assert divisions(share, tokens, wanted) == Divisions(enough, fewer)


def test_enough_rows_with_little_recomputation_come_first_then_fewer_rows():
    def memory(rows: int, every: int) -> Memory:
        return Memory({"base": 100}, {"loss": {"activations": rows * {0: 100, 8: 90, 4: 75, 2: 55, 1: 10}[every]}})

    rows = Divisions([16, 8], [4, 2, 1])

    def chosen(available: float, **kwargs) -> tuple[int, int]:
        return choose_division(memory, rows, available / USABLE + 1, **kwargs)

    assert chosen(1700) == (16, 0)
    assert chosen(1699) == chosen(900) == (8, 0)  # fewer rows rather than recomputation
    assert chosen(899) == (8, 8)
    assert chosen(260) == (16, 1)  # 8 rows with each second layer take 540
    assert chosen(259) == chosen(180) == (8, 1)
    assert chosen(179) == (4, 1)  # too few for full speed
    assert chosen(111) == chosen(0) == (1, 1)
    assert chosen(899, every=(0,)) == (4, 0) and chosen(0, every=(0,)) == (1, 0)
    assert chosen(1699, every=(1,)) == (16, 1)


def test_where_sampling_takes_most_no_rows_are_given_up_for_it():
    def memory(rows: int, every: int) -> Memory:
        return Memory({}, {"loss": {"activations": 100 * rows}, "rollout": {"cache": 450}})

    assert choose_division(memory, Divisions([8, 4], [2, 1]), available=0) == (4, 0)


def test_the_choice_is_said_in_a_sentence():
    step, more = (Memory({"base": size}) for size in (12 * 10**9, 70 * 10**9))
    step.phases = more.phases = {"loss": {}}
    said = "about 4,096 tokens. By estimate a step takes 12.0 of 80.0 GB"
    assert memory_text(4096.2, step, 80e9, more, all_rows=False) == f"{said}, and with more rows 70.0"
    assert memory_text(4096.2, step, 80e9, None, all_rows=False) == f"{said}; a pass of more tokens saves no time"
    assert memory_text(4096.2, step, 80e9, None, all_rows=True) == said


# ---- A trainer chooses


@pytest.mark.parametrize(("tokens", "rows"), [(1000, 4), (30, 2), (1, 1)])
def test_sft_with_auto_is_sft_with_the_number(toy_folder, toy_tokenizer, tmp_path, passes, caplog, tokens, rows):
    passes(tokens)
    with caplog.at_level(logging.INFO, "rlhf"):
        auto = sft(toy_folder, toy_tokenizer, tmp_path)
    assert (auto.args.per_device_train_batch_size, auto.args.gradient_accumulation_steps) == (rows, 4 // rows)
    assert caplog.text.count(f"per_device_train_batch_size: {rows} of the 4 rows in a step pass at a time, about") == 1
    weights = trained(auto)
    assert auto.state.global_step == 4 and auto.state.train_batch_size == rows
    assert equal(weights, trained(sft(toy_folder, toy_tokenizer, tmp_path, rows)))


def test_reward_with_auto_is_reward_with_the_number(toy_folder, toy_tokenizer, tmp_path, passes):
    passes(8)  # up to 64
    auto = reward(toy_folder, toy_tokenizer, tmp_path)
    assert (auto.args.per_device_train_batch_size, auto.args.gradient_accumulation_steps) == (2, 2)
    assert equal(trained(auto), trained(reward(toy_folder, toy_tokenizer, tmp_path, 2)))


def test_ppo_with_auto_is_ppo_with_the_number(tmp_path, passes):
    passes(8)  # up to 64
    auto = ppo(tmp_path)
    assert (auto.args.per_device_train_batch_size, auto.args.gradient_accumulation_steps) == (2, 2)
    assert auto.args.micro_batch_size == 2
    assert equal(trained(auto), trained(ppo(tmp_path, 2)))


@pytest.mark.parametrize("tokens", [1, 8, 1000])
def test_ppo_with_auto_and_no_learning_rate_has_ratio_one(tmp_path, passes, tokens):
    passes(tokens)
    trainer = ppo(tmp_path, learning_rate=0.0, value_learning_rate=0.0, num_ppo_epochs=2)
    trainer.train()
    assert toys.logged(trainer, "policy/approxkl") == [0.0] and toys.logged(trainer, "policy/clipfrac") == [0.0]
    assert toys.logged(trainer, "val/ratio") == pytest.approx([1.0])  # a mean, whose weights are rounded


def test_memory_decides_together_with_recomputation(toy_folder, toy_tokenizer, tmp_path, passes, free, caplog):
    passes(1000)  # four rows have fewer
    trainer = sft(toy_folder, toy_tokenizer, tmp_path, 1)
    lm = trainer.model.get_base_model()
    layout = recomputation.layout_of(trainer, lm)

    def bytes_for(rows: int) -> float:
        """Returns free bytes that are just enough without recomputation."""
        free(0)
        none = replace(layout, checkpointing=0)
        peak = in_process(trainer.step_memory(shape_of(lm.config), none, rows), "cpu").peak
        return peak / USABLE - recomputation.available_bytes(trainer, lm) + 1000

    enough = bytes_for(2)
    free(enough)
    with caplog.at_level(logging.INFO, "rlhf"):
        fewer = sft(toy_folder, toy_tokenizer, tmp_path)
    assert fewer.args.per_device_train_batch_size == 2 and "and with more rows" in caplog.text
    recomputed = sft(toy_folder, toy_tokenizer, tmp_path, gradient_checkpointing=None)
    assert recomputed.args.per_device_train_batch_size == 4 and recomputed.args.gradient_checkpointing
    passes(10)
    free(enough)  # two rows are enough for the full speed now
    both = sft(toy_folder, toy_tokenizer, tmp_path, gradient_checkpointing=None)
    assert both.args.per_device_train_batch_size == 1 and not both.args.gradient_checkpointing


def test_where_the_memory_of_a_step_is_not_known_a_number_is_needed(tmp_path, free):
    free(10**12)
    args = toys.ppo_config(tmp_path, batch_size=8, mini_batch_size=4, per_device_train_batch_size="auto")
    for layout in (toys.shared_base(toys.causal("opt")), toys.separate()):
        with pytest.raises(InputError, match=r"auto, but The memory of .* is not known.* Set a number of rows\."):
            toys.trainer(args, layout)


# ---- Resuming


def test_a_resumed_run_keeps_the_rows_whatever_the_memory_is_now(toy_folder, toy_tokenizer, tmp_path, passes):
    passes(30)
    saving = dict(save_strategy="steps", save_steps=2)
    whole = sft(toy_folder, toy_tokenizer, tmp_path / "run", **saving)
    assert whole.args.per_device_train_batch_size == 2
    weights = trained(whole)
    passes(1000)
    checkpoint = str(tmp_path / "run" / "checkpoint-2")
    resumed = sft(toy_folder, toy_tokenizer, tmp_path / "run", resume_from_checkpoint=checkpoint, **saving)
    assert resumed.args.per_device_train_batch_size == 2
    assert equal(trained(resumed, checkpoint), weights)
    anew = sft(toy_folder, toy_tokenizer, tmp_path / "run", **saving)  # its args do not say that it will resume
    assert anew.args.per_device_train_batch_size == 4
    with pytest.raises(InputError, match=r"2 rows of a step at a time, .* auto has chosen 4\. Set .* to 2, or"):
        anew.train(resume_from_checkpoint=checkpoint)


def test_ppo_resumes_within_a_rollout_with_the_rows_of_its_checkpoint(tmp_path, passes):
    passes(8)
    saving = dict(save_strategy="steps", save_steps=1)
    whole = ppo(tmp_path, **saving)
    weights = trained(whole)
    passes(1000)
    checkpoint = str(tmp_path / "checkpoint-1")
    resumed = ppo(tmp_path, resume_from_checkpoint=checkpoint, **saving)
    assert resumed.args.per_device_train_batch_size == 2
    assert equal(trained(resumed, checkpoint), weights)


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_a_recipe_resumes_with_the_number_in_its_config(own_run, passes, stage):
    folder = own_run / "auto" / stage
    options = {"per_device_train_batch_size": "auto", "output_dir": folder, "save_strategy": "steps", "save_steps": 1}
    options |= {} if stage == "ppo" else {"gradient_accumulation_steps": None, "batch_size": 4, "max_steps": 3}

    def run(**changes) -> tuple[int, bytes]:
        run_stage(stage, own_run, **options | changes)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        return config["per_device_train_batch_size"], (folder / "adapter_model.safetensors").read_bytes()

    passes(1)
    first = run()
    assert first[0] == 1
    checkpoints = complete_checkpoints(folder)
    shutil.rmtree(checkpoints[-1])
    passes(1000)
    assert run(resume_from_checkpoint="true") == first
    assert read_result(folder)["steps_taken"] == (2 if stage == "ppo" else 1)  # PPO saves each rollout


def test_config_yaml_has_the_number_once_it_is_chosen(toy_folder, toy_tokenizer, tmp_path, passes):
    passes(30)
    trainer = sft(toy_folder, toy_tokenizer, tmp_path)  # no config.yaml yet
    start_run(tmp_path, trainer.args, stage="sft")
    read = lambda: yaml.safe_load((tmp_path / "config.yaml").read_text())["per_device_train_batch_size"]  # noqa: E731
    assert read() == resolved_config(trainer.args)["per_device_train_batch_size"] == "auto"
    sft(toy_folder, toy_tokenizer, tmp_path)
    assert read() == 2
    passes(1000)
    (args,) = parse(SFTArguments, args=["--config", str(tmp_path / "config.yaml"), "--output_dir", str(tmp_path)])
    assert (args.per_device_train_batch_size, args.batch_size, args.gradient_accumulation_steps) == (2, 4, 2)


# ---- The option


@pytest.mark.parametrize("config", [SFTArguments, KWiseRewardConfig, PPOConfig])
def test_auto_is_a_word_of_the_command_line_and_of_a_yaml(config, tmp_path):
    nothing = ["--output_dir", str(tmp_path), "--use_cpu", "true", "--bf16", "false", "--batch_size", "16"]
    (tmp_path / "auto.yaml").write_text("per_device_train_batch_size: auto\n")
    (tmp_path / "four.yaml").write_text("per_device_train_batch_size: 4\n")
    auto, four = (["--config", str(tmp_path / f"{name}.yaml")] for name in ("auto", "four"))
    word = ["--per_device_train_batch_size", "auto"]
    for line in (word, auto, [*four, *word]):
        (args,) = parse(config, args=[*line, *nothing])
        assert "per_device_train_batch_size" in args.computed and args.batch_size == 16
        assert resolved_config(args)["per_device_train_batch_size"] == "auto"
        assert decisive_options(args)[0]["rows_per_step"] == 16
    (args,) = parse(config, args=[*auto, "--per_device_train_batch_size", "4", *nothing])
    assert args.per_device_train_batch_size == 4 and "per_device_train_batch_size" not in args.computed


@pytest.mark.parametrize("config", [SFTArguments, KWiseRewardConfig, PPOConfig])
def test_other_words_are_refused_with_the_remedy(config, tmp_path):
    nothing = ["--output_dir", str(tmp_path), "--use_cpu", "true", "--bf16", "false"]
    (tmp_path / "a.yaml").write_text("per_device_train_batch_size: most\n")
    for line in (["--per_device_train_batch_size", "most"], ["--config", str(tmp_path / "a.yaml")]):
        with pytest.raises(InputError, match=r"per_device_train_batch_size.*'most': set a whole number or auto"):
            parse(config, args=[*line, *nothing])
    with pytest.raises(InputError, match="is most; it must be a whole number of rows, or auto"):
        config(output_dir=str(tmp_path), bf16=False, use_cpu=True, per_device_train_batch_size="most")
    with pytest.raises(InputError, match=r"gradient_checkpointing.*'most': set true, false or auto"):
        parse(config, args=["--gradient_checkpointing", "most", *nothing])


def test_auto_needs_the_rows_of_a_step(tmp_path):
    auto = dict(output_dir=str(tmp_path), bf16=False, use_cpu=True, per_device_train_batch_size="auto")
    for config, paper in ((SFTArguments, 32), (KWiseRewardConfig, 64)):
        assert config(**auto).batch_size == paper
        with pytest.raises(InputError, match="Leave gradient_accumulation_steps out, and set batch_size"):
            config(**auto, gradient_accumulation_steps=2)
    with pytest.raises(InputError, match="Set batch_size, the episodes of a rollout"):
        PPOConfig(**auto, gradient_accumulation_steps=2)
    assert PPOConfig(**auto, batch_size=16, num_mini_batches=2).mini_batch_size == 8
    with pytest.raises(InputError, match="cross_validate trains several models"):
        KWiseRewardConfig(**auto, cross_validate="prompts")


@pytest.mark.parametrize("config", [SFTArguments, KWiseRewardConfig, PPOConfig])
def test_deepspeed_needs_a_number(config, tmp_path, monkeypatch):
    monkeypatch.setattr(
        config, "deepspeed_plugin", property(lambda self: object(), lambda self, value: None), raising=False
    )
    with pytest.raises(InputError, match="DeepSpeed must know it before a model is loaded"):
        config(output_dir=str(tmp_path), bf16=False, use_cpu=True, batch_size=8, per_device_train_batch_size="auto")


def test_the_contract_counts_ppo_rows_whatever_passes_at_a_time(tmp_path):
    sizes = dict(batch_size=32, mini_batch_size=16, use_cpu=True, bf16=False, output_dir=str(tmp_path))
    found = [decisive_options(PPOConfig(**sizes, per_device_train_batch_size=b))[0] for b in (16, 4, "auto")]
    assert found[0] == found[1] == found[2]
    assert (found[0]["rows_per_step"], found[0]["episodes_per_rollout"]) == (16, 32)
