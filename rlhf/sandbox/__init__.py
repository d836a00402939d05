"""The embedded world: all that InstructGPT needed people for, from a seed, at any size."""
