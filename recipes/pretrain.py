"""Trains the sandbox's base model on the sandbox's documents, from random weights or from those of another base.

    make pretrain    # pretrain.yaml, then pretrain_stage2.yaml from its weights: one CPU
    rlhf pretrain sandbox    # the first of them
    python recipes/pretrain.py --config recipes/sandbox/pretrain.yaml --use_cpu false    # one GPU

Reads no data: the documents are drawn from a seed. Writes to output_dir the weights in bfloat16, the tokenizer,
metrics.jsonl and result.json with both losses. Needed only for another base model: one is part of the package
(rlhf/sandbox/base).
"""

import time
from dataclasses import dataclass, field
from itertools import chain

from datasets import Dataset
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, Trainer, TrainingArguments, set_seed

from rlhf.cli import parse, run
from rlhf.errors import InputError, require_at_least
from rlhf.models.loading import resolve_model_name
from rlhf.runs.artifacts import MetricsCallback, start_run, write_result
from rlhf.runs.checks import check_training
from rlhf.runs.console import show, show_end, show_title
from rlhf.runs.processes import use_one_device
from rlhf.runs.progress import watch
from rlhf.runs.resume import find_checkpoint
from rlhf.sandbox import datasets as sandbox
from rlhf.sandbox.base_model import architecture, pack, train_tokenizer


@dataclass
class PretrainArguments(TrainingArguments):
    """transformers' TrainingArguments, and the documents."""

    n_documents: int = field(default=220_000, metadata={"help": "Documents of the sandbox to train on."})
    documents_seed: int = field(default=0, metadata={"help": "Seed of the documents."})
    graded_share: float | None = field(
        default=None,
        metadata={"help": "Share of graded work among the documents, 0 to 1; None: the sandbox's own share, 0.28."},
    )
    continue_from: str | None = field(
        default=None, metadata={"help": "Folder of a base model and its tokenizer to start from. None: random weights."}
    )
    block_size: int = field(default=256, metadata={"help": "Tokens per training block of packed documents."})
    tokenizer_documents: int = field(default=30_000, metadata={"help": "Documents that the tokenizer is trained on."})

    def __post_init__(self):
        super().__post_init__()
        require_at_least(self, 1, "n_documents", "tokenizer_documents")
        require_at_least(self, 2, "block_size")
        if self.graded_share is not None and not 0 <= self.graded_share <= 1:
            raise InputError(f"graded_share is {self.graded_share}; it must be at least 0 and at most 1.")


def main() -> None:
    (args,) = parse(PretrainArguments)
    use_one_device(args)
    check_training(args)
    continued = resolve_model_name(args.continue_from) if args.continue_from else None
    checkpoint = find_checkpoint(args)
    started, folder = time.monotonic(), args.output_dir
    start_run(folder, args, stage="pretrain")
    set_seed(args.seed)

    # Data
    show_title("pretrain", str(folder))
    options = {"seed": args.documents_seed, "graded_share": args.graded_share}
    sizes = {"train": args.n_documents, "validation": 500}
    rows = {split: sandbox.pretraining(split, size, **options) for split, size in sizes.items()}
    documents = {split: list(chain.from_iterable(dataset["text"])) for split, dataset in rows.items()}
    if continued:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(continued)
        model = LlamaForCausalLM.from_pretrained(continued, dtype="float32")
    else:
        tokenizer = train_tokenizer(documents["train"][: args.tokenizer_documents])
        model = LlamaForCausalLM(architecture(tokenizer))
    blocks = {split: pack(texts, tokenizer, args.block_size) for split, texts in documents.items()}
    rows = {split: Dataset.from_dict({"input_ids": b, "labels": b}).with_format("torch") for split, b in blocks.items()}

    # Training
    trainer = Trainer(
        model,
        args,
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        callbacks=[MetricsCallback(folder)],
    )
    show("rows", f"{len(blocks['train']):,} blocks of {args.block_size} tokens, {len(blocks['validation']):,} held out")
    watch(trainer, "pretrain", args.continue_from or "random weights")
    train_loss = trainer.train(resume_from_checkpoint=checkpoint).training_loss
    validation_loss = trainer.evaluate()["eval_loss"]

    # bfloat16 is precise enough on disk; the stages load the weights in float32.
    if trainer.is_world_process_zero():
        model.config.use_cache = True  # the Trainer has turned it off
        model.bfloat16().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        result = {"train_loss": train_loss, "validation_loss": validation_loss, "n_tokens": blocks["train"].numel()}
        result["seconds"] = time.monotonic() - started
        write_result(folder, result)
        text = f"loss {train_loss:.3f} in training, {validation_loss:.3f} on held-out documents"
        show_end(text, str(folder), result["seconds"], "pretrain")


if __name__ == "__main__":
    run(main)
