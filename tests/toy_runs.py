"""A recipe's folder as the stages leave it, made in a second from toy models: adapters with random weights."""

from pathlib import Path

import torch
from peft import get_peft_model
from trl import ModelConfig, SFTConfig

from rlhf.models.adapter_files import write_calibration
from rlhf.models.loading import load_base, load_sequence_classifier, load_tokenizer, lora_config
from rlhf.runs.artifacts import start_run, write_result


def save_adapter(base: Path, folder: Path, stage: str) -> None:
    """An adapter on the model in `base` that changes what it says; of stage "reward" with head and calibration."""
    torch.manual_seed(0)
    model_args = ModelConfig(model_name_or_path=str(base), lora_r=2)
    tokenizer = load_tokenizer(str(base))
    if stage == "reward":
        model = get_peft_model(load_sequence_classifier(model_args, tokenizer), lora_config(model_args, "SEQ_CLS"))
    else:
        model = get_peft_model(load_base(model_args, tokenizer), lora_config(model_args))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)  # zero in a fresh adapter, which would change nothing
    model.save_pretrained(folder)
    if stage == "reward":
        write_calibration(folder, 0.25)


def finish_stage(base: Path, folder: Path, stage: str) -> Path:
    """What a finished stage leaves, and some files that are for this machine only."""
    config = SFTConfig(output_dir=str(folder), report_to="none", use_cpu=True, bf16=False, hub_token="hf_" + "s" * 34)
    start_run(folder, config, ModelConfig(model_name_or_path=str(base)), stage=stage)
    save_adapter(base, folder, stage)
    load_tokenizer(str(base)).save_pretrained(folder)
    write_result(folder, {"accuracy": {"all": 0.75}, "seconds": 3.5, "checkpoint": str(folder / "checkpoint-1")})
    for name in ("training_args.bin", "metrics.jsonl", "checkpoint-1/optimizer.pt", "checkpoint-1/adapter_config.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("stays at home")
    return folder
