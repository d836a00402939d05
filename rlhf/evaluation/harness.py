"""lm-eval's tasks on a shared base: its prompts, requests and metrics, for one adapter at a time, without merging.

lm-eval's `evaluate` returns means. Here each item keeps its scores, so that two systems can be compared by item.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from rlhf.errors import InputError, first_line
from rlhf.evaluation.benchmark import ItemScores, Scores, Systems, Task, TaskArguments
from rlhf.models.shared_base import SharedBase
from rlhf.runs.artifacts import is_first_process
from rlhf.runs.digests import rows_digest
from rlhf.runs.processes import map_across_processes

TASKS = Path(__file__).parent / "tasks"  # our own task files
# Task files of lm-eval that the paper's benchmarks need. Other names are looked up in an index of all its files, which
# takes a minute of two cores to build.
LM_EVAL_FILES = {
    "truthfulqa_mc1": "truthfulqa/truthfulqa_mc1.yaml",
    "truthfulqa_mc2": "truthfulqa/truthfulqa_mc2.yaml",
    "crows_pairs_english": "crows_pairs/crows_pairs_english.yaml",
    "drop": "drop/default.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "rte": "glue/rte/default.yaml",
    "sst2": "glue/sst2/default.yaml",
    "wsc": "super_glue/wsc/default.yaml",
}
STRUCTURE = ("tag", "group", "task_list")  # keys of a task file that do not define the task
Rows = Sequence[Mapping[str, Any]]
HarnessTask = Any  # lm_eval.api.task.ConfigurableTask, which is imported late: it takes seconds


def require_lm_eval() -> str:
    """Returns the version of lm-eval.

    Raises:
        InputError: it is not installed.
    """
    try:
        version = metadata.version("lm_eval")
    except metadata.PackageNotFoundError as error:
        raise InputError("Benchmarks need the package lm-eval. Run pip install 'instruct-rlhf[eval]'.") from error
    return version


def task_exists(name: str) -> bool:
    """True if `name` is a task, group or tag of tasks/ or lm-eval, or a task file."""
    return _file_of(name) is not None or name in _index().task_index


def load_tasks(
    name: str, rows: Mapping[str, Rows] | None = None, num_fewshot: int | None = None, **overrides: Any
) -> list[HarnessTask]:
    """Loads a task with its data; a group or tag gives several.

    Args:
        name: see `task_exists`.
        rows: role ("evaluation", "train") -> rows with the columns of the task's Hub data set; None reads the Hub.
        num_fewshot: examples in the prompt; None keeps the task's own number.
        overrides: fields of the task's definition.

    Raises:
        InputError: the data cannot be had, or does not fit.
    """
    require_lm_eval()
    if rows is not None:
        overrides |= _local_splits(rows)
    try:
        tasks = _load(name, overrides)
    except InputError:
        raise
    except Exception as error:  # of `datasets`, the Hub, a task's own code: there is no common class
        remedy = "Check that its rows have the columns of the published data." if rows is not None else (
            f"Check the connection to the Hub, or pass its file or folder: --tasks {name}=path."
        )  # fmt: skip
        raise InputError(
            f"The data of task {name} cannot be loaded ({type(error).__name__}: {first_line(error)}). {remedy}"
        ) from error
    for task in tasks:
        own = task.get_config("num_fewshot")
        if num_fewshot is None or own == 0:  # 0: the task's prompt has its examples in it, as lm-eval holds it
            task.set_config("num_fewshot", own or 0)
            continue
        if num_fewshot and not task.has_training_docs() and not task.get_config("fewshot_split"):
            raise InputError(
                f"num_fewshot is {num_fewshot}, but the data of task {name} has no training split. Put a file named "
                "train beside the other, or leave num_fewshot out."
            )
        task.set_config("num_fewshot", num_fewshot)
    return tasks


def _load(name: str, overrides: dict[str, Any]) -> list[HarnessTask]:
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    path = _file_of(name)
    if path is None and not overrides:
        return list(_index().load([name])["tasks"].values())
    if path is None:
        entry = _index().task_index[name]
        if entry.kind.name != "TASK" or entry.yaml_path is None:
            raise InputError(f"Task {name} is a group, or has no task file. Pass local files for one of its tasks.")
        path = entry.yaml_path
    definition = {key: value for key, value in load_yaml(path, resolve_func=True).items() if key not in STRUCTURE}
    return [ConfigurableTask(config=definition | overrides)]


def _file_of(name: str) -> Path | None:
    """Returns the file of a task that can be found without the index."""
    import lm_eval.tasks

    if (TASKS / f"{name}.yaml").is_file():
        return TASKS / f"{name}.yaml"
    if name in LM_EVAL_FILES:
        return Path(lm_eval.tasks.__file__).parent / LM_EVAL_FILES[name]
    return Path(name) if name.endswith((".yaml", ".yml")) and Path(name).is_file() else None


@cache
def _index() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager()


def harness_task(
    args: TaskArguments,
    task: HarnessTask,
    digest: str | None,
    *,
    score: Callable[[Any, list[Any]], dict[str, Any]] | None = None,
    cluster: Callable[[int, Any], str | int] = lambda number, item: number,
    unbounded: Sequence[str] = (),
) -> Task:
    """Returns a task of lm-eval as one of ours: its metrics that are numbers of an item.

    Args:
        digest: of the local files; None for data of the Hub.
        score: (item, responses) -> metrics; None is the task's own `process_results`.
        cluster: (number, item) -> key of the cluster.
        unbounded: metrics whose values may lie outside [0, 1].
    """
    items = [item for _, item in task.doc_iterator(limit=args.limit)]
    clusters = [cluster(number, item) for number, item in enumerate(items)]
    version = require_lm_eval()
    name, shots = str(task.get_config("task")), task.get_config("num_fewshot")
    rows = rows_digest(datasets.Dataset.from_list([dict(item) for item in items]))
    source = f"local data {digest}" if digest else f"Hub data set {task.DATASET_PATH}"
    note = (
        f"lm-eval {version}, task {name} version {task.VERSION}; {source}, items {rows}; plain text, {shots} examples; "
        f"{len(items)} items"
    )
    settings = {
        "task": name,
        "version": str(task.VERSION),
        "lm_eval": version,
        "items": rows,
        "num_fewshot": shots,
        "seed": args.seed if shots else None,
    }

    def run(shared: SharedBase, tokenizer: PreTrainedTokenizerBase, systems: Systems) -> Scores:
        scores: Scores = {}
        for system, adapter in systems.items():
            results = score_items(
                task, shared, adapter, tokenizer,
                batch_size=args.batch_size, limit=args.limit, seed=args.seed, score=score,
            )  # fmt: skip
            for metric in _numeric(results):
                values = [float(result[metric]) for result in results]
                scores.setdefault(metric, {})[system] = ItemScores(values, clusters, share=metric not in unbounded)
        return scores

    return Task(args.name, note, settings, run)


def _numeric(results: list[dict[str, Any]]) -> list[str]:
    """Returns the metrics that are numbers of each item. Others, such as BLEU and MCC, are of the whole task."""
    return [m for m in results[0] if all(isinstance(r.get(m), int | float | np.number) for r in results)]


def score_items(
    task: HarnessTask,
    shared: SharedBase,
    adapter: str | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int,
    limit: int | None = None,
    seed: int = 0,
    score: Callable[[Any, list[Any]], dict[str, Any]] | None = None,
    known: dict[tuple, Any] | None = None,
) -> list[dict[str, Any]]:
    """Returns the metrics of each item of a task, in their order. Each process of a launch computes a share of them.

    Args:
        adapter: the one that answers; None is the base.
        limit: items, at most.
        seed: of the choice of few-shot examples.
        score: (item, responses) -> metrics; None is the task's own `process_results`.
        known: log-likelihoods of this adapter by (context, continuation), which are not computed again; gets the new
            ones.

    Raises:
        InputError: the answers are longer than the context of the model.
    """
    known = {} if known is None else known
    scored: Callable[[Any, list[Any]], dict[str, Any]] = score or task.process_results
    lm = _language_model(shared, tokenizer, batch_size)
    task.set_fewshot_seed(seed)
    task.build_all_requests(limit=limit)  # anew, since a request collects the responses of all models that it was sent
    requests = defaultdict(list)
    for request in task.instances:
        requests[request.doc_id].append(request)
    items = list(task.doc_iterator(limit=limit))
    _check_lengths(task, lm)

    def score_rows(numbers: list[int]) -> list[dict[str, Any]]:
        own = [request for number in numbers for request in requests[items[number][0]]]
        task._instances = own  # what the filters are applied to
        with shared.use(adapter):
            for kind in dict.fromkeys(request.request_type for request in own):
                sent = [request for request in own if request.request_type == kind for _ in range(request.repeats)]
                if kind == "loglikelihood":
                    sent = [request for request in sent if request.args not in known]
                for request, response in zip(
                    sent, getattr(lm, kind)(sent, disable_tqdm=not is_first_process()), strict=True
                ):
                    if kind == "loglikelihood":
                        known[request.args] = response
                    else:
                        request.resps.append(response)
        for request in own:
            if request.request_type == "loglikelihood":
                request.resps.append(known[request.args])
        task.apply_filters()
        return [_metrics(scored, items[number][1], requests[items[number][0]]) for number in numbers]

    return map_across_processes(len(items), score_rows)


def _check_lengths(task: HarnessTask, lm: Any) -> None:
    tokens = max((r.args[1].get("max_gen_toks", lm.max_gen_toks) for r in task.instances if _generates(r)), default=0)
    if tokens >= lm.max_length:
        raise InputError(
            f"Task {task.get_config('task')} generates {tokens} tokens, but the context of the model is "
            f"{lm.max_length}. Leave the task out, or measure a model with a longer context."
        )


def _generates(request: Any) -> bool:
    return request.request_type == "generate_until"


def _metrics(score: Callable[[Any, list[Any]], dict[str, Any]], item: Any, requests: list[Any]) -> dict[str, Any]:
    requests = sorted(requests, key=lambda request: request.idx)
    filters = list(requests[0].filtered_resps)
    metrics = {}
    for name in filters:
        values = score(item, [request.filtered_resps[name] for request in requests])
        metrics |= {f"{key} ({name})" if len(filters) > 1 else key: value for key, value in values.items()}
    return metrics


def _language_model(shared: SharedBase, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> Any:
    from lm_eval.models import huggingface

    model: Any = huggingface.HFLM  # pyright loses its signature at a decorator
    return model(pretrained=shared.lm, tokenizer=tokenizer, backend="causal", batch_size=batch_size)


def _local_splits(rows: Mapping[str, Rows]) -> dict[str, Any]:
    """Returns the fields of a task's definition that make it read these rows."""
    splits = {role: datasets.Dataset.from_list([dict(row) for row in part]) for role, part in rows.items()}
    train = "train" if "train" in splits else None
    return {
        "custom_dataset": lambda **_: splits,
        "test_split": "evaluation",
        "validation_split": None,
        "training_split": train,
        "fewshot_split": train,
    }
