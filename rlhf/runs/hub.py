"""Uploads a stage's final files to the Hugging Face Hub: adapter, tokenizer, head, calibration, numbers, model card.

Checkpoints are uploaded on request, each as a branch; optimizer states, logs and paths of this machine never are.
Repositories are private by default. Everything can be repeated: what is on the Hub already is not sent again.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import logging as hub_logging
from huggingface_hub.utils import validate_repo_id
from transformers import TrainingArguments

from rlhf.errors import InputError
from rlhf.runs.artifacts import is_first_process
from rlhf.runs.hub_errors import hub_errors, retried
from rlhf.runs.hub_files import MERGED, file_patterns, find_stages, staged
from rlhf.runs.model_card import STAGES, Evaluation, model_card
from rlhf.runs.resume import complete_checkpoints

logger = logging.getLogger(__name__)

DESCRIPTION = "Stages of one run of instruct-rlhf: InstructGPT's recipe (supervised fine-tuning, reward model, PPO)."
NOTES = {
    "sft": "Supervised fine-tuning on demonstrations.",
    "reward": "Reward model, trained on human rankings.",
    "ppo": "The final model: reinforcement learning from the reward model.",
}


@dataclass(frozen=True)
class Push:
    """Where to upload a stage's folder; `revision` is a branch, None the main one."""

    hub_id: str
    private: bool = True
    token: str | None = field(default=None, repr=False)
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
        create_repo(push)
    return push


def publish_run(run_folder: str | Path, stage: str, push: Push | None = None) -> None:
    """Writes the model card and, if `push` is given, uploads the files; the stage must have written them all."""
    if not is_first_process():
        return
    write_model_card(run_folder, stage)
    if push is not None:
        upload(Path(run_folder), stage, push)


def write_model_card(run_folder: str | Path, stage: str, evaluation: Evaluation | None = None) -> None:
    """Writes README.md into a stage's folder, over the one that the Trainer may have written."""
    card = model_card(run_folder, stage, evaluation=evaluation)
    (Path(run_folder) / "README.md").write_text(card, encoding="utf-8", errors="replace")


def push_run(
    run_folder: str | Path,
    hub_id: str,
    private: bool = True,
    dry_run: bool = False,
    evaluations: Mapping[str, Evaluation | None] | None = None,
    revisions: bool = False,
) -> list[str]:
    """Uploads one stage or a merged model to `hub_id`, or all stages of a run, as a collection.

    Args:
        run_folder: a stage's folder (`runs/sandbox/ppo`), a merged model's, or a run's (`runs/sandbox`), whose stages
            go to `<hub_id>-sft`, `-reward` and `-ppo`.
        hub_id: `owner/name` on the Hub.
        private: create private repositories and refuse existing public ones; False creates public repositories.
        dry_run: print the files and their repositories without reaching the Hub.
        evaluations: stage -> what its evaluation found, for its card.
        revisions: upload each checkpoint, too, as the branch `checkpoint-<step>`.

    Returns:
        Ids of the repositories.

    Raises:
        InputError: hub_id, the folder or its adapter is missing, or the Hub refuses or cannot be reached. What has been
            uploaded stays, and another call uploads the rest.
    """
    if not hub_id:
        raise InputError("The Hub id is missing. Pass one, as in --hub_id your-name/model-name.")
    stages, evaluations = find_stages(Path(run_folder)), evaluations or {}
    single = Path(run_folder) in stages.values()
    pushes = {stage: Push(hub_id if single else f"{hub_id}-{stage}", private) for stage in stages}
    for push in pushes.values():
        check_id(push.hub_id)
    if not single and (missing := [stage for stage in STAGES if stage not in stages]):
        print(f"{run_folder} holds no {' and no '.join(missing)}: left out.")
    checkpoints = {stage: complete_checkpoints(folder) if revisions else [] for stage, folder in stages.items()}
    if dry_run:
        for stage, folder in stages.items():
            show(folder, stage, pushes[stage], evaluations.get(stage))
            for checkpoint in checkpoints[stage]:
                show(checkpoint, stage, replace(pushes[stage], revision=checkpoint.name))
        if len(stages) > 1:
            print(f"Collection {hub_id}: {', '.join(push.hub_id for push in pushes.values())}")
        return [push.hub_id for push in pushes.values()]

    for push in pushes.values():  # all, before the first file is sent
        create_repo(push)
    collection = create_collection(hub_id, private) if len(stages) > 1 else None
    for stage, folder in stages.items():
        upload(folder, stage, pushes[stage], evaluations.get(stage))
        for checkpoint in checkpoints[stage]:
            upload(checkpoint, stage, replace(pushes[stage], revision=checkpoint.name))
        if revisions and not checkpoints[stage] and stage != MERGED:
            print(f"{folder} holds no checkpoints.")
        if collection is not None:
            add_to_collection(collection, pushes[stage].hub_id, NOTES[stage])
    return [push.hub_id for push in pushes.values()]


def create_repo(push: Push) -> None:
    """Creates a repository, or checks that it can be written to and is as private as asked for.

    Raises:
        InputError: not so, or the Hub refuses or cannot be reached.
    """
    check_id(push.hub_id)
    api = HfApi(token=push.token)
    probe = CommitOperationAdd("README.md", b"-")  # asks whether it may be uploaded; is not
    with hub_errors(push.hub_id, push.token), quiet():
        retried(lambda: api.create_repo(push.hub_id, private=push.private, exist_ok=True))
        api.preupload_lfs_files(push.hub_id, additions=[probe])
        # exist_ok does not change an existing repository, which may be public.
        if push.private and not api.repo_info(push.hub_id).private:
            raise InputError(
                f"{push.hub_id} exists and is public. Choose another name, or confirm it: pass --public to `rlhf push` "
                "or --hub_private_repo false to a stage."
            )


def upload(folder: Path, stage: str, push: Push, evaluation: Evaluation | None = None) -> None:
    """Uploads a stage, a merged model or a checkpoint: the files that differ, in one commit, and a new card.

    Files of an earlier upload that the folder no longer has are deleted; those of other names stay.
    """
    api = HfApi(token=push.token)
    with (
        staged(folder, stage, push.hub_id, evaluation, push.revision, online=True) as files,
        hub_errors(push.hub_id, push.token),
        quiet(),
    ):
        if push.revision:
            retried(lambda: api.create_branch(push.hub_id, branch=str(push.revision), exist_ok=True))
        before = api.repo_info(push.hub_id, revision=push.revision).sha
        commit = retried(
            lambda: api.upload_folder(
                repo_id=push.hub_id,
                folder_path=files,
                revision=push.revision,
                commit_message=f"{stage} stage of instruct-rlhf"
                if stage != MERGED
                else "merged model of instruct-rlhf",
                delete_patterns=list(file_patterns(stage)),
            )
        )
    done = "is on the Hub as it was before" if commit.oid == before else "is on the Hub"
    print(f"{folder} {done}: {api.endpoint}/{push.hub_id}{f'/tree/{push.revision}' if push.revision else ''}")


def create_collection(hub_id: str, private: bool) -> str:
    """Creates the collection of a run's stages, named as the run; returns its slug, or that of the one there is.

    Raises:
        InputError: it exists and is public, or the Hub refuses or cannot be reached.
    """
    owner, _, title = hub_id.partition("/")
    api = HfApi()
    with hub_errors(f"the collection {hub_id}"), quiet():
        collection = retried(
            lambda: api.create_collection(
                title, namespace=owner, description=DESCRIPTION, private=private, exists_ok=True
            )
        )
    if private and not collection.private:
        raise InputError(
            f"The collection {hub_id} exists and is public. Choose another --hub_id, or confirm it with --public."
        )
    print(f"Collection: {collection.url}")
    return collection.slug


def add_to_collection(slug: str, hub_id: str, note: str) -> None:
    """Adds a repository to a collection, if it is not in it."""
    with hub_errors(f"the collection {slug}"), quiet():
        retried(lambda: HfApi().add_collection_item(slug, hub_id, "model", note=note, exists_ok=True))


def show(folder: Path, stage: str, push: Push, evaluation: Evaluation | None = None) -> None:
    """Prints the files that an upload would send."""
    branch = f", branch {push.revision}" if push.revision else ""
    print(f"{folder} -> {push.hub_id} ({'private' if push.private else 'public'}{branch})")
    with staged(folder, stage, push.hub_id, evaluation, push.revision) as files:
        for path in sorted(path for path in files.rglob("*") if path.is_file()):
            print(f"  {path.stat().st_size / 1000:10.1f} kB  {path.relative_to(files).as_posix()}")


def check_id(hub_id: str) -> None:
    """Raises InputError for a name that is not owner/name."""
    try:
        validate_repo_id(hub_id)
    except HFValidationError as error:
        raise InputError(f"{hub_id!r} is not a Hub id. Pass your-name/model-name.") from error
    if "/" not in hub_id:
        raise InputError(f"{hub_id!r} does not say whose it is. Pass your-name/{hub_id}.")


@contextmanager
def quiet() -> Iterator[None]:
    """Hides the Hub client's own warnings, which name signed addresses, and repeat what an InputError says."""
    verbosity = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()
    try:
        yield
    finally:
        hub_logging.set_verbosity(verbosity)
