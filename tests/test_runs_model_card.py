"""Model cards: code that runs as it is printed, numbers of the run alone, metadata that the Hub accepts."""

import json
import re
import shutil
import struct
from pathlib import Path

import pytest
import torch
import yaml
from gguf_file import write_gguf
from hub_client import use_server
from hub_server import Repo, hub_server
from huggingface_hub import ModelCard
from test_evaluation_report import make_summary
from toys import finish_stage, save_toy
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import ModelConfig

from rlhf.errors import InputError
from rlhf.evaluation.report_card import card_evaluation
from rlhf.inference.merge import merge, trained_quantization
from rlhf.models.reward_model import load_reward_model
from rlhf.runs import hub
from rlhf.runs.contract import Contract, write_contract
from rlhf.runs.gguf_header import general_metadata
from rlhf.runs.hub_files import staged
from rlhf.runs.merged_card import merged_card
from rlhf.runs.model_card import model_card, portable
from rlhf.runs.published import is_hub_id, languages_of, license_of, metadata_of

STAGES = ("sft", "reward", "ppo")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("cards")
    base = save_toy(root / "toy-base")
    for stage in STAGES:
        finish_stage(base, root / "runs" / stage, stage)
    return root / "runs"


def code_blocks(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)


def with_base(folder: Path, base: str) -> None:
    """Makes an adapter say that it was trained on another base."""
    adapter = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**adapter, "base_model_name_or_path": base}))


def with_config(folder: Path, **changes) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, **changes}))


# ---- The code, as it is printed


def test_card_of_sft_generates_what_the_adapter_generates(trained, capsys):
    hub.write_model_card(trained / "sft", "sft")
    (code,) = code_blocks((trained / "sft" / "README.md").read_text())
    scope = {}
    exec(code, scope)
    assert capsys.readouterr().out.strip()
    assert isinstance(scope["output"], torch.Tensor)
    with scope["model"].disable_adapter():
        kwargs = {"max_new_tokens": 100, "do_sample": False, **scope["tokens"]}
        base_output = scope["model"].generate(**scope["inputs"], **kwargs)
    assert scope["output"].tolist() != base_output.tolist()  # the adapter is on


def test_card_of_reward_gives_the_calibrated_score(trained):
    plain, short = code_blocks(model_card(trained / "reward", "reward"))
    scope, short_scope = {}, {}
    exec(plain, scope)
    exec(short, short_scope)
    assert scope["bias"] == 0.25
    assert scope["ids"][-1] == scope["tokenizer"].eos_token_id
    expected = load_reward_model(trained / "reward")(torch.tensor([scope["ids"]])).logits.item()
    assert scope["score"] == pytest.approx(expected, abs=1e-5)
    assert short_scope["model"](torch.tensor([scope["ids"]])).logits.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("stage", STAGES)
def test_code_of_a_card_on_the_hub_runs_where_the_base_is(trained, tmp_path, monkeypatch, stage):
    """A folder as base has its name alone on the Hub, so the code runs beside that folder."""
    with hub_server() as server:
        use_server(server, monkeypatch, tmp_path / "cache")
        hub.push_run(trained / stage, "me/toy")
        monkeypatch.chdir(trained.parent)
        card = server.files("me/toy")["README.md"].decode()
        assert 'base, adapter = "toy-base", "me/toy"  # base: its folder' in card
        local, pushed = {}, {}
        exec(code_blocks(model_card(trained / stage, stage))[0], local)
        exec(code_blocks(card)[0], pushed)
    result = "score" if stage == "reward" else "output"
    assert torch.equal(torch.as_tensor(pushed[result]), torch.as_tensor(local[result]))


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_code_of_a_card_whose_base_is_on_the_hub(trained, tmp_path, monkeypatch, stage):
    with hub_server() as server:
        use_server(server, monkeypatch, tmp_path / "cache")
        files = {path.name: path.read_bytes() for path in (trained.parent / "toy-base").iterdir()}
        repo = server.repos["org/base"] = Repo(private=False)
        commit = repo.commit("main", "a base", files | {"README.md": b"---\nlicense: mit\nlanguage: en\n---\n"})
        folder = shutil.copytree(trained / stage, tmp_path / stage)
        with_base(folder, "org/base")
        write_contract(folder, Contract(stage=stage, base={"name": "org/base", "revision": commit.oid}))
        hub.push_run(folder, "me/toy")
        repo.commit("main", "another model", {})  # the card names the commit
        card = server.files("me/toy")["README.md"].decode()
        exec(code_blocks(card)[0], {})
    data = ModelCard(card).data
    assert (data.base_model, data.license, data.base_model_relation) == ("org/base", "mit", "adapter")
    assert f"- Base model: org/base at revision {commit.oid}" in card
    assert "- License of the base: mit\n" in card


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_code_of_a_card_whose_base_was_in_4_bits(tmp_path, stage):
    wide = save_toy(tmp_path / "wide", hidden_size=64, intermediate_size=128)  # rows of whole blocks of bitsandbytes
    folder = finish_stage(wide, tmp_path / stage, stage)
    with_config(folder, load_in_4bit=True, use_bnb_nested_quant=True)
    code = code_blocks(model_card(folder, stage))[0]
    assert 'bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype="float32"' in code
    scope = {}
    exec(code, scope)
    assert scope["model"].get_base_model().is_loaded_in_4bit
    with_config(folder, load_in_4bit=False, load_in_8bit=True)
    assert "quantization = BitsAndBytesConfig(load_in_8bit=True)\n" in code_blocks(model_card(folder, stage))[0]


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_code_of_a_card_whose_base_is_a_gguf_file(trained, tmp_path, monkeypatch, stage):
    """The card on the Hub, too, names the file, though the adapter's own configuration has lost the folder."""
    base = str(trained.parent / "toy-base")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base, dtype="float32"), AutoTokenizer.from_pretrained(base)
    write_gguf(model, tokenizer, tmp_path / "gguf" / "toy.gguf", license="apache-2.0")
    folder = shutil.copytree(trained / stage, tmp_path / stage)
    with_base(folder, str(tmp_path / "gguf"))
    with staged(folder, stage, str(folder)) as files:
        card = (files / "README.md").read_text()
    monkeypatch.chdir(tmp_path)
    code = code_blocks(card)[0]
    assert ', gguf_file="toy.gguf")' in code
    scope, expected = {}, {}
    exec(code, scope)
    exec(code_blocks(model_card(trained / stage, stage))[0], expected)
    result = "score" if stage == "reward" else "output"
    assert torch.as_tensor(scope[result]).shape == torch.as_tensor(expected[result]).shape
    assert ModelCard(card).data.license == "apache-2.0"  # of the file's header
    assert "- Base model: toy (not on the Hub)\n- License of the base: apache-2.0\n" in card


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_code_of_a_merged_models_card(trained, tmp_path, monkeypatch, stage):
    """Of a base in 4 bits, and from the Hub."""
    adapter = shutil.copytree(trained / stage, tmp_path / stage)
    with_config(adapter, load_in_4bit=True)
    write_contract(adapter, Contract(stage, base={"name": "toy-base"}, prompt_style="chat"))
    merge(str(adapter), trained_quantization(ModelConfig(dtype="float32"), adapter), tmp_path / "merged")
    local, pushed = {}, {}
    card = (tmp_path / "merged" / "README.md").read_text()
    exec(code_blocks(card)[0], local)
    with hub_server() as server:
        use_server(server, monkeypatch, tmp_path / "cache")
        hub.push_run(tmp_path / "merged", "me/whole")
        pushed_card = server.files("me/whole")["README.md"].decode()
        exec(code_blocks(pushed_card)[0], pushed)
    result = "score" if stage == "reward" else "output"
    assert torch.equal(torch.as_tensor(pushed[result]), torch.as_tensor(local[result]))
    assert "- Base model: toy-base in 4 bits, dequantized\n" in pushed_card
    assert f"- Adapter: {stage}, of the stage {stage}" in pushed_card
    assert str(tmp_path) not in pushed_card
    assert str(tmp_path / "merged") in card
    assert ModelCard(pushed_card).data.tags[-1] == {"reward": "reward-model"}.get(stage, stage)


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_seam_i8_the_card_of_a_base_without_a_spare_row_loads_it_as_it_is(tmp_path, stage):
    finish_stage(save_toy(tmp_path / "gpt2", "gpt2"), tmp_path / stage, stage)
    code = code_blocks(model_card(tmp_path / stage, stage))[0]
    assert "resize_token_embeddings" not in code
    exec(code, {})


def test_cards_name_the_commands_that_use_the_adapter(trained):
    card = model_card(trained / "ppo", "ppo", "me/toy")
    assert "`rlhf chat me/toy` talks with it" in card
    assert "`rlhf merge me/toy --output_dir models/mine`" in card
    assert "docs/serving.md" in card
    assert "`rlhf merge me/judge --output_dir models/reward`" in model_card(trained / "reward", "reward", "me/judge")


def test_the_card_of_ppo_says_what_the_reward_was(trained, tmp_path):
    folder = shutil.copytree(trained / "ppo", tmp_path / "ppo")
    assert "from a reward model, the third stage" in model_card(folder, "ppo")
    with_config(folder, reward_funcs=["rewards.py:short"], reward_model_path="runs/mine/reward")
    assert "from a reward model and `rewards.py:short`, the third stage" in model_card(folder, "ppo")
    with_config(folder, reward_funcs=["rewards.py:short"], reward_model_path=None)
    card = model_card(folder, "ppo")
    assert "from the reward `rewards.py:short`" in card and "optimized against `rewards.py:short`" in card
    assert "reward model" not in card.partition("<details>")[0]


# ---- Numbers


def test_metadata_has_win_rates_with_interval_and_judge_but_none_of_the_reward_model(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "runs")
    (folder / "summary.json").write_text(json.dumps(make_summary()))
    data = ModelCard(model_card(folder / "ppo", "ppo", "me/toy", card_evaluation(folder / "ppo"))).data
    assert data.model_name == "toy"
    (result,) = data.eval_results  # the judge `reward` is the one that PPO was trained to please
    assert (result.metric_name, result.metric_value) == ("Win rate over SFT, judge llm", 0.55)
    assert result.metric_args == {"judge": "llm", "prompts": 40, "low": 0.5, "high": pytest.approx(0.6)}
    assert (result.dataset_name, result.dataset_split) == ("prompts.jsonl", "test")
    assert (result.task_type, result.metric_type) == ("text-generation", "win_rate")


def test_cards_without_an_evaluation_have_no_results(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "runs")
    assert card_evaluation(folder / "ppo") is None
    assert ModelCard(model_card(folder / "ppo", "ppo")).data.eval_results is None
    summary = make_summary(judges={"people": make_summary()["judges"]["reward"]})  # the optimized one alone
    (folder / "summary.json").write_text(json.dumps(summary))
    assert card_evaluation(folder / "ppo").results == []
    assert card_evaluation(folder / "sft").results == []  # the baseline has no rival
    assert "Who answers better" in card_evaluation(folder / "sft", "sft").text


def test_reward_card_has_the_held_out_accuracy_with_its_interval(trained, tmp_path):
    folder = shutil.copytree(trained / "reward", tmp_path / "reward")
    result = {"accuracy": 0.748, "low": 0.7356, "high": 0.76, "n_pairs": 10730, "n_prompts": 477}
    (folder / "result.json").write_text(json.dumps(result))
    with_config(folder, dataset_name="org/rankings", dataset_train_split="train")
    card = model_card(folder, "reward")
    assert (
        "On 10,730 pairs of answers to 477 held-out prompts, it prefers the answer that labelers ranked higher 74.8 % "
        "of the time (95 % interval over prompts 73.6 to 76.0)." in card
    )
    (measured,) = ModelCard(card).data.eval_results
    assert (measured.metric_type, measured.metric_value, measured.dataset_type) == ("accuracy", 0.748, "org/rankings")
    assert measured.metric_args == {key: value for key, value in result.items() if key != "accuracy"}
    (folder / "result.json").write_text(json.dumps({**result, "accuracy": float("nan")}))
    assert ModelCard(model_card(folder, "reward")).data.eval_results is None


# ---- Metadata


def test_front_matter_is_what_the_hub_reads(trained, tmp_path):
    folder = tmp_path / "ppo"
    shutil.copytree(trained / "ppo", folder)
    with_base(folder, "org/base")
    config = {"dataset_name": "org/data", "dataset_train_split": "train"}
    config["pretrain_dataset_name"] = ["org/text", "/data/books", "sandbox"]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    card = model_card(folder, "ppo", "me/toy-ppo")
    data = ModelCard(card).data.to_dict()
    assert data["base_model"] == "org/base"
    assert data["datasets"] == ["org/data", "org/text"]
    assert "- Pretraining text: org/text, books, the sandbox of instruct-rlhf" in card
    assert data["library_name"] == "peft"
    assert data["pipeline_tag"] == "text-generation"
    assert data["license"] == "unknown"
    assert "- License of the base: unknown. Look it up before you share this adapter" in card
    assert "language" not in data
    assert "| accuracy.all | 0.75 |" in card
    assert 'base, adapter = "org/base", "me/toy-ppo"\n' in card
    assert "org/data (train)" in card


def test_local_base_and_data_are_no_hub_metadata(trained, tmp_path, monkeypatch):
    data = ModelCard(model_card(trained / "sft", "sft")).data.to_dict()
    assert not {"base_model", "base_model_relation", "datasets"} & set(data)
    shutil.copytree(trained / "sft", tmp_path / "sft")
    (tmp_path / "models" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with_base(tmp_path / "sft", "models/base")  # a folder that looks like an id
    card = model_card("sft", "sft", "me/toy")
    assert "base_model" not in ModelCard(card).data.to_dict()
    assert "- Base model: base (not on the Hub)" in card


def test_a_file_of_data_is_no_hub_id_in_another_folder_either(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("me/rankings") and not is_hub_id("data/rankings.csv") and not is_hub_id("runs/labels.db")


def test_the_sandbox_has_a_license_and_a_language(trained, tmp_path):
    folder = shutil.copytree(trained / "ppo", tmp_path / "ppo")
    with_base(folder, "sandbox")
    with_config(folder, dataset_name="sandbox", pretrain_dataset_name=["sandbox"])
    data = ModelCard(model_card(folder, "ppo")).data
    assert (data.license, data.language, data.base_model) == ("apache-2.0", ["en"], None)


def test_license_and_languages_of_other_cards(tmp_path):
    (tmp_path / "README.md").write_text(
        "---\nlicense: other\nlicense_name: llama\nlicense_link: x/y\nlanguage: de\n---\n"
    )
    said = metadata_of(str(tmp_path))
    assert license_of(said) == {"license": "other", "license_name": "llama", "license_link": "x/y"}
    assert languages_of([said, {"language": ["en", "de"]}]) == ["de", "en"]
    assert languages_of([said, {}]) is None and languages_of([]) is None
    (tmp_path / "README.md").write_text("---\nlicense: [a\n---\n")
    assert metadata_of(str(tmp_path)) == {}
    assert license_of(metadata_of("org/not-downloaded")) == {"license": "unknown"}


def test_header_of_a_gguf_file(tmp_path):
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    pairs = [text("general.license") + struct.pack("<I", 8) + text("mit")]
    pairs += [text("llama.rope") + struct.pack("<If", 6, 1.5)]
    pairs += [text("general.languages") + struct.pack("<IIQ", 9, 8, 2) + text("en") + text("fr")]
    pairs += [text("tokenizer.ggml.tokens") + b"never read"]
    path = tmp_path / "a.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 9) + b"".join(pairs))
    assert general_metadata(path) == {"general.license": "mit", "general.languages": ["en", "fr"]}
    path.write_bytes(path.read_bytes()[:70])  # cut off
    assert general_metadata(path) == {"general.license": "mit"}
    path.write_bytes(b"not a model")
    assert general_metadata(path) == {}


def test_unknown_stage_and_damaged_files(trained, tmp_path):
    with pytest.raises(InputError, match="evaluate"):
        model_card(trained / "sft", "evaluate")
    with pytest.raises(InputError, match=r"merged\.json is missing"):
        merged_card(trained / "sft")
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(InputError, match=r"config\.yaml is damaged"):
        model_card(tmp_path, "sft")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/home/me/models/base", "base"),
        ("~/base", "base"),
        ("./data/rows.jsonl", "rows.jsonl"),
        ("org/model", "org/model"),
        ("/opt/lib/rlhf/sandbox/base", "sandbox"),
        ({"a": ["/x/y", 3, None]}, {"a": ["y", 3, None]}),
    ],
)
def test_portable(value, expected):
    assert portable(value) == expected
