"""Systems that are evaluated, each a name and a one-line spec; the same in YAML and on the command line.

    base  sft  ppo                                    stages of the run
    sft,temperature=0                                 the same, decoded greedily: sft_greedy
    other=runs/other/ppo                              folder or Hub id of an adapter, on any base
    small=HuggingFaceTB/SmolLM2-135M-Instruct         folder or Hub id of a whole model
    prompted=gpt2,prefix=few_shot.txt,stop=\\n\\n     plain text: the file, then the prompt (GPT-3 prompted)
    sft,best_of=16,reward=runs/sandbox/reward         the best of 16 samples by a reward model: sft_best
    theirs=answers.jsonl                              completions made elsewhere; also .csv, .parquet
    api=http://localhost:8000/v1,model=llama          a model behind an OpenAI-compatible endpoint

A spec is NAME=SOURCE, or SOURCE alone, and then options KEY=VALUE, separated by commas.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from rlhf.data.files import SUFFIXES
from rlhf.errors import InputError
from rlhf.runs.digests import file_digest
from rlhf.runs.system_names import GREEDY

STAGES = ("base", "sft", "ppo")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # it becomes the name of a file
ESCAPES = {"\\n": "\n", "\\t": "\t", "\\,": ","}


@dataclass(frozen=True)
class System:
    """A model and its decoding.

    Attributes:
        name: of the system in tables, and of the file with its answers.
        source: stage of the run, folder or Hub id, file of completions, or URL.
        model: name of the model behind a URL.
        key: environment variable with the key of the URL, see `rlhf.evaluation.chat_api.ChatServer`.
        base: folder or Hub id of an adapter's base; None: the one that the adapter names.
        prefix: text file that comes before each prompt; prompts are then plain text.
        best_of: n samples per prompt, of which the one with the highest reward counts; None: one sample.
        reward: folder or Hub id of the reward adapter that chooses.
        temperature: 0 is greedy; None: the policy's.
        max_new_tokens: length limit of an answer; None: that of the evaluation.
        stop: texts before which an answer ends, besides the stop tokens.
    """

    name: str
    source: str
    model: str | None = None
    key: str | None = None
    base: str | None = None
    prefix: str | None = None
    best_of: int | None = None
    reward: str | None = None
    temperature: float | None = None
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()

    @property
    def kind(self) -> Literal["endpoint", "file", "model"]:
        if self.source.startswith(("http://", "https://")):
            return "endpoint"
        return "file" if self.source.lower().endswith(SUFFIXES) else "model"

    @property
    def prefix_digest(self) -> str | None:
        """Returns a digest of the file of the prefix."""
        return file_digest(Path(self.prefix).expanduser()) if self.prefix else None

    def spec(self) -> dict[str, Any]:
        """Returns what was given, for summary.json."""
        return {name: value for name, value in asdict(self).items() if name != "name" and value not in (None, ())}


KEYS = tuple(field.name for field in fields(System) if field.name not in ("name", "source"))
NUMBERS = {"best_of": (int, 2), "temperature": (float, 0), "max_new_tokens": (int, 1)}  # type and minimum
ALLOWED = {
    "endpoint": ("model", "key", "prefix", "temperature", "max_new_tokens", "stop"),
    "file": (),
    "model": tuple(key for key in KEYS if key not in ("model", "key")),
}


def default_specs(stages: Iterable[str], best_of: int = 0) -> list[str]:
    """Returns the specs of base, SFT and PPO, sampled and greedy, as far as the run has them, and of best of n."""
    models = [name for name in STAGES if name == "base" or name in stages]
    best = [f"sft,best_of={best_of}"] if best_of else []
    return [*models, *(f"{name},temperature=0" for name in models), *best]


def parse_systems(specs: Iterable[str]) -> list[System]:
    """Returns the systems of one-line specs.

    Raises:
        InputError: an unknown key, a value of the wrong type, a key that this kind of source does not have, a file that
            does not exist, or two systems of one name.
    """
    systems = [parse_system(spec) for spec in specs]
    names = [system.name for system in systems]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"Two systems are named {name}. Give one of them another name: other={name},...")
    if not systems:
        raise InputError("systems is empty. Name at least one, such as sft.")
    return systems


def parse_system(spec: str) -> System:
    """Returns the system of one spec; see `parse_systems`."""
    head, *rest = re.split(r"(?<!\\),", spec)
    name, equals, source = head.partition("=")
    if not equals or not NAME.fullmatch(name):  # a source alone, which may hold a =
        name, source = "", head
    if not source.strip():
        raise InputError(f"System {spec!r} has no source. Write NAME=SOURCE, such as other=runs/other/sft.")
    options = _options(spec, rest)
    system = replace(System(name or _own_name(source, options), source), **options)
    if not NAME.fullmatch(system.name):
        raise InputError(f"System {spec!r} needs a name of letters, digits and ._- before it: other={spec}")
    _check(system, options)
    return system


def resolve(system: System, temperature: float, max_new_tokens: int, reward: str | None) -> System:
    """Returns the system with the evaluation's decoding options where it has none of its own.

    Args:
        reward: the run's reward adapter, which chooses the best of n.

    Raises:
        InputError: best of n without a reward adapter.
    """
    if system.kind == "file":
        return system
    system = replace(
        system,
        temperature=temperature if system.temperature is None else system.temperature,
        max_new_tokens=max_new_tokens if system.max_new_tokens is None else system.max_new_tokens,
    )
    if not system.best_of:
        return system
    if not (system.reward or reward):
        raise InputError(
            f"System {system.name} takes the best of {system.best_of} by no reward model. Add reward=PATH."
        )
    if system.temperature == 0:
        raise InputError(f"System {system.name} takes the best of {system.best_of} equal answers. Raise temperature.")
    return replace(system, reward=system.reward or reward)


def _options(spec: str, pairs: list[str]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if key not in KEYS or not equals:
            raise InputError(
                f"System {spec!r} has an unknown option {pair!r}. Choose from {', '.join(KEYS)}: KEY=VALUE."
            )
        if key in options:
            raise InputError(f"System {spec!r} gives {key} twice. Give it once.")
        options[key] = _value(spec, key, value)
    return options


def _value(spec: str, key: str, value: str) -> Any:
    if key == "stop":
        for escape, text in ESCAPES.items():
            value = value.replace(escape, text)
        texts = tuple(text for text in value.split("|") if text)
        if not texts:
            raise InputError(
                f"System {spec!r} has an empty stop. Give texts separated by |, such as stop=\\n\\n|Question:"
            )
        return texts
    if key not in NUMBERS:
        if not value:
            raise InputError(f"System {spec!r} has an empty {key}. Give a value, or leave it out.")
        return value
    kind, minimum = NUMBERS[key]
    try:
        number = kind(value)
    except ValueError as error:
        raise InputError(f"System {spec!r}: {key} is {value!r}, not a number. Correct it.") from error
    if not minimum <= number < float("inf"):
        raise InputError(f"System {spec!r}: {key} is {value}; it must be at least {minimum}.")
    return number


def _own_name(source: str, options: Mapping[str, Any]) -> str:
    """Returns the last part of the source; `sft_greedy` for `sft,temperature=0`, `sft_best` for `sft,best_of=16`."""
    name = options.get("model", source).rstrip("/").rsplit("/", 1)[-1]
    ending = next((one for one in SUFFIXES if name.lower().endswith(one)), "")
    name = name[: len(name) - len(ending)]
    return name + ("_best" if "best_of" in options else GREEDY if options.get("temperature") == 0 else "")


def _check(system: System, options: Mapping[str, Any]) -> None:
    where = f"System {system.name}"
    for key in options:
        if key not in ALLOWED[system.kind]:
            raise InputError(f"{where} is of the kind {system.kind}, which has no {key}. Leave {key} out.")
    if system.kind == "endpoint":
        if not system.model:
            raise InputError(f"{where} needs the name of a model behind {system.source}. Add model=NAME.")
        if urlsplit(system.source).query:
            raise InputError(f"{where} has a query in its URL. Leave it out; a key is read from the environment.")
    if system.reward and not system.best_of:
        raise InputError(f"{where} has a reward model and nothing to choose from. Add best_of=N.")
    files = {"source": system.source if system.kind == "file" else None, "prefix": system.prefix}
    for key, file in files.items():
        if file is not None and not Path(file).expanduser().is_file():
            noun = "completions" if key == "source" else "the prefix"
            raise InputError(f"{where}: the file of {noun}, {file}, does not exist. Correct its path.")
