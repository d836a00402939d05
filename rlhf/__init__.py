"""InstructGPT's recipe (arXiv 2203.02155) on TRL, PEFT and Accelerate: SFT, reward model, PPO, evaluation.

Importing the package is light on purpose: torch is imported by the modules that compute.
"""

__version__ = "0.1.0"
