"""docs/faults.md, section H: one process is one device, and a YAML means the same run on any number of processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers.trainer_utils import SchedulerType
from trl import ModelConfig

import rlhf.models.loading
from rlhf.errors import InputError
from rlhf.ppo import PPOConfig
from rlhf.reward import KWiseRewardConfig
from rlhf.runs.artifacts import resolved_config
from rlhf.sft.trainer import SFTArguments

CONFIGS = (SFTArguments, KWiseRewardConfig, PPOConfig)
STAGES = CONFIGS[:2]  # PPO's own test is in test_ppo_config.py


@pytest.fixture
def processes(monkeypatch):
    """Returns a function that makes the configs see a number of processes."""
    return lambda number: monkeypatch.setattr("transformers.TrainingArguments.world_size", number)


@pytest.mark.parametrize("config", CONFIGS)
def test_seam_h1_one_process_is_one_device(config, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    args = config(output_dir=str(tmp_path), bf16=False)
    assert (args.n_gpu, args.train_batch_size) == (1, args.per_device_train_batch_size)
    assert "one of the 8 GPUs" in caplog.text


@pytest.mark.parametrize(("config", "paper"), [(SFTArguments, 32), (KWiseRewardConfig, 64)])
@pytest.mark.parametrize("number", [1, 2, 8, 16])
def test_seam_h2_the_batch_is_the_same_on_any_number_of_processes(config, paper, number, tmp_path, processes):
    processes(number)
    for batch_size in (None, paper, 2 * paper):
        args = config(output_dir=str(tmp_path), bf16=False, batch_size=batch_size)
        rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * number
        assert args.batch_size == rows == (batch_size or paper)


def test_seam_h2_a_micro_batch_becomes_smaller_where_it_must(tmp_path, processes):
    processes(2)
    args = SFTArguments(output_dir=str(tmp_path), bf16=False, batch_size=36, per_device_train_batch_size=8)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (6, 3)


@pytest.mark.parametrize("config", STAGES)
def test_seam_h2_a_batch_that_does_not_fit_is_refused_with_the_numbers(config, tmp_path, processes):
    processes(8)
    with pytest.raises(InputError, match=r"batch_size 12 is not a multiple of the 8 .* batch_size to 16"):
        config(output_dir=str(tmp_path), bf16=False, batch_size=12)
    with pytest.raises(InputError, match=r"batch_size 64 is not .* 4 x .*_steps 1 x 8 processes = 32"):
        config(
            output_dir=str(tmp_path), bf16=False, batch_size=64, per_device_train_batch_size=4,
            gradient_accumulation_steps=1,
        )  # fmt: skip


@pytest.mark.parametrize("config", STAGES)
def test_seam_h2_the_configuration_of_a_run_holds_on_other_processes(config, tmp_path, processes):
    processes(2)
    first = config(output_dir=str(tmp_path), bf16=False, batch_size=16, per_device_train_batch_size=16)
    written = yaml.safe_load(yaml.safe_dump(resolved_config(first)))
    processes(4)
    again = config(**written | {"lr_scheduler_type": SchedulerType(written["lr_scheduler_type"])})
    assert (again.batch_size, again.per_device_train_batch_size, again.gradient_accumulation_steps) == (16, 4, 1)


def test_seam_h2_ppo_divides_a_minibatch_among_processes(tmp_path, processes):
    processes(2)
    sizes = dict(batch_size=256, mini_batch_size=32, per_device_train_batch_size=32)  # recipes/sandbox/ppo.yaml
    args = PPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **sizes)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps, args.rollout_size) == (16, 1, 256)


def test_seam_h3_a_quantized_base_is_loaded_onto_the_gpu_of_its_process(toy_folder, monkeypatch):
    order = []

    def from_pretrained(*args, **kwargs):
        order.append("loaded")
        raise ValueError("enough")

    monkeypatch.setattr(rlhf.models.loading, "process_state", lambda: order.append("device set"))
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", from_pretrained)
    with pytest.raises(InputError, match="enough"):
        rlhf.models.loading.load_base(ModelConfig(toy_folder, load_in_4bit=True))
    assert order == ["device set", "loaded"]


PREPARES = """
import sys
from pathlib import Path
from datasets import Dataset
from rlhf.data.scratch import once_per_machine
from rlhf.errors import InputError
from rlhf.runs.processes import process_state

state, folder = process_state(), Path(sys.argv[1])

def make():
    with open(folder / "calls", "a") as file:
        print(state.process_index, file=file)
    return Dataset.from_dict({"ids": [[1, 2], [3]]}).select([1, 0])

rows = [once_per_machine(make)["ids"][:] for _ in range(2)]

def fail():
    raise InputError("row 7 of a.jsonl is bad. Mend it.")

try:
    once_per_machine(fail)
except InputError as error:
    (folder / f"process{state.process_index}").write_text(repr((rows, str(error))))
"""


def test_seam_h4_data_are_prepared_once_on_a_machine_and_fail_in_all_processes(tmp_path):
    (tmp_path / "run.py").write_text(PREPARES)
    root = Path(__file__).parent.parent
    environment = os.environ | {"PYTHONPATH": str(root), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", tmp_path / "run.py"]
    result = subprocess.run(
        [*map(str, command), str(tmp_path)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert (tmp_path / "calls").read_text().split() == ["0", "0"]
    expected = repr(([[[3], [1, 2]]] * 2, "row 7 of a.jsonl is bad. Mend it."))
    assert [(tmp_path / f"process{i}").read_text() for i in range(2)] == [expected] * 2
