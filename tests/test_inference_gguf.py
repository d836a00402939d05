"""Export with a stand-in for llama.cpp's converter, and the Modelfile's template, rendered as Ollama would."""

import re

import pytest
from test_evaluation_compare import load_main
from toys import bpe_tokenizer, save_toy_stages

from rlhf.errors import InputError
from rlhf.inference.gguf import CONVERTER, go_template, modelfile
from rlhf.models.loading import load_tokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WRITES = "import sys; open(sys.argv[sys.argv.index('--outfile') + 1], 'w').write(' '.join(sys.argv[1:]))"


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    return save_toy_stages(tmp_path_factory.mktemp("export"))


def rendered(template: str, messages: list[dict]) -> str:
    """Renders the part of Go's template language that `go_template` writes."""
    begin, end = '{{ $before := "" }}{{ range .Messages }}', "{{ $before = .Role }}{{ end }}"
    loop = re.fullmatch(f"{re.escape(begin)}(.*){re.escape(end)}(.*)", template, re.DOTALL)
    assert loop is not None
    tokens = re.split(r"(\{\{.*?\}\})", loop[1])

    def body(message: dict, before: str) -> str:
        text, stack = "", []  # of [is this branch taken, was an earlier one]
        for token in tokens:
            if condition := re.fullmatch(r'\{\{ (else )?if eq (\.Role|\$before) "(\w*)" \}\}', token):
                holds = (message["role"] if condition[2] == ".Role" else before) == condition[3]
                if condition[1]:
                    taken, done = stack.pop()
                    stack.append([holds and not (taken or done), taken or done])
                else:
                    stack.append([holds, False])
            elif token == "{{ end }}":
                stack.pop()
            elif all(taken for taken, _ in stack):
                text += message["content"] if token == "{{ .Content }}" else token
        return text

    befores = ["", *(message["role"] for message in messages)]
    return "".join(map(body, messages, befores)) + loop[2]


CONVERSATIONS = [
    ["user"],
    ["user", "assistant", "user"],
    ["system", "user"],
    ["system", "user", "assistant", "user", "assistant", "user"],
]


@pytest.mark.parametrize("roles", CONVERSATIONS)
@pytest.mark.parametrize("template", [CHATML, None])
def test_template_for_ollama_asks_as_the_tokenizer_does(roles, template, tmp_path):
    bpe_tokenizer(special_tokens=("<|endoftext|>", "<|im_start|>", "<|im_end|>")).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))  # without a template it has the library's default
    tokenizer.chat_template = template or tokenizer.chat_template
    messages = [{"role": role, "content": f"text {i}"} for i, role in enumerate(roles)]
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered(go_template(tokenizer) or "", messages) == expected


def test_modelfile_has_sampling_and_stop_tokens(tmp_path):
    bpe_tokenizer().save_pretrained(tmp_path)
    text = modelfile(load_tokenizer(str(tmp_path)), "mine.gguf", 0.7)
    assert text.startswith('FROM ./mine.gguf\nTEMPLATE """')
    assert text.endswith(
        'PARAMETER temperature 0.7\nPARAMETER top_k 0\nPARAMETER top_p 1\nPARAMETER stop "<|endoftext|>"\n'
    )


def test_template_that_writes_turns_in_two_forms_is_left_to_ollama(tmp_path):
    bpe_tokenizer().save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    tokenizer.chat_template = "{% for m in messages %}{{ m.role + m.content }}{% endfor %}>"
    assert go_template(tokenizer) is None and "TEMPLATE" not in modelfile(tokenizer, "mine.gguf", 1.0)


def test_adapter_is_merged_and_handed_to_the_converter(stages, tmp_path, monkeypatch, capsys):
    (tmp_path / CONVERTER).write_text(WRITES)
    target = tmp_path / "out" / "mine.gguf"
    load_main("export", [stages / "sft", "--gguf", target, "--llama_cpp", tmp_path, "--outtype", "f16"], monkeypatch)()
    assert re.fullmatch(r"\S*/merged --outfile \S*/\.partial-mine\.gguf --outtype f16", target.read_text())
    assert sorted(path.name for path in target.parent.iterdir()) == ["Modelfile", "mine.gguf"]
    assert "ollama create" in capsys.readouterr().out


def test_converter_is_found_on_the_path(stages, tmp_path, monkeypatch):
    (tmp_path / CONVERTER).write_text(WRITES)
    (tmp_path / CONVERTER).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    load_main("export", [stages / "base", "--gguf", tmp_path / "base.gguf"], monkeypatch)()
    assert str(stages / "base") in (tmp_path / "base.gguf").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["{base}", "--gguf", "{tmp}/a.gguf", "--llama_cpp", "{tmp}/nowhere"],
            "nowhere does not exist. Pass the folder",
        ),
        (["{base}", "--gguf", "{tmp}/a.bin"], "Name a file that ends in .gguf"),
        (["{base}", "--gguf", "{tmp}/a.gguf"], "not on the PATH. Run `git clone"),
        (["{base}", "--gguf", "{tmp}/old.gguf", "--llama_cpp", "{tmp}"], "old.gguf exists already"),
        (["{base}", "--gguf", "{tmp}/there/a.gguf", "--llama_cpp", "{tmp}"], "Modelfile exists already"),
        (["{tmp}", "--gguf", "{tmp}/a.gguf", "--llama_cpp", "{tmp}"], "neither a merged model nor an adapter"),
        (["{reward}", "--gguf", "{tmp}/a.gguf", "--llama_cpp", "{tmp}"], "is a reward model"),
        (["{base}", "--gguf", "{tmp}/a.gguf", "--llama_cpp", "{tmp}"], "cannot convert .*: No module named 'sentence"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_no_file(stages, tmp_path, monkeypatch, words, message):
    (tmp_path / CONVERTER).write_text("raise SystemExit(\"No module named 'sentencepiece'\")")
    (tmp_path / "old.gguf").write_text("")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "Modelfile").write_text("")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    words = [word.format(tmp=tmp_path, base=stages / "base", reward=stages / "reward") for word in words]
    with pytest.raises(InputError, match=message):
        load_main("export", words, monkeypatch)()
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONVERTER, "old.gguf", "there"]
