"""rlhf.runs.hub and rlhf.runs.model_card: the final files alone are uploaded, privately, and the card's code works.

No Hub is reached: `FakeHub` replaces huggingface_hub.HfApi and accepts the arguments of its methods.
"""

import inspect
import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
import yaml
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import LocalTokenNotFoundError
from toys import finish_stage, save_adapter, save_toy
from trl import SFTConfig

from rlhf.cli import run
from rlhf.errors import InputError
from rlhf.models.reward_model import load_reward_model
from rlhf.runs import hub
from rlhf.runs.model_card import model_card, portable


class FakeHub:
    """Records calls and uploaded files; raises, as HfApi would, on a keyword that HfApi does not have."""

    def __init__(self, public=()):
        self.calls, self.files, self.public, self.token = [], {}, set(public), None

    def __call__(self, token=None):
        self.token = token
        return self

    def __getattr__(self, name):
        signature = inspect.signature(getattr(HfApi, name))

        def method(*args, **kwargs):
            arguments = dict(signature.bind(self, *args, **kwargs).arguments)
            arguments.pop("self")
            self.calls.append((name, arguments))
            return getattr(self, f"on_{name}")(**arguments)

        return method

    def on_create_repo(self, repo_id, private, exist_ok): ...

    def on_create_branch(self, repo_id, branch, exist_ok): ...

    def on_repo_info(self, repo_id):
        return SimpleNamespace(private=repo_id not in self.public)

    def on_upload_folder(self, repo_id, folder_path, revision, commit_message):
        files = {p.relative_to(folder_path).as_posix(): p.read_bytes() for p in folder_path.rglob("*") if p.is_file()}
        self.files[repo_id] = files


@pytest.fixture
def fake_hub(monkeypatch):
    fake = FakeHub()
    monkeypatch.setattr(hub, "HfApi", fake)
    return fake


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A recipe's folder as the stages leave it: adapters, tokenizer, numbers, and files that must not be uploaded."""
    root = tmp_path_factory.mktemp("made here")
    base = save_toy(root / "toy-base")
    for stage in ("sft", "reward", "ppo"):
        finish_stage(base, root / "runs" / stage, stage)
    save_adapter(base, root / "runs" / "ppo" / "value", "reward")
    save_adapter(base, root / "runs" / "ppo" / "raw", "ppo")
    return root / "runs"


EXPECTED = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "chat_template.jinja",
    "config.yaml",
    "result.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
VALUE = {"value/adapter_config.json", "value/adapter_model.safetensors", "value/calibration.json"}


def test_each_stage_goes_to_its_own_private_repository(trained, fake_hub):
    assert hub.push_run(trained, "me/toy") == ["me/toy-sft", "me/toy-reward", "me/toy-ppo"]
    created = [arguments for name, arguments in fake_hub.calls if name == "create_repo"]
    assert all(arguments["private"] is True and arguments["exist_ok"] is True for arguments in created)
    assert {repo: set(files) for repo, files in fake_hub.files.items()} == {
        "me/toy-sft": EXPECTED,
        "me/toy-reward": EXPECTED | {"calibration.json"},
        "me/toy-ppo": EXPECTED | VALUE,
    }


def test_no_secret_and_no_path_of_this_machine_is_uploaded(trained, fake_hub):
    hub.push_run(trained, "me/toy")
    for files in fake_hub.files.values():
        for name, content in files.items():
            assert str(trained.parent).encode() not in content, name
            assert b"s" * 34 not in content, name
    config = json.loads(fake_hub.files["me/toy-ppo"]["adapter_config.json"])
    assert config["base_model_name_or_path"] == "toy-base"
    assert (
        json.loads(fake_hub.files["me/toy-ppo"]["value/adapter_config.json"])["base_model_name_or_path"] == "toy-base"
    )


def test_weights_and_tokenizer_are_uploaded_byte_for_byte(trained, fake_hub):
    hub.push_run(trained / "reward", "me/judge")
    for name in ("adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json", "calibration.json"):
        assert fake_hub.files["me/judge"][name] == (trained / "reward" / name).read_bytes()


def test_public_must_be_asked_for(trained, fake_hub):
    hub.push_run(trained / "sft", "me/toy", private=False)
    assert fake_hub.calls[0] == ("create_repo", {"repo_id": "me/toy", "private": False, "exist_ok": True})
    fake_hub.public.add("me/open")
    fake_hub.files.clear()
    with pytest.raises(InputError, match="exists and is public"):
        hub.push_run(trained / "sft", "me/open")
    assert not fake_hub.files


def test_dry_run_lists_the_files_and_reaches_nothing(trained, fake_hub, capsys):
    hub.push_run(trained, "me/toy", dry_run=True)
    assert fake_hub.calls == []
    out = capsys.readouterr().out
    assert "me/toy-ppo (private)" in out
    assert re.search(r"\d\.\d kB  value/adapter_model\.safetensors", out)
    assert "optimizer" not in out
    assert "raw/" not in out


@pytest.mark.parametrize(
    ("folder", "hub_id", "part"),
    [
        ("nowhere", "me/toy", "nowhere does not exist"),
        (".", "", "Hub id is missing"),
        (".", "me//toy", "not a Hub id"),
        ("sft/checkpoint-1", "me/toy", "not written by one of the stages"),
        ("ppo/raw/..", "me/toy", None),  # still the ppo folder
        ("..", "me/toy", "holds no adapter"),
    ],
)
def test_bad_input_is_refused_before_the_hub_is_reached(trained, fake_hub, folder, hub_id, part):
    if part is None:
        assert hub.push_run(trained / folder, hub_id) == ["me/toy"]
        return
    with pytest.raises(InputError, match=part):
        hub.push_run(trained / folder, hub_id)
    assert fake_hub.calls == []


def test_adapter_without_weights_is_refused(trained, fake_hub, tmp_path):
    shutil.copytree(trained / "sft", tmp_path / "sft")
    (tmp_path / "sft" / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"holds no adapter_model\.safetensors"):
        hub.push_run(tmp_path, "me/toy")
    assert fake_hub.calls == []


def test_missing_login_is_one_sentence(trained, fake_hub, capsys, monkeypatch):
    def refuse(**_):
        raise LocalTokenNotFoundError("Token is required.\nSee the documentation.")

    monkeypatch.setattr(fake_hub, "on_create_repo", refuse)
    with pytest.raises(SystemExit) as exit_:
        run(lambda: hub.push_run(trained / "sft", "me/toy"))
    assert exit_.value.code == 2
    assert capsys.readouterr().err.startswith("error: The Hub refused me/toy: Token is required. Log in")


def test_push_to_hub_fields_of_a_stage(trained, fake_hub, tmp_path):
    folder = tmp_path / "sft"
    shutil.copytree(trained / "sft", folder)
    fields = {"hub_model_id": "me/mine", "hub_token": "hf_abc", "hub_revision": "try-2"}
    args = SFTConfig(output_dir=str(folder), report_to="none", use_cpu=True, bf16=False, push_to_hub=True, **fields)
    push = hub.resolve_push(args)
    assert args.push_to_hub is False  # the Trainer must not upload checkpoints and pickles
    assert fake_hub.calls[0] == ("create_repo", {"repo_id": "me/mine", "private": True, "exist_ok": True})
    assert fake_hub.files == {}
    hub.publish_run(folder, "sft", push)
    assert set(fake_hub.files["me/mine"]) == EXPECTED
    assert fake_hub.token == "hf_abc"
    assert ("create_branch", {"repo_id": "me/mine", "branch": "try-2", "exist_ok": True}) in fake_hub.calls
    assert (folder / "README.md").exists()


def test_push_to_hub_off_or_without_id(fake_hub, tmp_path):
    def arguments(**kwargs):
        return SFTConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False, **kwargs)

    assert hub.resolve_push(arguments()) is None
    with pytest.raises(InputError, match="hub_model_id"):
        hub.resolve_push(arguments(push_to_hub=True))
    assert hub.resolve_push(arguments(push_to_hub=True, hub_model_id="me/a", hub_private_repo=False)).private is False
    assert fake_hub.calls[-1] == ("create_repo", {"repo_id": "me/a", "private": False, "exist_ok": True})


def test_only_the_first_process_pushes(trained, fake_hub, monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "1")
    hub.publish_run(tmp_path, "sft", hub.Push("me/toy"))
    assert fake_hub.calls == []
    assert not list(tmp_path.iterdir())


def code_blocks(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)


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


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_seam_i8_the_card_of_a_base_without_a_spare_row_loads_it_as_it_is(tmp_path, stage):
    finish_stage(save_toy(tmp_path / "gpt2", "gpt2"), tmp_path / stage, stage)
    code = code_blocks(model_card(tmp_path / stage, stage))[0]
    assert "resize_token_embeddings" not in code
    exec(code, {})


def test_front_matter_is_what_the_hub_reads(trained, tmp_path):
    folder = tmp_path / "ppo"
    shutil.copytree(trained / "ppo", folder)
    adapter = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**adapter, "base_model_name_or_path": "org/base"}))
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
    assert "license" not in data
    assert "| accuracy.all | 0.75 |" in card
    assert 'base, adapter = "org/base", "me/toy-ppo"' in card
    assert "org/data (train)" in card


def test_local_base_and_data_are_no_hub_metadata(trained):
    data = ModelCard(model_card(trained / "sft", "sft")).data.to_dict()
    assert "base_model" not in data
    assert "datasets" not in data


def test_unknown_stage_and_damaged_files(trained, tmp_path):
    with pytest.raises(InputError, match="evaluate"):
        model_card(trained / "sft", "evaluate")
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


def test_fake_hub_refuses_what_the_real_one_refuses(fake_hub):
    with pytest.raises(TypeError):
        fake_hub.create_repo("me/toy", privat=True)
    with pytest.raises(AttributeError):
        fake_hub.upload_foldr()
