"""`accelerate launch`, with the exit code of the stage. Ctrl-C waits for the stage, and prints no traceback.

    python accelerate_configs/launch.py --config_file accelerate_configs/cpu.yaml recipes/sft.py --config my.yaml

`rlhf <stage>` and `make <stage>` run it (rlhf/command.py).

On several machines it is started once on each, and reads from the environment what differs between them:

    NNODES          number of machines; without it, or 1, the launch is on this machine alone
    NODE_RANK       number of this machine, from 0
    MASTER_ADDR     name or address of machine 0
    MASTER_PORT     a free port of machine 0; 29500 by default
    NPROC_PER_NODE  processes on each machine; by default one for each GPU of this one

The names are PyTorch's. Options of the launcher itself (`--num_machines`, `--machine_rank`, ...) take precedence.
"""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping

import psutil
from accelerate.commands.launch import main


def machine_options(environment: Mapping[str, str]) -> list[str]:
    """Returns the launcher's options for the machines that the environment names; none for one machine.

    Raises:
        ValueError: a variable is missing or not a number, or the machines have no GPU and no NPROC_PER_NODE.
    """
    machines = _number(environment, "NNODES", default=1)
    if machines <= 1:
        return []
    rank = _number(environment, "NODE_RANK")
    if not 0 <= rank < machines:
        raise ValueError(f"NODE_RANK is {rank}, and there are {machines} machines. Number them from 0.")
    address = environment.get("MASTER_ADDR")
    if not address:
        raise ValueError(f"NNODES is {machines}, and MASTER_ADDR is not set. Set it to the address of machine 0.")
    port, processes = _number(environment, "MASTER_PORT", default=29500), _number(environment, "NPROC_PER_NODE", 0)
    if not processes:
        import torch

        processes = torch.cuda.device_count()
    if not processes:
        raise ValueError("There is no GPU on this machine. Set NPROC_PER_NODE to its number of processes.")
    options = {"num_machines": machines, "machine_rank": rank, "main_process_ip": address, "main_process_port": port}
    return [f"--{name}={value}" for name, value in {**options, "num_processes": machines * processes}.items()]


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name) or default
    if text is None:
        raise ValueError(f"NNODES is {environment['NNODES']}, and {name} is not set. Set it on each machine.")
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{name} is {text}. Set it to a whole number.") from None


def exit_code(error: Exception) -> int:
    """Returns the exit code of a stage that has failed: 130 after Ctrl-C, 128 + n after signal n.

    Raises:
        Exception: the error itself, if it is the launcher's own.
    """
    kind = type(error).__name__  # torch.distributed's, which one process need not import
    if kind == "SignalException":  # the launcher of several processes has stopped them
        return 130
    if isinstance(error, ConnectionError):  # the launcher's own, before it starts a process
        port = os.environ.get("MASTER_PORT") or "29500"
        print(f"error: Port {port} is in use on this machine. Set MASTER_PORT to a free one on all.", file=sys.stderr)
        return 2
    if isinstance(error, subprocess.CalledProcessError):
        code = error.returncode
    elif kind == "ChildFailedError":
        code = error.get_first_failure()[1].exitcode  # pyright: ignore[reportAttributeAccessIssue]
    else:
        raise error
    if code < 0:
        hint = ", often for lack of memory" if -code == signal.SIGKILL else ""
        print(f"The stage was ended by {signal.Signals(-code).name}{hint}.", file=sys.stderr)
        return 128 - code
    return code


def forward(number: int, frame: object) -> None:
    """Sends a signal to the stage, which would otherwise go on without its launcher."""
    children = psutil.Process().children()
    for child in children:
        child.send_signal(number)
    if not children:
        sys.exit(128 + number)


if __name__ == "__main__":
    # The stage gets the signal as well, and says how to go on. A function, because a child inherits SIG_IGN.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda number, frame: None)
    signal.signal(signal.SIGTERM, forward)  # `kill` and schedulers send it to this process alone
    try:
        machines = machine_options(os.environ)
        _number(os.environ, "OMP_NUM_THREADS", default=1)  # the launcher reads it, too
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    sys.argv[1:1] = machines
    if not machines:
        logging.disable(logging.ERROR)  # torch's launcher; a stage that fails or is stopped has said so itself
    try:
        main()
    except Exception as error:
        sys.exit(exit_code(error))
