"""Finds the judges of an evaluation from one-line specifications, and checks them before any model is loaded.

    gold                                    the sandbox's true quality
    reward=runs/x/reward                    a reward model: adapter of this library or of TRL, or sequence classifier
    people=labels.jsonl                     people's comparisons and ratings, a file, a folder or the store labels.db
    llm=http://localhost:8000/v1,model=m    a language model behind an OpenAI-compatible URL

Each takes `,name=...`, for two judges of one kind.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlhf.errors import InputError
from rlhf.evaluation.gold import Gold
from rlhf.evaluation.llm_judge import OPTIONS as LLM_OPTIONS
from rlhf.evaluation.llm_judge import llm_judge
from rlhf.evaluation.people import people_judges
from rlhf.evaluation.reward_judge import RewardJudge, Trained
from rlhf.evaluation.specs import Spec, parse_spec
from rlhf.evaluation.verdicts import Judge, PairwiseJudge, ScoringJudge, Verdict, preference
from rlhf.generation.score_options import DEFAULTS, PolicyOptions

__all__ = ["Judge", "PairwiseJudge", "ScoringJudge", "Verdict", "find_judges", "preference"]

OPTIONS = {
    "gold": ("name",),
    "reward": ("name", "dtype"),
    "people": ("name",),
    "llm": LLM_OPTIONS,
}
FORMS = "gold, reward=<folder or Hub id>, people=<file or folder>, llm=<url>,model=<name>"


def find_judges(
    specs: Sequence[str],
    *,
    dataset_name: str,
    folder: str | Path | None = None,
    adapters: Mapping[str, str | Path] | None = None,
    chosen_by: Mapping[str, str | Path] | None = None,
    options: PolicyOptions = DEFAULTS,
    style: str | None = None,
) -> list[Judge]:
    """Returns the judges of `specs`, in their order. No model is loaded before a judge is asked something.

    Args:
        specs: see the top of this module.
        dataset_name: source of the prompts.
        folder: the judges keep their verdicts there, each in a file of its own. None keeps them in memory.
        adapters: system -> folder or Hub id of its adapter; tells which were trained against a reward model.
        chosen_by: system -> reward model that chooses its answers, for best of n.
        options: of PPO; its own reward model has the term for a missing EOS in its scores.
        style: "chat" or "text", the form of the prompts.

    Raises:
        InputError: an unknown judge or option, two judges of one name, or what a judge of that kind raises.
    """
    judges: list[Judge] = []
    for text in specs:
        spec = _spec(text)
        name = spec.options.get("name", spec.key)
        if not re.fullmatch(r"[\w.-]+", name):
            raise InputError(f"Judge {spec.key} has the name {name!r}. Use letters, digits, points, _ and - alone.")
        if spec.key == "gold":
            if dataset_name != "sandbox":
                raise InputError(f"Judge gold knows the sandbox's prompts alone, not {dataset_name}. Leave it out.")
            judges.append(Gold(name, folder))
        elif spec.key == "people":
            judges += people_judges(str(spec.value), name)
        elif spec.key == "llm":
            judges.append(llm_judge(spec, name, folder))
        else:
            trained = Trained(adapters or {}, chosen_by or {})
            dtype = spec.options.get("dtype", "float32")
            judges.append(RewardJudge(str(spec.value), name, folder, trained, options, dtype, style))
    names = [judge.name for judge in judges]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"Two judges have the name {twice[0]}. Give one another name: {twice[0]}=...,name=other.")
    return judges


def _spec(text: str) -> Spec:
    kind = re.split("[=,]", text.strip())[0]  # the rest may hold a secret, and is in no message
    options = OPTIONS.get(kind)
    if options is None:
        raise InputError(f"Judge {kind!r} is unknown. Choose from {FORMS}.")
    spec = parse_spec(text, options)
    if (spec.value is None) != (spec.key == "gold"):
        raise InputError(f"Judge {kind} {'takes no value' if spec.value else 'has no value'}. Choose from {FORMS}.")
    return spec
