"""Starts the script of a stage: python accelerate_configs/start.py recipes/sft.py --config my.yaml

The launcher's processes run it, so that Ctrl-C while the libraries load is one word instead of a traceback.
"""

import os
import runpy
import signal
import sys
from typing import NoReturn


def interrupt(number: int, frame: object) -> NoReturn:
    """Ends the imports at the first signal. A launcher and the terminal may both send one."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    signal.signal(signal.SIGTERM, interrupt)
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print("\nstopped", file=sys.stderr, flush=True)
        sys.exit(130)
