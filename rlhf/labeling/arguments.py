"""Options of recipes/label.py."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rlhf.errors import InputError, require_at_least
from rlhf.labeling.items import MAX_COMPLETIONS


@dataclass
class LabelArguments:
    run: str = field(metadata={"help": "Folder of a run, such as runs/sandbox: its stages and its labels.db."})
    recipe: str | None = field(
        default=None,
        metadata={"help": "Name of a recipe, or its folder: data for a first look, and options of its models."},
    )
    store: str | None = field(default=None, metadata={"help": "File of the labels. None: labels.db in run."})

    # Items
    systems: list[str] | None = field(
        default=None, metadata={"help": "Systems whose answers are compared: base sft ppo other=path_or_Hub_id ..."}
    )
    prompts: str | None = field(
        default=None, metadata={"help": "File, Hub name or sandbox: what the systems are asked. None: the recipe's."}
    )
    k: int = field(default=4, metadata={"help": "Completions of an item, 2 to 9; several systems share them."})
    completions: str | None = field(
        default=None, metadata={"help": "File of completions to compare, or completions.jsonl of an evaluation."}
    )
    demonstrations: str | None = field(
        default=None, metadata={"help": "File, Hub name or sandbox: prompts whose ideal answers people write."}
    )
    gold: str | None = field(
        default=None, metadata={"help": "File of rankings and demonstrations that are right, to screen labelers by."}
    )
    size: int | None = field(
        default=None, metadata={"help": "Prompts, at most. None: 100 of the recipe's data, all of a file."}
    )
    batch: str | None = field(default=None, metadata={"help": "Name of the batch. None: that of the source."})
    priority: int = field(default=0, metadata={"help": "Batches with a higher priority come first."})
    labelers_per_item: int = field(default=1, metadata={"help": "Number of labelers who judge an item."})
    share_for_several: float = field(
        default=0.0, metadata={"help": "Share of the items for labelers_if_several people, to measure agreement."}
    )
    labelers_if_several: int = field(default=3, metadata={"help": "Number of labelers who judge such an item."})
    max_new_tokens: int | None = field(
        default=None, metadata={"help": "Tokens of an answer, at most. None: those of the recipe's PPO, else 256."}
    )
    batch_size: int = field(default=64, metadata={"help": "Prompts per batch."})
    seed: int = field(default=0, metadata={"help": "Seed of sampling, and of the choice of items for several people."})

    # Work on the store, after which the command ends
    invite: list[str] | None = field(default=None, metadata={"help": "Names of labelers; prints a link for each."})
    screened: bool = field(
        default=False, metadata={"help": "Whom --invite adds judges gold first, and gets work if she agrees with it."}
    )
    held_out: bool = field(
        default=False, metadata={"help": "No stage trains on the labels of those whom --invite adds; they validate."}
    )
    revoke: list[str] | None = field(default=None, metadata={"help": "Names of labelers who may not log in any more."})
    import_rankings: str | None = field(default=None, metadata={"help": "Source of comparisons to take in."})
    import_as: Literal["judgments", "items"] = field(
        default="judgments", metadata={"help": "judgments: they count as they are. items: they are ranked again."}
    )
    import_labeler: str = field(default="imported", metadata={"help": "Labeler of rankings that name none."})
    export: str | None = field(
        default=None, metadata={"help": "Folder for three files of JSON lines, or a file for Argilla's records."}
    )
    export_format: Literal["jsonl", "argilla"] = field(default="jsonl", metadata={"help": "Format of the export."})

    # The server
    serve: bool = field(default=True, metadata={"help": "false: make the items and end."})
    host: str = field(default="127.0.0.1", metadata={"help": "Address to listen on. 127.0.0.1: this machine alone."})
    port: int = field(default=8000, metadata={"help": "Port to listen on."})
    flags: str | None = field(
        default=None, metadata={"help": "YAML file of flags. None: those of the paper's Table 3."}
    )
    instructions: str | None = field(
        default=None, metadata={"help": "Markdown file of instructions for labelers, kept in the store."}
    )
    url: str | None = field(
        default=None, metadata={"help": "Address that labelers open, such as https://label.example.org. None: host."}
    )
    ssl_certfile: str | None = field(default=None, metadata={"help": "Certificate, PEM, for https without a proxy."})
    ssl_keyfile: str | None = field(default=None, metadata={"help": "Its private key, if in another file."})

    def __post_init__(self):
        require_at_least(self, 1, "size", "max_new_tokens", "batch_size", "labelers_per_item", "labelers_if_several")
        if not 2 <= self.k <= MAX_COMPLETIONS:
            raise InputError(f"k is {self.k}; people rank 2 to {MAX_COMPLETIONS} completions.")
        if not 0 < self.port < 65536:
            raise InputError(f"port is {self.port}; it must be 1 to 65535.")
        if self.systems and self.completions:
            raise InputError("systems and completions are two sources of one batch. Give them in two commands.")
        if self.systems and self.k < len(self.systems):
            raise InputError(f"{len(self.systems)} systems share k = {self.k} completions. Raise k, or name fewer.")
        if self.prompts and not self.systems:
            raise InputError(
                "prompts are what systems are asked. Add --systems, or give them as --demonstrations to be answered "
                "by people."
            )
        for name in ("screened", "held_out"):
            if getattr(self, name) and not self.invite:
                raise InputError(f"{name} is for those whom --invite names. Add --invite, or leave it out.")
        if self.ssl_keyfile and not self.ssl_certfile:
            raise InputError("ssl_keyfile is given without ssl_certfile. Give both.")
        if self.url and not self.url.startswith(("http://", "https://")):
            raise InputError(f"url is {self.url}; it must begin with http:// or https://.")

    @property
    def address(self) -> str:
        """Returns the address that labelers open."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)
        host = f"[{host}]" if ":" in host and not host.startswith("[") else host
        return (self.url or f"http{'s' * bool(self.ssl_certfile)}://{host}:{self.port}").rstrip("/")

    @property
    def path(self) -> Path:
        """Returns the path of the store."""
        return Path(self.store or Path(self.run) / "labels.db").expanduser()

    @property
    def has_work(self) -> bool:
        """True if the command does its work and ends."""
        return bool(self.invite or self.revoke or self.import_rankings or self.export)
