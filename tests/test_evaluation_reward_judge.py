"""Reward models as judges: what may be one, what its scores are, and what was optimized against it."""

import shutil

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rlhf.data.encode import encode_prompt_and_completions
from rlhf.errors import InputError
from rlhf.evaluation.judges import Verdict, find_judges
from rlhf.generation.score_options import PolicyOptions
from rlhf.models.adapter_files import adapter_digest
from rlhf.models.loading import load_tokenizer
from rlhf.models.reward_model import load_reward_model
from rlhf.runs.contract import Contract, write_contract
from tests.toys import CLASSIFIER, bpe_tokenizer, random_model, save_adapter, save_toy, toy_config

PROMPTS, ANSWERS, ENDED = ["Name a fruit.", "Is it so?"], ["Apples and pears.", "No"], [True, False]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A base, and on it an SFT adapter and a reward adapter as this library writes them, and a classifier."""
    home = tmp_path_factory.mktemp("judges")
    save_toy(home / "base")
    for stage in ("sft", "reward"):
        save_adapter(home / "base", home / stage, stage)
    save_classifier(home / "classifier", num_labels=1)
    return home


def save_classifier(folder, num_labels):
    tokens = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1, "vocab_size": 320, "num_labels": num_labels}
    config = toy_config("llama", width=16, heads=2, positions=128, **tokens)  # not the adapters' base
    random_model(CLASSIFIER["llama"], config, seed=3, scale=4.0).save_pretrained(folder)
    bpe_tokenizer(280).save_pretrained(folder)


def ppo_adapter(home, folder, **parents):
    shutil.copytree(home / "sft", folder)
    write_contract(folder, Contract("ppo", parents=parents))
    return folder


def judge_of(path, **kwargs):
    [judge] = find_judges([f"reward={path}"], dataset_name="any", **kwargs)
    return judge


def test_scores_of_an_adapter_are_those_of_its_model(home):
    judge = judge_of(home / "reward")
    model, tokenizer = load_reward_model(home / "reward"), load_tokenizer(str(home / "base"))
    for row in zip(PROMPTS, ANSWERS, ENDED, judge.score(PROMPTS, ANSWERS, ENDED), strict=True):
        prompt, answer, ended, verdict = row
        prompt_ids, [ids] = encode_prompt_and_completions(tokenizer, prompt, [answer], [ended])
        with torch.no_grad():
            expected = model(torch.tensor([prompt_ids + ids])).logits.item()
        assert verdict.score == pytest.approx(expected, abs=1e-4)
        assert verdict.likert is None and verdict.flags == {}


def test_an_adapter_of_trl_has_raw_scores(home, tmp_path):
    shutil.copytree(home / "reward", tmp_path / "trl")  # without calibration, contract and tokenizer
    (tmp_path / "trl" / "calibration.json").unlink()
    ours, theirs = (judge_of(path).score(PROMPTS, ANSWERS, ENDED) for path in (home / "reward", tmp_path / "trl"))
    assert [v.score for v in theirs] == pytest.approx([v.score + 0.25 for v in ours], abs=1e-4)


def test_a_sequence_classifier_has_its_own_base_and_tokenizer(home):
    judge = judge_of(home / "classifier")
    model = AutoModelForSequenceClassification.from_pretrained(home / "classifier")
    ids = judge.model.encode(PROMPTS[0], ANSWERS[0], True)
    assert max(ids) < 320 and judge.model.tokenizer.get_vocab() != load_tokenizer(str(home / "base")).get_vocab()
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits.item()
    assert judge.score(PROMPTS, ANSWERS, ENDED)[0].score == pytest.approx(expected, abs=1e-4)


def test_scores_do_not_depend_on_the_order_of_the_rows(home):
    forward = judge_of(home / "reward").score(PROMPTS, ANSWERS, ENDED)
    backward = judge_of(home / "reward").score(PROMPTS[::-1], ANSWERS[::-1], ENDED[::-1])[::-1]
    assert [v.score for v in forward] == pytest.approx([v.score for v in backward], abs=1e-5)


def test_no_model_is_loaded_before_it_is_asked_or_where_all_is_known(home, tmp_path, monkeypatch):
    verdicts = judge_of(home / "reward", folder=tmp_path).score(PROMPTS, ANSWERS, ENDED)
    monkeypatch.setattr("rlhf.evaluation.reward_judge.load_text_reward", lambda *_, **__: pytest.fail("loaded"))
    assert judge_of(home / "reward", folder=tmp_path).score(PROMPTS, ANSWERS, ENDED) == verdicts


def test_the_reward_that_ppo_was_trained_against_says_so(home, tmp_path):
    ppo = ppo_adapter(home, tmp_path / "ppo", sft="0", reward=adapter_digest(home / "reward"))
    other = ppo_adapter(home, tmp_path / "other", reward="0123456789abcdef")
    shutil.copytree(home / "reward", tmp_path / "moved")  # the same weights under another name
    systems = {"sft": home / "sft", "ppo": ppo, "other": other}
    judge = judge_of(tmp_path / "moved", adapters=systems)
    assert judge.optimized
    assert judge.about.endswith("ppo was trained against it, so its scores of these are no evidence of quality.")
    held_out = judge_of(home / "classifier", adapters=systems)
    assert not held_out.optimized and "no system is known to be trained" in held_out.about


def test_a_reward_that_chooses_answers_says_so(home):
    judge = judge_of(home / "reward", chosen_by={"best": home / "reward", "best_2": home / "classifier"})
    assert judge.optimized and "it chooses the answers of best," in judge.about


def test_only_ppos_own_reward_has_the_term_for_a_missing_eos(home, tmp_path):
    ppo = ppo_adapter(home, tmp_path / "ppo", reward=adapter_digest(home / "reward"))
    raw = judge_of(home / "reward").score(PROMPTS, ANSWERS, ENDED)
    options = PolicyOptions(missing_eos_penalty=2.0)
    shaped = judge_of(home / "reward", adapters={"ppo": ppo}, options=options, folder=tmp_path)
    expected = [Verdict(raw[0].score), Verdict(pytest.approx(raw[1].score - 2))]
    assert shaped.score(PROMPTS, ANSWERS, ENDED) == expected
    assert shaped.score(PROMPTS, ANSWERS, ENDED) == expected  # from the file, which holds raw scores
    assert judge_of(home / "reward", options=options).score(PROMPTS, ANSWERS, ENDED) == raw


def test_what_is_no_reward_model_is_refused_before_a_model_is_loaded(home, tmp_path, monkeypatch):
    monkeypatch.setattr("rlhf.evaluation.reward_judge.load_text_reward", lambda *_, **__: pytest.fail("loaded"))
    save_classifier(tmp_path / "two", num_labels=2)
    for path, message in (
        (home / "sft", "is not a reward model: its task type is"),
        (home / "base", "LlamaForCausalLM"),
        (tmp_path / "two", "with 2 labels"),
        (tmp_path / "none", "none"),
    ):
        with pytest.raises(InputError, match=message):
            judge_of(path)


def test_a_reward_model_of_text_prompts_judges_no_messages(home, tmp_path):
    shutil.copytree(home / "reward", tmp_path / "reward")
    write_contract(tmp_path / "reward", Contract("reward", prompt_style="text"))
    judge_of(tmp_path / "reward", style="text")
    with pytest.raises(InputError, match="prompt_style text"):
        judge_of(tmp_path / "reward", style="chat")
