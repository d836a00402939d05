"""Uploads finished stages to the Hugging Face Hub, privately unless --public is given.

python recipes/push.py --run_folder runs/sandbox --hub_id your-name/model --dry_run
"""

from dataclasses import dataclass, field

import rlhf.startup  # noqa: F401
from rlhf.cli import parse, run
from rlhf.runs.hub import push_run


@dataclass
class PushArguments:
    """What goes where."""

    run_folder: str = field(metadata={"help": "A stage's folder, or a recipe's with sft, reward and ppo in it."})
    hub_id: str = field(metadata={"help": "owner/name; the stages of a recipe go to owner/name-sft and so on."})
    public: bool = field(default=False, metadata={"help": "Make the repositories public."})
    dry_run: bool = field(default=False, metadata={"help": "Only list the files that would go."})


def main() -> None:
    (args,) = parse(PushArguments)
    push_run(args.run_folder, args.hub_id, private=not args.public, dry_run=args.dry_run)


if __name__ == "__main__":
    run(main)
