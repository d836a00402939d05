"""Loads demonstrations, comparisons, prompts and pretraining text in the schemas that all stages read.

name of the source -> rows of files or of the Hub (sources, files) -> published format (formats) -> schema (schemas)
-> split (splits) -> `datasets.Dataset` (loading)
"""

from rlhf.data.arguments import DataArguments
from rlhf.data.loading import load_comparisons, load_demonstrations, load_pretraining, load_prompts

__all__ = [
    "DataArguments",
    "load_comparisons",
    "load_demonstrations",
    "load_pretraining",
    "load_prompts",
]
