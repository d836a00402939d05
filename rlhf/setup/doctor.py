"""Abilities of this machine and what is missing, each missing thing with its remedy in one line."""

import importlib.metadata
import importlib.util
import os
import shutil
import socket
import tomllib
from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub import constants, get_token
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from rlhf.inference.gguf import CONVERTER
from rlhf.runs.console import gigabytes
from rlhf.runs.installation import PACKAGE as PACKAGE_FOLDER
from rlhf.runs.machine_memory import main_memory
from rlhf.setup.finding import Finding
from rlhf.setup.machine import Machine, this_machine

PACKAGE = "instruct-rlhf"
EXTRAS = {
    "data": "finds personal data in prompts",
    "eval": "benchmarks, judges behind endpoints, length-controlled win rates",
    "label": "labeling in a browser",
    "track": "tensorboard, trackio, wandb",
}
LITTLE_DISK = 5e9  # bytes: a small model and the checkpoints of its adapters
LITTLE_MEMORY = 4e9
HUB = "huggingface.co"
SECONDS = 3.0  # that the network gets to answer


def examine() -> Iterator[Finding]:
    """Yields the findings, the cheap ones first."""
    machine = this_machine()
    yield devices(machine)
    yield precisions(machine)
    yield memory(machine)
    yield disk(Path.cwd())
    yield from extras()
    yield quantization()
    yield converter()
    yield token()
    yield network()


def devices(machine: Machine) -> Finding:
    if not machine.gpus:
        built = torch.version.cuda or torch.version.hip
        what = f"{machine.cores} CPU cores, no GPU that torch sees"
        if shutil.which("nvidia-smi") and not built:
            return Finding(
                "devices", "missing", what, "Install torch with CUDA: https://pytorch.org/get-started/locally/"
            )
        small = "ok for models of a few hundred million parameters; larger ones need a GPU (docs/scale.md)"
        return Finding("devices", "ok", f"{what}: {small}")
    return Finding("devices", "ok", str(machine))


def precisions(machine: Machine) -> Finding:
    if not machine.gpus:
        lacks = "float32; this CPU has no instructions for bfloat16 (recipes for it say bf16: false)"
        return Finding("precision", "ok", "float32, bfloat16 (bf16: true)" if machine.bf16 else lacks)
    if not machine.bf16:
        return Finding("precision", "missing", "float32; this GPU has no bfloat16", "Set bf16: false, dtype: float32.")
    return Finding("precision", "ok", "float32, bfloat16")


def memory(machine: Machine) -> Finding:
    free, _ = main_memory()
    text = f"{gigabytes(free)} of {gigabytes(machine.memory)} GB free"
    if free < LITTLE_MEMORY:
        return Finding("memory", "missing", text, "Close other programs; a model of 135 M parameters takes 3 GB.")
    return Finding("memory", "ok", text)


def disk(folder: Path) -> Finding:
    """Looks at the disk of the runs, which is also written to."""
    text = f"{gigabytes(shutil.disk_usage(folder).free)} GB free in {folder}"
    if not os.access(folder, os.W_OK):
        return Finding("disk", "broken", f"{folder} cannot be written", "Run in a folder of your own.")
    if shutil.disk_usage(folder).free < LITTLE_DISK:
        return Finding("disk", "missing", text, "Delete checkpoints of old runs: runs/*/*/checkpoint-*.")
    return Finding("disk", "ok", text)


def extras() -> Iterator[Finding]:
    """Looks for the packages of the optional parts."""
    for extra, use in EXTRAS.items():
        absent = [name for name in extra_packages(extra) if not installed(name)]
        if absent:
            remedy = f"pip install '{PACKAGE}[{extra}]', in a checkout pip install -e '.[{extra}]' -c constraints.txt"
            yield Finding(extra, "missing", f"{', '.join(absent)}: {use}", remedy)
        else:
            yield Finding(extra, "ok", use)


def extra_packages(extra: str) -> list[str]:
    """Returns the packages of an extra, by pyproject.toml in a checkout, else by the metadata of this package."""
    project = PACKAGE_FOLDER.parent / "pyproject.toml"
    if project.is_file():
        table = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
        return [Requirement(text).name for text in table[extra]]
    required = [Requirement(text) for text in importlib.metadata.requires(PACKAGE) or ()]
    return sorted({r.name for r in required if r.marker and r.marker.evaluate({"extra": extra})})


def installed(name: str) -> bool:
    """True if a distribution is installed."""
    try:
        importlib.metadata.distribution(canonicalize_name(name))
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def quantization() -> Finding:
    if importlib.util.find_spec("bitsandbytes") is None:
        return Finding("4-bit", "missing", "bitsandbytes is not installed", "pip install bitsandbytes")
    return Finding("4-bit", "ok", f"bitsandbytes {importlib.metadata.version('bitsandbytes')}: load_in_4bit")


def converter() -> Finding:
    found = shutil.which(CONVERTER)
    if found is None:
        remedy = "git clone https://github.com/ggml-org/llama.cpp, then rlhf export --llama_cpp llama.cpp"
        return Finding("gguf", "missing", f"{CONVERTER} is not on the PATH: rlhf export needs it", remedy)
    return Finding("gguf", "ok", f"{found}: rlhf export")


def token() -> Finding:
    """Says if there is a token of the Hub, and never which."""
    if get_token() is None:
        return Finding("token", "missing", "none: gated models and rlhf push need one", "hf auth login")
    return Finding("token", "ok", "there is a token of the Hub")


def network() -> Finding:
    """Tries a connection to the Hub, unless offline mode is set."""
    if constants.HF_HUB_OFFLINE:
        remedy = "Unset HF_HUB_OFFLINE to download; local folders need no network."
        return Finding("network", "missing", "HF_HUB_OFFLINE is set: only what has been downloaded is found", remedy)
    try:
        socket.create_connection((HUB, 443), timeout=SECONDS).close()
    except OSError as error:
        remedy = "Use local folders, or set HTTPS_PROXY and HF_ENDPOINT as your network needs."
        return Finding("network", "missing", f"{HUB} does not answer ({error.strerror or error})", remedy)
    return Finding("network", "ok", f"{HUB} answers")
