"""The settings of each stage of a recipe."""

import math

from rlhf.setup.settings import (
    FEW_RANKINGS,
    SMALL,
    Facts,
    Setting,
    batch,
    endings,
    output,
    rate,
    rounded_up,
    share_of_answers,
    source,
    training,
    weights,
)

BILLIONS = 2_000_000_000  # parameters above which PPO takes more and smaller steps
# PPO's number of steps, learning rates of policy and value: rate x steps is about .03 (docs/ppo.md, Rates).
RATES = {32: (1e-3, 1e-3), 256: (1e-4, 3e-4), 512: (5e-5, 1.5e-4)}


def sft(facts: Facts) -> list[Setting]:
    """Supervised fine-tuning: three epochs, among which `rlhf choose` chooses; one on much data."""
    rows = facts.data["demonstrations"].rows["train"]
    epochs = 3 if rows < 20_000 else 1
    size = batch(epochs * rows, 32, 50, facts.processes)
    why = "the paper trains 16 and chooses one by reward-model score (rlhf choose)" if epochs > 1 else "much data"
    return [
        *weights(facts),
        *source(facts, "demonstrations", "max_length"),
        ("num_train_epochs", epochs, why),
        ("batch_size", size, _batch_reason(facts, rows * epochs, size, 32)),
        rate(facts),
        ("max_length", facts.lengths.row, _longest(facts, "demonstrations")),
        *training(facts, "sft", size),
        output(facts, "sft"),
    ]


def reward(facts: Facts) -> list[Setting]:
    """Reward model on the LoRA weights of SFT, one epoch as in the paper."""
    found, shown = facts.data["comparisons"], facts.data.get("demonstrations")
    rows, settings = found.rows["train"], []
    size = batch(rows, 64, 20, facts.processes)
    if shown is not None and shown.args.dataset_name != found.args.dataset_name:
        settings.append(("calibration_dataset", shown.args.dataset_name, "its demonstrations score 0 on average"))
    elif shown is not None and shown.args.dataset_format == "best_answer" != found.args.dataset_format:
        settings.append(("dataset_format", "best_answer", "calibrates: the best answers score 0 on average"))
    if shown is not None:
        settings.append(("sft_model_path", f"runs/{facts.name}/sft", "its LoRA weights are the start, as in the paper"))
    per_forward = max(8, facts.fit.rows["reward"] * facts.lengths.k)
    return [
        *weights(facts),
        *source(facts, "comparisons", "max_length"),
        *settings,
        ("batch_size", size, _batch_reason(facts, rows, size, 64)),
        rate(facts),
        ("max_length", facts.lengths.row, _longest(facts, "comparisons")),
        ("completions_per_forward", per_forward, "answers in a pass"),
        *training(facts, "reward", size),
        output(facts, "reward"),
    ]


def choose(facts: Facts) -> list[Setting]:
    """The SFT epoch whose answers score best."""
    gpu = facts.machine.gpus > 0
    return [
        ("sft_path", f"runs/{facts.name}/sft", ""),
        ("reward_model_path", f"runs/{facts.name}/reward", ""),
        *weights(facts)[1:],
        *source(facts, "demonstrations"),
        ("choice_prompts", 128 if gpu else 32, "validation prompts that every epoch answers"),
        ("choice_max_new_tokens", facts.lengths.response, "as in PPO"),
        ("choice_batch_size", 64 if gpu else 16, "answers sampled at once"),
        *endings(facts),
    ]


def ppo(facts: Facts) -> list[Setting]:
    """PPO: the paper's batches on a GPU, a short run on a CPU."""
    gpu, large = facts.machine.gpus > 0, facts.model.parameters > BILLIONS
    episodes, rollout, step = (32_768 if large else 16_384, 512, 64) if gpu else (512, 64, 16)
    steps, rollouts = episodes // step, episodes // rollout
    policy_rate, value_rate = RATES[steps]
    minibatches = rollout // step
    step = rounded_up(step, facts.processes)  # which share it
    rollout, episodes = minibatches * step, rollouts * minibatches * step
    size = "the paper's" if rollout == 512 else "the paper's 512 are for GPUs"
    size = f"the paper's 512, for {facts.processes} GPUs" if rollout > 512 else size
    cautious = facts.data["comparisons"].rows["train"] < FEW_RANKINGS or facts.model.parameters < SMALL
    start = f"runs/{facts.name}/sft" if "demonstrations" in facts.data else ""
    at_once = min(rollout, 4 * facts.fit.rows["ppo"]) if gpu else rollout
    length = "the paper's 256k need a far better reward model" if gpu else "a short run, for a CPU"
    settings: list[Setting] = [
        *weights(facts),
        *source(facts, "prompts", "max_prompt_length"),
        ("sft_model_path", start, "policy and reference"),
        ("reward_model_path", f"runs/{facts.name}/reward", ""),
        ("batch_size", rollout, f"episodes of a rollout, {size}"),
        ("mini_batch_size", step, "episodes of a step"),
        ("total_episodes", episodes, f"{rollouts} rollouts; {length}"),
        ("local_rollout_forward_batch_size", at_once, "answers sampled at once"),
        ("max_prompt_length", facts.lengths.prompt, _longest_prompt(facts)),
        ("response_length", facts.lengths.response, _response(facts)),
        *endings(facts),
        ("kl_coef", 0.05 if cautious else 0.02, _kl_reason(cautious)),
        ("learning_rate", policy_rate, f"for {steps} steps, as measured: docs/ppo.md, Rates"),
        ("value_learning_rate", value_rate, ""),
        ("value_warmup_rollouts", 2 if gpu else 1, "a value model fresh from the reward model explains nothing"),
        ("warmup_rollouts", 3 if gpu else 1, "rollouts over which the rates rise"),
    ]
    if "pretraining" in facts.data:
        text, blocks = facts.data["pretraining"].args.dataset_name, 8 if gpu else 1
        tokens = min(2048 if gpu else 128, facts.model.context or 2048)
        settings.append(("pretrain_dataset_name", text, "PPO-ptx: keeps what the base knows"))
        settings.append(("ptx_length", tokens, "tokens of a block"))
        settings.append(("ptx_examples_per_episode", blocks, "the paper's 8" if gpu else "the paper's 8 are for GPUs"))
    return [*settings, *training(facts, "ppo", step), output(facts, "ppo")]


def evaluate(facts: Facts) -> list[Setting]:
    """Base, SFT and RLHF on prompts that no stage has seen."""
    prompts, gpu = facts.data["prompts"].rows["test"], facts.machine.gpus > 0
    limit = 1000 if gpu else 64
    settings: list[Setting] = [
        *weights(facts),
        *source(facts, "prompts", "max_new_tokens"),
        ("dataset_eval_size", limit, f"at most; there are {prompts:,} test prompts"),
    ]
    if "demonstrations" in facts.data:
        settings.append(("sft_model_path", f"runs/{facts.name}/sft", ""))
    if "comparisons" in facts.data:
        folder = f"runs/{facts.name}"
        settings.append(("ppo_model_path", f"{folder}/ppo", ""))
        settings.append(("reward_model_path", f"{folder}/reward", "judges; PPO was trained on it, so add --judges"))
    settings.append(("max_new_tokens", facts.lengths.response, "tokens of an answer, as in PPO"))
    settings.append(("batch_size", 64 if gpu else 16, "prompts at once"))
    return [*settings, output(facts, "evaluate")]


# ---- Reasons


def _batch_reason(facts: Facts, rows: int, size: int, paper: int) -> str:
    steps = math.ceil(rows / size)
    if size > paper:
        return f"{steps:,} steps; the paper's {paper}, for {facts.processes} GPUs"
    return f"{steps:,} steps" + (", the paper's size" if size == paper else f"; the paper's {paper} leave few")


def _longest(facts: Facts, kind: str) -> str:
    longest = max(facts.data[kind].lengths, default=0)
    if longest <= facts.lengths.row:
        return f"tokens; the longest row has {longest:,}"
    why = "the model's context" if facts.lengths.row == facts.model.context else f"enough on this {facts.on.upper()}"
    return f"tokens, {why}; the longest row has {longest:,}"


def _longest_prompt(facts: Facts) -> str:
    longest = max(facts.data["prompts"].prompts, default=0)
    rest = "" if longest <= facts.lengths.prompt else "; prompt and answer are no longer than rows of the reward model"
    return f"tokens; the longest prompt has {longest:,}{rest}"


def _response(facts: Facts) -> str:
    share = f"tokens; {share_of_answers(facts)} % of the longest answers have no more"
    return share if facts.machine.gpus else f"{share}, and more takes long on a CPU"


def _kl_reason(cautious: bool) -> str:
    return "above the paper's 0.02: a small reward model is soon over-optimized" if cautious else "the paper's"


STAGES = {"sft": sft, "reward": reward, "choose": choose, "ppo": ppo, "evaluate": evaluate}
TITLES = {
    "sft": "Supervised fine-tuning of {model} on {data}.",
    "reward": "Reward model from the rankings of {data}.",
    "choose": "Chooses the SFT epoch whose answers to validation prompts the reward model scores highest.",
    "ppo": "PPO on the prompts of {data}.",
    "evaluate": "Base, SFT and RLHF on the test prompts of {data}, which no stage has seen.",
}
READS = dict(zip(STAGES, ("demonstrations", "comparisons", "demonstrations", "prompts", "prompts"), strict=True))


def stages_of(facts: Facts) -> list[str]:
    """Returns the stages for which there is data."""
    names = ["sft"] if "demonstrations" in facts.data else []
    if "comparisons" in facts.data:
        names += ["reward", *(["choose"] if names else []), "ppo"]
    return [*names, "evaluate"] if names and "prompts" in facts.data else names
