"""rlhf.runs.hub against a local server that speaks the Hub's API: what is uploaded, when it breaks, who may."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_client import use_server
from hub_server import Fault, Repo, hub_server
from peft import PeftModel
from test_evaluation_compare import load_main
from test_runs_model_card import code_blocks
from toys import finish_stage, save_adapter, save_toy
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import ModelConfig, SFTConfig

from rlhf.cli import run
from rlhf.errors import InputError
from rlhf.inference.merge import merge
from rlhf.runs import hub
from rlhf.runs.hub_files import FINAL_FILES

ROOT = Path(__file__).resolve().parent.parent
SAFETENSORS = "adapter_model.safetensors"


@pytest.fixture
def server(monkeypatch, tmp_path):
    with hub_server() as server:
        use_server(server, monkeypatch, tmp_path / "cache")
        yield server


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


@pytest.fixture
def own(trained, tmp_path):
    """A copy of `trained` that the test may change."""
    return shutil.copytree(trained, tmp_path / "own")


@pytest.fixture(scope="module")
def merged(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("merged") / "toy"
    merge(str(trained / "sft"), ModelConfig(dtype="float32"), folder)
    return folder


EXPECTED = {
    "README.md",
    "adapter_config.json",
    SAFETENSORS,
    "chat_template.jinja",
    "config.yaml",
    "result.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
VALUE = {"value/adapter_config.json", "value/adapter_model.safetensors", "value/calibration.json"}


def refusal(capsys, call) -> str:
    """Returns the one line with which a command ends, with exit code 2, after a refusal."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        run(call)
    assert exit_.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


# ---- Files of an upload


def test_all_stages_go_to_private_repositories_and_a_private_collection(trained, server, capsys):
    repos = ["me/toy-sft", "me/toy-reward", "me/toy-ppo"]
    assert hub.push_run(trained, "me/toy") == repos
    assert {repo: set(server.files(repo)) for repo in server.repos} == {
        "me/toy-sft": EXPECTED,
        "me/toy-reward": EXPECTED | {"calibration.json"},
        "me/toy-ppo": EXPECTED | VALUE,
    }
    assert all(repo.private for repo in server.repos.values())
    (collection,) = server.collections.values()
    assert (collection["title"], collection["owner"]["name"], collection["private"]) == ("toy", "me", True)
    assert [item["id"] for item in collection["items"]] == repos
    assert "reinforcement learning" in collection["items"][2]["note"]["text"]
    out = capsys.readouterr().out
    assert f"ppo is on the Hub: {server.url}/me/toy-ppo\n" in out
    assert f"{server.url}/collections/{collection['slug']}\n" in out


def test_files_on_the_hub_are_those_of_the_folder_but_for_paths_of_this_machine(trained, server):
    hub.push_run(trained, "me/toy")
    for repo in server.repos:
        stage = repo.rpartition("-")[2]
        for name, content in server.files(repo).items():
            assert str(trained.parent).encode() not in content, name
            assert b"s" * 34 not in content, name  # the token of the configuration
            if name.rpartition("/")[2] not in ("README.md", "adapter_config.json", "config.yaml", "result.json"):
                assert content == (trained / stage / name).read_bytes(), name
    for name in ("adapter_config.json", "value/adapter_config.json"):
        assert json.loads(server.files("me/toy-ppo")[name])["base_model_name_or_path"] == "toy-base"


def test_a_second_push_changes_nothing(trained, server, capsys):
    hub.push_run(trained, "me/toy")
    before = {repo: server.titles(repo) for repo in server.repos}
    stored, items = list(server.stored), json.dumps(server.collections)
    capsys.readouterr()
    hub.push_run(trained, "me/toy")
    assert {repo: server.titles(repo) for repo in server.repos} == before
    assert server.stored == stored
    assert json.dumps(server.collections) == items
    captured = capsys.readouterr()
    assert captured.out.count("is on the Hub as it was before") == 3
    assert "No files have been modified" not in captured.err


def test_a_push_of_a_changed_stage_sends_what_differs_and_deletes_what_is_gone(own, server):
    hub.push_run(own / "reward", "me/judge")
    server.repos["me/judge"].branches["main"][-1].files["notes.txt"] = b"of the user"
    stored = list(server.stored)
    (own / "reward" / "calibration.json").unlink()
    (own / "reward" / "result.json").write_text('{"accuracy": 0.5}')
    hub.push_run(own / "reward", "me/judge")
    files = server.files("me/judge")
    assert set(files) == EXPECTED | {"notes.txt"}
    assert json.loads(files["result.json"]) == {"accuracy": 0.5}
    assert server.stored == stored
    assert server.titles("me/judge") == ["initial commit", *2 * ["reward stage of instruct-rlhf"]]


def test_each_checkpoint_is_a_branch_on_request(own, trained, server, capsys):
    checkpoint = own / "reward" / "checkpoint-20"
    save_adapter(trained.parent / "toy-base", checkpoint, "reward")
    (checkpoint / "calibration.json").unlink()
    (checkpoint / "trainer_state.json").write_text("{}")
    (checkpoint / "optimizer.pt").write_text("only on this machine")
    shutil.copy(own / "reward" / "tokenizer_config.json", checkpoint)
    shutil.copy(own / "reward" / "tokenizer.json", checkpoint)
    (own / "reward" / "checkpoint-30").mkdir()  # incomplete
    for _ in range(2):
        hub.push_run(own / "reward", "me/judge", revisions=True)
    assert set(server.repos["me/judge"].branches) == {"main", "checkpoint-20"}
    files = server.files("me/judge", "checkpoint-20")
    assert set(files) == EXPECTED - {"result.json", "chat_template.jinja"}
    card = files["README.md"].decode()
    assert "This branch holds checkpoint-20, not the final adapter" in card
    assert "Not measured." in card and "bias =" not in card  # numbers and calibration are of the final adapter
    assert 'from_pretrained(model, adapter, revision="checkpoint-20")' in card
    assert len(server.titles("me/judge", "checkpoint-20")) == 2  # where it began, and one
    assert f"{server.url}/me/judge/tree/checkpoint-20" in capsys.readouterr().out


def test_a_stage_without_checkpoints_says_so(trained, server, capsys):
    hub.push_run(trained / "sft", "me/toy", revisions=True)
    assert "holds no checkpoints" in capsys.readouterr().out


def test_a_merged_model_is_uploaded_with_its_record(merged, trained, server):
    hub.push_run(merged, "me/whole")
    files = server.files("me/whole")
    assert set(files) >= {"model.safetensors", "config.json", "generation_config.json", "merged.json", "tokenizer.json"}
    record = json.loads(files["merged.json"])
    assert (record["base"], record["adapter"]) == ("toy-base", "sft")
    assert all(str(trained.parent).encode() not in content for content in files.values())
    card = files["README.md"].decode()
    assert "- Base model: toy-base" in card
    assert "logits differ from those of the adapter on its base by at most" in card
    assert 'name = "me/whole"' in card
    hub.push_run(merged, "me/whole")
    assert len(server.titles("me/whole")) == 2


@torch.no_grad()
def test_what_is_pushed_gives_the_same_logits_when_it_is_loaded_from_the_hub(trained, merged, server):
    hub.push_run(trained / "sft", "me/toy")
    hub.push_run(merged, "me/whole")

    def logits(adapter: str):
        base = AutoModelForCausalLM.from_pretrained(trained.parent / "toy-base", dtype="float32")
        return PeftModel.from_pretrained(base, adapter).eval()(ids).logits

    ids = torch.tensor([AutoTokenizer.from_pretrained("me/toy")("The dog ran over the hill.")["input_ids"]])
    assert torch.equal(logits("me/toy"), logits(str(trained / "sft")))
    whole = [AutoModelForCausalLM.from_pretrained(name).eval()(ids).logits for name in ("me/whole", merged)]
    assert torch.equal(*whole)


def test_public_must_be_asked_for(trained, server):
    hub.push_run(trained, "me/open", private=False)
    assert not any(repo.private for repo in server.repos.values())
    assert not next(iter(server.collections.values()))["private"]
    with pytest.raises(InputError, match="me/open-sft exists and is public"):
        hub.push_run(trained, "me/open")
    assert len(server.titles("me/open-sft")) == 2


def test_public_collection_is_refused_before_a_file_is_sent(trained, server):
    hub.create_collection("me/toy", private=False)
    with pytest.raises(InputError, match="collection me/toy exists and is public"):
        hub.push_run(trained, "me/toy")
    assert server.titles("me/toy-sft") == ["initial commit"]


def test_dry_run_lists_the_files_and_reaches_nothing(trained, server, capsys):
    hub.push_run(trained, "me/toy", dry_run=True, revisions=True)
    assert server.requests == []
    out = capsys.readouterr().out
    assert "me/toy-ppo (private)" in out
    assert re.search(r"\d\.\d kB  value/adapter_model\.safetensors", out)
    assert "optimizer" not in out
    assert "raw/" not in out
    assert "Collection me/toy: me/toy-sft, me/toy-reward, me/toy-ppo" in out


def test_a_stage_that_is_missing_and_a_damaged_adapter_are_named(own, capsys):
    shutil.rmtree(own / "ppo")
    hub.push_run(own, "me/toy", dry_run=True)
    assert f"{own} holds no ppo: left out." in capsys.readouterr().out
    (own / "sft" / SAFETENSORS).write_bytes(b"12345678damaged")
    with pytest.raises(InputError, match=re.escape(str(own / "sft" / SAFETENSORS))):
        hub.push_run(own, "me/toy", dry_run=True)


# ---- Connections that break


@pytest.mark.parametrize("kind", ["before", "midway", "after", 503])
@pytest.mark.parametrize(
    "pattern",
    ["POST /api/repos/create", "POST .*/preupload/", "POST .*/lfs/objects/batch", "PUT /lfs/", "POST .*/commit/main"],
)
def test_a_broken_connection_loses_and_doubles_nothing(trained, server, pattern, kind):
    server.faults = [Fault(pattern, kind)]
    hub.push_run(trained / "sft", "me/toy")
    assert server.faults[0].times == 0
    assert set(server.files("me/toy")) == EXPECTED
    assert server.files("me/toy")[SAFETENSORS] == (trained / "sft" / SAFETENSORS).read_bytes()
    assert server.titles("me/toy") == ["initial commit", "sft stage of instruct-rlhf"]


def test_large_files_go_in_parts_and_a_broken_part_is_sent_again(trained, server):
    weights = (trained / "sft" / SAFETENSORS).read_bytes()
    server.part_size = len(weights) // 3 + 1
    server.faults = [Fault(r"PUT /lfs/\w+/2", "midway")]
    hub.push_run(trained / "sft", "me/toy")
    assert server.files("me/toy")[SAFETENSORS] == weights
    assert sum(bool(re.fullmatch(r"PUT /lfs/\w+/\d", request)) for request in server.requests) == 4


def test_a_push_that_failed_goes_on_where_it_stopped(trained, server, capsys):
    server.faults = [Fault("POST .*toy-reward/commit/main", 500, times=99)]
    line = refusal(capsys, lambda: hub.push_run(trained, "me/toy"))
    assert "The Hub has an error of its own at me/toy-reward" in line and "run it again" in line
    assert server.titles("me/toy-ppo") == ["initial commit"]
    server.faults = []
    hub.push_run(trained, "me/toy")
    assert [len(server.titles(repo)) for repo in server.repos] == [2, 2, 2]
    assert len(server.stored) == len(set(server.stored))  # no weights are sent twice
    assert hashlib.sha256((trained / "reward" / SAFETENSORS).read_bytes()).hexdigest() in server.stored


def test_a_hub_that_does_not_answer(trained, server, capsys):
    server.faults = [Fault("", "before", times=99)]
    line = refusal(capsys, lambda: hub.push_run(trained / "sft", "me/toy"))
    assert "The Hub cannot be reached to upload me/toy. Check the network and HF_HUB_OFFLINE." in line


# ---- Rights


@pytest.mark.parametrize(
    ("token", "hub_id", "parts"),
    [
        ("hf_wrong", "me/toy", ["does not know the token", "`hf auth login`", "HF_TOKEN"]),
        ("hf_reader", "me/toy", ["rights to create a model under the namespace", "write access"]),
        ("hf_me", "other/toy", ["rights to create a model under the namespace", "choose another one"]),
        ("hf_me", "other/taken", ["you must have write access", "choose another one"]),
        ("", "me/toy", ["Invalid username or password", "`hf auth login`"]),
    ],
)
def test_no_rights_is_one_sentence_with_the_remedy(trained, server, capsys, monkeypatch, token, hub_id, parts):
    server.repos["other/taken"] = Repo(private=False)
    server.repos["other/taken"].commit("main", "initial commit", {})
    monkeypatch.setenv("HF_TOKEN", token)
    line = refusal(capsys, lambda: hub.push_run(trained / "sft", hub_id, private=hub_id != "other/taken"))
    assert line.startswith(f"error: The Hub refused {hub_id}: ")
    assert all(part in line for part in parts), line
    assert not token or token not in line
    assert not server.stored


def test_a_name_of_an_organization_is_ones_own(trained, server):
    hub.push_run(trained, "team/toy")
    assert "team/toy-ppo" in server.repos
    assert next(iter(server.collections)).startswith("team/")


def test_a_card_that_the_hub_refuses_is_named(own, trained, server, capsys):
    base = shutil.copytree(trained.parent / "toy-base", own / "base")
    (base / "README.md").write_text("---\nlicense: my-own\n---\n")
    adapter = json.loads((own / "sft" / "adapter_config.json").read_text())
    (own / "sft" / "adapter_config.json").write_text(json.dumps({**adapter, "base_model_name_or_path": str(base)}))
    line = refusal(capsys, lambda: hub.push_run(own / "sft", "me/toy"))
    assert "Invalid metadata in README.md" in line and '"license" must be one of' in line


def test_the_token_is_in_no_output_and_no_file(trained, server, capsys, monkeypatch, caplog):
    server.users["hf_" + "a1" * 17] = ("me", {"me"})
    monkeypatch.setenv("HF_TOKEN", "hf_" + "a1" * 17)
    server.faults = [Fault("PUT /lfs/", "midway"), Fault("POST .*/commit/", 400)]
    with pytest.raises(InputError) as caught:
        hub.push_run(trained / "sft", "me/toy")
    hub.push_run(trained / "sft", "me/toy")
    captured = capsys.readouterr()
    for text in (captured.out, captured.err, caplog.text, str(caught.value)):
        assert "a1" * 17 not in text
    assert all(b"a1" * 17 not in content for content in server.files("me/toy").values())


# ---- Bad input


@pytest.mark.parametrize(
    ("folder", "hub_id", "part"),
    [
        ("nowhere", "me/toy", "nowhere does not exist"),
        (".", "", "Hub id is missing"),
        (".", "me//toy", "not a Hub id"),
        (".", "toy", "Pass your-name/toy-sft"),
        ("sft/checkpoint-1", "me/toy", "not written by one of the stages"),
        ("ppo/raw/..", "me/toy", None),  # still the ppo folder
        ("..", "me/toy", "holds no adapter"),
    ],
)
def test_bad_input_is_refused_before_the_hub_is_reached(trained, server, folder, hub_id, part):
    if part is None:
        assert hub.push_run(trained / folder, hub_id) == ["me/toy"]
        return
    with pytest.raises(InputError, match=part):
        hub.push_run(trained / folder, hub_id)
    assert server.requests == []


def test_adapter_without_weights_and_damaged_record_are_refused(own, merged, server, tmp_path):
    (own / "sft" / SAFETENSORS).unlink()
    with pytest.raises(InputError, match=r"holds no adapter_model\.safetensors"):
        hub.push_run(own, "me/toy")
    damaged = shutil.copytree(merged, tmp_path / "damaged")
    (damaged / "merged.json").write_text('{"base": "x"}')
    with pytest.raises(InputError, match=r"merged\.json is missing or damaged"):
        hub.push_run(damaged, "me/toy")
    assert server.requests == []


# ---- Stages that upload their own result


def test_push_to_hub_fields_of_a_stage(own, server):
    folder = own / "sft"
    fields = {"hub_model_id": "me/mine", "hub_token": "hf_me", "hub_revision": "try-2"}
    args = SFTConfig(output_dir=str(folder), report_to="none", use_cpu=True, bf16=False, push_to_hub=True, **fields)
    push = hub.resolve_push(args)
    assert args.push_to_hub is False  # the Trainer must not upload checkpoints and pickles
    assert server.repos["me/mine"].private
    assert server.files("me/mine") == {}
    hub.publish_run(folder, "sft", push)
    assert set(server.files("me/mine", "try-2")) == EXPECTED
    assert server.files("me/mine") == {}
    assert (folder / "README.md").exists()


def test_push_to_hub_without_rights_fails_before_the_training(server, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    server.repos["me/open"] = Repo(private=False)
    server.repos["me/open"].commit("main", "initial commit", {})
    fields = {"hub_model_id": "me/open", "hub_private_repo": False}
    args = SFTConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False, push_to_hub=True, **fields)
    with pytest.raises(InputError, match="you must have write access"):
        hub.resolve_push(args)


def test_push_to_hub_off_or_without_id(server, tmp_path):
    def arguments(**kwargs):
        return SFTConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False, **kwargs)

    assert hub.resolve_push(arguments()) is None
    with pytest.raises(InputError, match="hub_model_id"):
        hub.resolve_push(arguments(push_to_hub=True))
    assert hub.resolve_push(arguments(push_to_hub=True, hub_model_id="me/a", hub_private_repo=False)).private is False
    assert not server.repos["me/a"].private


def test_only_the_first_process_pushes(server, monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "1")
    hub.publish_run(tmp_path, "sft", hub.Push("me/toy"))
    assert server.requests == []
    assert not list(tmp_path.iterdir())


def test_the_command_pushes_a_run(trained, server, monkeypatch, capsys):
    load_main("push", [str(trained), "--hub_id", "me/toy"], monkeypatch)()
    assert set(server.repos) == {"me/toy-sft", "me/toy-reward", "me/toy-ppo"}
    load_main("push", [str(trained / "ppo"), "--hub_id", "me/one", "--public"], monkeypatch)()
    assert not server.repos["me/one"].private


def test_files_of_the_user_are_in_no_list():
    assert not {"notes.txt", ".gitattributes", "README.md"} & set(FINAL_FILES)  # what a push may delete


@pytest.mark.slow
def test_the_installed_command_reaches_the_hub_that_the_environment_names(trained, tmp_path):
    """In a process of its own, and what it pushed is loaded in another one, by PEFT and transformers alone."""
    with hub_server() as server:
        set_ = {"HF_ENDPOINT": server.url, "HF_TOKEN": "hf_me", "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
        env = {**os.environ, **set_, "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(ROOT)}
        push = [sys.executable, "-m", "rlhf.command", "push", str(trained / "sft"), "--hub_id"]
        done = subprocess.run([*push, "me/toy"], env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{trained / 'sft'} is on the Hub: {server.url}/me/toy\n"
        (code,) = code_blocks(server.files("me/toy")["README.md"].decode())
        load = [sys.executable, "-c", code]
        loaded = subprocess.run(load, env=env, cwd=trained.parent, capture_output=True, text=True, timeout=300)
        assert loaded.returncode == 0 and loaded.stdout.strip(), loaded.stderr
        refused = subprocess.run([*push, "other/toy"], env=env, capture_output=True, text=True, timeout=300)
        assert refused.returncode == 2
        assert refused.stderr.splitlines()[-1].startswith("error: The Hub refused other/toy: ")
        assert "Traceback" not in refused.stderr
