"""`gradient_checkpointing: auto`: what is recomputed, by the memory that is free; the results are the same."""

import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import toys
import yaml
from datasets import Dataset

from rlhf.cli import parse
from rlhf.models import recomputation
from rlhf.models.fitting import EVERY, KEPT_FREE, LIBRARIES, USABLE, Divisions, choose_division, fits, in_process
from rlhf.models.loading import load_base, lora_config
from rlhf.models.logprobs import LOGITS
from rlhf.models.memory import Memory
from rlhf.models.model_sizes import Layout, shape_of
from rlhf.models.recomputation import OPTIONS, available_bytes, choice_text
from rlhf.ppo import PPOConfig
from rlhf.reward import KWiseRewardConfig
from rlhf.runs.artifacts import resolved_config
from rlhf.sft.trainer import SFTArguments, SFTModelConfig, SFTTrainer, tokenize_demonstrations

PLAIN = dict(bf16=False, use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no", eval_strategy="no")
ROWS = Dataset.from_list([{"prompt": f"What is {i}?", "completion": f"A number, {i}." * (1 + i % 3)} for i in range(8)])


def sft(folder, tokenizer, output, **changes) -> SFTTrainer:
    args = SFTArguments(output_dir=str(output), batch_size=4, max_steps=3, learning_rate=1e-2, **PLAIN | changes)
    model_args = SFTModelConfig(folder, lora_r=4, lora_dropout=0.2)
    return SFTTrainer(
        load_base(model_args, tokenizer), args, train_dataset=tokenize_demonstrations(ROWS, tokenizer),
        processing_class=tokenizer, peft_config=lora_config(model_args),
    )  # fmt: skip


@pytest.fixture
def free(monkeypatch):
    """Sets the free memory: so many bytes more than model and libraries, which are there, take."""
    return lambda size: monkeypatch.setattr(recomputation, "free_memory", lambda device: size)


# ---- How much is recomputed


def test_as_little_is_recomputed_as_fits_within_the_margin():
    def memory(every: int) -> Memory:  # of activations, 1,000 if none is recomputed
        return Memory({"base": 100}, {"loss": {"activations": {0: 1000, 8: 900, 4: 775, 2: 550, 1: 100}[every]}})

    rows = Divisions([4], [])
    for every in EVERY:
        needed = memory(every).peak / USABLE
        assert choose_division(lambda _, every: memory(every), rows, needed + 1) == (4, every)
    assert choose_division(lambda _, every: memory(every), rows, 0) == (4, 1)
    sampling = {"rollout": {"cache": 600}}  # takes more, whatever is recomputed
    assert choose_division(lambda _, every: Memory({}, memory(every).phases | sampling), rows, 0) == (4, 2)
    assert fits(memory(0), 1100 / 0.85 + 1) and not fits(memory(0), 1100 / 0.85 - 1)


def test_each_nth_layer_is_recomputed():
    layers = {every: Layout(checkpointing=every).recomputed(16) for every in (0, 1, 2, 4, 5, 32)}
    assert layers == {0: 0, 1: 16, 2: 8, 4: 4, 5: 4, 32: 1}


def test_a_process_on_a_cpu_takes_more_than_its_tensors():
    memory = Memory({"base": 10**9}, {"loss": {"activations": 10**9}, "rollout": {"cache": 2 * 10**9}})
    assert in_process(memory, "cuda") == memory
    assert in_process(memory, "cpu").peak == 10**9 + LIBRARIES + (1 + KEPT_FREE) * 2 * 10**9


def test_the_smallest_free_memory_of_all_processes_counts(monkeypatch, free):
    free(1000)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    lm = torch.nn.Linear(10, 10, bias=False)  # 400 bytes
    accelerator = SimpleNamespace(
        wait_for_everyone=lambda: None, gather=lambda size: torch.stack([size[0], size[0] - 7])
    )
    trainer = SimpleNamespace(accelerator=accelerator, args=SimpleNamespace(device=torch.device("cpu")))
    assert available_bytes(trainer, lm) == pytest.approx(500 + 400 + LIBRARIES - 7)


# ---- A trainer decides


def test_where_the_memory_is_enough_nothing_is_recomputed(toy_folder, toy_tokenizer, tmp_path, free, caplog):
    free(10**12)
    with caplog.at_level(logging.DEBUG, "rlhf"):
        trainer = sft(toy_folder, toy_tokenizer, tmp_path)
    assert not trainer.args.gradient_checkpointing and not trainer.args.activation_checkpointing
    assert "gradient_checkpointing: nothing is computed again in backward. A step takes 0.6 of 1000.6 GB" in caplog.text
    trainer.train()
    lm = trainer.model.get_base_model()
    assert not lm.is_gradient_checkpointing
    assert not lm.get_input_embeddings()(torch.tensor([[1]])).requires_grad  # TRL's hook is gone


def test_where_it_is_not_some_or_all_layers_are(toy_folder, toy_tokenizer, tmp_path, free, caplog):
    free(0)
    with caplog.at_level(logging.INFO, "rlhf"):
        trainer = sft(toy_folder, toy_tokenizer, tmp_path)
    assert trainer.args.gradient_checkpointing and "all layers are computed again" in caplog.text
    assert "lower per_device_train_batch_size" in caplog.text
    lm = trainer.model.get_base_model()
    layout = recomputation.layout_of(trainer, lm)
    plain = Layout("float32", "ddp", 1, autocast=False, checkpointing=1, rank=4)
    assert layout == plain.on("cpu", dropout=True) == replace(plain, dropout=4, logits=LOGITS, cpu=True)
    shape = shape_of(lm.config)
    needed = in_process(trainer.step_memory(shape, replace(layout, checkpointing=8), 4), "cpu").peak / USABLE
    free(needed + 1000 - available_bytes(trainer, lm))
    trainer = sft(toy_folder, toy_tokenizer, tmp_path)
    assert trainer.args.activation_checkpointing_kwargs == {"every_n_layers": 8}
    trainer.train()
    assert [layer.gradient_checkpointing for layer in trainer.model.get_base_model().model.layers] == [True, False]


def test_other_models_recompute_all_layers(toy_tokenizer, tmp_path, free, caplog):
    free(10**12)
    base = toys.shared_base(toys.causal("opt"))
    with caplog.at_level(logging.INFO, "rlhf"):
        ppo = toys.trainer(toys.ppo_config(tmp_path, gradient_checkpointing=None), base)
    assert ppo.args.gradient_checkpointing and "The memory of opt is not known" in caplog.text
    ppo = toys.trainer(toys.ppo_config(tmp_path, gradient_checkpointing=None), toys.separate())
    assert ppo.args.gradient_checkpointing


def test_ppo_decides_by_its_rollout(tmp_path, free):
    free(10**12)
    args = toys.ppo_config(tmp_path, gradient_checkpointing=None)
    assert not toys.trainer(args).args.gradient_checkpointing
    free(0)
    assert toys.trainer(args).args.gradient_checkpointing
    assert toys.trainer(toys.ppo_config(tmp_path, gradient_checkpointing=False)).args.gradient_checkpointing is False


@pytest.mark.parametrize("changes", [{"activation_checkpointing_kwargs": {"every_n_layers": 2}}, {}], ids=str)
def test_recomputation_changes_no_weight_with_dropout(toy_folder, toy_tokenizer, tmp_path, changes):
    weights = []
    for given in ({"gradient_checkpointing": False}, {"gradient_checkpointing": True, **changes}):
        trainer = sft(toy_folder, toy_tokenizer, tmp_path, **given)
        trainer.train()
        weights.append([p.detach().clone() for p in trainer.model.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_the_choice_is_said_in_a_sentence():
    step = Memory({"base": 2 * 10**9}, {"loss": {"activations": 20 * 10**9}})
    less = Memory({"base": 2 * 10**9}, {"loss": {"activations": 5 * 10**9}})
    assert choice_text(0, step, step, 60e9) == (
        "nothing is computed again in backward. A step takes 22.0 of 60.0 GB by estimate, 20.0 of them activations"
    )
    assert choice_text(2, step, less, 20e9) == (
        "one of 2 layers is computed again in backward. By estimate a step takes 7.0 of 20.0 GB, and without it 22.0"
    )


# ---- The option


@pytest.mark.parametrize("config", [SFTArguments, KWiseRewardConfig, PPOConfig])
def test_auto_is_the_default_and_another_word_for_none(config, tmp_path):
    nothing = ["--output_dir", str(tmp_path), "--use_cpu", "true", "--bf16", "false"]
    (tmp_path / "auto.yaml").write_text(yaml.safe_dump({"gradient_checkpointing": "auto"}))
    (tmp_path / "on.yaml").write_text(yaml.safe_dump({"gradient_checkpointing": True}))
    auto, on = (["--config", str(tmp_path / f"{name}.yaml")] for name in ("auto", "on"))
    for line in ([], ["--gradient_checkpointing", "auto"], auto, [*on, "--gradient_checkpointing", "auto"]):
        (args,) = parse(config, args=[*line, *nothing])
        assert args.computed >= OPTIONS
        assert not OPTIONS & resolved_config(args).keys()  # config.yaml leaves it open
    for line in (["--gradient_checkpointing"], ["--gradient_checkpointing", "true"], on):
        (args,) = parse(config, args=[*line, *nothing])
        assert args.gradient_checkpointing is args.activation_checkpointing is True and not args.computed & OPTIONS
    (args,) = parse(config, args=["--gradient_checkpointing", "false", *nothing])
    assert args.gradient_checkpointing is args.activation_checkpointing is False and not args.computed & OPTIONS
    assert resolved_config(args)["gradient_checkpointing"] is False


def test_options_without_auto_refuse_it(tmp_path):
    with pytest.raises(ValueError, match="auto"):
        parse(SFTArguments, args=["--output_dir", str(tmp_path), "--full_determinism", "auto"])
