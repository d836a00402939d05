"""Systems of a toy run on disk, and their answers without the command line."""

from pathlib import Path

import torch
from datasets import Dataset
from toys import save_toy
from trl import ModelConfig

from rlhf.data.encode import Prompt
from rlhf.evaluation.answers import answer_all
from rlhf.evaluation.completion_files import read_completions
from rlhf.evaluation.local_systems import Run, load_run, local_system
from rlhf.evaluation.preferences import AnswerRow
from rlhf.evaluation.systems import parse_systems, resolve
from rlhf.models.loading import load_base, load_tokenizer, lora_config
from rlhf.models.shared_base import SharedBase


def write_run(folder: Path, **changes) -> Path:
    """Writes base/, sft/, ppo/ and reward/ with random adapters that differ from one another; returns the folder."""
    save_toy(folder / "base", **changes)
    tokenizer = load_tokenizer(str(folder / "base"))
    shared = SharedBase(load_base(ModelConfig(model_name_or_path=str(folder / "base")), tokenizer))
    config = lora_config(ModelConfig(lora_r=4))
    config.init_lora_weights = False
    for seed, name in enumerate(("sft", "ppo", "reward")):
        torch.manual_seed(seed)
        shared.add_adapter(name, lora_config=config, head=name == "reward")
        shared.save_adapter(name, folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


def toy_run(folder: Path) -> Run:
    """Returns the run that `write_run` wrote."""
    model_args = ModelConfig(model_name_or_path=str(folder / "base"))
    return load_run(model_args, {name: str(folder / name) for name in ("sft", "ppo", "reward")})


def answered(
    run: Run, specs: list[str], prompts: list[Prompt], folder: Path, max_new_tokens: int = 6, **options
) -> list[AnswerRow]:
    """Returns the rows of `answer_all`; `options` are its batch_size and seed."""
    systems = [
        resolve(system, run.options.temperature, max_new_tokens, run.stages.get("reward"))
        for system in parse_systems(specs)
    ]
    local = {system.name: local_system(system, run) for system in systems if system.kind == "model"}
    files = {system.name: read_completions(system, prompts) for system in systems if system.kind == "file"}
    rows = Dataset.from_dict({"prompt": prompts, "prompt_id": list(range(len(prompts)))})
    return answer_all(systems, local, files, rows, run, folder, **options)
