"""`rlhf plan`: memory and time of a recipe by arithmetic. The formulas have tests of their own (test_models_*)."""

import json
import logging
import random
import statistics
from dataclasses import replace

import datasets
import pytest
import yaml
from small_stages import write_rows
from transformers import OPTConfig

from rlhf.errors import InputError
from rlhf.models.model_sizes import Layout
from rlhf.plan import devices, stages
from rlhf.plan.devices import GPUS, Device, Launch, find_device
from rlhf.plan.lengths import padded
from rlhf.plan.seconds import Work, seconds_of_work
from rlhf.plan.work import largest_batch

CPU = Device("CPU", "cpu", 16e9, {"float32": 1e11, "bfloat16": 2e11}, 1e10, "made up")
ROWS = [{"prompt": f"q{n}", "completion": "a" * n} for n in range(1, 41)]
RANKED = [{"prompt": f"q{n}", "completions": ["a", "b" * n, "abc"], "ranks": [1, 0, 2]} for n in range(2, 41)]


@pytest.fixture
def recipe(tmp_path, toy_folder):
    """A recipe of three stages on the toy model."""
    folder = tmp_path / "recipe"
    folder.mkdir()
    write_rows(tmp_path / "sft.jsonl", ROWS)
    write_rows(tmp_path / "reward.jsonl", RANKED)
    common = {"model_name_or_path": str(toy_folder), "bf16": False, "report_to": "none", "dtype": "float32"}
    sizes = {"per_device_train_batch_size": 4, "batch_size": 8, "lora_r": 8}
    data = {stage: {"dataset_name": str(tmp_path / f"{stage}.jsonl")} for stage in ("sft", "reward")}
    sft = {"output_dir": str(tmp_path / "sft"), "max_length": 128, "num_train_epochs": 2} | sizes | data["sft"]
    reward = {"output_dir": str(tmp_path / "reward"), "max_length": 128} | sizes | data["reward"]
    paths = {f"{stage}_model_path": str(tmp_path / stage) for stage in ("sft", "reward")}
    rollout = {"batch_size": 16, "mini_batch_size": 8, "total_episodes": 64, "per_device_train_batch_size": 4}
    ppo = {"output_dir": str(tmp_path / "ppo"), "response_length": 16, "max_prompt_length": 64}
    ppo |= paths | rollout | data["sft"]
    for name, options in {"sft": sft, "reward": reward, "ppo": ppo}.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(common | options))
    return folder


def plan(stage, recipe, *options, device=CPU, processes=1, sharding="ddp", **kwargs):
    return stages.plan_stage(stage, recipe, Launch(sharding, processes, device), [*options], **kwargs)


def test_each_stage_is_planned_from_its_yaml_and_its_rows(recipe):
    sft, reward, ppo = (plan(stage, recipe) for stage in stages.STAGES)
    assert sft.passes.startswith("4 rows of up to") and "2 passes a step" in sft.passes
    assert "all of them read" in sft.rows
    train = int(sft.rows.split()[0])
    assert 20 <= train <= 40  # the others are held out
    assert sft.steps == -(-train // 8) * 2
    assert reward.steps == -(-train // 8)
    assert ppo.steps == 4 and ppo.passes.startswith("4 episodes of up to")
    assert ppo.layout.rank == 8  # of the recipe's SFT, since its adapter does not exist yet
    assert sft.layout.dropout == reward.layout.dropout == 4 and ppo.layout.dropout == 0
    assert set(ppo.seconds) == {"rollout", "score", "update"}
    assert ppo.hours == pytest.approx(4 * sum(ppo.seconds.values()) / 3600)


def test_options_after_the_recipe_override_the_yaml(recipe):
    assert plan("sft", recipe, "--max_steps", "3").steps == 3
    assert plan("sft", recipe, "--num_train_epochs", "1").steps == plan("sft", recipe).steps / 2
    wide, narrow = (plan("sft", recipe, "--lora_r", rank) for rank in ("16", "4"))
    assert wide.memory.resident["adapters"] == 4 * narrow.memory.resident["adapters"]
    with pytest.raises(InputError, match="kl_coef"):
        plan("sft", recipe, "--kl_coef", "0.1")


def test_more_processes_divide_the_batch_and_the_steps_stay(recipe):
    one, two = (plan("sft", recipe, processes=n, device=GPUS["h100"]) for n in (1, 2))
    assert two.steps == one.steps and "1 pass a step" in two.passes
    assert sum(two.seconds.values()) == pytest.approx(sum(one.seconds.values()) / 2)
    with pytest.raises(InputError, match="not a multiple of the 3 processes"):
        plan("ppo", recipe, processes=3)
    sharded = plan("sft", recipe, processes=2, sharding="fsdp", device=GPUS["h100"])
    assert sharded.memory.resident["base"] < one.memory.resident["base"]


def test_shorter_responses_take_less_time_and_the_same_memory(recipe):
    full, short = plan("ppo", recipe), plan("ppo", recipe, mean_response=4)
    assert all(short.seconds[part] < full.seconds[part] for part in full.seconds)
    assert short.memory.peak == full.memory.peak


@pytest.mark.parametrize("stage", stages.STAGES)
def test_auto_is_planned_as_the_trainer_would_choose(recipe, stage, monkeypatch):
    monkeypatch.setattr(stages, "tokens_of_a_pass", lambda inputs: 200)
    monkeypatch.setattr(stages, "row_tokens", lambda stage, inputs: 100)
    auto = ("--per_device_train_batch_size", "auto")
    found = plan(stage, recipe, *auto, processes=2)
    assert found.passes.startswith("4 ") and "1 pass a step" in found.passes  # a step has 4 rows on each process
    monkeypatch.setattr(stages, "tokens_of_a_pass", lambda inputs: 100 if stage == "sft" else 25)  # up to 2 or 8 times
    found, written = plan(stage, recipe, *auto), plan(stage, recipe, "--per_device_train_batch_size", "2")
    assert (found.passes, found.memory) == (written.passes, written.memory)
    little = replace(CPU, memory=1.0)  # nothing fits
    assert plan(stage, recipe, *auto, device=little).passes.startswith("1 ")


def test_without_reward_adapter_only_the_reference_scores(recipe, tmp_path):
    (tmp_path / "rewards.py").write_text("def short(completions, **kwargs):\n    return [0.0 for _ in completions]\n")
    options = ("--reward_model_path", "", "--reward_funcs", f"{tmp_path}/rewards.py:short")
    alone, scored = plan("ppo", recipe, *options), plan("ppo", recipe)
    assert 0.7 < alone.seconds["score"] / scored.seconds["score"] < 0.8
    assert alone.memory.resident["adapters"] < scored.memory.resident["adapters"]


def test_rows_that_are_elsewhere_are_taken_to_have_the_limit(recipe):
    found = plan("reward", recipe, "--dataset_name", "owner/name")
    assert "owner/name is not on this machine" in found.rows and found.steps is None and found.hours is None
    assert found.memory.peak > plan("reward", recipe).memory.peak


@pytest.mark.parametrize("level", [logging.NOTSET, logging.ERROR])
def test_planning_leaves_log_and_progress_bars_as_they_were(recipe, level):
    datasets.disable_progress_bars()
    try:
        logging.disable(level)
        plan("sft", recipe)
        assert logging.root.manager.disable == level and datasets.are_progress_bars_disabled()
    finally:
        logging.disable(logging.NOTSET)
        datasets.enable_progress_bars()


def test_a_model_of_another_form_or_without_configuration_is_refused(recipe, tmp_path):
    OPTConfig().save_pretrained(tmp_path / "opt")
    with pytest.raises(InputError, match="memory of opt is not known"):
        plan("sft", recipe, "--model_name_or_path", str(tmp_path / "opt"))
    with pytest.raises(InputError, match=r"config.json is needed|needs its config.json"):
        plan("sft", recipe, "--model_name_or_path", "nobody/nothing")
    with pytest.raises(InputError, match="load_in_8bit is not known"):
        plan("sft", recipe, "--load_in_8bit", "true")


def test_devices(monkeypatch):
    assert find_device("H200").matmul["bfloat16"] == pytest.approx(781e12, rel=0.01)  # as measured: 775 to 793
    with pytest.raises(InputError, match="--gpu v100 is not known"):
        find_device("v100")
    monkeypatch.setattr(devices, "matmul_flops_per_s", lambda device, dtype: 1e11)
    monkeypatch.setattr(devices, "copied_bytes_per_s", lambda device: 1e10)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    here = find_device(None, use_cpu=True, processes=2)
    assert here.kind == "cpu" and here.matmul["float32"] == 3e11


def test_decoding_takes_the_layers_time_and_the_bytes_that_it_moves():
    work = Work({"prefill": 0.0}, 1, decode_steps=10, decode_flops=1e9, decode_bytes=1e10)
    layout = Layout("float32", autocast=False)
    gpu = seconds_of_work(work, GPUS["h200"], layout, layers=16)["rollout"]
    assert gpu == pytest.approx(10 * (16 * 1.9e-4 + 1e10 / 4.8e12))
    cpu = seconds_of_work(work, CPU, layout, layers=16)["rollout"]
    assert 10 * (1 + 1e9 / 1e11) < cpu < 10 * (1 + 1e9 / 1e10)


def test_padding_of_random_rows_and_of_sorted_rows():
    rng = random.Random(0)
    lengths = [rng.randint(1, 100) for _ in range(1000)]
    drawn = statistics.mean(4 * max(rng.sample(lengths, 4)) for _ in range(4000))
    assert padded(lengths, 4) == pytest.approx(drawn, rel=0.02)
    assert padded(lengths, 1) == pytest.approx(statistics.mean(lengths))
    assert (
        statistics.mean(lengths) * 4 <= padded(lengths, 4, sorted_by_length=True) < 1.05 * 4 * statistics.mean(lengths)
    )
    assert padded([7], 4) == 28


def test_the_largest_of_random_batches():
    assert largest_batch([(10, 2, 8)], 4) == (10, 2, 4)
    prompt, k, completion = largest_batch([(1, 2, 2), (100, 4, 400)], 1)
    assert (prompt, k, completion) == (100, 4, 100)


def test_the_command_prints_memory_time_and_what_it_leaves_out(recipe, load_recipe, monkeypatch, capsys):
    script = load_recipe("plan")
    monkeypatch.setattr("sys.argv", ["plan.py", str(recipe), "--gpu", "l4", "--max_steps", "8"])
    script.main()
    printed = capsys.readouterr().out
    assert "recipe on 1 x L4: 24 GB" in printed and "Not counted" in printed
    assert printed.count("peak") >= 3 and printed.count(": fits") == 3
    monkeypatch.setattr("sys.argv", ["plan.py", str(recipe), "--stages", "choose"])
    with pytest.raises(InputError, match="choose is not a stage with a plan"):
        script.main()
    own, others = script.split_options(
        ["mine", "--gpu", "l4", "--lora_r", "4", "--stages", "sft", "ppo", "--bf16=true"]
    )
    assert own == ["mine", "--gpu", "l4", "--stages", "sft", "ppo"] and others == ["--lora_r", "4", "--bf16=true"]


def test_ranks_of_adapters_that_exist_are_theirs(recipe, tmp_path):
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "adapter_config.json").write_text(json.dumps({"r": 3, "lora_dropout": 0.0}))
    assert plan("ppo", recipe).layout.rank == 3
