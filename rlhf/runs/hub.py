"""A stage's final files to the Hugging Face Hub: adapter, tokenizer, head, calibration, numbers and model card.

Checkpoints, optimizer states and logs stay at home, as do paths of this machine. Repositories are private unless told
otherwise.
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

from rlhf.errors import InputError
from rlhf.runs.artifacts import is_first_process
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
FINAL_FILES = (*ADAPTER, *TOKENIZER, "result.json", "config.yaml", *(f"value/{name}" for name in ADAPTER))


@dataclass(frozen=True)
class Push:
    """Where a stage's folder goes."""

    hub_id: str
    private: bool = True
    token: str | None = None
    revision: str | None = None


def resolve_push(args: TrainingArguments) -> Push | None:
    """Call before a Trainer is made: reads the `push_to_hub` fields and switches the Trainer's own uploads off.

    The Trainer's would upload the whole folder, logs and pickles included, at every save, publicly by default. The
    repository is made now, since a missing login should not show after the training.

    Args:
        args: a stage's config; `push_to_hub`, `hub_model_id`, `hub_private_repo` (None means private), `hub_token` and
            `hub_revision` are read, `push_to_hub` is set to False.

    Raises:
        InputError: no `hub_model_id`, or the Hub refuses.
    """
    if not args.push_to_hub:
        return None
    args.push_to_hub = False
    if not args.hub_model_id:
        raise InputError("push_to_hub needs hub_model_id; give it as your-name/model-name.")
    push = Push(args.hub_model_id, args.hub_private_repo is not False, args.hub_token, args.hub_revision)
    if is_first_process():
        _create_repo(push)
    return push


def publish_run(run_folder: str | Path, stage: str, push: Push | None = None) -> None:
    """Call when all of a stage's files are written: adds the model card, and uploads them if that was asked for."""
    if not is_first_process():
        return
    write_model_card(run_folder, stage)
    if push is not None:
        _upload(Path(run_folder), stage, push)


def write_model_card(run_folder: str | Path, stage: str) -> None:
    """Writes README.md into a stage's folder, over the one that the trainer may have left."""
    (Path(run_folder) / "README.md").write_text(model_card(run_folder, stage), encoding="utf-8")


def push_run(run_folder: str | Path, hub_id: str, private: bool = True, dry_run: bool = False) -> list[str]:
    """Uploads one stage to `hub_id`, or each stage of a recipe's folder to `<hub_id>-sft`, `-reward`, `-ppo`.

    Args:
        run_folder: a stage's folder (`runs/sandbox/ppo`) or a recipe's (`runs/sandbox`).
        hub_id: `owner/name` on the Hub.
        private: whether repositories are private; one that is public already is then refused.
        dry_run: only print what would go where; the Hub is not reached.

    Returns:
        The repositories' ids.

    Raises:
        InputError: no hub_id, no such folder, no adapter in it, or the Hub refuses.
    """
    if not hub_id:
        raise InputError("the Hub id is missing; give one, as in make push HUB_ID=your-name/model-name.")
    stages = find_stages(Path(run_folder))
    alone = Path(run_folder) in stages.values()
    pushes = {stage: Push(hub_id if alone else f"{hub_id}-{stage}", private) for stage in stages}
    for push in pushes.values():
        _check_id(push.hub_id)
    for stage, folder in stages.items():
        if dry_run:
            _show(folder, stage, pushes[stage])
        else:
            _create_repo(pushes[stage])
            _upload(folder, stage, pushes[stage])
    return [push.hub_id for push in pushes.values()]


def find_stages(folder: Path) -> dict[str, Path]:
    """{stage: folder} of the finished stages: `folder` itself, or else those of sft, reward and ppo within it."""
    if not folder.is_dir():
        raise InputError(f"run folder {folder} does not exist; train first, e.g. make sft.")
    if (folder / ADAPTER[0]).exists():
        found = {_stage_of(folder): folder}
    else:
        found = {stage: folder / stage for stage in STAGES if (folder / stage / ADAPTER[0]).exists()}
    if not found:
        raise InputError(f"run folder {folder} holds no adapter, nor do its folders {', '.join(STAGES)}; train first.")
    for stage_folder in found.values():
        if not (stage_folder / ADAPTER[1]).exists():
            raise InputError(f"{stage_folder} holds no {ADAPTER[1]}; run its stage to the end.")
    return found


@contextmanager
def staged(folder: Path, stage: str, repo: str) -> Iterator[Path]:
    """A temporary folder with exactly the files to upload: no path of this machine, and a card that names the repo."""
    with tempfile.TemporaryDirectory() as name:
        target = Path(name)
        for file in FINAL_FILES:
            if (folder / file).is_file():
                (target / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / file, target / file)
        for path in [*target.rglob("*.json"), target / "config.yaml"]:
            _make_portable(path)
        (target / "README.md").write_text(model_card(target, stage, repo), encoding="utf-8")
        yield target


def _make_portable(path: Path) -> None:
    """Takes paths of this machine out of one of our own files; tokenizer files are left byte for byte."""
    if path.name == "config.yaml" and path.exists():
        path.write_text(yaml.safe_dump(portable(read_mapping(path)), sort_keys=False), encoding="utf-8")
    elif path.name in ("adapter_config.json", "result.json"):
        path.write_text(json.dumps(portable(read_mapping(path)), indent=2) + "\n", encoding="utf-8")


def _upload(folder: Path, stage: str, push: Push) -> None:
    api = HfApi(token=push.token)
    with staged(folder, stage, push.hub_id) as files, _hub_errors(push.hub_id):
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
        # exist_ok leaves a repository that exists as it is, and it may be public.
        if push.private and not api.repo_info(push.hub_id).private:
            raise InputError(
                f"{push.hub_id} exists and is public; say that you mean it (--public) or take another name."
            )


def _show(folder: Path, stage: str, push: Push) -> None:
    print(f"{folder} -> {push.hub_id} ({'private' if push.private else 'public'})")
    with staged(folder, stage, push.hub_id) as files:
        for path in sorted(path for path in files.rglob("*") if path.is_file()):
            print(f"  {path.stat().st_size / 1000:10.1f} kB  {path.relative_to(files).as_posix()}")


def _stage_of(folder: Path) -> str:
    """Which stage wrote the folder: environment.json says it; without that, the folder's own name."""
    try:
        stage = json.loads((folder / "environment.json").read_text(encoding="utf-8"))["stage"]
    except (OSError, ValueError, KeyError, TypeError):
        stage = folder.resolve().name
    if stage not in STAGES:
        raise InputError(f"{folder} was not written by one of the stages {', '.join(STAGES)}.")
    return stage


def _check_id(hub_id: str) -> None:
    try:
        validate_repo_id(hub_id)
    except HFValidationError as error:
        raise InputError(f"{hub_id!r} is not a Hub id; give it as your-name/model-name.") from error


@contextmanager
def _hub_errors(hub_id: str) -> Iterator[None]:
    """Refusals of the Hub, and its absence, as one sentence."""
    try:
        yield
    except (LocalTokenNotFoundError, HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise InputError(f"the Hub refuses {hub_id}: {reason}; log in with `hf auth login` as one who may.") from error
    except (HTTPError, ConnectionError) as error:  # of the network, and HF_HUB_OFFLINE
        raise InputError(
            f"the Hub cannot be reached to upload {hub_id}; check the network and HF_HUB_OFFLINE."
        ) from error
