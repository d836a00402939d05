"""Writes a GGUF file for llama.cpp and Ollama, with llama.cpp's own converter.

    rlhf export runs/mine/ppo --gguf models/mine.gguf --llama_cpp ~/llama.cpp
    ollama create mine -f models/Modelfile

Takes the folder of a merged model, or an adapter, which is merged first. The converter is convert_hf_to_gguf.py of
llama.cpp. A Modelfile beside the GGUF file holds chat template, sampling and stop tokens of the training for Ollama.
"""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from transformers import GenerationConfig
from trl import ModelConfig

from rlhf.cli import parse, run
from rlhf.errors import InputError
from rlhf.inference.gguf import convert, find_converter, modelfile
from rlhf.inference.merge import merge, trained_quantization
from rlhf.models.adapter_files import CONFIG, adapter_folder, check_policy_adapter
from rlhf.models.loading import load_tokenizer


@dataclass
class ExportArguments:
    model: str = field(metadata={"help": "Folder of a merged model or of a stage, such as runs/mine/ppo."})
    gguf: str = field(metadata={"help": "File to write, such as models/mine.gguf."})
    llama_cpp: str | None = field(
        default=None, metadata={"help": "Folder of llama.cpp. None: its converter is on the PATH."}
    )
    outtype: Literal["auto", "f32", "f16", "bf16", "q8_0"] = field(
        default="auto", metadata={"help": "Precision of the weights. auto: the converter's choice, 16 bits."}
    )

    def __post_init__(self):
        if not self.gguf.endswith(".gguf"):
            raise InputError(f"gguf is {self.gguf}. Name a file that ends in .gguf.")


def main() -> None:
    (args,) = parse(ExportArguments, positional="model")
    converter, source, target = find_converter(args.llama_cpp), Path(args.model).expanduser(), Path(args.gguf)
    target = target.expanduser()
    for path in (target, target.with_name("Modelfile")):
        if path.exists():
            raise InputError(f"{path} exists already. Name a file in another folder with --gguf, or delete it.")
    is_adapter = (source / CONFIG).exists()
    if not is_adapter and not (source / "config.json").exists():
        raise InputError(f"{source} is neither a merged model nor an adapter. Pass a stage, such as {source}/ppo.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        if is_adapter:
            check_policy_adapter(source)
            print(f"Merging {source} ...", flush=True)
            model_args = trained_quantization(ModelConfig(dtype="auto"), adapter_folder(source))
            merge(str(source), model_args, Path(folder) / "merged")
            source = Path(folder) / "merged"
        print(f"Converting to {target} ...", flush=True)
        convert(converter, source, target, args.outtype)
        temperature = GenerationConfig.from_pretrained(source).temperature
        text = modelfile(load_tokenizer(str(source)), target.name, 1.0 if temperature is None else temperature)
    target.with_name("Modelfile").write_text(text, encoding="utf-8")
    print(f"{target} holds the model. `ollama create NAME -f {target.with_name('Modelfile')}` hands it to Ollama.")


if __name__ == "__main__":
    run(main)
