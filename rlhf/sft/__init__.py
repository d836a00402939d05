"""Supervised fine-tuning with TRL's SFTTrainer, and the choice of an epoch by reward-model score."""
