"""How every stage samples, and the log-probabilities and rewards of what was sampled."""
