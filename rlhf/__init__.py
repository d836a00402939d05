"""InstructGPT's recipe (arXiv 2203.02155) on TRL, PEFT and Accelerate: SFT, reward model, PPO, evaluation.

`import rlhf` is fast: a name of `__all__` imports its module, and with it torch, when it is first used.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "DataArguments",
    "InputError",
    "KWiseRewardConfig",
    "KWiseRewardTrainer",
    "LoraModelConfig",
    "PPOConfig",
    "PPOTrainer",
    "SFTArguments",
    "SFTTrainer",
    "SharedBase",
    "load_adapters",
    "load_base",
    "load_comparisons",
    "load_demonstrations",
    "load_pretraining",
    "load_prompts",
    "load_reward_model",
    "load_tokenizer",
    "lora_config",
    "quiet_libraries",
    "resolve_model_name",
]

if TYPE_CHECKING:
    from rlhf.data.arguments import DataArguments
    from rlhf.data.loading import load_comparisons, load_demonstrations, load_pretraining, load_prompts
    from rlhf.errors import InputError
    from rlhf.models.loading import LoraModelConfig, load_base, load_tokenizer, lora_config, resolve_model_name
    from rlhf.models.reward_model import load_reward_model
    from rlhf.models.shared_base import SharedBase
    from rlhf.models.stages import load_adapters
    from rlhf.noise import quiet_libraries
    from rlhf.ppo.config import PPOConfig
    from rlhf.ppo.trainer import PPOTrainer
    from rlhf.reward.config import KWiseRewardConfig
    from rlhf.reward.trainer import KWiseRewardTrainer
    from rlhf.sft.trainer import SFTArguments, SFTTrainer
else:  # hidden from type checkers, which would accept any name
    _MODULES = {
        "DataArguments": "data.arguments",
        "InputError": "errors",
        "KWiseRewardConfig": "reward.config",
        "KWiseRewardTrainer": "reward.trainer",
        "LoraModelConfig": "models.loading",
        "PPOConfig": "ppo.config",
        "PPOTrainer": "ppo.trainer",
        "SFTArguments": "sft.trainer",
        "SFTTrainer": "sft.trainer",
        "SharedBase": "models.shared_base",
        "load_adapters": "models.stages",
        "load_base": "models.loading",
        "load_comparisons": "data.loading",
        "load_demonstrations": "data.loading",
        "load_pretraining": "data.loading",
        "load_prompts": "data.loading",
        "load_reward_model": "models.reward_model",
        "load_tokenizer": "models.loading",
        "lora_config": "models.loading",
        "quiet_libraries": "noise",
        "resolve_model_name": "models.loading",
    }

    def __getattr__(name):
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# On CPUs with AVX-512, bitsandbytes logs at every start that a further package would make 4-bit models faster.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
