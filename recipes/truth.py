"""Scores files of answers to TruthfulQA, without their model.

    rlhf truth --files answers.csv ours=answers.jsonl --references TruthfulQA.csv --output truth.json

Prints how many answers of each system are true, informative, and both, with the difference from the first system,
paired by question; and how well our scores agree with the scores that rows bring. docs/evaluation.md has the formats.
"""

from dataclasses import dataclass, field
from pathlib import Path

from rlhf.cli import parse, run
from rlhf.evaluation.benchmark import table, write_json
from rlhf.evaluation.scored_rows import agreement_text
from rlhf.evaluation.truth_files import read_answers, read_references, score_answers
from rlhf.evaluation.truth_judges import ReferenceJudge, load_truth_judge


@dataclass
class TruthArguments:
    files: list[str] = field(
        metadata={
            "help": "Files with a question and an answer in each row, or a column of answers for each model, as path "
            "or name=path. The name is that of the system where rows name none; without one it is the file's."
        }
    )
    references: str | None = field(
        default=None,
        metadata={
            "help": "TruthfulQA.csv or mc_task.json with the reference answers. None takes those of the files, else "
            "the Hub's."
        },
    )
    truth_judge: str | None = field(
        default=None,
        metadata={"help": "Judge of truth, as of recipes/benchmark.py. None compares with the reference answers."},
    )
    info_judge: str | None = field(
        default=None,
        metadata={"help": "The same for information. None counts replies that do not evade the question."},
    )
    output: str | None = field(default=None, metadata={"help": "JSON file of the numbers. None writes none."})


def main() -> None:
    (args,) = parse(TruthArguments)
    judge = load_truth_judge(args.truth_judge, args.info_judge)
    rows = [row for spec in args.files for row in read_answers(spec)]
    needed = isinstance(judge, ReferenceJudge) and not all(row.references for row in rows)
    path = Path(args.references).expanduser() if args.references else None
    result = score_answers(rows, judge, read_references(path) if path or needed else {})
    print(f"{table(result)}\n\n{result['notes']['truthfulqa']}")
    for metric, published in (result["published"] or {}).items():
        print(f"\n{metric}: {100 * published['equal_verdicts']:.1f} % of the verdicts are the published ones.")
        print(agreement_text(published, "answers with a published score of at least 0.5"), end="")
    if args.output:
        write_json(Path(args.output), result)


if __name__ == "__main__":
    run(main)
