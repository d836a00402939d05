"""PPO with a policy, a reference, a value and a reward model that may share one frozen base."""

from rlhf.ppo.config import PPOConfig
from rlhf.ppo.trainer import PPOTrainer

__all__ = ["PPOConfig", "PPOTrainer"]
