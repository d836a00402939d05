"""Honest evaluation: fresh samples on held-out prompts, judged pairwise, with intervals clustered by prompt."""
