"""Sampling for every stage, and log-probabilities and rewards of the samples."""
