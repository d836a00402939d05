"""docs/faults.md, section E: what one stage must know of another is beside its adapter, and is checked."""

import copy
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset, concatenate_datasets
from safetensors.torch import load_file
from small_stages import ROOT, messages, refusal, run_recipe, run_stage, write_data
from toys import classifier, save_toy
from trl import ModelConfig

from rlhf.data.splits import conversation_id
from rlhf.errors import InputError
from rlhf.evaluation.seen import unseen_prompts
from rlhf.models.adapter_files import adapter_digest, check_adapter
from rlhf.models.loading import load_tokenizer
from rlhf.models.stages import load_adapters
from rlhf.ppo.rewards import reward_sources
from rlhf.reward.initialization import check_sft_start, load_reward_start
from rlhf.runs.contract import read_contract, read_conversations
from rlhf.runs.hub_files import staged


@pytest.fixture
def no_model(monkeypatch):
    """Fails if a model is loaded."""

    def fail(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("rlhf.models.loading._load", fail)


def test_seam_e1_every_stage_writes_what_it_was_trained_with(small_run):
    """Beside every adapter: of the run, of its checkpoints, of raw/ and value/."""
    for stage in ("sft", "reward", "ppo"):
        folders = [small_run / stage, *(small_run / stage).glob("checkpoint-*")]
        folders += [small_run / "ppo" / name for name in ("raw", "value")] if stage == "ppo" else []
        assert len(folders) > 1
        for folder in folders:
            contract = read_contract(folder)
            assert contract is not None and contract.stage == stage
            assert contract.base["digest"] and contract.base["weights"]
            assert contract.tokenizer["digest"] and contract.tokenizer["template_digest"]
            assert contract.prompt_style == "chat"
            assert contract.stop_tokens == ["<|endoftext|>"]
            assert contract.options["learning_rate"] == 0.01
            assert contract.seed is not None
            (source,) = contract.trained_on
            assert source["rows"] > 0 and source["digest"] and len(source["range"]) == 2
            assert read_conversations(folder) is not None
    assert read_contract(small_run / "reward").trained_modules["full"] == ["score"]


def test_seam_e2_the_conversations_of_the_parents_are_among_those_trained_on(small_run):
    sft, reward, ppo = (set(read_conversations(small_run / stage).tolist()) for stage in ("sft", "reward", "ppo"))
    assert sft <= {conversation_id({"prompt": messages(f"Question {i}?")}) for i in range(24)}
    assert len(sft) == read_contract(small_run / "sft").trained_on[0]["conversations"] > 0
    assert sft <= reward <= ppo
    assert np.array_equal(read_conversations(small_run / "ppo"), np.array(sorted(ppo)))


def test_seam_e3_a_stage_keeps_the_digests_of_its_parents(small_run):
    digests = {stage: adapter_digest(small_run / stage) for stage in ("sft", "reward")}
    assert read_contract(small_run / "reward").parents == {"sft": digests["sft"]}
    assert read_contract(small_run / "ppo").parents == digests


def test_seam_e4_another_base_in_a_folder_of_the_same_name_is_refused(small_run, tmp_path, no_model):
    other = save_toy(tmp_path / "base", seed=5)
    with pytest.raises(
        InputError, match=r"the file of the weights of .* differs: digest \w+, not \w+ as in .*contract"
    ):
        check_adapter(small_run / "sft", str(other))
    with pytest.raises(InputError, match="Set model_name_or_path and model_revision"):
        load_adapters(ModelConfig(model_name_or_path=str(other)), {"sft": small_run / "sft"})


def test_seam_e5_a_base_that_was_moved_is_the_same(small_run, tmp_path):
    moved = shutil.copytree(small_run / "base", tmp_path / "models" / "renamed")
    check_adapter(small_run / "sft", str(moved))
    shared, _ = load_adapters(ModelConfig(model_name_or_path=str(moved)), {"sft": small_run / "sft"})
    assert shared.adapters == ("sft",)


def test_seam_e6_sft_on_messages_and_reward_model_on_text_are_refused(own_run, capsys, no_model):
    """Text prompts become messages, as the SFT model was trained; asking for text is refused."""
    write_data(own_run / "text", style=str)
    asked = {"prompt_style": "text", "output_dir": own_run / "new"}
    error = refusal(capsys, "reward", own_run, dataset_name=own_run / "text" / "comparisons", **asked)
    assert "text" in error and "chat" in error
    error = refusal(capsys, "ppo", own_run, dataset_name=own_run / "text" / "prompts", **asked)
    assert "text" in error and "chat" in error
    contract = own_run / "reward" / "contract.json"
    contract.write_text(contract.read_text().replace('"prompt_style": "chat"', '"prompt_style": "text"'))
    error = refusal(capsys, "ppo", own_run, output_dir=own_run / "new")
    assert "prompt_style chat" in error and "plain text (text)" in error and "contract.json" in error


def test_seam_e7_a_reward_model_with_another_template_is_refused(own_run, capsys, no_model):
    template = own_run / "reward" / "chat_template.jinja"
    template.write_text(template.read_text() + "{# another #}")
    contract = json.loads((own_run / "reward" / "contract.json").read_text())
    contract["tokenizer"]["template_digest"] = "0" * 16
    (own_run / "reward" / "contract.json").write_text(json.dumps(contract))
    error = refusal(capsys, "ppo", own_run, output_dir=own_run / "ppo-2")
    assert "another chat template" in error and "Train reward again" in error
    with pytest.raises(InputError, match="another chat template"):
        load_adapters(ModelConfig(), {"sft": own_run / "sft", "reward": own_run / "reward"})
    for stage in ("sft", "reward"):  # adapters of an old version: the files of their tokenizers tell
        (own_run / stage / "contract.json").unlink()
    assert "another chat template" in refusal(capsys, "ppo", own_run, output_dir=own_run / "ppo-2")


def test_seam_e8_an_sft_adapter_that_was_replaced_is_reported(own_run, caplog):
    load_adapters(ModelConfig(), {stage: own_run / stage for stage in ("sft", "ppo")})
    assert "was trained against another" not in caplog.text
    chosen = read_chosen(own_run / "sft")
    other = next(path for path in (own_run / "sft").glob("checkpoint-*") if path.name != chosen)
    shutil.copyfile(other / "adapter_model.safetensors", own_run / "sft" / "adapter_model.safetensors")
    load_adapters(ModelConfig(), {stage: own_run / stage for stage in ("sft", "ppo")})
    assert "was trained against another sft adapter" in caplog.text
    assert "parents.sft" in caplog.text


def read_chosen(folder):
    return json.loads((folder / "result.json").read_text())["chosen"]


def test_seam_e9_an_adapter_without_contract_loads_with_one_sentence(own_run, caplog):
    for name in ("contract.json", "trained_on.safetensors"):
        (own_run / "sft" / name).unlink()
    load_adapters(ModelConfig(), {"sft": own_run / "sft"})
    assert caplog.text.count("has no contract.json") == 1


def test_seam_e10_the_revision_of_the_base_is_kept_and_used(own_run):
    from rlhf.models.contracts import with_revision_of

    path = own_run / "sft" / "contract.json"
    contract = json.loads(path.read_text())
    contract["base"] |= {"name": "owner/model", "revision": "c0ffee"}
    path.write_text(json.dumps(contract))
    assert with_revision_of(ModelConfig(model_name_or_path="owner/model"), path.parent).model_revision == "c0ffee"
    given = ModelConfig(model_name_or_path="owner/model", model_revision="v2")
    assert with_revision_of(given, path.parent).model_revision == "v2"


def test_seam_e11_a_stage_again_gives_the_same_contract(small_run, tmp_path):
    again = run_stage("sft", small_run, output_dir=tmp_path / "sft")
    assert read_contract(again) == read_contract(small_run / "sft")


def test_seam_e12_inspect_prints_a_contract_and_what_differs(small_run, own_run, load_recipe, capsys, monkeypatch):
    inspect = load_recipe("inspect")

    def printed(*folders):
        monkeypatch.setattr("sys.argv", ["inspect.py", *map(str, folders)])
        inspect.main()
        return capsys.readouterr().out

    text = printed(small_run)
    assert text.count("stage") >= 3 and "base.weights" in text and "parents.reward" in text
    assert "options.learning_rate" in text and "conversations" in text
    assert "nothing differs" in printed(small_run / "sft", own_run / "sft")
    run_stage("sft", own_run, output_dir=own_run / "other", learning_rate=0.5, warmup_steps=1)
    different = printed(own_run / "sft", own_run / "other")
    assert "learning_rate  0.01 | 0.5" in different and "warmup_steps" in different and "base.weights" not in different
    with pytest.raises(InputError, match=r"does not exist"):
        printed(own_run / "nowhere")


def test_seam_e13_the_recipe_inspect_hides_no_module_of_python(own_run):
    """The folder of a script is first on its path, and every library imports Python's module `inspect`."""
    script = "import inspect, runpy; assert inspect.signature(len); assert 'recipes' not in inspect.__file__"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, 'recipes'); {script}"]
    subprocess.run(command, cwd=ROOT, check=True)


def test_seam_e14_evaluate_leaves_out_prompts_that_were_trained_on(own_run, monkeypatch, capsys):
    rows = [json.loads(line) for line in (own_run / "prompts" / "train.jsonl").read_text().splitlines()]
    trained_on = set(read_conversations(own_run / "ppo").tolist())
    seen = [row for row in rows if conversation_id(row) in trained_on]
    new = Dataset.from_list([{"prompt": messages(f"Something new {i}?")} for i in range(5)])
    adapters = {stage: own_run / stage for stage in ("sft", "reward", "ppo")}
    kept, number = unseen_prompts(concatenate_datasets([Dataset.from_list(seen[:3]), new]), adapters, "mine")
    assert kept["prompt"][:] == new["prompt"][:] and number == 3
    with pytest.raises(InputError, match=r"All 3 prompts of mine were trained on by sft, reward, ppo"):
        unseen_prompts(Dataset.from_list(seen[:3]), adapters, "mine")
    (own_run / "sft" / "trained_on.safetensors").unlink()
    assert unseen_prompts(new, adapters, "mine")[1] is None


def test_seam_e15_the_reward_model_starts_with_modules_that_sft_trained_in_full(own_run, capsys):
    """Or is refused by name; the unembedding is replaced by the head. PPO takes both."""
    full = {"lora_modules_to_save": "embed_tokens", "output_dir": own_run / "full"}
    start = {"sft_model_path": run_stage("sft", own_run, **full), "output_dir": own_run / "full-reward"}
    error = refusal(capsys, "reward", own_run, **start)
    assert "has trained embed_tokens in full" in error and "lora_modules_to_save to embed_tokens" in error
    model_args = ModelConfig(model_name_or_path=str(own_run / "base"), lora_r=4, lora_modules_to_save=["embed_tokens"])
    model = load_reward_start(model_args, load_tokenizer(str(own_run / "base")), str(own_run / "full"))
    weights = load_file(own_run / "full" / "adapter_model.safetensors")
    trained = next(weight for name, weight in weights.items() if "embed_tokens" in name)
    assert torch.equal(model.get_input_embeddings().weight, trained)

    head = {"lora_modules_to_save": "lm_head", "output_dir": own_run / "head"}
    sft = run_stage("sft", own_run, **head)
    reward = run_stage("reward", own_run, sft_model_path=sft, output_dir=own_run / "head-reward")
    ppo = run_stage("ppo", own_run, sft_model_path=sft, reward_model_path=reward, output_dir=own_run / "head-ppo")
    assert any("lm_head" in name for name in load_file(ppo / "adapter_model.safetensors"))
    assert not any("lm_head" in name for name in load_file(reward / "adapter_model.safetensors"))


def test_seam_e24_sft_with_lora_on_other_layers_is_refused_before_a_model_is_loaded(own_run, capsys, no_model):
    start = {"output_dir": own_run / "other-reward", "lora_target_modules": "q_proj"}
    error = refusal(capsys, "reward", own_run, **start)
    assert "do not fit the reward model, e.g. base_model.model.model.layers.0" in error
    assert "Give both stages the same lora_target_modules" in error
    assert not (own_run / "other-reward").exists()
    check_sft_start(str(own_run / "sft"), ModelConfig(str(own_run / "base"), lora_r=4))


def test_seam_e16_a_reward_model_with_another_template_reads_the_text(toy_tokenizer):
    """In PPOTrainer, given the reward model's tokenizer: not the policy's ids, though the vocabulary is the same."""
    other = copy.deepcopy(toy_tokenizer)
    assert not reward_sources(classifier(), None, None, toy_tokenizer, other).model_reads_text
    other.chat_template = "{{ messages[0].content }}"
    sources = reward_sources(classifier(), None, None, toy_tokenizer, other)
    assert sources.model_reads_text and sources.model is None
    assert sources.functions[0].tokenizer.chat_template == other.chat_template


def test_seam_e17_the_contract_is_uploaded_without_paths_of_this_machine(small_run):
    for stage in ("sft", "reward", "ppo"):
        with staged(small_run / stage, stage, "me/model") as files:
            contract = read_contract(files)
            assert str(small_run) not in (files / "contract.json").read_text()
            assert contract.base["name"] == "base" and contract.base["weights"]
            assert np.array_equal(read_conversations(files), read_conversations(small_run / stage))


def test_seam_e18_choose_keeps_the_contract_beside_the_chosen_adapter(own_run):
    before = read_contract(own_run / "sft")
    options = {"sft_path": own_run / "sft", "reward_model_path": own_run / "reward", "choice_max_new_tokens": 4}
    run_recipe("choose", options | {"dataset_name": own_run / "demonstrations", "choice_prompts": 2})
    assert read_contract(own_run / "sft") == before
    assert read_conversations(own_run / "sft") is not None


def test_seam_e25_an_adapter_of_another_stage_is_refused_by_name(own_run, capsys, no_model):
    error = refusal(capsys, "ppo", own_run, sft_model_path=own_run / "reward", output_dir=own_run / "other")
    assert "is a reward model. Pass the folder of an SFT or PPO stage" in error
    error = refusal(capsys, "reward", own_run, sft_model_path=own_run / "reward", output_dir=own_run / "other")
    assert "is a reward model" in error
    for path, stage, message in (("sft", "reward", "is a reward model"), ("ppo", "sft", "is of an SFT stage")):
        with pytest.raises(SystemExit):
            run_recipe("compare", {"prompt": "Hi", f"{path}_model_path": own_run / stage})
        assert message in capsys.readouterr().err


def test_seam_e26_equal_weights_under_two_names_are_said(own_run, caplog, capsys):
    shutil.copyfile(own_run / "sft" / "adapter_model.safetensors", own_run / "ppo" / "adapter_model.safetensors")
    run_recipe("compare", {"prompt": "Hi", "run": own_run, "max_new_tokens": 2})
    assert "sft and ppo have the same weights" in caplog.text


def test_seam_e27_a_base_that_has_moved_is_asked_for(own_run, capsys, no_model):
    (own_run / "sft" / "contract.json").unlink()
    config = json.loads((own_run / "sft" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "/nowhere/base"
    (own_run / "sft" / "adapter_config.json").write_text(json.dumps(config))
    error = refusal(capsys, "ppo", own_run, output_dir=own_run / "other")
    assert "was trained on the folder /nowhere/base" in error and "Set model_name_or_path" in error
