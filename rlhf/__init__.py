"""InstructGPT's recipe (arXiv 2203.02155) on TRL, PEFT and Accelerate: SFT, reward model, PPO, evaluation.

Importing the package is light on purpose: torch is imported by the modules that compute.
"""

import logging

__version__ = "0.1.0"

# On CPUs with AVX-512 it asks, at every start, for a package that would only make 4-bit models faster.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
