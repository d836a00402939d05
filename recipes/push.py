"""Uploads finished stages or a merged model to the Hugging Face Hub, privately unless --public is given.

    rlhf push runs/sandbox --hub_id your-name/model --dry_run    # list the files
    rlhf push runs/sandbox --hub_id your-name/model              # all stages, as a collection
    rlhf push models/sandbox --hub_id your-name/merged           # a folder of `rlhf merge`

Reads the folder of a stage, of a whole run or of a merged model; writes nothing on this machine. The model card has the
numbers of the run's evaluation, if this very adapter was evaluated. Push again after a broken connection or a change:
only what differs is sent. Needs a token with write access: `hf auth login`, or HF_TOKEN.
"""

from dataclasses import dataclass, field
from pathlib import Path

from rlhf.cli import parse, run
from rlhf.evaluation.report_card import card_evaluation
from rlhf.models.contracts import check_agreement
from rlhf.runs.hub import push_run
from rlhf.runs.hub_files import MERGED, find_stages


@dataclass
class PushArguments:
    """Source and target of the upload."""

    run_folder: str = field(
        metadata={"help": "Folder of one stage, of a run with sft, reward and ppo in it, or of a merged model."}
    )
    hub_id: str = field(metadata={"help": "owner/name; the stages of a run go to owner/name-sft and so on."})
    revisions: bool = field(
        default=False, metadata={"help": "Also upload each checkpoint, as the branch checkpoint-<step>."}
    )
    public: bool = field(default=False, metadata={"help": "Make the repositories public."})
    dry_run: bool = field(default=False, metadata={"help": "Only list the files to upload."})


def main() -> None:
    (args,) = parse(PushArguments, positional="run_folder")
    stages = {stage: folder for stage, folder in find_stages(Path(args.run_folder)).items() if stage != MERGED}
    check_agreement(stages)
    evaluations = {stage: card_evaluation(folder, stage) for stage, folder in stages.items()}
    push_run(args.run_folder, args.hub_id, not args.public, args.dry_run, evaluations, args.revisions)


if __name__ == "__main__":
    run(main)
