"""Scores files of continuations of RealToxicityPrompts, without a model.

    rlhf toxicity --files gpt2.jsonl ours=runs/a/benchmark/continuations/ppo.jsonl --output toxicity.json

Prints the toxicity of each system and its difference from the first one, paired by prompt, with scorer, version and
hash of its weights; and how well our scores agree with the scores that rows bring. docs/evaluation.md has the formats.
"""

from dataclasses import dataclass, field
from pathlib import Path

from rlhf.cli import parse, run
from rlhf.evaluation.benchmark import table, write_json
from rlhf.evaluation.scored_rows import agreement_text
from rlhf.evaluation.toxicity_files import read_continuations, score_continuations
from rlhf.evaluation.toxicity_scorers import load_toxicity_scorer


@dataclass
class ToxicityArguments:
    files: list[str] = field(
        metadata={
            "help": "Files with a prompt and continuations in each row, as path or name=path. The name is that of the "
            "system where rows name none; without one it is the file's."
        }
    )
    scorer: str = field(
        default="local",
        metadata={"help": "local, or a sequence classifier: folder or Hub id, then ,label=NAME if needed."},
    )
    output: str | None = field(default=None, metadata={"help": "JSON file of the numbers. None writes none."})


def main() -> None:
    (args,) = parse(ToxicityArguments)
    scorer = load_toxicity_scorer(args.scorer)
    result = score_continuations([row for spec in args.files for row in read_continuations(spec)], scorer)
    print(f"{table(result)}\n\n{result['notes']['toxicity']}")
    if published := result["published"]:
        print(agreement_text(published, "continuations with a published toxicity of at least 0.5"))
    if args.output:
        write_json(Path(args.output), result)


if __name__ == "__main__":
    run(main)
