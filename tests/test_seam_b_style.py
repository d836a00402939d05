"""The form of prompts: text is a message where the tokenizer brings a chat template, in every stage."""

import pytest
from chat_families import SYSTEM, USER, family_tokenizer
from datasets import Dataset
from test_runs_model_card import code_blocks
from toys import bpe_tokenizer, finish_stage, save_toy
from trl import ModelConfig

from rlhf.data import DataArguments
from rlhf.data.encode import encode_completion, encode_prompt
from rlhf.data.first_example import show_comparison, show_demonstration, show_prompt
from rlhf.data.loading import load_demonstrations
from rlhf.data.prompt_style import brings_template, in_prompt_style, rendered_already, template_mark
from rlhf.data.splits import conversation_id
from rlhf.errors import InputError
from rlhf.evaluation.compare import answers, as_text
from rlhf.models.loading import load_tokenizer
from rlhf.models.stages import load_adapters, trained_style
from rlhf.reward.trainer import tokenize_comparisons
from rlhf.runs.contract import Contract, write_contract
from rlhf.runs.model_card import model_card
from rlhf.sft.trainer import tokenize_demonstrations

QUESTION = "Name a fruit."


def data_args(**changes) -> DataArguments:
    return DataArguments(dataset_name="rows", **changes)


def demonstrations(prompt: str = QUESTION, completion: str = " A pear.") -> Dataset:
    return Dataset.from_list([{"prompt": prompt, "completion": completion}] * 2)


def comparisons() -> Dataset:
    return Dataset.from_list([{"prompt": QUESTION, "completions": [" A stone.", " A pear."], "ranks": [1, 0]}])


def plain_tokenizer(folder):
    bpe_tokenizer().save_pretrained(folder)
    return load_tokenizer(str(folder))


# --- B9: the form -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gemma-2", "qwen3", "mistral"])
def test_seam_b9_text_is_a_message_where_the_tokenizer_brings_a_template(family):
    tokenizer = family_tokenizer(family)
    assert brings_template(tokenizer)
    [row, _] = in_prompt_style(demonstrations(), data_args(), tokenizer, "train")
    assert row == {"prompt": USER, "completion": [{"role": "assistant", "content": "A pear."}]}
    [row] = in_prompt_style(comparisons(), data_args(), tokenizer, "train")
    assert row == {"prompt": USER, "completions": ["A stone.", "A pear."], "ranks": [1, 0]}
    [row] = in_prompt_style(
        Dataset.from_list([{"prompt": QUESTION, "category": "qa"}]), data_args(), tokenizer, "train"
    )
    assert row == {"prompt": USER, "category": "qa"}
    assert len(in_prompt_style(comparisons().select([]), data_args(), tokenizer, "train")) == 0


def test_seam_b9_text_stays_text_without_a_template_and_after_saving(tmp_path):
    tokenizer = plain_tokenizer(tmp_path)
    tokenizer.save_pretrained(tmp_path / "sft")
    for each in (tokenizer, load_tokenizer(str(tmp_path / "sft"))):
        assert not brings_template(each)
        assert in_prompt_style(demonstrations(), data_args(), each, "train")[0] == demonstrations()[0]
    chat = in_prompt_style(demonstrations(), data_args(prompt_style="chat"), tokenizer, "train")
    assert chat[0]["prompt"] == USER


def test_seam_b9_text_style_is_obeyed_and_kept_by_later_stages():
    tokenizer = family_tokenizer("qwen3")
    text = in_prompt_style(demonstrations(), data_args(prompt_style="text"), tokenizer, "train")
    assert text[0] == demonstrations()[0]
    assert in_prompt_style(comparisons(), data_args(), tokenizer, "train", trained="text")[0]["prompt"] == QUESTION
    with pytest.raises(InputError, match="prompt_style is chat, but the adapter was trained on prompts of style text"):
        in_prompt_style(comparisons(), data_args(prompt_style="chat"), tokenizer, "train", trained="text")
    messages = Dataset.from_list([{"prompt": USER}])
    assert in_prompt_style(messages, data_args(prompt_style="chat"), tokenizer, "train")[0]["prompt"] == USER
    with pytest.raises(InputError, match="prompt_style is text, but the prompts of rows are messages"):
        in_prompt_style(messages, data_args(prompt_style="text"), tokenizer, "train")
    with pytest.raises(InputError, match="trained on prompts of style text, but the prompts of rows are messages"):
        in_prompt_style(messages, data_args(), tokenizer, "train", trained="text")


@pytest.mark.parametrize(
    ("family", "text", "mark"),
    [
        ("qwen3", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "<|im_start|>"),
        ("mistral", "<s>[INST] Hi [/INST]", "[INST]"),
        ("mistral", "[INST] Hi [/INST]", "[INST]"),
        ("llama-3.2", "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi", "<|start_header_id|>"),
        ("gemma-2", "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n", "<start_of_turn>"),
        ("phi-3", "<|user|>\nHi<|end|>\n<|assistant|>\n", "<|user|>"),
        ("r1", "<bos><|User|>Hi<|Assistant|><think>\n", "<|User|>"),
    ],
)
def test_seam_b10_a_text_that_is_rendered_already_is_a_bad_row(family, text, mark, tmp_path):
    tokenizer = family_tokenizer(family)
    assert template_mark(tokenizer) == mark and rendered_already(tokenizer, f"What is {mark}?") is None
    rows = Dataset.from_list([{"prompt": QUESTION}, {"prompt": text}])
    with pytest.raises(InputError, match=r"rows \(train split\), row 2: .* give messages"):
        in_prompt_style(rows, data_args(), tokenizer, "train")
    kept = in_prompt_style(rows, data_args(on_bad_rows="skip"), tokenizer, "train", output_dir=str(tmp_path))
    assert kept["prompt"][:] == [USER] and "row 2" in (tmp_path / "skipped_rows.jsonl").read_text()


def test_seam_b10_nothing_is_a_mark_in_the_template_of_this_library(tmp_path):
    assert template_mark(plain_tokenizer(tmp_path)) == ""


def test_seam_b10_roles_that_the_template_refuses_are_a_bad_row():
    tokenizer = family_tokenizer("gemma-2")
    rows = Dataset.from_list([{"prompt": USER}, {"prompt": SYSTEM}])
    with pytest.raises(InputError, match=r"row 2: .* refuses messages with roles system, user \(System role not supp"):
        in_prompt_style(rows, data_args(), tokenizer, "train")
    kept = in_prompt_style(rows, data_args(on_bad_rows="skip"), tokenizer, "train")
    assert kept["prompt"][:] == [USER]


def test_seam_b9_a_transcript_becomes_its_messages():
    rows = demonstrations("\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Name a fruit.\n\nAssistant:")
    [row, _] = in_prompt_style(rows, data_args(), family_tokenizer("qwen3"), "train")
    assert [(message["role"], message["content"]) for message in row["prompt"]] == [
        ("user", "Hi"), ("assistant", "Hello!"), ("user", "Name a fruit.")
    ]  # fmt: skip
    assert conversation_id(row) == conversation_id(rows[0])


# --- B11: the first example -------------------------------------------------------------------------------------------


def test_seam_b11_each_stage_shows_its_first_encoded_row(capsys):
    tokenizer = family_tokenizer("gemma-2")
    rows = in_prompt_style(demonstrations(), data_args(), tokenizer, "train")
    show_demonstration(tokenizer, tokenize_demonstrations(rows, tokenizer)[0])
    prompt = "<bos><start_of_turn>user⏎Name a fruit.<end_of_turn>⏎<start_of_turn>model⏎"
    shown = unwrapped(capsys.readouterr().out)
    assert f"tokens): {prompt} completion, loss on each token (" in shown
    assert "tokens): A pear.<end_of_turn>" in shown and "ends with <eos> or <end_of_turn>" in shown
    rows = in_prompt_style(comparisons(), data_args(), tokenizer, "train")
    show_comparison(tokenizer, tokenize_comparisons(rows, tokenizer)[0])
    shown = unwrapped(capsys.readouterr().out)
    best, worst = shown.index("A pear.<end_of_turn>"), shown.index("A stone.<end_of_turn>")
    assert shown.index("best, score at") < best < shown.index("worst, score at") < worst
    show_prompt(tokenizer, encode_prompt(tokenizer, USER))
    assert prompt in unwrapped(capsys.readouterr().out)


def test_the_end_of_an_answer_is_said_where_no_completion_shows_it(capsys):
    tokenizer = bpe_tokenizer()
    show_demonstration(tokenizer, tokenize_demonstrations(demonstrations(), tokenizer)[0])
    shown = capsys.readouterr().out
    assert f"A pear.{tokenizer.eos_token}\n" in shown and "an answer ends" not in shown
    show_prompt(tokenizer, encode_prompt(tokenizer, "Name a fruit."))
    assert f"an answer ends with {tokenizer.eos_token}\n" in capsys.readouterr().out


def unwrapped(shown: str) -> str:
    return " ".join(shown.split())


# --- E1: compare and the card ask in the form that was trained ----------------------------------------------------


@pytest.fixture
def text_run(tmp_path):
    """A finished run on rows of text, as the first lines of README describe them."""
    base = save_toy(tmp_path / "base")
    for stage in ("sft", "reward"):
        finish_stage(base, tmp_path / stage, stage)
        write_contract(tmp_path / stage, Contract(stage, prompt_style="text"))
    return tmp_path


def test_seam_e1_compare_asks_in_the_form_that_was_trained(text_run, load_recipe, monkeypatch, capsys):
    options = ["compare", "--prompt", QUESTION, "--sft_model_path", str(text_run / "sft"), "--max_new_tokens", "8"]
    monkeypatch.setattr("sys.argv", options)
    load_recipe("compare").main()
    shared, tokenizer = load_adapters(ModelConfig(), {"sft": text_run / "sft"})
    assert trained_style([text_run / "sft"]) == "text"
    as_trained = as_text(QUESTION, answers(shared, tokenizer, QUESTION, max_new_tokens=8))
    assert capsys.readouterr().out == as_trained + "\n"
    assert as_trained != as_text(QUESTION, answers(shared, tokenizer, USER, max_new_tokens=8))
    with pytest.raises(InputError, match="prompt_style is chat, but the adapter was trained"):
        monkeypatch.setattr("sys.argv", [*options, "--prompt_style", "chat"])
        load_recipe("compare").main()


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_seam_e1_the_card_asks_in_the_form_that_was_trained(text_run, stage):
    scope = {}
    exec(code_blocks(model_card(text_run / stage, stage))[0], scope)
    tokenizer, asked = scope["tokenizer"], "Tell me about the sea."
    prompt = encode_prompt(tokenizer, asked)
    if stage == "sft":
        assert scope["inputs"]["input_ids"][0].tolist() == prompt
    else:
        assert scope["ids"] == prompt + encode_completion(tokenizer, asked, " It is salty.")


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_seam_e1_the_card_stops_where_the_answers_of_the_training_did(tmp_path, stage):
    base = save_toy(tmp_path / "base")
    finish_stage(base, tmp_path / stage, stage)
    tokenizer = load_tokenizer(str(tmp_path / stage))
    tokenizer.init_kwargs["stop_tokens"] = ["<|endoftext|>", "."]
    tokenizer.save_pretrained(tmp_path / stage)
    scope = {}
    exec(code_blocks(model_card(tmp_path / stage, stage))[0], scope)
    assert scope["stops"] == tokenizer.convert_tokens_to_ids(["<|endoftext|>", "."])
    if stage == "reward":
        messages = [{"role": "user", "content": "Tell me about the sea."}]
        assert scope["ids"] == encode_prompt(tokenizer, messages) + encode_completion(
            tokenizer, messages, "It is salty."
        )


def test_seam_b9_the_option_of_the_data_reaches_a_stage(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"prompt": "Name fruit {i}.", "completion": " A pear."}}\n' for i in range(99)))
    args = DataArguments(dataset_name=str(path))
    rows = load_demonstrations(args, "train")
    assert in_prompt_style(rows, args, family_tokenizer("gemma-2"), "train")[0]["prompt"][0]["role"] == "user"
