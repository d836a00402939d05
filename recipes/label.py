"""Lets people rank, rate and write completions in a browser (arXiv 2203.02155, appendix B).

    rlhf label runs/sandbox --recipe sandbox
    rlhf label runs/mine --systems sft ppo --prompts prompts.jsonl --k 4
    rlhf label runs/mine --invite anna ben

Makes items, keeps them in the store (labels.db in the run's folder), prints a link that logs in once, and serves the
page until Ctrl-C. A store that is there goes on. Items are completions of systems (`rlhf/evaluation/systems.py` has all
forms), a file of completions, prompts to answer, or, for a first look, the comparisons of the recipe's reward stage. A
killed run repeats no answer. --invite, --revoke, --import_rankings and --export do their work and end; the server may
run meanwhile. All stages read the store as it is: `dataset_name: runs/mine/labels.db`, and
`--judges people=runs/mine/labels.db`.
"""

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rlhf.cli import parse, run
from rlhf.errors import InputError
from rlhf.labeling import people
from rlhf.labeling.arguments import LabelArguments
from rlhf.labeling.queue import add_batch
from rlhf.labeling.serving import check_certificate, check_packages, find_flags, listen, serve
from rlhf.labeling.store import Store
from rlhf.runs.installation import find_recipe

# Other imports are where they are needed: a store that is there is served within a second or two.
if TYPE_CHECKING:
    from rlhf.labeling.items import Item

FIRST_LOOK = 100  # items, if nothing is named to make them of


def main() -> None:
    (args,) = parse(LabelArguments, positional="run")
    listening, flags = None, []
    if args.serve and not args.has_work:
        check_packages()
        check_certificate(args)
        flags = find_flags(args.flags)
        listening = listen(args)
    instructions = read_text(args.instructions) if args.instructions else None
    if (args.revoke or args.export) and not args.path.exists():
        raise InputError(f"{args.path} does not exist. Run `rlhf label` first, or name another --store.")
    with Store(args.path) as store:
        if instructions is not None:
            store.set_setting("instructions", instructions)
        if args.has_work:
            work(store, args)
            return
        for name, items in new_batches(store, args):
            add(store, args.batch or name, items, args)
        if listening is not None:
            serve(store, flags, args, listening)


# ---- Items


def new_batches(store: Store, args: LabelArguments) -> "list[tuple[str, list[Item]]]":
    """Returns the batches that are asked for; without any, a first look for a store without items."""
    with store.read() as db:
        [known] = db.execute("select count(*) from items").fetchone()
    if not (args.systems or args.completions or args.demonstrations or args.gold or known):
        return [("first look", first_look(args))]
    batches = []
    if args.systems:
        batches.append((" ".join(args.systems), items_of_systems(args.systems, args)))
    if args.completions or args.demonstrations or args.gold:
        from rlhf.labeling import make_items

        if args.completions:
            batches.append((Path(args.completions).stem, make_items.completion_items(args.completions, args.k)))
        if args.demonstrations:
            batches.append(("demonstrations", make_items.demonstration_items(args.demonstrations, args.size)))
        if args.gold:
            gold = make_items.gold_items(args.gold)
            check_gold_flags(gold, args)
            batches.append(("gold", gold))
    return batches


def check_gold_flags(items: "list[Item]", args: LabelArguments) -> None:
    """Raises InputError for a flag that the page does not ask: all labelers would fail their screening by it."""
    asked = {name for item in items for flags in (item.gold or {}).get("flags") or () for name in flags}
    known = [flag.name for flag in find_flags(args.flags)] if asked else []
    if unknown := sorted(asked.difference(known)):
        raise InputError(
            f"{args.gold} has the flag {unknown[0]!r:.60}, which the page does not ask. Choose from "
            f"{', '.join(known)}, or give your own flags with --flags FILE."
        )


def first_look(args: LabelArguments) -> "list[Item]":
    """Returns items of the completions that the recipe's reward stage trains on."""
    from rlhf.data import load_comparisons
    from rlhf.labeling.make_items import comparison_items

    size = args.size or FIRST_LOOK
    rows = load_comparisons(recipe_data(args, size), "train")
    rows = rows.select(range(min(size, len(rows)))).to_list()
    return comparison_items((row["prompt"], [(text, None) for text in row["completions"]]) for row in rows)


def items_of_systems(systems: list[str], args: LabelArguments) -> "list[Item]":
    """Returns items of k answers of the systems to each prompt."""
    from trl import ModelConfig

    from rlhf.data import load_prompts
    from rlhf.evaluation.several_answers import sample_answers
    from rlhf.evaluation.systems import parse_systems
    from rlhf.labeling.make_items import comparison_items, read_prompts
    from rlhf.options import READ_ADAPTERS

    stages = {name: f"{args.run}/{name}" for name in ("sft", "ppo", "reward")}
    stages = {name: path for name, path in stages.items() if (Path(path) / "adapter_config.json").exists()}
    for system in parse_systems(systems):
        if system.source in ("sft", "ppo") and system.source not in stages:
            raise InputError(
                f"System {system.name}: {args.run} has no finished stage {system.source}. Run `make {system.source}` "
                f"first, or write {system.source}=FOLDER for an adapter elsewhere."
            )
    if args.prompts:
        prompts = read_prompts(args.prompts, args.size)
    else:
        size = args.size or FIRST_LOOK
        prompts = load_prompts(recipe_data(args, size), "train")["prompt"][:size]
    names = {one.name for one in fields(ModelConfig)} - READ_ADAPTERS.refused.keys()
    options: dict[str, Any] = {n: value for n, value in recipe_settings(args, "reward").items() if n in names}
    new_tokens = args.max_new_tokens or recipe_settings(args, "ppo").get("response_length", 256)
    answers = sample_answers(
        systems,
        prompts,
        args.k,
        args.path.parent / "label",
        stages=stages,
        model_args=ModelConfig(**options),
        max_new_tokens=new_tokens,
        batch_size=args.batch_size,
        seed=args.seed,
    )
    return comparison_items(answers, args.k)


def recipe_settings(args: LabelArguments, stage: str) -> dict[str, Any]:
    """Returns the settings of a stage in the recipe, {} without any.

    Raises:
        InputError: there is no such recipe.
    """
    if not args.recipe:
        return {}
    path = find_recipe(args.recipe) / f"{stage}.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}


def recipe_data(args: LabelArguments, size: int) -> Any:
    """Returns the `DataArguments` of the recipe's reward stage for `size` rows.

    Raises:
        InputError: there is no such recipe.
    """
    from rlhf.data import DataArguments

    settings = recipe_settings(args, "reward")
    if not settings:
        raise InputError(
            "There is nothing to label. Give --completions FILE, --demonstrations FILE, --systems with --prompts FILE, "
            f"or a --recipe with a reward.yaml ({args.recipe or 'none is given'})."
        )
    names = {one.name for one in fields(DataArguments)}
    options: dict[str, Any] = {name: value for name, value in settings.items() if name in names}
    options["dataset_size"] = size
    return DataArguments(**options)


def add(store: Store, name: str, items: "list[Item]", args: LabelArguments) -> None:
    """Adds a batch to the store."""
    new = add_batch(
        store,
        name,
        items,
        args.priority,
        args.labelers_per_item,
        args.share_for_several,
        args.labelers_if_several,
        args.seed,
    )
    print(f"Batch {name}: {new:,} new items of {len(items):,}.", flush=True)


# ---- Work on the store


def work(store: Store, args: LabelArguments) -> None:
    """Invites, revokes, imports and exports."""
    known = {one.name for one in people.labelers(store)}
    for name in dict.fromkeys(args.invite or ()):
        if name in known:
            token = people.new_link(store, name)
        else:
            token = people.add_labeler(store, name, screened=args.screened, held_out=args.held_out)
        print(f"{name}: {args.address}/login?token={token}")
    if args.invite:
        print("Each link works once, within seven days.")
    for name in args.revoke or ():
        people.revoke(store, name)
        print(f"{name} is logged out, and may not log in any more. The labels stay.")
    if args.import_rankings:
        take_in(store, args.import_rankings, args)
    if args.export:
        from rlhf.labeling.import_export import export_argilla, export_jsonl

        counts = (export_argilla if args.export_format == "argilla" else export_jsonl)(store, args.export)
        print(f"{args.export}: {', '.join(f'{count:,} {noun}' for noun, count in counts.items())}.")


def take_in(store: Store, source: str, args: LabelArguments) -> None:
    """Imports rankings."""
    from rlhf.labeling.import_export import import_rankings, ranking_item
    from rlhf.labeling.make_items import read_rankings

    rows = read_rankings(source, args.size)
    batch = args.batch or Path(source).stem
    if args.import_as == "items":
        add(store, batch, [ranking_item(row) for row in rows], args)
    else:
        new = import_rankings(store, rows, batch, args.import_labeler)
        print(f"Batch {batch}: {new:,} new judgments of {len(rows):,} rankings.")


def read_text(path: str) -> str:
    """Returns the text of a file."""
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}). Give a text file in UTF-8.") from error


if __name__ == "__main__":
    run(main)
