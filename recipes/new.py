"""Writes a recipe for your model, your data and this machine, each setting with its reason.

    rlhf new mine --model HuggingFaceTB/SmolLM2-135M-Instruct --data rankings.csv
    rlhf new mine --model path/to/model --data demonstrations.jsonl rankings.csv prompts.jsonl

Reads the data as the stages do, and of the model all but its weights. Writes recipes/mine/<stage>.yaml for each stage
that the data allows. A recipe that exists is never overwritten.
"""

import logging
from dataclasses import dataclass, field

from rlhf.cli import parse, run
from rlhf.data.arguments import DataArguments
from rlhf.errors import InputError
from rlhf.runs.console import amount, say, show, show_title
from rlhf.setup.data import KINDS, Holding, choose_sources, likeliest, look_at_data, rows_text
from rlhf.setup.fit import too_large
from rlhf.setup.languages import languages_text
from rlhf.setup.machine import this_machine
from rlhf.setup.model import look_at_model
from rlhf.setup.recipe import check_name, write_recipe
from rlhf.setup.settings import gather_facts
from rlhf.setup.stages import stages_of


@dataclass
class NewArguments:
    name: str = field(metadata={"help": "Name of the recipe: the folder recipes/<name> and runs/<name>."})
    model: str = field(metadata={"help": "Base model: Hub id, local folder (safetensors or one .gguf), or sandbox."})
    data: list[str] = field(
        metadata={"help": "Data: files, folders or Hub names with demonstrations, rankings, prompts or text."}
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration on the Hub; for OpenAssistant the language. None: the default."}
    )
    dataset_train_split: str = field(default="train", metadata={"help": "The source's split to train on."})
    dataset_format: str | None = field(
        default=None, metadata={"help": "Published format (docs/data.md). None recognizes it by the columns."}
    )
    columns: list[str] | None = field(
        default=None, metadata={"help": "New names of columns, new=old: prompt=question ignore=score."}
    )

    def __post_init__(self):
        own = [name for name in ("dataset_config", "dataset_format", "columns") if getattr(self, name) is not None]
        if own and len(self.data) > 1:
            raise InputError(
                f"{own[0]} is given for {len(self.data)} sources. Write the recipe with the one that needs it, and set "
                "dataset_name of the other stages in their YAMLs."
            )


def main() -> None:
    (args,) = parse(NewArguments, positional="name")
    folder, machine = check_name(args.name), this_machine()
    options = {name: getattr(args, name) for name in ("dataset_config", "dataset_format", "columns")}
    sources = [
        DataArguments(name, dataset_train_split=args.dataset_train_split, on_bad_rows="skip", **options)
        for name in args.data
    ]
    show_title("new", folder)
    logging.getLogger("rlhf").setLevel(logging.WARNING)  # the stages say which pad token they take
    model, tokenizer = look_at_model(args.model)
    template = "its own chat template" if model.brings_template else "no chat template: a short default one"
    context = f"context of {model.context:,} tokens" if model.context else "no limit to the context"
    show("model", f"{model.name}: {amount(model.parameters)} parameters, {context}, {template}")
    show("LoRA", f"on {', '.join(model.layers)}")

    looked = [look_at_data(source, tokenizer) for source in sources]
    data = choose_sources([held for held, _ in looked])
    data = {kind: data[kind] for kind in KINDS if kind in data}
    for kind, found in data.items():
        show("data", f"{kind}: {rows_text(found)}; from {found.args.dataset_name}")
        show_notes(found)
    for source, (held, _) in zip(sources, looked, strict=True):
        kind, found = next(iter(held.items()))
        show("language", f"{languages_text(kind, source, found.scripts)}; from {source.dataset_name}")
    show("machine", str(machine))
    if not {"demonstrations", "comparisons"} & data.keys():
        reasons = [missing[likeliest(missing, ("comparisons", "demonstrations"))] for _, missing in looked]
        raise InputError(
            f"There are neither demonstrations nor rankings in {', '.join(args.data)}, but {' and '.join(data)} alone: "
            f"{' '.join(reasons)} Give one of them, too (docs/data.md)."
        )
    chosen = gather_facts(args.name, model, machine, data)
    stages = stages_of(chosen)
    if "comparisons" not in data:
        show("no ppo", "there are no rankings, so reward, choose and ppo are left out: " + looked[0][1]["comparisons"])
    if not chosen.fit.fits:
        show("memory", too_large(model, machine, chosen.fit))
    files = write_recipe(chosen, folder)
    show("files", f"{folder}: {', '.join(path.name for path in files)}")
    first = stages[0]
    say("")
    show("next", f"rlhf {first} {args.name} --smoke    # in under a minute, to see that it holds")


def show_notes(found: Holding) -> None:
    """Prints what a person should know of the rows: bad ones, and demonstrations that are best answers."""
    if found.bad:
        show("skipped", f"{found.bad:,} of {found.read:,} rows, the first being {found.first_bad}")
    if found.args.dataset_format == "best_answer":
        show("note", "there are no demonstrations: SFT learns the best answer of each ranking")


if __name__ == "__main__":
    run(main)
