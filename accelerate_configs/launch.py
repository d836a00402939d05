"""`accelerate launch`, which waits for a stage that is stopped with Ctrl-C instead of printing a traceback.

python accelerate_configs/launch.py --config_file accelerate_configs/cpu.yaml recipes/sft.py --config my.yaml
"""

import signal
import sys

from accelerate.commands.launch import main

if __name__ == "__main__":
    # The stage gets the signal as well, and says how to go on. A function, because a child inherits SIG_IGN.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        main()
    except Exception as error:
        if type(error).__name__ != "SignalException":  # torch's launcher of several processes has stopped them
            raise
        sys.exit(130)
