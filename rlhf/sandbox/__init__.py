"""The embedded world: all data for which InstructGPT needed people, generated from a seed at any size."""
