"""Starts the script of a stage: python accelerate_configs/start.py recipes/sft.py --config my.yaml

The launcher's processes run it, so that Ctrl-C while the libraries load is one word instead of a traceback.
"""

import os
import runpy
import sys

if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print("\nstopped", file=sys.stderr, flush=True)
        sys.exit(130)
