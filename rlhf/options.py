"""Options of transformers and TRL that a recipe does not obey: refused with a reason, or accepted without effect.

A recipe's command line has every field of TrainingArguments, of TRL's configs and of its ModelConfig.
tests/test_seam_d_options.py goes through all of them. A field that is in none of these tables must be obeyed, and be in
the list of that test.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """Fields that a recipe does not obey.

    Args:
        refused: field -> reason. Any value but the default is an error.
        without_effect: field -> reason. Any value is accepted, and the help says that it does nothing.
    """

    refused: Mapping[str, str]
    without_effect: Mapping[str, str]

    def __or__(self, other: "Options") -> "Options":
        return Options({**self.refused, **other.refused}, {**self.without_effect, **other.without_effect})


def _each(names: str, reason: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), reason)


# transformers.TrainingArguments, in every stage that trains
TRAINING = Options(
    refused={
        "label_smoothing_factor": "no loss of this library smooths labels",
        "optim_target_modules": "it is for GaLore and APOLLO, which take the place of LoRA",
        **_each(
            "torch_compile torch_compile_backend torch_compile_mode",
            "each shape of a batch would be compiled; compile takes one graph for all shapes",
        ),
        **_each("use_liger_kernel liger_kernel_config", "logits are computed in chunks, or only where they are read"),
        "auto_find_batch_size": "it would change the batch; per_device_train_batch_size: auto does not",
        **_each("fp16_full_eval bf16_full_eval", "an evaluation would round the weights that are trained"),
        **_each(
            "include_for_metrics batch_eval_metrics eval_do_concat_batches eval_use_gather_object label_names",
            "the stages have their own metrics",
        ),
        "accelerator_config": "the batch sizes rely on its defaults",
        "parallelism_config": "models are divided by FSDP or ZeRO-3 only: --accelerate fsdp, --accelerate zero3",
        **_each("fsdp fsdp_config deepspeed", "it is a choice of the launch: --accelerate fsdp, --accelerate zero3"),
        "save_on_each_node": "the first process writes for all machines, which share output_dir",
        "dataloader_drop_last": "it would drop validation rows, too",
        "enable_jit_checkpoint": "its checkpoints would not be atomic",
        **_each("hub_strategy hub_always_push", "the final files are uploaded once, at the end of the stage"),
    },
    without_effect={
        "use_cache": "training has no cache, sampling always has one",
        **_each("do_train do_eval do_predict", "a recipe trains, and eval_strategy decides on evaluations"),
        "local_rank": "the launcher sets it",
        "remove_unused_columns": "rows have only columns that are used",
        "length_column_name": "lengths are those of the rows",
    },
)

# What SFTConfig and RewardConfig have in common
TRL = Options(
    refused={
        "trust_remote_code": "code from a model's repository is never run",
        "model_init_kwargs": "set dtype, attn_implementation, load_in_4bit and the like",
        "chat_template_path": "all stages read the template of the model: put chat_template.jinja into its folder",
        "pad_token": "the pad token is one that is not EOS, chosen from the vocabulary",
    },
    without_effect={},
)

# rlhf.models.loading.LoraModelConfig: the stage trains an adapter
TRAINED_ADAPTER = Options(
    refused={
        "use_peft": "the stages train LoRA adapters, never the whole model",
        "lora_task_type": "each stage sets its own",
    },
    without_effect={},
)

# trl.ModelConfig: the recipe reads adapters that are trained already
READ_ADAPTERS = Options(
    refused=_each(
        "lora_r lora_alpha lora_dropout lora_target_modules lora_target_parameters lora_modules_to_save use_rslora "
        "use_dora",
        "the adapters are trained already, and their folders say it",
    ),
    without_effect=_each("use_peft lora_task_type", "the adapters' folders say it"),
)

SFT = (
    TRAINING
    | TRL
    | TRAINED_ADAPTER
    | Options(
        refused={
            **_each(
                "packing packing_strategy eval_packing padding_free",
                "batches count demonstrations, each in a row of its own",
            ),
            **_each(
                "dataset_text_field dataset_kwargs", "rows have a prompt and a completion; docs/data.md has their forms"
            ),
            "assistant_only_loss": "a row has one completion, and the loss is on that",
            "truncation_mode": "nothing is cut: rows longer than max_length are bad rows",
            **_each(
                "load_best_model_at_end metric_for_best_model greater_is_better",
                "the epoch is chosen by eval_loss, or with reward_model_path by the reward model's score",
            ),
        },
        without_effect={},
    )
)

REWARD = (
    TRAINING
    | TRL
    | TRAINED_ADAPTER
    | Options(
        refused={
            "neftune_noise_alpha": "noise on the embeddings is for SFT",
            "average_tokens_across_devices": "the loss is a mean over the prompts of a step on all devices",
            "prediction_loss_only": "the report needs the scores",
        },
        without_effect={},
    )
)

PPO = (
    TRAINING
    | TRAINED_ADAPTER
    | Options(
        refused={
            **_each("neftune_noise_alpha lora_dropout", "the policy that is trained must be the one that has sampled"),
            "data_seed": "seed decides on prompts and samples",
            "ignore_data_skip": "the step decides on the prompts",
            "include_num_input_tokens_seen": "a step trains on episodes; the metric `episode` counts them",
            "train_sampling_strategy": "each pass over the prompts is in a random order",
            **_each("model_adapter_name ref_adapter_name", "the recipe names the adapters; they are for scripts"),
        },
        without_effect={
            **_each(
                "dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor "
                "dataloader_multiprocessing_context dataloader_in_order",
                "prompts are encoded before the training",
            ),
            **_each("prediction_loss_only eval_accumulation_steps", "an evaluation samples and scores"),
            "average_tokens_across_devices": "a step's loss is a mean over all devices",
            **_each(
                "ds3_gather_for_generation num_total_batches micro_batch_size local_batch_size local_mini_batch_size "
                "stop_token",
                "accepted for TRL's scripts",
            ),
        },
    )
)
