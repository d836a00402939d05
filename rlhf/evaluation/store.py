"""Answers on disk, as they come: a killed evaluation goes on, and nothing is answered twice.

    answers/<system>.jsonl     one line per answer, in the order in which they came
    answers/<system>.json      what the answers depend on besides the prompts: models, decoding, seed

An answer is to the prompt of one number and one content. So more prompts, or fewer, change no other answer.
"""

import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from rlhf.data.encode import Prompt, prompt_key
from rlhf.runs.artifacts import SECRET_VALUES, is_first_process
from rlhf.runs.digests import json_digest
from rlhf.runs.processes import process_state

logger = logging.getLogger(__name__)

FOLDER = "answers"


class AnswerStore:
    """The answers of one system.

    Attributes:
        done: prompt_id -> the fields of its answer.

    Args:
        folder: `<output_dir>/answers`.
        system: name of the system.
        identity: all that the answers depend on besides the prompts, as JSON values. Answers that were made with
            another are deleted, which is logged with what differs.
        prompts: prompt_id -> the prompt.
    """

    def __init__(self, folder: str | Path, system: str, identity: Mapping[str, Any], prompts: Mapping[int, Prompt]):
        self.path = Path(folder) / f"{system}.jsonl"
        self.digests = {i: json_digest(prompt_key(prompt)) for i, prompt in prompts.items()}
        self.done: dict[int, dict[str, Any]] = {}
        process_state()  # before the first broadcast, which would look for a GPU
        if is_first_process():
            self._open(system, identity)
        [self.done] = broadcast_object_list([self.done])

    def append(self, answers: Iterable[tuple[int, dict[str, Any]]]) -> None:
        """Adds (prompt_id, fields of the answer) to `done` and, in the first process, to the file."""
        answers = list(answers)
        self.done |= dict(answers)
        if is_first_process():
            with self.path.open("a", encoding="utf-8") as file:
                for i, answer in answers:
                    row = {"prompt_id": i, "prompt": self.digests[i], **answer}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())

    def _open(self, system: str, identity: Mapping[str, Any]) -> None:
        record = self.path.with_suffix(".json")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        identity = json.loads(SECRET_VALUES.sub("***", json.dumps(identity)))
        before = _read_record(record)
        if before != identity and self.path.exists():
            changed = sorted(key for key in {*identity, *before} if identity.get(key) != before.get(key))
            logger.warning("%s answers anew: its kept answers were made with another %s", system, ", ".join(changed))
            self.path.unlink()
        if before != identity:
            text = json.dumps({"digest": json_digest(identity), **identity}, indent=2, ensure_ascii=False)
            record.write_text(text + "\n", encoding="utf-8")
        if not self.path.exists():
            return
        text = self.path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]  # a kill may cut the last line short
        if whole != text:
            self.path.write_bytes(whole)
        for row in map(json.loads, whole.splitlines()):
            i, digest = row.pop("prompt_id"), row.pop("prompt")
            if self.digests.get(i) == digest:
                self.done[i] = row
        if self.done:
            logger.info("%s: %d of %d answers are in %s", system, len(self.done), len(self.digests), self.path)


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {key: value for key, value in record.items() if key != "digest"}
    except (OSError, ValueError, AttributeError):
        return {}
