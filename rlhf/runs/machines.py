"""A launch over several machines: all of them must see one output folder."""

import os
import socket
import uuid
from pathlib import Path

from accelerate.utils import broadcast_object_list, gather_object

from rlhf.errors import InputError
from rlhf.runs.processes import process_state


def several_machines() -> bool:
    """True if the launch has processes on other machines: torch's launcher counts both kinds of processes."""
    processes = os.environ.get("WORLD_SIZE", "1")
    return int(processes) > int(os.environ.get("LOCAL_WORLD_SIZE", processes))


def require_shared(folder: str | Path, option: str = "output_dir") -> None:
    """Checks that a folder is the same one on all machines of the launch. All processes must call this.

    The first process writes, and the others read: their part of a checkpoint, the epochs to choose from, the adapters
    of the stage before. On disks of their own, the machines would hold parts of checkpoints that nobody can resume.

    A file of a new name is written and looked for. No machine has asked for the name before, so no cache of a network
    file system knows the answer.

    Args:
        folder: need not exist; then the nearest folder above it is checked.
        option: the name of the option, for the message.

    Raises:
        InputError: a machine does not see the file; in all processes.
    """
    if not several_machines():
        return
    state, path = process_state(), Path(folder).absolute()
    levels, name, reason = 0, f".{uuid.uuid4().hex}", None
    if state.is_main_process:
        levels = next(level for level, parent in enumerate((path, *path.parents)) if parent.exists())
    levels, name = broadcast_object_list([levels, name])
    probe = (path, *path.parents)[min(levels, len(path.parents))] / name
    try:
        if state.is_main_process:
            try:
                probe.touch()
            except OSError as error:
                reason = error.strerror
        [reason] = broadcast_object_list([reason])
        if reason is not None:
            raise InputError(f"{option} {folder} cannot be written: {reason}. Choose another.")
        machine = os.environ.get("GROUP_RANK", "0")
        answers = gather_object([(machine, socket.gethostname(), probe.exists())])
    finally:
        if state.is_main_process:
            probe.unlink(missing_ok=True)
    blind = sorted({f"{machine} ({host})" for machine, host, sees in answers if not sees})
    if blind:
        raise InputError(
            f"{option} {folder} is not the same folder on all machines: machine {', '.join(blind)} does not see what "
            f"machine 0 ({answers[0][1]}) writes there. Put it on storage that all machines mount, and start every "
            "machine in the same folder."
        )
