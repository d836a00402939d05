"""Base models and tokenizers: sources, pad token, chat template."""

from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from gguf_file import write_gguf
from peft import get_peft_model
from tokenizers.processors import TemplateProcessing
from toys import BPE_EOS, BPE_MODELS, bpe_model, bpe_tokenizer, save_toy
from transformers import AutoConfig, AutoTokenizer, T5Config
from transformers.pytorch_utils import Conv1D
from transformers.trainer_utils import validate_quantization_for_training
from trl import ModelConfig

import rlhf.models.loading
from rlhf.errors import InputError
from rlhf.models.loading import (
    NEW_PAD_TOKEN,
    context_length,
    load_base,
    load_config,
    load_sequence_classifier,
    load_tokenizer,
    lora_config,
    resolve_model_name,
    set_pad_token,
)

INPUT_IDS = torch.arange(5, 15).reshape(2, 5)


def model_args(folder, **kwargs):
    return ModelConfig(model_name_or_path=str(folder), **kwargs)


# -- names ------------------------------------------------------------------------------------------------------------


def test_sandbox_is_the_packaged_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(rlhf.models.loading, "SANDBOX_BASE", tmp_path)
    with pytest.raises(InputError, match="make pretrain"):
        resolve_model_name("sandbox")
    (tmp_path / "config.json").write_text("{}")
    assert resolve_model_name("sandbox") == str(tmp_path)


def test_hub_ids_and_folders_are_unchanged(tmp_path):
    assert resolve_model_name("gpt2") == "gpt2"
    assert resolve_model_name("HuggingFaceTB/SmolLM2-135M") == "HuggingFaceTB/SmolLM2-135M"
    assert resolve_model_name(str(tmp_path)) == str(tmp_path)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere", "runs/sandbox/nowhere"])
def test_absent_folder_is_named(name):
    with pytest.raises(InputError, match=f"{name} does not exist"):
        resolve_model_name(name)


def test_missing_name_and_file_instead_of_folder(tmp_path):
    with pytest.raises(InputError, match="model_name_or_path is missing"):
        resolve_model_name(None)
    (tmp_path / "model.gguf").touch()
    with pytest.raises(InputError, match="is a file"):
        resolve_model_name(str(tmp_path / "model.gguf"))


def test_the_error_for_a_missing_model_is_one_line():
    with pytest.raises(InputError, match=r"no-such-owner/no-such-model cannot be loaded: [^\n]*\.$"):
        load_base(model_args("no-such-owner/no-such-model"))
    with pytest.raises(InputError, match="no-such-owner/no-such-model"):
        load_tokenizer("no-such-owner/no-such-model")


def test_pickled_weights_are_refused(tmp_path):
    model = bpe_model()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot be loaded"):
        load_base(model_args(tmp_path))


def test_encoder_decoder_is_refused(tmp_path):
    T5Config(d_model=16, d_ff=16, num_layers=1, num_heads=1, d_kv=16).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="T5"):
        load_base(model_args(tmp_path))


# -- models -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "loaded"), [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("auto", torch.bfloat16)]
)
def test_dtype(tmp_path, dtype, loaded):
    bpe_model().bfloat16().save_pretrained(tmp_path)
    base = load_base(model_args(tmp_path, dtype=dtype))
    assert base.dtype == loaded and not base.training


def test_the_unembedding_reads_contiguous_states_of_the_last_positions(toy_folder, toy_tokenizer):
    model, read = load_base(model_args(toy_folder), toy_tokenizer), []
    model.get_output_embeddings().register_forward_pre_hook(lambda module, args: read.append(args[0]))
    logits = model(input_ids=INPUT_IDS, logits_to_keep=2).logits
    assert read[0].shape[:2] == (2, 2) and read[0].is_contiguous()
    torch.testing.assert_close(logits, model(input_ids=INPUT_IDS).logits[:, -2:])


def test_sequence_classifier_scores_the_last_real_token(toy_folder, toy_tokenizer):
    model = load_sequence_classifier(model_args(toy_folder), toy_tokenizer)
    padded = torch.nn.functional.pad(INPUT_IDS, (0, 3), value=toy_tokenizer.pad_token_id)
    scores = model(INPUT_IDS).logits
    assert scores.shape == (2, 1)
    mask = padded != toy_tokenizer.pad_token_id
    torch.testing.assert_close(model(padded, attention_mask=mask).logits, scores)


def test_missing_weights_are_logged(tmp_path, caplog):
    bpe_model(num_hidden_layers=1).save_pretrained(tmp_path)
    config = bpe_model().config
    config.save_pretrained(tmp_path)
    load_base(model_args(tmp_path))
    assert "lacks weights" in caplog.text and "layers.1" in caplog.text


def test_four_bit(toy_folder, toy_tokenizer):
    bnb = pytest.importorskip("bitsandbytes")
    base = load_base(model_args(toy_folder, load_in_4bit=True, dtype="auto"), toy_tokenizer)
    assert isinstance(base.model.layers[0].mlp.up_proj, bnb.nn.Linear4bit)
    assert base.model.layers[0].mlp.up_proj.compute_dtype == torch.bfloat16
    assert not isinstance(base.lm_head, bnb.nn.Linear4bit)


@pytest.mark.parametrize("architecture", BPE_MODELS)
def test_lora_on_all_linear_layers_but_the_heads(architecture):
    base = bpe_model(architecture)
    head = base.get_output_embeddings()
    linear = {name for name, m in base.named_modules() if isinstance(m, (torch.nn.Linear, Conv1D)) and m is not head}
    model = get_peft_model(base, lora_config(ModelConfig(lora_r=4))).get_base_model()
    assert {name for name, module in model.named_modules() if hasattr(module, "lora_A")} == linear


def test_lora_settings_are_those_of_the_arguments():
    config = lora_config(ModelConfig(lora_r=4, lora_alpha=8, lora_dropout=0.2, use_rslora=True), "SEQ_CLS")
    assert (config.r, config.lora_alpha, config.lora_dropout, config.use_rslora) == (4, 8, 0.2, True)
    assert config.target_modules == "all-linear" and config.task_type == "SEQ_CLS"
    assert config.modules_to_save == ["score"]
    assert lora_config(ModelConfig(lora_target_modules=["q_proj", "v_proj"])).target_modules == {"q_proj", "v_proj"}
    assert lora_config(ModelConfig()).modules_to_save is None


# -- GGUF -------------------------------------------------------------------------------------------------------------


def write_toy_gguf(path: Path) -> None:
    write_gguf(bpe_model(vocab_size=300), bpe_tokenizer(), path)


def test_folder_with_one_gguf(tmp_path):
    write_toy_gguf(tmp_path / "toy.gguf")
    base = load_base(model_args(tmp_path))
    torch.testing.assert_close(base(INPUT_IDS).logits, bpe_model(vocab_size=300)(INPUT_IDS).logits)
    validate_quantization_for_training(get_peft_model(base, lora_config(model_args(tmp_path))))  # the check of Trainer
    text = "The capital of France"
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer(text).input_ids == bpe_tokenizer()(text).input_ids
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert context_length(load_config(str(tmp_path))) == 256


def test_the_configuration_of_a_gguf_is_read_once_until_the_file_changes(tmp_path):
    write_toy_gguf(tmp_path / "toy.gguf")
    with patch.object(AutoConfig, "from_pretrained", wraps=AutoConfig.from_pretrained) as read:
        config = load_config(str(tmp_path))
        config.max_position_embeddings = 1  # the caller's own
        assert context_length(load_config(str(tmp_path))) == 256
        classifier = load_sequence_classifier(model_args(tmp_path))
        assert classifier.config.num_labels == 1 and classifier.name_or_path == str(tmp_path)
        assert load_base(model_args(tmp_path)).name_or_path == str(tmp_path)
        assert read.call_count == 1
        write_gguf(bpe_model(vocab_size=300, max_position_embeddings=128), bpe_tokenizer(), tmp_path / "toy.gguf")
        assert context_length(load_config(str(tmp_path))) == 128


def test_gguf_is_not_quantized_again(tmp_path):
    write_toy_gguf(tmp_path / "toy.gguf")
    with pytest.raises(InputError, match="load_in_4bit and load_in_8bit cannot quantize again"):
        load_base(model_args(tmp_path, load_in_4bit=True))


def test_folder_with_two_ggufs(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"2 \.gguf files \(a\.gguf, b\.gguf\)"):
        load_base(model_args(tmp_path))
    with pytest.raises(InputError, match=r"2 \.gguf files"):
        load_tokenizer(str(tmp_path))


# -- pad token --------------------------------------------------------------------------------------------------------


def pad_of(*special_tokens: str, **roles: str) -> str:
    tokenizer = bpe_tokenizer(special_tokens=(BPE_EOS, *special_tokens))
    for role, token in roles.items():
        setattr(tokenizer, role, token)
    tokenizer.chat_template = rlhf.models.chat_template.DEFAULT_CHAT_TEMPLATE
    size = len(tokenizer)
    set_pad_token(tokenizer)
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    assert (len(tokenizer) == size) == (tokenizer.pad_token != NEW_PAD_TOKEN)
    return tokenizer.pad_token


def test_pad_token_in_order_of_preference():
    assert pad_of("<mine>", "<|padding|>", pad_token="<mine>") == "<mine>"
    assert pad_of("<x>", "<|reserved_0|>", "<|padding|>", "<unk>", unk_token="<unk>") == "<|padding|>"
    assert pad_of("<x>", "<|reserved_0|>", "<|reserved_1|>") == "<|reserved_0|>"
    assert pad_of("<x>", "<unk>", unk_token="<unk>") == "<unk>"
    assert pad_of("<|im_start|>", "<|im_end|>", "<empty_output>") == "<empty_output>"
    assert pad_of() == NEW_PAD_TOKEN


def test_pad_that_is_eos_is_replaced():
    assert pad_of("<|padding|>", pad_token=BPE_EOS) == "<|padding|>"
    assert pad_of(pad_token=BPE_EOS) == NEW_PAD_TOKEN
    assert pad_of("<s>", pad_token=BPE_EOS, bos_token="<s>", unk_token=BPE_EOS) == NEW_PAD_TOKEN


def test_pad_is_no_token_of_the_chat_template():
    tokenizer = bpe_tokenizer(special_tokens=(BPE_EOS, "<|im_start|>"))
    tokenizer.chat_template = "{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}"
    set_pad_token(tokenizer)
    assert tokenizer.pad_token == NEW_PAD_TOKEN


def test_new_pad_token_takes_a_spare_row(toy_folder, toy_tokenizer):
    base = load_base(model_args(toy_folder), toy_tokenizer)
    assert toy_tokenizer.pad_token_id == 300
    assert base.get_input_embeddings().num_embeddings == bpe_model().get_input_embeddings().num_embeddings
    assert base.config.pad_token_id == base.generation_config.pad_token_id == 300


@pytest.mark.parametrize("load", [load_base, load_sequence_classifier])
def test_new_tokens_gain_a_row_the_same_in_every_stage(toy_gpt2_folder, load):
    tokenizer = load_tokenizer(toy_gpt2_folder)
    tokenizer.pad_token = BPE_EOS  # so that <|pad|> is a token like any other
    first, second = (load(model_args(toy_gpt2_folder), tokenizer).get_input_embeddings().weight for _ in range(2))
    old = bpe_model("gpt2").get_input_embeddings().weight
    assert len(tokenizer) == len(old) + 1
    assert torch.equal(first, second) and torch.equal(first[:-1], old)
    torch.testing.assert_close(first[-1], old.mean(0))


def test_row_of_an_untied_unembedding(tmp_path):
    save_toy(tmp_path, vocab_size=300, tie_word_embeddings=False)
    tokenizer = load_tokenizer(str(tmp_path))
    tokenizer.pad_token = BPE_EOS
    base = load_base(model_args(tmp_path), tokenizer)
    head = base.get_output_embeddings().weight
    assert head.shape[0] == 301
    torch.testing.assert_close(head[-1], head[:-1].mean(0))


def test_saved_tokenizer_loads_unchanged(toy_tokenizer, tmp_path):
    toy_tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path))
    assert len(again) == len(toy_tokenizer) and again.pad_token_id == toy_tokenizer.pad_token_id
    assert again.chat_template == toy_tokenizer.chat_template


def test_no_end_of_text_token(tmp_path):
    tokenizer = bpe_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="has no eos_token"):
        load_tokenizer(str(tmp_path))


# -- chat template ----------------------------------------------------------------------------------------------------

CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Name a fruit."},
    {"role": "assistant", "content": "Apples."},
    {"role": "user", "content": "Another?"},
]


def test_default_template_text(toy_tokenizer):
    text = toy_tokenizer.apply_chat_template(CONVERSATION, tokenize=False, add_generation_prompt=True)
    assert text == f"Be brief.\n\nUser: Name a fruit.\nAssistant: Apples.{BPE_EOS}\nUser: Another?\nAssistant:"


def test_prompt_is_a_prefix_of_prompt_and_answer(toy_tokenizer):
    def ids(messages, **kwargs):
        return toy_tokenizer.apply_chat_template(messages, return_dict=False, **kwargs)

    prompt = ids(CONVERSATION, add_generation_prompt=True)
    conversation = ids([*CONVERSATION, {"role": "assistant", "content": "Pears."}])
    assert conversation[: len(prompt)] == prompt
    answer = conversation[len(prompt) :]
    assert answer.count(toy_tokenizer.eos_token_id) == 1
    assert toy_tokenizer.decode(answer) == f" Pears.{BPE_EOS}\n"


def test_template_needs_no_new_tokens(toy_folder, toy_tokenizer):
    before = AutoTokenizer.from_pretrained(toy_folder)
    assert set(toy_tokenizer.get_vocab()) - set(before.get_vocab()) == {NEW_PAD_TOKEN}


def test_unknown_role_is_refused(toy_tokenizer):
    with pytest.raises(Exception, match="role must be system, user or assistant, got 'tool'"):
        toy_tokenizer.apply_chat_template([{"role": "tool", "content": "x"}])


def test_own_template_is_kept(tmp_path):
    tokenizer = bpe_tokenizer()
    tokenizer.chat_template = "{{ messages[0].content }}"
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).chat_template == "{{ messages[0].content }}"


def test_template_opens_with_bos_where_every_text_does(tmp_path):
    tokenizer = bpe_tokenizer(special_tokens=(BPE_EOS, "<s>"))
    tokenizer.bos_token = "<s>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert text == "<s>User: Hi\n"


@pytest.mark.parametrize("architecture", BPE_MODELS)
def test_context_length_is_read_without_the_weights(tmp_path, architecture):
    save_toy(tmp_path, architecture)
    (tmp_path / "model.safetensors").unlink()
    assert context_length(load_config(str(tmp_path))) == 256
    with pytest.raises(InputError, match="cannot be loaded"):
        (tmp_path / "config.json").unlink()
        load_config(str(tmp_path))
