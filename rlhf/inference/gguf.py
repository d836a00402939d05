"""GGUF files by llama.cpp's converter, and a Modelfile with which Ollama asks in the trained form."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rlhf.errors import InputError
from rlhf.models.stop_tokens import stop_token_texts

CONVERTER, REQUIREMENTS = "convert_hf_to_gguf.py", "requirements-convert_hf_to_gguf.txt"
MARKS = ("\U000fffd0", "\U000fffd1", "\U000fffd2")  # private-use characters, which no template writes

# FIRST stands before the first message of the user, BETWEEN before a later one, ANSWER before an answer.
GO = (
    '{{ $before := "" }}{{ range .Messages }}'
    '{{ if eq .Role "user" }}{{ if eq $before "" }}FIRST{{ else if eq $before "assistant" }}BETWEEN{{ end }}'
    '{{ .Content }}{{ else if eq .Role "assistant" }}ANSWER{{ .Content }}'
)
GO_SYSTEM = '{{ else if eq .Role "system" }}BEFORE{{ .Content }}AFTER'
GO_END = "{{ end }}{{ $before = .Role }}{{ end }}"


def find_converter(llama_cpp: str | None) -> Path:
    """Returns the path of llama.cpp's converter.

    Args:
        llama_cpp: folder of llama.cpp, or the script itself; None looks on the PATH.

    Raises:
        InputError: it is not there.
    """
    if llama_cpp is None:
        found = shutil.which(CONVERTER)
        if found is None:
            raise InputError(
                f"llama.cpp's {CONVERTER} is not on the PATH. Run `git clone https://github.com/ggml-org/llama.cpp`, "
                "and pass --llama_cpp llama.cpp."
            )
        return Path(found)
    path = Path(llama_cpp).expanduser()
    path = path / CONVERTER if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"llama_cpp: {path} does not exist. Pass the folder that holds {CONVERTER}.")
    return path


def convert(converter: Path, model: Path, target: Path, outtype: str) -> None:
    """Writes the GGUF file of a merged model.

    Raises:
        InputError: the converter fails; its last line says why.
    """
    partial = target.with_name(f".partial-{target.name}")
    command = [sys.executable, str(converter), str(model), "--outfile", str(partial), "--outtype", outtype]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode or not partial.exists():
        partial.unlink(missing_ok=True)
        lines = [line for line in (result.stderr + result.stdout).splitlines() if line.strip()] or ["it says nothing"]
        reason, remedy = lines[-1].strip().rstrip("."), f"Run `{shlex.join(command)}` to see all that it says"
        if "No module named" in reason:
            remedy = f"Install what it needs: pip install -r {converter.parent / 'requirements' / REQUIREMENTS}"
        raise InputError(f"llama.cpp's converter cannot convert {model}: {reason}. {remedy}.")
    partial.rename(target)


def modelfile(tokenizer: PreTrainedTokenizerBase, gguf: str, temperature: float) -> str:
    """Returns the text of an Ollama Modelfile: file, template, sampling of the training, stop tokens.

    Ollama knows the templates of some models only, and those as Go templates, so the one here is made from what the
    tokenizer's template writes. Without TEMPLATE, where this is not possible, Ollama reads the one in the GGUF file.
    """
    lines = [f"FROM ./{gguf}"]
    template = go_template(tokenizer)
    if template is not None:
        lines.append(f'TEMPLATE """{template}"""')
    lines += [f"PARAMETER temperature {temperature:g}", "PARAMETER top_k 0", "PARAMETER top_p 1"]
    lines += [f"PARAMETER stop {json.dumps(token, ensure_ascii=False)}" for token in stop_token_texts(tokenizer)]
    return "\n".join(lines) + "\n"


def go_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Returns the tokenizer's chat template in Go's language, for messages of system, user and assistant.

    None if turns are not written one after another in one form, or the text cannot stand in a Modelfile.
    """
    user, answer, second = MARKS
    parts = _parts(tokenizer, [("user", user), ("assistant", answer), ("user", second)])
    system = _parts(tokenizer, [("system", user), ("user", answer)])
    if parts is None or parts[1].rstrip(" ") != parts[3].rstrip(" "):  # an answer begins in two ways
        return None
    if any("{{" in part or '"""' in part for part in [*parts, *(system or [])]):
        return None
    first, before_answer, between, end = parts
    text = GO.replace("FIRST", first).replace("BETWEEN", between).replace("ANSWER", before_answer)
    if system is not None:
        text += GO_SYSTEM.replace("BEFORE", system[0]).replace("AFTER", system[1])
    return text + GO_END + end


def _parts(tokenizer: PreTrainedTokenizerBase, turns: list[tuple[str, str]]) -> list[str] | None:
    """Returns what the chat template writes before, between and after the contents; None if it refuses the turns."""
    messages = [{"role": role, "content": content} for role, content in turns]
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except (TemplateError, ValueError):
        return None
    bos_id, bos = tokenizer.bos_token_id, str(tokenizer.bos_token)
    if bos_id is not None and tokenizer("a")["input_ids"][0] == bos_id:  # llama.cpp adds it, too
        text = text.removeprefix(bos)
    parts = []
    for _, content in turns:
        part, mark, text = text.partition(content)
        if not mark:
            return None
        parts.append(part)
    return [*parts, text]
