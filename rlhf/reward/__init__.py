"""Reward model from human rankings (arXiv 2203.02155, section 3.5)."""

from rlhf.reward.config import KWiseRewardConfig
from rlhf.reward.loss import kwise_loss
from rlhf.reward.trainer import KWiseRewardTrainer

__all__ = ["KWiseRewardConfig", "KWiseRewardTrainer", "kwise_loss"]
