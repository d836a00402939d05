"""Systems from their specs, what is refused before a model is loaded, and answers that are kept."""

import csv
import json
import shutil
from dataclasses import replace

import pytest
import torch
from small_systems import answered, toy_run, write_run
from toys import bpe_tokenizer, save_adapter, save_toy

from rlhf.data.encode import encode_prompt
from rlhf.errors import InputError
from rlhf.evaluation.completion_files import read_completions
from rlhf.evaluation.local_answers import cut, groups_of
from rlhf.evaluation.local_systems import local_system
from rlhf.evaluation.systems import System, default_specs, parse_system, parse_systems, resolve
from rlhf.generation.completions import Completion, completion_rewards, sample_completions
from rlhf.models.stages import load_shared_base

PROMPTS = ["Name a fruit", "Why", "Is the moon made of cheese", "Name a fruit", "Write a story about a dog"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Returns a folder with base/, sft/, ppo/ and reward/. Read only."""
    return write_run(tmp_path_factory.mktemp("systems"))


@pytest.fixture(scope="module")
def run(home):
    return toy_run(home)


def by_system(rows):
    names = dict.fromkeys(row["system"] for row in rows)
    return {name: [row["response"] for row in rows if row["system"] == name] for name in names}


def resolved(spec, run):
    return resolve(parse_system(spec), 1.0, 6, run.stages.get("reward"))


# ---- specs


def test_specs_say_all_that_a_system_is(tmp_path):
    prefix = tmp_path / "few_shot.txt"
    prefix.write_text("Q: 1 + 1?\nA: 2\n\n")
    assert parse_system("sft") == System("sft", "sft")
    assert parse_system("sft,temperature=0") == System("sft_greedy", "sft", temperature=0.0)
    best = System("sft_best", "sft", best_of=16, reward="runs/x/reward")
    assert parse_system("sft,best_of=16,reward=runs/x/reward") == best
    assert parse_system("other=runs/x/ppo,max_new_tokens=9").source == "runs/x/ppo"
    assert parse_system("HuggingFaceTB/SmolLM2-135M-Instruct").name == "SmolLM2-135M-Instruct"
    prompted = parse_system(f"prompted=gpt2,prefix={prefix},stop=\\n\\n|Q:|a\\,b")
    assert (prompted.prefix, prompted.stop) == (str(prefix), ("\n\n", "Q:", "a,b"))
    api = parse_system("api=http://localhost:8000/v1,model=llama")
    assert (api.kind, api.model, api.source) == ("endpoint", "llama", "http://localhost:8000/v1")
    assert parse_system("sft").kind == "model"
    assert parse_system("sft,temperature=0").spec() == {"source": "sft", "temperature": 0.0}


def test_by_default_the_stages_of_the_run_answer_sampled_and_greedy():
    names = [system.name for system in parse_systems(default_specs(["sft", "reward"], best_of=4))]
    assert names == ["base", "sft", "base_greedy", "sft_greedy", "sft_best"]


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (["sft,temprature=0"], "unknown option 'temprature=0'. Choose from model, key, base"),
        (["sft,temperature=warm"], "temperature is 'warm', not a number"),
        (["sft,temperature=-1"], "temperature is -1; it must be at least 0"),
        (["sft,best_of=1"], "best_of is 1; it must be at least 2"),
        (["sft,stop="], "has an empty stop"),
        (["sft,temperature=0,temperature=1"], "gives temperature twice"),
        (["sft,reward=r"], "nothing to choose from. Add best_of=N"),
        (["sft", "sft=other"], "Two systems are named sft"),
        (["sft="], "has no source"),
        (["a b/c d"], "needs a name of letters"),
        ([], "systems is empty"),
        (["theirs=nowhere.jsonl"], "System theirs: the file of completions, nowhere.jsonl, does not exist"),
        (["sft,prefix=nowhere.txt"], "the file of the prefix, nowhere.txt, does not exist"),
        (["http://localhost:1/v1"], "needs the name of a model"),
        (["api=http://localhost:1/v1?key=secret,model=m"], "has a query in its URL"),
        (["api=http://localhost:1/v1,model=m,best_of=4"], "which has no best_of"),
    ],
)
def test_specs_that_cannot_be_used_are_refused(specs, message):
    with pytest.raises(InputError) as error:
        parse_systems(specs)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gpt5", "System gpt5: Model gpt5 cannot be loaded"),
        ("x=./nowhere", "System x: Model folder ./nowhere does not exist"),
        ("sft,base=gpt2", "a stage of the run has the run's base"),
        ("x={home}/base,base=gpt2", "is no adapter, so it has no base"),
        ("sft,best_of=4,reward=./nowhere", "./nowhere"),
        ("sft,best_of=4,reward={home}/sft", "is not a reward model"),
    ],
)
def test_models_that_are_not_there_are_refused_by_the_name_of_the_system(spec, message, home, run):
    with pytest.raises(InputError) as error:
        local_system(resolved(spec.format(home=home), run), run)
    assert message in str(error.value)


def test_best_of_n_needs_a_reward_model_and_a_temperature():
    with pytest.raises(InputError, match="by no reward model"):
        resolve(parse_system("sft,best_of=4"), 1.0, 6, None)
    with pytest.raises(InputError, match="4 equal answers"):
        resolve(parse_system("sft,best_of=4,temperature=0"), 1.0, 6, "reward")


# ---- bases


def test_adapters_of_one_base_share_it_and_others_bring_theirs(home, run, tmp_path):
    save_toy(tmp_path / "other", "gpt2")
    save_adapter(tmp_path / "other", tmp_path / "theirs", "sft")
    shutil.copytree(home / "base", tmp_path / "copy")
    specs = ["base", "sft", f"moved={tmp_path}/copy", f"theirs={tmp_path}/theirs", f"gpt2={tmp_path}/other", "ppo"]
    parts = [local_system(resolved(spec, run), run) for spec in specs]
    groups = groups_of(parts, run)
    names = [[member.system.name for member in group.systems] for group in groups]
    assert names == [["base", "sft", "moved", "ppo"], ["theirs", "gpt2"]]
    assert [set(group.adapters) for group in groups] == [{"sft", "ppo"}, {"system_0"}]


def test_every_base_answers(home, run, tmp_path):
    save_toy(tmp_path / "other", "gpt2")
    save_adapter(tmp_path / "other", tmp_path / "theirs", "sft")
    rows = answered(run, ["sft", f"theirs={tmp_path}/theirs"], PROMPTS, tmp_path / "evaluate")
    assert len(rows) == 10 and all(0 < row["tokens"] <= 6 for row in rows)
    alone = answered(run, [f"theirs={tmp_path}/theirs"], PROMPTS, tmp_path / "alone")
    assert rows[5:] == alone


# ---- decoding


def test_a_prefix_comes_before_the_prompt_as_plain_text(home, run, tmp_path):
    (tmp_path / "few.txt").write_text("Q: Name a tree\nA: Oak\n\nQ: ")
    parts = local_system(resolved(f"prompted=base,prefix={tmp_path}/few.txt", run), run)
    ids = encode_prompt(parts.tokenizer, "Q: Name a tree\nA: Oak\n\nQ: Name a fruit")
    assert parts.encode([[{"role": "user", "content": "Name a fruit"}]]) == [ids]
    rows = answered(run, [f"prompted=base,prefix={tmp_path}/few.txt", "base"], PROMPTS, tmp_path)
    assert by_system(rows)["prompted"] != by_system(rows)["base"]


def test_an_answer_ends_before_a_stop_text():
    tokenizer = bpe_tokenizer()
    ids = tokenizer("\nOak\n\nQ: Why")["input_ids"]
    whole = Completion(ids, tokenizer.decode(ids).strip(), False)
    ended = cut(tokenizer, [], whole, ("\n\n", "never"))
    assert (ended.text, ended.ended) == ("Oak", True)
    assert "\n\n" in tokenizer.decode(ended.ids) and "Q" not in tokenizer.decode(ended.ids)
    assert cut(tokenizer, [], whole, ("never",)) == whole


def test_best_of_n_takes_the_highest_reward_with_the_ids_or_the_text(home, run, tmp_path):
    """The run's reward model reads ids as sampled; one in another folder reads the text, which is the same here."""
    shutil.copytree(home / "reward", tmp_path / "reward")
    specs = ["sft,best_of=4", f"sft_text=sft,best_of=4,reward={tmp_path}/reward"]
    rows = by_system(answered(run, specs, PROMPTS, tmp_path / "evaluate"))
    parts = [local_system(resolved(spec, run), run) for spec in specs]
    assert [part.reward is None for part in parts] == [False, True]

    shared = load_shared_base(run.model_args, run.tokenizer, {"sft": home / "sft", "reward": home / "reward"})
    ids = parts[0].encode(PROMPTS)
    rounds = [
        sample_completions(shared, "sft", ids, run.tokenizer, max_new_tokens=6, seed=6 + k, progress=False)
        for k in range(4)
    ]
    rewards = torch.tensor([completion_rewards(shared, "reward", ids, [c.ids for c in row]) for row in rounds])
    expected = [rounds[k][i].text for i, k in enumerate(rewards.argmax(0).tolist())]
    assert rows["sft_best"] == expected
    assert len(set(rewards.argmax(0).tolist())) > 1
    assert len(rows["sft_text"]) == 5


def test_a_greedy_system_answers_equal_prompts_alike_and_has_no_kl(run, tmp_path):
    rows = answered(run, ["ppo,temperature=0", "ppo"], PROMPTS, tmp_path)
    greedy = by_system(rows)["ppo_greedy"]
    assert greedy[0] == greedy[3]
    assert {row["system"]: row["kl"] is None for row in rows} == {"ppo_greedy": True, "ppo": False}


# ---- kept answers


def test_a_further_system_answers_only_for_itself(run, tmp_path, monkeypatch):
    first = answered(run, ["sft", "ppo"], PROMPTS, tmp_path)
    asked = []
    real = sample_completions

    def counted(*args, **kwargs):
        asked.append(kwargs["description"].split(",")[0])
        return real(*args, **kwargs)

    monkeypatch.setattr("rlhf.evaluation.local_answers.sample_completions", counted)
    rows = answered(run, ["other=ppo,temperature=0.5", "sft", "ppo"], PROMPTS, tmp_path)
    assert set(asked) == {"other"}
    assert rows[5:] == first
    monkeypatch.setattr("rlhf.models.stages.load_base", lambda *_: pytest.fail("a model was loaded"))
    assert answered(run, ["ppo"], PROMPTS, tmp_path) == first[5:]
    assert answered(run, ["ppo"], PROMPTS[:3], tmp_path) == first[5:8]  # fewer prompts, the same answers


def test_a_killed_evaluation_goes_on_to_the_same_answers(run, tmp_path, monkeypatch):
    monkeypatch.setattr("rlhf.evaluation.local_answers.CHUNK", 1)
    options = {"batch_size": 2}
    whole = answered(run, ["sft", "ppo"], PROMPTS, tmp_path / "whole", **options)
    real, calls = sample_completions, []

    def killed(*args, **kwargs):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr("rlhf.evaluation.local_answers.sample_completions", killed)
    with pytest.raises(KeyboardInterrupt):
        answered(run, ["sft", "ppo"], PROMPTS, tmp_path / "killed", **options)
    path = tmp_path / "killed" / "answers" / "ppo.jsonl"
    assert len(path.read_text().splitlines()) == 2
    path.write_text(path.read_text() + '{"prompt_id": 1, "resp')  # a line that was cut short
    assert answered(run, ["sft", "ppo"], PROMPTS, tmp_path / "killed", **options) == whole
    assert len(calls) == 5 + 2  # the two chunks of ppo that were missing
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_changed_system_answers_anew_which_is_said(home, tmp_path, caplog):
    shutil.copytree(home, tmp_path / "home")
    run, folder = toy_run(tmp_path / "home"), tmp_path / "evaluate"
    before = answered(run, ["sft", "ppo"], PROMPTS, folder)
    assert "answers anew" not in caplog.text
    changed = answered(run, ["sft,temperature=0.5", "ppo"], PROMPTS, folder)
    assert "sft answers anew: its kept answers were made with another temperature" in caplog.text
    assert "ppo answers anew" not in caplog.text
    assert changed[5:] == before[5:]
    shutil.copy(home / "ppo" / "adapter_model.safetensors", tmp_path / "home" / "sft" / "adapter_model.safetensors")
    answered(toy_run(tmp_path / "home"), ["sft,temperature=0.5"], PROMPTS, folder)
    assert "sft answers anew: its kept answers were made with another adapter\n" in caplog.text
    config = tmp_path / "home" / "sft" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 1}))  # the same weights
    answered(toy_run(tmp_path / "home"), ["sft,temperature=0.5"], PROMPTS, folder)
    assert "sft answers anew: its kept answers were made with another adapter_config" in caplog.text


def test_a_baseline_that_does_not_answer_is_refused(load_recipe):
    baseline_of = load_recipe("evaluate").baseline_of
    assert baseline_of(None, ["base", "sft"]) == "sft" and baseline_of(None, ["a", "b"]) == "a"
    assert baseline_of("base", ["sft", "base"]) == "base"
    with pytest.raises(InputError, match=r"baseline pp0 is no system that answers\. Choose from sft, ppo"):
        baseline_of("pp0", ["sft", "ppo"])


def test_an_answer_belongs_to_its_prompt(run, tmp_path):
    before = answered(run, ["sft"], PROMPTS, tmp_path)
    other = ["Another question", *PROMPTS[1:]]
    rows = answered(run, ["sft"], other, tmp_path)
    assert rows[1:] == before[1:]
    assert rows[0] == answered(run, ["sft"], other, tmp_path / "new")[0]


def test_a_seed_is_that_of_the_system_and_of_the_evaluation(run, tmp_path):
    specs = ["sft", "twin=sft"]
    rows = by_system(answered(run, specs, PROMPTS, tmp_path / "a", max_new_tokens=12))
    assert rows["sft"] != rows["twin"]
    assert by_system(answered(run, specs, PROMPTS, tmp_path / "b", max_new_tokens=12, seed=1))["sft"] != rows["sft"]


# ---- files


def write_answers(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return System("theirs", str(path))


def test_a_file_is_matched_by_the_prompts_in_any_order_and_form(run, tmp_path):
    rows = [{"prompt": prompt, "response": f" answer {i} "} for i, prompt in enumerate(PROMPTS)]
    rows[1]["prompt"] = [{"role": "user", "content": PROMPTS[1]}]
    rows[2] = {
        "prompt": PROMPTS[2],
        "completion": [{"role": "assistant", "content": "no"}],
        "ended": False,
        "tokens": 1,
    }
    system = write_answers(tmp_path / "theirs.jsonl", [*rows[::-1], {"prompt": "Not asked", "response": "x"}])
    found = read_completions(system, PROMPTS)
    assert [answer["response"] for answer in found] == ["answer 3", "answer 1", "no", "answer 0", "answer 4"]
    assert (found[2]["ended"], found[2]["tokens"], found[0]["ended"]) == (False, 1, True)
    both = answered(run, ["sft", f"theirs={tmp_path}/theirs.jsonl"], PROMPTS, tmp_path / "evaluate")
    assert by_system(both)["theirs"] == [answer["response"] for answer in found]
    once = write_answers(tmp_path / "once.jsonl", rows[:3] + rows[4:])
    assert [answer["response"] for answer in read_completions(once, PROMPTS)][3] == "answer 0"


def test_of_a_file_with_several_systems_the_one_of_this_name_counts(tmp_path):
    rows = [{"prompt": p, "system": name, "response": f"{name} {p}"} for name in ("base", "ppo") for p in PROMPTS]
    system = write_answers(tmp_path / "completions.jsonl", rows)
    with pytest.raises(InputError, match=r"has the answers of base, ppo. Take the name of one of them: ppo="):
        read_completions(system, PROMPTS)
    assert read_completions(replace(system, name="ppo"), PROMPTS)[1]["response"] == "ppo Why"
    one = write_answers(tmp_path / "one.jsonl", rows[5:])  # a single system may have any name
    assert read_completions(one, PROMPTS)[1]["response"] == "ppo Why"


def test_a_table_of_completions_is_read(tmp_path):
    table = tmp_path / "theirs.csv"
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "response", "ended", "tokens"])
        message = [{"role": "user", "content": "Why"}]
        writer.writerows([["Name a fruit", "An apple", "False", "3"], [message, "", "", ""]])
    system = parse_system(str(table))
    assert (system.kind, system.name) == ("file", "theirs")
    assert read_completions(system, ["Why", "Name a fruit"]) == [
        {"response": "", "ended": True, "tokens": None},
        {"response": "An apple", "ended": False, "tokens": 3},
    ]
    table.write_text("prompt,response\nWhy,a,b\n")
    with pytest.raises(InputError, match=r"System theirs: .*theirs\.csv, line 2: 3 cells under 2 columns"):
        read_completions(system, ["Why"])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "is empty"),
        ([{"prompt": "Why", "response": "x"}], "answers 1 of the 5 prompts that are asked. It has nothing for 4, the "),
        ([{"prompt": "Why"}], "line 1 needs a prompt and one of response, completion"),
        ([{"response": "x"}], "line 1 needs a prompt"),
        (["x"], "line 1 needs a prompt"),
        ([{"prompt": "Why", "response": "x", "ended": "yes"}], "ended must be true or false"),
    ],
)
def test_half_a_file_of_completions_is_refused(rows, message, tmp_path):
    with pytest.raises(InputError) as error:
        read_completions(write_answers(tmp_path / "theirs.jsonl", rows), PROMPTS)
    assert message in str(error.value)
    if "nothing for 4" in message:
        assert "first being prompt 0, 'Name a fruit'" in str(error.value)


def test_a_line_that_is_no_json_is_named(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"prompt": "Why", "response": "x"}\n{"prompt"')
    with pytest.raises(InputError, match="line 2 is not JSON"):
        read_completions(System("x", str(tmp_path / "x.jsonl")), PROMPTS)
