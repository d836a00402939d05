"""The settings of each stage of a recipe."""

from rlhf.planning.fit import SMALL
from rlhf.planning.settings import (
    FEW_RANKINGS,
    Plan,
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


def sft(plan: Plan) -> list[Setting]:
    """Supervised fine-tuning: three epochs, among which `rlhf choose` chooses; one on much data."""
    rows = plan.data["demonstrations"].rows["train"]
    epochs = 3 if rows < 20_000 else 1
    size = batch(epochs * rows, 32, 50, plan.processes)
    why = "the paper trains 16 and chooses one by reward-model score (rlhf choose)" if epochs > 1 else "much data"
    return [
        *weights(plan),
        *source(plan, "demonstrations", "max_length"),
        ("num_train_epochs", epochs, why),
        ("batch_size", size, _batch_reason(plan, rows * epochs, size, 32)),
        rate(plan),
        ("max_length", plan.lengths.row, _longest(plan, "demonstrations")),
        *training(plan, "sft", size),
        output(plan, "sft"),
    ]


def reward(plan: Plan) -> list[Setting]:
    """Reward model on the LoRA weights of SFT, one epoch as in the paper."""
    found, shown = plan.data["comparisons"], plan.data.get("demonstrations")
    rows, settings = found.rows["train"], []
    size = batch(rows, 64, 20, plan.processes)
    if shown is not None and shown.args.dataset_name != found.args.dataset_name:
        settings.append(("calibration_dataset", shown.args.dataset_name, "its demonstrations score 0 on average"))
    elif shown is not None and shown.args.dataset_format == "best_answer" != found.args.dataset_format:
        settings.append(("dataset_format", "best_answer", "calibrates: the best answers score 0 on average"))
    if shown is not None:
        settings.append(("sft_model_path", f"runs/{plan.name}/sft", "its LoRA weights are the start, as in the paper"))
    per_forward = max(8, plan.fit.rows["reward"] * plan.lengths.k)
    return [
        *weights(plan),
        *source(plan, "comparisons", "max_length"),
        *settings,
        ("batch_size", size, _batch_reason(plan, rows, size, 64)),
        rate(plan),
        ("max_length", plan.lengths.row, _longest(plan, "comparisons")),
        ("completions_per_forward", per_forward, "answers in a pass"),
        *training(plan, "reward", size),
        output(plan, "reward"),
    ]


def choose(plan: Plan) -> list[Setting]:
    """The SFT epoch whose answers score best."""
    gpu = plan.machine.gpus > 0
    return [
        ("sft_path", f"runs/{plan.name}/sft", ""),
        ("reward_model_path", f"runs/{plan.name}/reward", ""),
        *weights(plan)[1:],
        *source(plan, "demonstrations"),
        ("choice_prompts", 128 if gpu else 32, "validation prompts that every epoch answers"),
        ("choice_max_new_tokens", plan.lengths.response, "as in PPO"),
        ("choice_batch_size", 64 if gpu else 16, "answers sampled at once"),
        *endings(plan),
    ]


def ppo(plan: Plan) -> list[Setting]:
    """PPO: the paper's batches on a GPU, a short run on a CPU."""
    gpu, large = plan.machine.gpus > 0, plan.model.parameters > BILLIONS
    episodes, rollout, step = (32_768 if large else 16_384, 512, 64) if gpu else (512, 64, 16)
    steps, rollouts = episodes // step, episodes // rollout
    policy_rate, value_rate = RATES[steps]
    minibatches = rollout // step
    step = rounded_up(step, plan.processes)  # which share it
    rollout, episodes = minibatches * step, rollouts * minibatches * step
    size = "the paper's" if rollout == 512 else "the paper's 512 are for GPUs"
    size = f"the paper's 512, for {plan.processes} GPUs" if rollout > 512 else size
    cautious = plan.data["comparisons"].rows["train"] < FEW_RANKINGS or plan.model.parameters < SMALL
    start = f"runs/{plan.name}/sft" if "demonstrations" in plan.data else ""
    at_once = min(rollout, 4 * plan.fit.rows["ppo"]) if gpu else rollout
    length = "the paper's 256k need a far better reward model" if gpu else "a short run, for a CPU"
    settings: list[Setting] = [
        *weights(plan),
        *source(plan, "prompts", "max_prompt_length"),
        ("sft_model_path", start, "policy and reference"),
        ("reward_model_path", f"runs/{plan.name}/reward", ""),
        ("batch_size", rollout, f"episodes of a rollout, {size}"),
        ("mini_batch_size", step, "episodes of a step"),
        ("total_episodes", episodes, f"{rollouts} rollouts; {length}"),
        ("local_rollout_forward_batch_size", at_once, "answers sampled at once"),
        ("max_prompt_length", plan.lengths.prompt, _longest_prompt(plan)),
        ("response_length", plan.lengths.response, _response(plan)),
        *endings(plan),
        ("kl_coef", 0.05 if cautious else 0.02, _kl_reason(cautious)),
        ("learning_rate", policy_rate, f"for {steps} steps, as measured: docs/ppo.md, Rates"),
        ("value_learning_rate", value_rate, ""),
        ("value_warmup_rollouts", 2 if gpu else 1, "a value model fresh from the reward model explains nothing"),
        ("warmup_rollouts", 3 if gpu else 1, "rollouts over which the rates rise"),
    ]
    if "pretraining" in plan.data:
        text, blocks = plan.data["pretraining"].args.dataset_name, 8 if gpu else 1
        tokens = min(2048 if gpu else 128, plan.model.context or 2048)
        settings.append(("pretrain_dataset_name", text, "PPO-ptx: keeps what the base knows"))
        settings.append(("ptx_length", tokens, "tokens of a block"))
        settings.append(("ptx_examples_per_episode", blocks, "the paper's 8" if gpu else "the paper's 8 are for GPUs"))
    return [*settings, *training(plan, "ppo", step), output(plan, "ppo")]


def evaluate(plan: Plan) -> list[Setting]:
    """Base, SFT and RLHF on prompts that no stage has seen."""
    prompts, gpu = plan.data["prompts"].rows["test"], plan.machine.gpus > 0
    limit = 1000 if gpu else 64
    settings: list[Setting] = [
        *weights(plan),
        *source(plan, "prompts", "max_new_tokens"),
        ("dataset_eval_size", limit, f"at most; there are {prompts:,} test prompts"),
    ]
    if "demonstrations" in plan.data:
        settings.append(("sft_model_path", f"runs/{plan.name}/sft", ""))
    if "comparisons" in plan.data:
        folder = f"runs/{plan.name}"
        settings.append(("ppo_model_path", f"{folder}/ppo", ""))
        settings.append(("reward_model_path", f"{folder}/reward", "judges; PPO was trained on it, so add --judges"))
    settings.append(("max_new_tokens", plan.lengths.response, "tokens of an answer, as in PPO"))
    settings.append(("batch_size", 64 if gpu else 16, "prompts at once"))
    return [*settings, output(plan, "evaluate")]


# ---- Reasons


def _batch_reason(plan: Plan, rows: int, size: int, paper: int) -> str:
    if size > paper:
        return f"{rows // size:,} steps; the paper's {paper}, for {plan.processes} GPUs"
    return f"{rows // size:,} steps" + (", the paper's size" if size == paper else f"; the paper's {paper} leave few")


def _longest(plan: Plan, kind: str) -> str:
    longest = max(plan.data[kind].lengths, default=0)
    if longest <= plan.lengths.row:
        return f"tokens; the longest row has {longest:,}"
    why = "the model's context" if plan.lengths.row == plan.model.context else f"enough on this {plan.on.upper()}"
    return f"tokens, {why}; the longest row has {longest:,}"


def _longest_prompt(plan: Plan) -> str:
    longest = max(plan.data["prompts"].prompts, default=0)
    rest = "" if longest <= plan.lengths.prompt else "; prompt and answer are no longer than rows of the reward model"
    return f"tokens; the longest prompt has {longest:,}{rest}"


def _response(plan: Plan) -> str:
    share = f"tokens; {share_of_answers(plan)} % of the longest answers have no more"
    return share if plan.machine.gpus else f"{share}, and more takes long on a CPU"


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


def stages_of(plan: Plan) -> list[str]:
    """Returns the stages for which there is data."""
    names = ["sft"] if "demonstrations" in plan.data else []
    if "comparisons" in plan.data:
        names += ["reward", *(["choose"] if names else []), "ppo"]
    return [*names, "evaluate"] if names and "prompts" in plan.data else names
