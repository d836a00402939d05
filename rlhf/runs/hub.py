"""Uploads a stage's final files to the Hugging Face Hub: adapter, tokenizer, head, calibration, numbers, model card.

Checkpoints, optimizer states, logs and paths of this machine are not uploaded. Repositories are private by default.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id
from transformers import TrainingArguments

from rlhf.errors import InputError, first_line
from rlhf.runs.artifacts import is_first_process
from rlhf.runs.contract import FILE_NAME, IDS_NAME
from rlhf.runs.model_card import STAGES, model_card, portable, read_mapping

ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "calibration.json")
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
CONTRACT = (FILE_NAME, IDS_NAME)
FINAL_FILES = (*ADAPTER, *TOKENIZER, *CONTRACT, "result.json", "config.yaml", *(f"value/{name}" for name in ADAPTER))


@dataclass(frozen=True)
class Push:
    """Where to upload a stage's folder."""

    hub_id: str
    private: bool = True
    token: str | None = None
    revision: str | None = None


def resolve_push(args: TrainingArguments) -> Push | None:
    """Reads the `push_to_hub` fields and switches the Trainer's own uploads off. Call it before a Trainer is created.

    At every save, the Trainer would upload the whole folder, including logs and pickles, publicly by default. This
    function creates the repository, so that a missing login shows before the training and not after it.

    Args:
        args: a stage's config; `push_to_hub`, `hub_model_id`, `hub_private_repo` (None means private), `hub_token` and
            `hub_revision` are read, `push_to_hub` is set to False.

    Raises:
        InputError: `hub_model_id` is missing, or the Hub refuses or cannot be reached.
    """
    if not args.push_to_hub:
        return None
    args.push_to_hub = False
    if not args.hub_model_id:
        raise InputError("push_to_hub needs hub_model_id. Set it to your-name/model-name.")
    push = Push(args.hub_model_id, args.hub_private_repo is not False, args.hub_token, args.hub_revision)
    if is_first_process():
        _create_repo(push)
    return push


def publish_run(run_folder: str | Path, stage: str, push: Push | None = None) -> None:
    """Writes the model card and, if `push` is given, uploads the files; the stage must have written them all."""
    if not is_first_process():
        return
    write_model_card(run_folder, stage)
    if push is not None:
        _upload(Path(run_folder), stage, push)


def write_model_card(run_folder: str | Path, stage: str, evaluation: str | None = None) -> None:
    """Writes README.md into a stage's folder, over the one that the Trainer may have written.

    Args:
        evaluation: Markdown of `rlhf.evaluation.report.card_text`.
    """
    card = model_card(run_folder, stage, evaluation=evaluation)
    (Path(run_folder) / "README.md").write_text(card, encoding="utf-8", errors="replace")


def push_run(
    run_folder: str | Path,
    hub_id: str,
    private: bool = True,
    dry_run: bool = False,
    evaluation: str | None = None,
) -> list[str]:
    """Uploads one stage to `hub_id`, or each stage of a recipe's folder to `<hub_id>-sft`, `-reward`, `-ppo`.

    Args:
        run_folder: a stage's folder (`runs/sandbox/ppo`) or a recipe's (`runs/sandbox`).
        hub_id: `owner/name` on the Hub.
        private: create private repositories and refuse an existing public one; False creates public repositories.
        dry_run: print the files and their repositories without reaching the Hub.
        evaluation: Markdown of `rlhf.evaluation.report.card_text`, for the card of the stage ppo.

    Returns:
        Ids of the repositories.

    Raises:
        InputError: hub_id, the folder or its adapter is missing, or the Hub refuses or cannot be reached.
    """
    if not hub_id:
        raise InputError("The Hub id is missing. Pass one, as in --hub_id your-name/model-name.")
    stages = find_stages(Path(run_folder))
    single = Path(run_folder) in stages.values()
    pushes = {stage: Push(hub_id if single else f"{hub_id}-{stage}", private) for stage in stages}
    for push in pushes.values():
        _check_id(push.hub_id)
    for stage, folder in stages.items():
        if dry_run:
            _show(folder, stage, pushes[stage], evaluation)
        else:
            _create_repo(pushes[stage])
            _upload(folder, stage, pushes[stage], evaluation)
    return [push.hub_id for push in pushes.values()]


def find_stages(folder: Path) -> dict[str, Path]:
    """Returns {stage: folder} of the finished stages: `folder` itself, or else its subfolders sft, reward and ppo."""
    if not folder.is_dir():
        raise InputError(f"Run folder {folder} does not exist. Train a stage first, e.g. `rlhf sft <recipe>`.")
    if (folder / ADAPTER[0]).exists():
        stages = {_stage_of(folder): folder}
    else:
        stages = {stage: folder / stage for stage in STAGES if (folder / stage / ADAPTER[0]).exists()}
    if not stages:
        raise InputError(
            f"Run folder {folder} holds no adapter, nor do its subfolders {', '.join(STAGES)}. Train a stage first."
        )
    for stage_folder in stages.values():
        if not (stage_folder / ADAPTER[1]).exists():
            raise InputError(f"{stage_folder} holds no {ADAPTER[1]}. Run its stage to the end.")
    return stages


@contextmanager
def staged(folder: Path, stage: str, repo: str, evaluation: str | None = None) -> Iterator[Path]:
    """Yields a temporary folder with the files to upload: no path of this machine, and a card that names the repo."""
    with tempfile.TemporaryDirectory() as name:
        target = Path(name)
        for file in FINAL_FILES:
            if (folder / file).is_file():
                (target / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / file, target / file)
        for path in [*target.rglob("*.json"), target / "config.yaml"]:
            _make_portable(path)
        card = model_card(target, stage, repo, evaluation if stage == "ppo" else None)
        (target / "README.md").write_text(card, encoding="utf-8", errors="replace")
        yield target


def _make_portable(path: Path) -> None:
    """Removes paths of this machine from a file that this library writes; tokenizer files stay byte for byte."""
    if path.name == "config.yaml" and path.exists():
        path.write_text(yaml.safe_dump(portable(read_mapping(path)), sort_keys=False), encoding="utf-8")
    elif path.name in ("adapter_config.json", "result.json", FILE_NAME):
        path.write_text(json.dumps(portable(read_mapping(path)), indent=2) + "\n", encoding="utf-8")


def _upload(folder: Path, stage: str, push: Push, evaluation: str | None = None) -> None:
    api = HfApi(token=push.token)
    with staged(folder, stage, push.hub_id, evaluation) as files, _hub_errors(push.hub_id):
        if push.revision:
            api.create_branch(push.hub_id, branch=push.revision, exist_ok=True)
        message = f"{stage} stage of instruct-rlhf"
        api.upload_folder(repo_id=push.hub_id, folder_path=files, revision=push.revision, commit_message=message)
    print(f"{folder} is on the Hub as {push.hub_id}")


def _create_repo(push: Push) -> None:
    _check_id(push.hub_id)
    api = HfApi(token=push.token)
    with _hub_errors(push.hub_id):
        api.create_repo(push.hub_id, private=push.private, exist_ok=True)
        # exist_ok does not change an existing repository, which may be public.
        if push.private and not api.repo_info(push.hub_id).private:
            raise InputError(
                f"{push.hub_id} exists and is public. Choose another name, or confirm it: pass --public to push.py "
                "or --hub_private_repo false to a stage."
            )


def _show(folder: Path, stage: str, push: Push, evaluation: str | None) -> None:
    print(f"{folder} -> {push.hub_id} ({'private' if push.private else 'public'})")
    with staged(folder, stage, push.hub_id, evaluation) as files:
        for path in sorted(path for path in files.rglob("*") if path.is_file()):
            print(f"  {path.stat().st_size / 1000:10.1f} kB  {path.relative_to(files).as_posix()}")


def _stage_of(folder: Path) -> str:
    """Returns the stage that wrote the folder: from environment.json, or else the folder's own name."""
    try:
        stage = json.loads((folder / "environment.json").read_text(encoding="utf-8"))["stage"]
    except (OSError, ValueError, KeyError, TypeError):
        stage = folder.resolve().name
    if stage not in STAGES:
        raise InputError(f"{folder} was not written by one of the stages {', '.join(STAGES)}. Pass a folder that was.")
    return stage


def _check_id(hub_id: str) -> None:
    try:
        validate_repo_id(hub_id)
    except HFValidationError as error:
        raise InputError(f"{hub_id!r} is not a Hub id. Pass your-name/model-name.") from error


@contextmanager
def _hub_errors(hub_id: str) -> Iterator[None]:
    """Turns a refusal of the Hub, or a Hub that cannot be reached, into an InputError."""
    try:
        yield
    except (LocalTokenNotFoundError, HfHubHTTPError) as error:
        raise InputError(
            f"The Hub refused {hub_id}: {first_line(error)}. Log in with `hf auth login` as a user with write access."
        ) from error
    except (HTTPError, ConnectionError) as error:  # from the network, or from HF_HUB_OFFLINE
        raise InputError(
            f"The Hub cannot be reached to upload {hub_id}. Check the network and HF_HUB_OFFLINE."
        ) from error
