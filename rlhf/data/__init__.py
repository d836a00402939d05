"""Demonstrations, comparisons, prompts and pretraining text in the schemas that all stages read."""
