"""Reward functions: Python functions with the arguments of TRL's GRPOTrainer, and classifiers that read text.

A function is called once per rollout and process, as

    f(prompts=..., completions=..., completion_ids=..., trainer_state=..., log_extra=..., log_metric=..., **columns)

with the arguments that it takes, and returns one number per completion, or None for a completion that it does not
judge. It may be a coroutine function. For prompts of messages, a completion is a list of one message.
"""

import asyncio
import importlib
import importlib.util
import inspect
import logging
import math
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf.data.text_rewards import TextRewardModel
from rlhf.errors import InputError, first_line
from rlhf.models.chat_template import answer_text
from rlhf.runs.digests import file_digest, weights_digest

logger = logging.getLogger(__name__)

RewardFunction = Callable[..., Any]  # a sequence of floats and None, or a coroutine of it
GIVEN = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")


def function_scores(
    functions: Sequence[RewardFunction | TextRewardModel],
    weights: Sequence[float] | None,
    prompts: list[Any],
    completions: list[str],
    ended: Sequence[bool] = (),
    **columns: Any,
) -> Tensor:
    """Weighted sum of `function_table`, in which None counts nothing: [len(completions)] float32."""
    return function_table(functions, prompts, completions, ended, **columns).sum(weights)


class ScoreTable(NamedTuple):
    """Scores [N, F] float32 of N completions by F functions, 0 where `judged` [N, F] is False (None, as in GRPO)."""

    scores: Tensor
    judged: Tensor

    def sum(self, weights: Sequence[float] | None, rows: list[int] | None = None) -> Tensor:
        """Weighted sum of the functions' scores, of all completions or some; weights None are all 1."""
        scores = self.scores if rows is None else self.scores[rows]
        return scores @ torch.tensor(weights or [1.0] * scores.shape[1])


def function_table(
    functions: Sequence[RewardFunction | TextRewardModel],
    prompts: list[Any],
    completions: list[str],
    ended: Sequence[bool] = (),
    **columns: Any,
) -> ScoreTable:
    """Scores of reward functions and of reward models that read text.

    Args:
        prompts: text or messages, as in the dataset.
        completions: decoded responses without special tokens.
        ended: True for each response that ended by itself; models need it, functions do not.
        columns: `completion_ids`, `trainer_state` and what else the functions are given: the dataset's other columns.

    Raises:
        InputError: a function gave another number of scores, or one that is no finite number.
    """
    messages = [
        text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        for prompt, text in zip(prompts, completions, strict=True)
    ]
    given = {"prompts": prompts, "completions": messages, **columns}
    results: list[Any] = [None] * len(functions)
    waiting = {}
    for i, function in enumerate(functions):
        if isinstance(function, TextRewardModel):
            results[i] = function(prompts, completions, ended)
        elif is_async(function):
            waiting[i] = _called(function, given)
        else:
            with _users_code(function):
                results[i] = function(**accepted(function, given))
    for i, result in zip(waiting, run_all(list(waiting.values())), strict=True):
        results[i] = result
    for function, scores in zip(functions, results, strict=True):
        if not hasattr(scores, "__len__") or isinstance(scores, str | bytes | dict):
            raise InputError(
                f"reward function {name_of(function)} gave {scores!r:.40} for {len(completions)} completions; return a "
                "list with one number for each."
            )
        if len(scores) != len(completions):
            raise InputError(
                f"reward function {name_of(function)} gave {len(scores)} scores for {len(completions)} completions; "
                "return one for each."
            )
        bad = [score for score in scores if score is not None and not _is_number(score)]
        if bad and not isinstance(function, TextRewardModel):
            raise InputError(
                f"reward function {name_of(function)} gave {bad[0]!r:.40} for a completion; return a finite number, or "
                "None if it does not judge the completion."
            )
    judged = torch.tensor([[score is not None for score in scores] for scores in results]).T
    numbers = [[0.0 if score is None else float(score) for score in scores] for scores in results]
    none = int((~judged).all(1).sum())
    if none:
        logger.warning("no reward function judged %d of %d completions; their score is 0", none, len(completions))
    return ScoreTable(torch.tensor(numbers, dtype=torch.float32).T, judged)


def _is_number(score: Any) -> bool:
    """True for a finite number, which may be a scalar of NumPy or torch."""
    try:
        return not isinstance(score, str | bytes) and math.isfinite(float(score))
    except (TypeError, ValueError):
        return False


async def _called(function: RewardFunction, given: dict[str, Any]) -> Any:
    with _users_code(function):
        return await function(**accepted(function, given))


@contextmanager
def _users_code(function: RewardFunction) -> Iterator[None]:
    """Reports an exception of a reward function with the line of the user's file that raised it."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        code = getattr(getattr(function, "func", function), "__code__", None)
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if code is not None and frame.filename == code.co_filename]
        place = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
        raise InputError(
            f"reward function {name_of(function)} raised {type(error).__name__}: {first_line(error)}{place}. Correct "
            "it, or return None for a completion that it cannot judge."
        ) from error


def score_texts(
    functions: Sequence[RewardFunction | TextRewardModel],
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: Sequence[int],
    columns: dict[str, list],
    responses: list[list[int]],
    extra: list[dict[str, Any]],
    **given: Any,
) -> ScoreTable:
    """`function_table` of sampled responses to rows of the dataset.

    Args:
        columns: the dataset's columns for these rows: `input_ids`, perhaps `prompt`, and further ones.
        responses: sampled ids.
        extra: one dictionary per response, which `log_extra` fills in.
        given: further arguments of the functions.
    """
    columns = {name: column for name, column in columns.items() if name not in ("completion", "completion_ids")}
    ids = columns.pop("input_ids")
    prompts = columns.pop("prompt", None) or tokenizer.batch_decode(ids, skip_special_tokens=True)
    texts = [answer_text(tokenizer, *row) for row in zip(ids, responses, strict=True)]

    def log_extra(column: str, values: Sequence) -> None:
        for row, value in zip(extra, values, strict=True):
            row[column] = value

    ended = [response[-1] in stop_ids for response in responses]
    given |= {"completion_ids": responses, "log_extra": log_extra}
    return function_table(functions, prompts, texts, ended, **{**columns, **given})


def is_async(function: Any) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def run_all(coroutines: list) -> list:
    """Runs coroutines at the same time, in a thread of their own, because a notebook has an event loop already."""
    if not coroutines:
        return []

    async def gather() -> list:
        return await asyncio.gather(*coroutines)

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(gather())).result()


def accepted(function: RewardFunction, given: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments that a function takes; all of them if it takes any."""
    parameters = parameters_of(function)
    if any(p.kind == p.VAR_KEYWORD for p in parameters):
        return given
    return {p.name: given[p.name] for p in parameters if p.name in given}


def parameters_of(function: RewardFunction) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some built-in functions have none
        return []


def check_functions(functions: Sequence[RewardFunction | TextRewardModel], columns: Sequence[str]) -> None:
    """Raises InputError if a function needs an argument that is neither given nor a column of the dataset."""
    for function in functions:
        if isinstance(function, TextRewardModel):
            continue
        for p in parameters_of(function):
            named = p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
            if named and p.default is p.empty and p.name not in (*GIVEN, *columns):
                raise InputError(
                    f"reward function {name_of(function)} needs `{p.name}`, which is no column of the prompts "
                    f"({', '.join(columns)}); add the column, or give the argument a default."
                )


def name_of(function: Any) -> str:
    """Returns the name under which a function's scores are logged."""
    if isinstance(function, TextRewardModel):
        return function.name
    function = getattr(function, "func", function)  # of functools.partial
    return getattr(function, "__name__", type(function).__name__)


def find_reward_functions(names: Sequence[str]) -> list[RewardFunction | str]:
    """Returns the reward functions of the command line, in the forms

        rewards.py:short      function `short` of a file
        package.module.short  function `short` of a module, from the working directory too
        path or Hub id        a sequence classifier, which the trainer loads

    Raises:
        InputError: there is no such file, module or function, or the import fails.
    """
    return [_find(name) for name in names]


def reward_digests(names: Sequence[str]) -> dict[str, str]:
    """Returns for each reward of `find_reward_functions` the digest of its file, or of a classifier's weights.

    Classifiers of the Hub are left out. The keys name no folder.
    """
    digests = {}
    for name in names:
        folder, (file, _, function) = Path(name).expanduser(), name.rpartition(":")
        if folder.is_dir():
            digests[folder.name] = weights_digest(folder)
        elif file:
            digests[f"{Path(file).name}:{function}"] = file_digest(Path(file).expanduser())
        elif "/" not in name:
            source = sys.modules[name.rpartition(".")[0]].__file__
            digests[name] = file_digest(Path(source)) if source else None
    return {name: digest for name, digest in digests.items() if digest is not None}


def _find(name: str) -> RewardFunction | str:
    if Path(name).expanduser().is_dir() or ("/" in name and ":" not in name and not name.endswith(".py")):
        return name
    file, colon, function = name.rpartition(":")
    module, dot, attribute = name.rpartition(".")
    if not colon and (not dot or name.endswith(".py")):
        raise InputError(
            f"reward function {name} has no function's name; write file.py:function, module.function, or the folder or "
            "Hub id of a sequence classifier."
        )
    try:
        if colon:
            return getattr(_import_file(Path(file).expanduser()), function)
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise InputError(
            f"reward function {name} needs the module {error.name}, which is not installed. Check the name, or install "
            f"its package: pip install {(error.name or '').partition('.')[0]}."
        ) from error
    except Exception as error:  # whatever the user's file raises
        raise InputError(
            f"reward function {name} cannot be imported: {type(error).__name__}: {first_line(error)}. Correct the "
            "file, or its name."
        ) from error


def _import_file(path: Path):
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
