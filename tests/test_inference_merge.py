"""Merged models of toy adapters: they load without this library, answer as the adapter does, or are not left behind."""

import json

import pytest
import torch
from peft import PeftModel
from test_evaluation_compare import load_main
from toys import save_toy_stages
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from trl import ModelConfig

from rlhf import load_reward_model
from rlhf.data.text_rewards import load_text_reward
from rlhf.errors import InputError
from rlhf.inference import merge as merging
from rlhf.inference.agreement import Agreement
from rlhf.inference.merge import merge, outputs, trained_quantization
from rlhf.models.adapter_files import adapter_digest
from rlhf.models.stages import merged_style
from rlhf.runs.contract import Contract, write_contract
from rlhf.runs.merged_card import read_merged


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    return save_toy_stages(tmp_path_factory.mktemp("merge"))


def test_merged_folder_answers_as_the_adapter_in_plain_transformers(stages, tmp_path):
    agreement = merge(str(stages / "sft"), ModelConfig(dtype="float32"), tmp_path / "merged")
    assert agreement.difference < 1e-4 * agreement.scale < agreement.effect
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    adapter = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(stages / "base"), stages / "sft").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Name a fruit."}], add_generation_prompt=True, tokenize=False
    )
    ids = tokenizer(text)["input_ids"]
    rows = adapter.get_input_embeddings().num_embeddings
    assert torch.allclose(outputs(model, [ids])[0][:, :rows], outputs(adapter, [ids])[0], atol=1e-3)
    assert tokenizer.pad_token_id < model.get_input_embeddings().num_embeddings
    assert f"vllm serve {tmp_path / 'merged'}" in (tmp_path / "merged" / "README.md").read_text()
    assert not list(tmp_path.glob(".partial*"))


def test_merged_model_keeps_the_contract_of_its_adapter_and_a_record(stages, tmp_path, monkeypatch, capsys):
    write_contract(stages / "sft", Contract("sft", base={"name": "base"}, prompt_style="text"))
    merge(str(stages / "sft"), ModelConfig(dtype="float32"), tmp_path / "merged")
    (stages / "sft" / "contract.json").unlink()
    assert merged_style(str(tmp_path / "merged")) == "text" and merged_style(str(stages / "base")) is None
    record = read_merged(tmp_path / "merged")
    assert (record.stage, record.base, record.dtype) == ("sft", str(stages / "base"), "float32")
    assert record.adapter_digest == adapter_digest(stages / "sft")
    assert record.difference < 1e-4 * record.scale
    load_main("inspect", [str(tmp_path / "merged")], monkeypatch)()
    assert "prompt_style" in capsys.readouterr().out


def test_generation_config_has_the_stop_tokens_and_the_sampling_of_ppo(stages, tmp_path):
    (stages / "sft" / "config.yaml").write_text("temperature: 0.7\n")
    merge(str(stages / "sft"), ModelConfig(dtype="float32"), tmp_path / "merged")
    (stages / "sft" / "config.yaml").unlink()
    config = GenerationConfig.from_pretrained(tmp_path / "merged")
    assert config.eos_token_id == [0] and config.do_sample
    assert (config.temperature, config.top_k, config.top_p) == (0.7, 0, 1.0)


def test_reward_model_merges_into_a_classifier_with_its_calibration(stages, tmp_path):
    merge(str(stages / "reward"), ModelConfig(dtype="float32"), tmp_path / "merged")
    assert json.loads((tmp_path / "merged" / "calibration.json").read_text())["bias"] == 0.25
    asked = [[{"role": "user", "content": "Name a fruit."}]], ["Pears."], [True]
    expected = load_text_reward(str(stages / "reward"))(*asked)
    assert load_text_reward(str(tmp_path / "merged"))(*asked) == pytest.approx(expected, abs=1e-4)
    ids = torch.tensor([[5, 6, 7, 8]])
    models = [load_reward_model(folder) for folder in (stages / "reward", tmp_path / "merged")]
    scores = [model(ids).logits.item() for model in models]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_base_in_4_bits_is_written_dequantized(stages, tmp_path):
    (stages / "sft" / "config.yaml").write_text("load_in_4bit: true\ndtype: float32\n")
    model_args = trained_quantization(ModelConfig(dtype="float32"), stages / "sft")
    (stages / "sft" / "config.yaml").unlink()
    assert model_args.load_in_4bit
    merge(str(stages / "sft"), model_args, tmp_path / "merged")
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    whole = AutoModelForCausalLM.from_pretrained(stages / "base")
    name = "model.layers.0.input_layernorm.weight"
    assert torch.equal(model.get_parameter(name), whole.get_parameter(name))
    assert "in 4 bits, dequantized" in (tmp_path / "merged" / "README.md").read_text()


def test_model_that_differs_from_its_adapter_is_not_left_behind(stages, tmp_path, monkeypatch):
    """As if the merge had lost the adapter: the folder holds the base."""
    monkeypatch.setattr(PeftModel, "merge_and_unload", lambda self: self.unload(), raising=False)
    with pytest.raises(InputError, match=r"is not that of .*sft: it differs by up to .* Nothing is written"):
        merge(str(stages / "sft"), ModelConfig(dtype="float32"), tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


def test_small_adapter_that_rounding_loses_is_a_problem():
    agreement = Agreement(difference=0.9, mean=0.3, effect=0.4, scale=30.0, dtype=torch.bfloat16)
    assert "changes its base only by 0.4" in str(agreement.problem)
    assert Agreement(difference=0.9, mean=0.3, effect=4.0, scale=30.0, dtype=torch.bfloat16).problem is None
    assert Agreement(difference=float("nan"), mean=0.0, effect=4.0, scale=30.0, dtype=torch.float32).problem


@pytest.mark.parametrize("words", [["{root}/nowhere"], ["{root}"], ["{root}/sft", "--output_dir", "{root}/sft"]])
def test_mistakes_are_found_before_a_model_is_loaded(stages, tmp_path, monkeypatch, words):
    monkeypatch.setattr(merging, "load_base", lambda *_: pytest.fail("a model was loaded"))
    words = [word.format(root=stages) for word in words]
    words += [] if "--output_dir" in words else ["--output_dir", str(tmp_path / "merged")]
    with pytest.raises(InputError, match=r"does not exist|Pass one of its stages: .*/reward|exists already"):
        load_main("merge", words, monkeypatch)()


def test_full_disk_is_found_before_anything_is_written(stages, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(merging.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match="Set an output_dir on another disk"):
        merge(str(stages / "sft"), ModelConfig(dtype="float32"), tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []
