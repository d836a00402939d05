"""Prints what an adapter was trained with (contract.json), or what differs between two.

    rlhf inspect runs/sandbox
    rlhf inspect runs/sandbox/sft runs/mine/sft

A folder is a stage's, one of its checkpoints, a run's with sft/, reward/ and ppo/ in it, or an adapter's on the Hub.
Loads no model.
"""

import sys

if __name__ == "inspect":
    # Other recipes have this folder first on their path, and their libraries import Python's module of this name.
    import importlib.util
    import sysconfig
    from pathlib import Path

    where = Path(sysconfig.get_path("stdlib")) / "inspect.py"
    spec = importlib.util.spec_from_file_location("inspect", where)
    assert spec is not None and spec.loader is not None
    sys.modules["inspect"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["inspect"])
else:
    from pathlib import Path

    from rlhf.cli import run
    from rlhf.errors import InputError, PlainParser
    from rlhf.models.adapter_files import adapter_folder
    from rlhf.runs.contract import FILE_NAME, Contract, read_contract, read_conversations
    from rlhf.runs.inspection import contract_text, differences_text
    from rlhf.runs.model_card import STAGES


def main() -> None:
    parser = PlainParser(__doc__)
    parser.add_argument("folder", help="Folder of a stage or of a run, or Hub id of an adapter.")
    parser.add_argument("other", nargs="?", help="A second one: what differs is printed.")
    args = parser.parse_args()
    stages = stage_folders(args.folder)
    others = stage_folders(args.other) if args.other else None
    if others is None:
        print("\n\n".join(f"{path}\n{described(path)}" for path in stages.values()))
        return
    if len(stages) == len(others) == 1:
        pairs = [(*stages.values(), *others.values())]
    else:
        pairs = [(stages[name], others[name]) for name in stages if name in others]
    if not pairs:
        raise InputError(f"{args.folder} and {args.other} have no stage in common. Pass folders of the same stage.")
    print("\n\n".join(f"{a} | {b}\n{differences_text(contract_of(a), contract_of(b))}" for a, b in pairs))


def stage_folders(name: str) -> dict[str, Path]:
    """Returns {stage: folder} of a run, or the one folder of an adapter or of a merged model.

    Raises:
        InputError: there is no adapter.
    """
    found = {stage: Path(name) / stage for stage in STAGES if (Path(name) / stage / FILE_NAME).exists()}
    if (Path(name) / FILE_NAME).exists():
        return {name: Path(name)}
    return found or {name: adapter_folder(name)}


def contract_of(folder: Path) -> "Contract":
    contract = read_contract(folder)
    if contract is None:
        raise InputError(f"{folder} has no {FILE_NAME}: it is of TRL, or of an old version. Run its stage again.")
    return contract


def described(folder: Path) -> str:
    conversations = read_conversations(folder)
    return contract_text(contract_of(folder), None if conversations is None else len(conversations))


if __name__ == "__main__":
    run(main)
