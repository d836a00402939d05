"""The files that are uploaded: of a finished stage, of one of its checkpoints, or of a merged model."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from rlhf.errors import InputError, options_named
from rlhf.runs.contract import FILE_NAME, IDS_NAME
from rlhf.runs.merged_card import FILE_NAME as MERGED_NAME
from rlhf.runs.merged_card import merged_card, read_merged
from rlhf.runs.model_card import STAGES, Evaluation, model_card, portable
from rlhf.runs.objects import read_object

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
MODEL = ("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json", MERGED_NAME)
FINAL_FILES = (*ADAPTER, *TOKENIZER, *CONTRACT, "result.json", "config.yaml", *(f"value/{name}" for name in ADAPTER))
MERGED_FILES = (*MODEL, *TOKENIZER, *CONTRACT, "calibration.json")
REWRITTEN = ("adapter_config.json", "result.json", FILE_NAME, MERGED_NAME, "config.yaml")  # they name paths
MERGED = "merged"


def find_stages(folder: Path) -> dict[str, Path]:
    """Returns {stage: folder} of what can be uploaded: `folder` itself, or else its subfolders sft, reward and ppo.

    A merged model is {"merged": folder}.

    Raises:
        InputError: there is nothing of these, or an adapter without weights.
    """
    if not folder.is_dir():
        raise InputError(f"Run folder {folder} does not exist. Train a stage first, e.g. `rlhf sft <recipe>`.")
    if (folder / MERGED_NAME).exists():
        read_merged(folder)
        return {MERGED: folder}
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


def _stage_of(folder: Path) -> str:
    """Returns the stage that wrote the folder: from environment.json, or else the folder's own name."""
    try:
        stage = json.loads((folder / "environment.json").read_text(encoding="utf-8"))["stage"]
    except (OSError, ValueError, KeyError, TypeError):
        stage = folder.resolve().name
    if stage not in STAGES:
        raise InputError(f"{folder} was not written by one of the stages {', '.join(STAGES)}. Pass a folder that was.")
    return stage


def file_patterns(stage: str) -> tuple[str, ...]:
    """Returns the names, or patterns of names, of the files that a stage or a merged model uploads."""
    return MERGED_FILES if stage == MERGED else FINAL_FILES


@contextmanager
def staged(
    folder: Path,
    stage: str,
    repo: str,
    evaluation: Evaluation | None = None,
    revision: str | None = None,
    online: bool = False,
) -> Iterator[Path]:
    """Yields a temporary folder with the files to upload: no path of this machine, and a card that names the repo.

    Args:
        folder: of a stage, of a merged model, or a checkpoint, whose config.yaml is in the folder above.
        stage: "sft", "reward", "ppo" or "merged".
        repo: Hub id.
        evaluation: of this adapter.
        revision: branch of a checkpoint.
        online: see `model_card`.
    """
    with tempfile.TemporaryDirectory() as name, options_named({name: str(folder)}):
        target = Path(name)
        for pattern in file_patterns(stage):
            for file in sorted(path for path in folder.glob(pattern) if path.is_file()):
                _place(file, target / file.relative_to(folder))
        if revision is not None and (folder.parent / "config.yaml").is_file():
            _place(folder.parent / "config.yaml", target / "config.yaml")
        if stage == MERGED:
            card = merged_card(target, repo, base_name=read_merged(folder).base, online=online)
        else:
            base_name = (read_object(folder / "adapter_config.json") or {}).get("base_model_name_or_path")
            card = model_card(target, stage, repo, evaluation, base_name, revision, online)
        (target / "README.md").write_text(card, encoding="utf-8", errors="replace")
        yield target


def _place(source: Path, target: Path) -> None:
    """Puts a file of this library's without paths of this machine, or a link to another one, at `target`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.name not in REWRITTEN:
        try:
            target.symlink_to(source.resolve())  # weights may be large
        except OSError:  # Windows, without the right to make links
            shutil.copyfile(source, target)
        return
    content = portable(read_object(source) or {})
    text = (
        yaml.safe_dump(content, sort_keys=False) if source.suffix == ".yaml" else json.dumps(content, indent=2) + "\n"
    )
    target.write_text(text, encoding="utf-8")
