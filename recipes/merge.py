"""Adds an adapter's weights to its base: a model folder that transformers, vLLM and llama.cpp load by themselves.

    rlhf merge runs/mine/ppo --output_dir models/mine

The folder holds safetensors, tokenizer, chat template and a generation config with PPO's temperature and stop tokens. A
base in 4 or 8 bits, or in a GGUF file, is written dequantized. A reward model becomes a sequence classifier with its
calibration.json beside it. The folder is loaded again and its logits are compared with the adapter's; if they differ,
nothing is left. merged.json and the model card say what was merged and how well it agrees; `rlhf push` uploads it, and
docs/serving.md says how to serve it.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from trl import ModelConfig

from rlhf.cli import parse, run
from rlhf.errors import InputError
from rlhf.inference.agreement import bits, dtype_name
from rlhf.inference.merge import merge, trained_quantization
from rlhf.models.adapter_files import CONFIG, adapter_folder
from rlhf.runs.checks import check_model_options
from rlhf.runs.model_card import STAGES


@dataclass
class MergeArguments:
    adapter: str = field(metadata={"help": "Folder of a stage, such as runs/mine/ppo, or Hub id of an adapter."})
    output_dir: str = field(metadata={"help": "Folder of the merged model, which must not exist yet."})
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto", metadata={"help": "Of the merged weights. auto: the base's own."}
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of the base. None: the one that the adapter names."}
    )
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of a base on the Hub."})
    quantized: bool = field(
        default=True,
        metadata={
            "help": "If the adapter was trained on a base in 4 or 8 bits, merge it into these weights, dequantized. "
            "False: into the base's full ones, which the adapter has not seen."
        },
    )


def main() -> None:
    (args,) = parse(MergeArguments, positional="adapter")
    stages = [stage for stage in STAGES if (Path(args.adapter) / stage / CONFIG).exists()]
    if stages and not (Path(args.adapter) / CONFIG).exists():
        raise InputError(f"{args.adapter} is a whole run. Pass one of its stages: {Path(args.adapter) / stages[-1]}")
    model_args = ModelConfig(args.model_name_or_path, args.model_revision, dtype=args.dtype)
    if args.quantized:
        model_args = trained_quantization(model_args, adapter_folder(args.adapter))
    check_model_options(model_args)
    output_dir = Path(args.output_dir).expanduser()
    agreement = merge(args.adapter, model_args, output_dir)
    quantized = f" in {bits(model_args)} bits, dequantized," if bits(model_args) else ""
    effect = f", where the adapter changes its base by {agreement.effect:.2g}" if agreement.effect else ""
    print(
        f"{output_dir} holds the merged model in {dtype_name(agreement.dtype)}. Its outputs differ from those of the "
        f"adapter on its base{quantized} by at most {agreement.difference:.2g}, of values up to "
        f"{agreement.scale:.2g}, and by {agreement.mean:.2g} on average (root mean square){effect}."
    )


if __name__ == "__main__":
    run(main)
