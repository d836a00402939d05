"""Uploads finished stages to the Hugging Face Hub, to private repositories unless --public is given.

    rlhf push runs/sandbox --hub_id your-name/model --dry_run

Reads the folder of a stage or of a whole run; writes nothing on this machine. If the RLHF adapter was evaluated
(summary.json beside its folder), its model card has the tables of the report.
"""

from dataclasses import dataclass, field
from pathlib import Path

from rlhf.cli import parse, run
from rlhf.evaluation.report import card_text
from rlhf.models.contracts import check_agreement
from rlhf.runs.hub import find_stages, push_run


@dataclass
class PushArguments:
    """Source and target of the upload."""

    run_folder: str = field(metadata={"help": "Folder of one stage, or of a run with sft, reward and ppo in it."})
    hub_id: str = field(metadata={"help": "owner/name; the stages of a run go to owner/name-sft and so on."})
    public: bool = field(default=False, metadata={"help": "Make the repositories public."})
    dry_run: bool = field(default=False, metadata={"help": "Only list the files to upload."})


def main() -> None:
    (args,) = parse(PushArguments, positional="run_folder")
    stages = find_stages(Path(args.run_folder))
    check_agreement(stages)
    evaluation = card_text(stages["ppo"]) if "ppo" in stages else None
    push_run(args.run_folder, args.hub_id, private=not args.public, dry_run=args.dry_run, evaluation=evaluation)


if __name__ == "__main__":
    run(main)
