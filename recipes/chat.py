"""Talks with the models of a run in the terminal: base, SFT and RLHF on one conversation.

    rlhf chat runs/mine

Answers come token by token, sampled as PPO sampled them and ended by its stop tokens. /sft, /base and /ppo switch the
model, /compare lets all answer the last message, /reward shows the reward model's scores, /save keeps the conversation
as a row to train on; /help lists the commands. A folder of one stage, a merged model and names on the Hub do as well.
Messages may also come from a pipe, one a line.
"""

import signal
from dataclasses import dataclass, field, replace
from pathlib import Path

from transformers import GenerationConfig
from trl import ModelConfig

from rlhf.cli import parse, run
from rlhf.data.prompt_style import resolve_style
from rlhf.data.text_rewards import is_adapter
from rlhf.errors import InputError, require_at_least
from rlhf.generation.score_options import policy_options
from rlhf.inference.chat import Chat
from rlhf.inference.terminal import Terminal
from rlhf.models.adapter_files import CONFIG, adapter_folder
from rlhf.models.stages import load_adapters, merged_style, stage_folders, trained_style
from rlhf.options import READ_ADAPTERS
from rlhf.runs.checks import check_model_options
from rlhf.runs.contract import read_contract
from rlhf.runs.model_card import STAGES


@dataclass
class ChatArguments:
    run: str = field(
        metadata={"help": "Folder of a run, such as runs/mine, or of one stage; a whole model; or a Hub id."}
    )
    temperature: float | None = field(
        default=None,
        metadata={"help": "Temperature of sampling; 0 is greedy. None: PPO's, a whole model's own, else 1."},
    )
    max_new_tokens: int = field(default=256, metadata={"help": "Tokens of an answer, at most."})
    seed: int = field(default=0, metadata={"help": "Seed of sampling."})

    def __post_init__(self):
        require_at_least(self, 0, "temperature")
        require_at_least(self, 1, "max_new_tokens")


def main() -> None:
    args, model_args = parse(ChatArguments, ModelConfig, options=READ_ADAPTERS, positional="run")
    check_model_options(model_args)
    adapters = adapters_of(args.run)
    if not adapters and not model_args.model_name_or_path:
        model_args = replace(model_args, model_name_or_path=args.run)
    set_signals()

    # One base with all adapters
    print(f"Loading {args.run}: {', '.join(['base', *adapters])} ...", flush=True)
    shared, tokenizer = load_adapters(model_args, adapters)
    trained = trained_style(adapters.values()) if adapters else merged_style(str(model_args.model_name_or_path))
    style = resolve_style(None, trained, tokenizer)
    temperature = args.temperature
    if temperature is None and adapters:
        temperature = policy_options(adapters.get("ppo")).temperature
    elif temperature is None:
        temperature = own_temperature(shared.lm.generation_config)
    chat = Chat(shared, tokenizer, style, temperature, args.max_new_tokens, args.seed)

    # Conversation
    sampling = f"sampled at temperature {temperature:g}" if temperature else "greedy"
    form = "" if style == "chat" else " Each message is a prompt of plain text and stands alone, as in its training."
    print(
        f"Ready. {chat.system} answers, {sampling}, in at most "
        f"{args.max_new_tokens} tokens.{form}\nType a message, or /help for the commands.\n",
        flush=True,
    )
    Terminal(chat).run()


def own_temperature(config: GenerationConfig | None) -> float:
    """Returns the temperature in a model's generation_config.json, 1 without one. `rlhf merge` writes PPO's there."""
    return (config and config.do_sample and config.temperature) or 1.0


def adapters_of(name: str) -> dict[str, str]:
    """Returns stage -> folder or Hub id of the adapters of a run; of one adapter; {} for a whole model.

    Raises:
        InputError: the folder does not exist, or holds nothing of these.
    """
    folder = Path(name).expanduser()
    if any((folder / stage / CONFIG).exists() for stage in STAGES):
        return stage_folders(folder)
    if is_adapter(name):
        contract = read_contract(adapter_folder(name))
        return {contract.stage if contract else "adapter": name}
    if folder.is_dir() and not (folder / "config.json").exists() and not list(folder.glob("*.gguf")):
        smoke = folder / "smoke"
        other = f"{smoke}, which is there" if any(smoke.glob(f"*/{CONFIG}")) else "runs/mine"
        raise InputError(
            f"{name} holds neither finished stages nor a model. Pass the folder of a run, such as {other}."
        )
    is_path = (
        name.startswith((".", "/", "~")) or name.count("/") > 1 or (folder.parent != Path() and folder.parent.is_dir())
    )
    if is_path and not folder.exists():
        raise InputError(f"Run folder {name} does not exist. Pass the folder of a run, such as runs/mine.")
    return {}


def set_signals() -> None:
    """Lets a signal to terminate, and the end of a pipe that reads the answers, end the program without a word.

    Each Ctrl-C counts: `rlhf.cli.run` takes two within a second for one, of terminal and launcher.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)


if __name__ == "__main__":
    run(main)
