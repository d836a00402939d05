"""The base model of the sandbox, trained on the sandbox's documents from random weights.

    make pretrain
    accelerate launch recipes/pretrain.py --config recipes/sandbox/pretrain.yaml --output_dir runs/sandbox/base

Only needed to make another base: the one that this command made is part of the package (rlhf/sandbox/base).
"""

import time
from dataclasses import dataclass, field

from datasets import Dataset
from transformers import LlamaForCausalLM, Trainer, TrainingArguments, set_seed

from rlhf.cli import parse, run
from rlhf.data import DataArguments, load_pretraining
from rlhf.runs import MetricsCallback, start_run, write_result
from rlhf.sandbox.base_model import architecture, pack, train_tokenizer


@dataclass
class PretrainArguments(TrainingArguments):
    """transformers' TrainingArguments and the length of a training block."""

    block_size: int = field(default=256, metadata={"help": "Tokens in one training block of packed documents."})
    tokenizer_documents: int = field(default=30_000, metadata={"help": "Documents that the tokenizer is learned from."})


def main() -> None:
    args, data_args = parse(PretrainArguments, DataArguments)
    started, folder = time.monotonic(), args.output_dir
    start_run(folder, args, data_args, stage="pretrain")
    set_seed(args.seed)

    # Data
    documents = {split: load_pretraining(data_args, split)["text"] for split in ("train", "validation")}
    tokenizer = train_tokenizer(documents["train"][: args.tokenizer_documents])
    blocks = {split: pack(list(texts), tokenizer, args.block_size) for split, texts in documents.items()}
    rows = {split: Dataset.from_dict({"input_ids": b, "labels": b}).with_format("torch") for split, b in blocks.items()}

    # Training
    model = LlamaForCausalLM(architecture(tokenizer))
    trainer = Trainer(
        model,
        args,
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        callbacks=[MetricsCallback(folder)],
    )
    train_loss = trainer.train(resume_from_checkpoint=args.resume_from_checkpoint).training_loss
    validation_loss = trainer.evaluate()["eval_loss"]

    # Half precision is all that the weights need on disk; the stages load them in float32.
    if trainer.is_world_process_zero():
        model.config.use_cache = True  # the Trainer had turned it off
        model.bfloat16().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        result = {"train_loss": train_loss, "validation_loss": validation_loss, "n_tokens": blocks["train"].numel()}
        write_result(folder, result | {"seconds": time.monotonic() - started})


if __name__ == "__main__":
    run(main)
