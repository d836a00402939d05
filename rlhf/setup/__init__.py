"""Looks at data, model and machine before a run: `rlhf new` writes a recipe for them, `rlhf doctor` reports."""
