"""Supervised fine-tuning on TRL's SFTTrainer, and the choice of its epoch by reward-model score."""
