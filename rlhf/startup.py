"""Imported before the libraries by every recipe: they load in two thirds of the time.

torch, transformers, PEFT and bitsandbytes make 460,000 objects that all stay. Looking through them for garbage, again
and again while they are made and once more at the exit, took three of ten seconds. `rlhf.cli.run` turns the collector
on.
"""

import gc

gc.disable()
