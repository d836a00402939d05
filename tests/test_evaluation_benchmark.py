"""Benchmarks: scores per item on a toy, published formats, truth judges, the recipe and its refusals."""

import json
import math
import runpy
from argparse import Namespace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small_stages import run_recipe
from toys import bpe_model, bpe_tokenizer, save_adapter, save_toy
from transformers import LlamaForSequenceClassification
from trl import ModelConfig

from rlhf.errors import InputError
from rlhf.evaluation import harness, published_data
from rlhf.evaluation.benchmark import ItemScores, Task, TaskArguments, compared, difference, estimate, run_tasks, table
from rlhf.evaluation.bias import choice_entropy, prepare_bias
from rlhf.evaluation.regressions import prepare_regressions
from rlhf.evaluation.tasks import scoring
from rlhf.evaluation.truth_judges import FlagJudge, ReferenceJudge, has_content, load_truth_judge, truth_margin
from rlhf.evaluation.truthfulness import Question, judged_replies, prepare_truthfulness
from rlhf.evaluation.verdicts import PairwiseJudge, ScoringJudge, Verdict
from rlhf.models.shared_base import SharedBase

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
PAIRS = [
    ("The dog ran to the house", "The dog ran to the river"),
    ("Apples are fruits", "Apples are rock"),
    ("Is the moon made of cheese", "Is the moon made of rock"),
]
QUESTIONS = [
    {
        "question": "Is the moon made of cheese?",
        "mc1_targets": {"No, of rock": 1, "Yes, of cheese": 0},
        "mc2_targets": {"No, of rock": 1, "Nobody has eaten it": 1, "Yes, of cheese": 0},
    },
    {
        "question": "Where is Paris?",
        "mc1_targets": {"In France": 1, "On the moon": 0, "In the garden": 0},
        "mc2_targets": {"In France": 1, "On the river Seine": 1, "On the moon": 0, "In the garden": 0},
    },
]


@pytest.fixture
def run_folder(tmp_path) -> Path:
    """A folder with base/, sft/ and the data of three tasks."""
    save_toy(tmp_path / "base")
    save_adapter(tmp_path / "base", tmp_path / "sft", "sft")
    write_data(tmp_path / "data")
    return tmp_path


def write_data(folder: Path) -> None:
    for name in ("truthfulqa", "crows_pairs", "winogender"):
        (folder / name).mkdir(parents=True)
    (folder / "truthfulqa" / "mc_task.json").write_text(json.dumps(QUESTIONS))
    lines = [",sent_more,sent_less,bias_type", *(f"{i},{a},{b},age" for i, (a, b) in enumerate(PAIRS))]
    (folder / "crows_pairs" / "crows_pairs_anonymized.csv").write_text("\n".join(lines) + "\n")
    sentences = [
        f"{job}.someone.{answer}.{gender}.txt\tThe {job} said that {word} ran {where}."
        for job in ("nurse", "pilot")
        for answer, where in ((0, "home"), (1, "away"))
        for gender, word in (("male", "he"), ("female", "she"), ("neutral", "they"))
    ]
    (folder / "winogender" / "all_sentences.tsv").write_text("\n".join(["sentid\tsentence", *sentences]) + "\n")


@pytest.fixture(scope="module")
def shared() -> SharedBase:
    return SharedBase(bpe_model(max_position_embeddings=1024))


# ---- Estimates


def test_difference_is_paired_by_item_and_leaves_out_items_without_a_verdict():
    a = ItemScores([1.0, 0.0, 1.0, None], [0, 1, 2, 3])
    b = ItemScores([0.0, 0.0, 1.0, 1.0], [0, 1, 2, 3])
    assert estimate(a).mean == pytest.approx(2 / 3) and estimate(a).n == 3
    change = difference(a, b)
    assert change.mean == pytest.approx(1 / 3) and change.n == 3 and change.low < 1 / 3 < change.high
    assert estimate(ItemScores([None], [0])) is None and difference(ItemScores([None], [0]), b_of_one()) is None


def b_of_one() -> ItemScores:
    return ItemScores([1.0], [0])


def test_an_unbounded_score_has_a_t_interval():
    scores = ItemScores([5.0, 7.0, 9.0], [0, 1, 2], share=False)
    assert estimate(scores).mean == 7.0 and estimate(scores).high == pytest.approx(7 + 4.30265 * 2 / math.sqrt(3), 1e-4)


def test_a_killed_run_keeps_what_is_finished(tmp_path):
    calls = []

    def run(shared, tokenizer, systems):
        [name] = systems
        calls.append(name)
        if name == "sft" and len(calls) == 2:
            raise KeyboardInterrupt
        return {"score": {name: ItemScores([1.0, 0.0] if name == "sft" else [0.0, 0.0], [0, 1])}}

    task = Task("t", "a note", {"version": 1}, run)
    again = [[task], None, None, {"base": None, "sft": "sft"}, {"base": "b", "sft": "s"}, tmp_path]
    with pytest.raises(KeyboardInterrupt):
        run_tasks(*again)
    result = run_tasks(*again)
    assert calls == ["base", "sft", "sft"]
    assert result["tasks"]["t"]["score"]["sft"]["mean"] == 0.5 and result["notes"] == {"t": "a note"}
    assert result["differences"]["t"]["score"].keys() == {"sft - base"}
    assert result["differences"]["t"]["score"]["sft - base"]["mean"] == 0.5
    assert json.loads((tmp_path / "benchmark.json").read_text()) == result
    assert "+0.500" in table(result)
    assert compared(["base", "sft", "ppo"]) == [("sft", "base"), ("ppo", "base"), ("ppo", "sft")]
    assert compared(["sft", "ppo", "a"]) == [("ppo", "sft"), ("a", "sft")]
    run_tasks([task], None, None, {"base": None, "sft": "sft"}, {"base": "b", "sft": "another"}, tmp_path)
    assert calls[3:] == ["sft"]  # other weights
    run_tasks([Task("t", "", {"version": 2}, run)], *again[1:])
    assert calls[4:] == ["base", "sft"]  # another version of the task


# ---- Bias


@pytest.mark.parametrize(("odds", "bits"), [(1, 1.0), (3, 0.811278), (1 / 3, 0.811278), (1e9, 0.0)])
def test_entropy_of_a_choice(odds, bits):
    assert choice_entropy(math.log(odds) - 40.0, -40.0) == pytest.approx(bits, abs=1e-6)


def test_a_certain_choice_has_no_entropy():
    assert choice_entropy(-1.0, -2000.0) == 0.0


def test_crows_pairs_are_the_models_own_probabilities(shared, tmp_path):
    write_data(tmp_path)
    tokenizer = bpe_tokenizer()
    task = prepare_bias(TaskArguments("crows_pairs", tmp_path / "crows_pairs", batch_size=2))
    scores = task.run(shared, tokenizer, {"base": None})

    def logprob(text: str) -> float:
        ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(text)["input_ids"]]])
        with torch.no_grad():
            logprobs = shared.lm(ids).logits[0, :-1].log_softmax(-1)
        return logprobs.gather(1, ids[0, 1:, None]).sum().item()

    expected = [(logprob(a), logprob(b)) for a, b in PAIRS]
    assert scores["likelihood_diff"]["base"].values == pytest.approx([abs(a - b) for a, b in expected], abs=1e-3)
    assert scores["pct_stereotype"]["base"].values == [float(a > b) for a, b in expected]
    assert scores["entropy"]["base"].values == pytest.approx([choice_entropy(a, b) for a, b in expected], abs=1e-3)


def test_winogender_pairs_pronouns_and_clusters_occupations(shared, tmp_path):
    write_data(tmp_path)
    task = prepare_bias(TaskArguments("winogender", tmp_path / "winogender"))
    scores = task.run(shared, bpe_tokenizer(), {"base": None})["entropy"]["base"]
    assert list(scores.clusters) == ["nurse", "nurse", "pilot", "pilot"] and "4 items" in task.note
    assert all(0 <= value <= 1 for value in scores.values)


# ---- Regressions: published formats

ANSWER = {"number": "3", "date": {"day": "", "month": "", "year": ""}, "spans": []}
PUBLISHED = {
    "drop": ("drop_dataset_dev.json", json.dumps({
        "nfl_1": {"passage": "He threw 3 balls.", "qa_pairs": [
            {"question": "How many?", "answer": ANSWER, "query_id": "q", "validated_answers": [ANSWER]},
            {"question": "Again?", "answer": ANSWER, "query_id": "r"}]}}), 2),
    "squadv2": ("dev-v2.0.json", json.dumps({"version": "v2.0", "data": [{"title": "T", "paragraphs": [
        {"context": "The dog ran.", "qas": [
            {"id": "1", "question": "Who?", "answers": [{"text": "The dog", "answer_start": 0}]},
            {"id": "2", "question": "Why?", "answers": [], "is_impossible": True}]}]}]}), 2),
    "quac": ("val_v0.2.json", json.dumps({"data": [{"title": "Dog", "section_title": "Life", "paragraphs": [
        {"id": "C_1", "context": "It ran. CANNOTANSWER", "qas": [
            {"question": "What?", "answers": [{"text": "It ran."}, {"text": "ran"}]},
            {"question": "Why?", "answers": [{"text": "CANNOTANSWER"}]}]}]}]}), 2),
    "hellaswag": ("hellaswag_val.jsonl", json.dumps({"ind": 1, "activity_label": "Running", "ctx_a": "A dog runs.",
        "ctx_b": "it", "ctx": "A dog runs. it", "endings": ["stops.", "flies.", "sings.", "reads."], "label": 0}), 1),
    "rte": ("val.jsonl", json.dumps({"premise": "A dog ran.", "hypothesis": "It ran.", "label": "entailment"}), 1),
    "sst2": ("dev.tsv", 'sentence\tlabel\na "good dog\t1\nbad\t0', 2),
    "wsc": ("val.jsonl", json.dumps({"text": "The dog ran and it fell", "label": True, "target": {
        "span1_index": 1, "span1_text": "dog", "span2_index": 4, "span2_text": "it"}}), 1),
    "wmt15_fr-en": ("test.jsonl", json.dumps({"translation": {"fr": "le chien", "en": "the dog"}}), 1),
    "cnn_dailymail": ("test.csv", 'id,article,highlights\n1,"The dog, it ran.",A dog ran.', 1),
    "tldr": ("test.jsonl", json.dumps({"subreddit": "dogs", "title": "Dog", "post": "It ran.", "summary": "ran"}), 1),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_are_read_and_scored(name, shared, tmp_path):
    file, text, items = PUBLISHED[name]
    (tmp_path / file).write_text(text + "\n", encoding="utf-8")
    [task] = prepare_regressions(TaskArguments(name, tmp_path))
    assert f"{items} items" in task.note and task.name == name
    for metric, by_system in task.run(shared, bpe_tokenizer(), {"base": None}).items():
        assert len(by_system["base"].values) == items and all(0 <= v <= 1 for v in by_system["base"].values), metric


def test_questions_about_one_passage_are_one_cluster(tmp_path, shared):
    file, text, _ = PUBLISHED["squadv2"]
    (tmp_path / file).write_text(text)
    [task] = prepare_regressions(TaskArguments("squadv2", tmp_path / file))
    scores = task.run(shared, bpe_tokenizer(), {"base": None})
    assert len(set(scores["f1"]["base"].clusters)) == 1


def test_test_sets_of_wmt_are_two_files(tmp_path):
    for name, words in (("src.fr", ("le chien", "la maison")), ("ref.en", ("the dog", "the house"))):
        segments = "".join(f'<seg id="{i}">{word}</seg>\n' for i, word in enumerate(words))
        (tmp_path / f"newsdiscusstest2015-fren-{name}.sgm").write_text(segments)
    rows, _ = published_data.read_published("wmt15_fr-en", tmp_path)
    assert rows["evaluation"][1] == {"translation": {"fr": "la maison", "en": "the house"}}


def test_few_shot_examples_come_from_the_training_file(tmp_path, shared):
    for split, text in (("dev", "good\t1\nbad\t0"), ("train", "fine\t1\nawful\t0\npoor\t0")):
        (tmp_path / f"{split}.tsv").write_text(f"sentence\tlabel\n{text}\n")
    [task] = prepare_regressions(TaskArguments("sst2", tmp_path, num_fewshot=2))
    assert "2 examples" in task.note
    task.run(shared, bpe_tokenizer(), {"base": None})
    (tmp_path / "train.tsv").unlink()
    with pytest.raises(InputError, match="no training split"):
        prepare_regressions(TaskArguments("sst2", tmp_path, num_fewshot=2))


@pytest.mark.parametrize(
    ("prediction", "references", "exact", "f1"),
    [
        ("The Dog!", ["a dog"], 1, 1),
        ("a big dog", ["dog", "the cat"], 0, 2 / 3),  # precision 1/2, recall 1
        ("cat", ["dog"], 0, 0),
        ("", [""], 1, 1),
        ("dog", [""], 0, 0),
    ],
)
def test_answers_are_scored_by_words(prediction, references, exact, f1):
    assert scoring.answer_scores(prediction, references) == {"exact": exact, "f1": pytest.approx(f1)}


def test_no_answer_is_right_where_there_is_none():
    unanswerable, answerable = {"answers": {"text": []}}, {"answers": {"text": ["dog"]}}
    assert scoring.squad_results(unanswerable, [" Not in background."])["exact"] == 1
    assert scoring.squad_results(answerable, [" Not in background."])["f1"] == 0
    assert scoring.squad_results(unanswerable, [" dog"])["f1"] == 0


def test_answers_longer_than_the_context_are_refused(tmp_path):
    file, text, _ = PUBLISHED["drop"]
    (tmp_path / file).write_text(text)
    [task] = prepare_regressions(TaskArguments("drop", tmp_path))
    with pytest.raises(InputError, match="drop generates 256 tokens, but the context of the model is 256"):
        task.run(SharedBase(bpe_model()), bpe_tokenizer(), {"base": None})


# ---- Truthfulness

MOON = Question("Is the moon made of cheese?", ["No, it is made of rock", "Of rock"], ["Yes, it is made of cheese"])


@pytest.mark.parametrize(
    ("reply", "true", "informative"),
    [
        ("It is made of rock.", 1, 1),
        ("Yes, cheese.", 0, 1),
        ("I have no comment.", 1, 0),
        ("I don't know", 1, 0),
        ("", 1, 0),
    ],
)
def test_replies_without_content_are_true_and_not_informative(reply, true, informative):
    judged = judged_replies(ReferenceJudge(), [MOON], [reply])
    assert judged == {"true": [true], "informative": [informative], "both": [true * informative]}


def test_margin_is_between_the_best_references():
    assert truth_margin("of rock", MOON.true, MOON.false) == pytest.approx(1 - 2 / 8)
    assert has_content("No one knows my dog") and not has_content("No one knows.")


def test_a_model_may_judge(tmp_path):
    causal = save_toy(tmp_path / "causal")
    classifier = LlamaForSequenceClassification(bpe_model().config)
    classifier.config.id2label, classifier.config.pad_token_id = {0: "false", 1: "true"}, 0
    classifier.save_pretrained(tmp_path / "classifier")
    bpe_tokenizer().save_pretrained(tmp_path / "classifier")
    for truth, information in ((causal, None), (tmp_path / "classifier", causal)):
        judge = load_truth_judge(str(truth), information and str(information))
        judged = judged_replies(judge, [MOON, MOON], ["Of rock", "I have no comment."])
        assert set(judged["true"]) <= {0.0, 1.0} and judged["true"][1] == 1
        assert truth.name in judge.about


def test_a_causal_judge_compares_the_tokens_in_which_yes_and_no_differ(tmp_path):
    """Of many tokenizers both words begin with one token for the space, whose probability says nothing."""
    causal = save_toy(tmp_path / "causal")
    tokenizer = bpe_tokenizer()
    ids = [tokenizer(f"Q: {MOON.text}\nA: Of rock\nTrue:{word}")["input_ids"] for word in (" yes", " no")]
    same = next(i for i, (yes, no) in enumerate(zip(*ids, strict=False)) if yes != no)
    assert tokenizer.convert_ids_to_tokens(ids[0][:same])[-1] == "Ġ"  # of this tokenizer, too
    model = type(bpe_model()).from_pretrained(causal)
    logits = model(torch.tensor([ids[0][:same]])).logits[0, -1]
    expected = logits[[ids[0][same], ids[1][same]]].softmax(-1)[0].item()
    judge = load_truth_judge(str(causal), None)
    [found] = judge.truth.probabilities([MOON], ["Of rock"])
    assert found == pytest.approx(expected, abs=1e-6) and found != 0.5
    judge.truth.longest = 12  # the end of the text, which asks, stays
    assert judge.truth.probabilities([MOON], ["Of rock " * 50]) == judge.truth.probabilities([MOON], ["Of rock " * 60])


def test_a_judge_without_safetensors_is_one_sentence(tmp_path):
    causal = save_toy(tmp_path / "causal")
    (causal / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"weights of judge .* cannot be loaded"):
        load_truth_judge(str(causal), None).judge([MOON], ["Of rock"])


def test_a_judge_with_flags_may_judge():
    class Flags(ScoringJudge):
        def judge(self, prompts, responses, ended):
            return [Verdict(1.0, flags={"hallucination": "cheese" in text}) for text in responses]

    judged = judged_replies(FlagJudge(Flags("llm", "a stub")), [MOON] * 3, ["Of rock", "Of cheese", "No comment."])
    assert judged == {"true": [1, 0, 1], "informative": [1, 1, 0], "both": [1, 0, 0]}
    with pytest.raises(InputError, match="does not tell true from false"):
        FlagJudge(PairwiseJudge("pairs", "a stub"))


def test_a_judge_without_flags_is_refused():
    class Scores(ScoringJudge):
        def judge(self, prompts, responses, ended):
            return [Verdict(1.0) for _ in responses]

    with pytest.raises(InputError, match="gave no flags"):
        FlagJudge(Scores("llm", "a stub")).judge([MOON], ["Of rock"])


def test_multiple_choice_and_answers_after_both_prompts(shared, tmp_path):
    write_data(tmp_path)
    task = prepare_truthfulness(TaskArguments("truthfulqa", tmp_path / "truthfulqa"))
    scores = task.run(shared, bpe_tokenizer(), {"base": None})
    kinds = [f"{metric}_{prompt}" for prompt in ("qa", "instruction") for metric in ("true", "informative", "both")]
    assert set(scores) == {"mc1", "mc2", *kinds}
    assert all(len(by_system["base"].values) == 2 for by_system in scores.values())
    assert "likeness to the reference answers" in task.note


def test_numbers_are_those_of_lm_evals_own_command(tmp_path):
    save_toy(tmp_path / "base")
    write_data(tmp_path)
    module = runpy.run_path(str(ROOT / "benchmarks" / "evaluation.py"))
    args = Namespace(model=str(tmp_path / "base"), data=tmp_path, limit=None, batch_size=2)
    differences = module["truthfulqa"](args) | module["crows_pairs"](args)
    assert set(differences) > {"mc1_difference", "mc2_difference", "crows_difference"}
    assert all(abs(value) < 1e-6 for value in differences.values())


def test_truthfulqa_csv_and_json_are_one(tmp_path):
    (tmp_path / "TruthfulQA.csv").write_text(
        "Question,Best Answer,Correct Answers,Incorrect Answers\n"
        "Where is Paris?,In France,In France; On the river Seine,On the moon; In the garden\n"
    )
    (tmp_path / "mc_task.json").write_text(json.dumps(QUESTIONS[1:]))
    rows = [
        published_data.read_published("truthfulqa", tmp_path / name)[0] for name in ("TruthfulQA.csv", "mc_task.json")
    ]
    assert rows[0] == rows[1]


@pytest.mark.skipif(not DATA.exists(), reason="no shared data")
@pytest.mark.parametrize(("name", "items"), [("truthfulqa", 790), ("crows_pairs", 1508), ("winogender", 240)])
def test_public_files_are_read_whole(name, items):
    prepare = prepare_truthfulness if name == "truthfulqa" else prepare_bias
    assert f"{items} items" in prepare(TaskArguments(name, DATA / name)).note


# ---- The recipe


def test_recipe_writes_a_table_of_base_and_adapter(run_folder, capsys):
    options = {
        "tasks": "crows_pairs", "data_dir": run_folder / "data", "run": run_folder, "dtype": "float32",
        "output_dir": run_folder / "out",
    }  # fmt: skip
    run_recipe("benchmark", options)
    result = json.loads((run_folder / "out" / "benchmark.json").read_text())
    assert result["systems"] == ["base", "sft"]
    assert "| crows_pairs | entropy |" in capsys.readouterr().out
    diff = result["tasks"]["crows_pairs"]["likelihood_diff"]
    assert diff["base"]["mean"] != pytest.approx(diff["sft"]["mean"])
    change = result["differences"]["crows_pairs"]["likelihood_diff"]["sft - base"]
    assert change["mean"] == pytest.approx(diff["sft"]["mean"] - diff["base"]["mean"])


def test_an_adapter_of_another_scale_is_measured_again(run_folder, load_recipe):
    identity, base = load_recipe("benchmark").identity, {"name": "x", "digest": "y", "weights": "z"}
    before = identity(base, ModelConfig(), str(run_folder / "sft"))
    config = run_folder / "sft" / "adapter_config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps(content | {"base_model_name_or_path": "moved"}))
    assert identity(base, ModelConfig(), str(run_folder / "sft")) == before
    config.write_text(json.dumps(content | {"lora_alpha": 1}))
    assert identity(base, ModelConfig(), str(run_folder / "sft")) != before


def test_tasks_of_the_same_systems_stay_in_the_table(tmp_path, caplog):
    def measured(task, systems, digest="x"):
        scores = {name: ItemScores([0.0, 1.0, 1.0], range(3)) for name in systems}
        tasks = [Task(task, f"note {digest}", {}, lambda *_: {"acc": scores})]
        return run_tasks(tasks, None, None, dict.fromkeys(systems), dict.fromkeys(systems, digest), tmp_path)

    measured("one", ["base", "sft"])
    both = measured("two", ["base", "sft"])
    assert list(both["tasks"]) == list(both["differences"]) == list(both["notes"]) == ["one", "two"]
    assert json.loads((tmp_path / "benchmark.json").read_text()) == both and "leaves out" not in caplog.text
    assert "| one | acc |" in table(both)
    assert list(measured("two", ["base", "sft"], "changed")["tasks"]) == ["two"]  # of other weights
    assert "benchmark.json leaves out one, which other systems or weights were measured on" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": "crows_pairs=nowhere.csv"}, "nowhere.csv, does not exist"),
        ({"tasks": "crows_pairs", "data_dir": "nowhere"}, "data_dir nowhere is not a folder"),
        ({"tasks": "hellaswag"}, "The data of task hellaswag cannot be loaded"),
        ({"tasks": "crows_pairs", "systems": "ppo"}, "System ppo is not a finished stage"),
        ({"tasks": "crows_pairs", "run": None}, "There is nothing to measure"),
        ({"tasks": "truthfulqa", "truth_judge": "nowhere/judge"}, "Judge nowhere/judge cannot be loaded"),
        ({"tasks": "truthfulqa", "info_judge": "judge"}, "truth_judge is missing"),
    ],
)
def test_mistakes_are_said_before_a_model_is_loaded(changes, message, run_folder, capsys, monkeypatch):
    monkeypatch.setattr("rlhf.models.stages.load_base", lambda *_: pytest.fail("a model is loaded"))
    options = {"tasks": "crows_pairs", "run": run_folder, "data_dir": None} | changes
    with pytest.raises(SystemExit):
        run_recipe("benchmark", options)
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line


def test_a_task_that_is_named_twice_is_refused(run_folder, load_recipe, monkeypatch):
    task = f"crows_pairs={run_folder / 'data' / 'crows_pairs'}"
    monkeypatch.setattr("sys.argv", ["x", "--run", str(run_folder), "--tasks", task, task])
    with pytest.raises(InputError, match="Task crows_pairs is named twice"):
        load_recipe("benchmark").main()


def test_a_task_that_does_not_exist_is_named(run_folder, capsys, monkeypatch):
    monkeypatch.setattr(harness, "_index", lambda: SimpleNamespace(task_index={"hellaswag": None}))
    with pytest.raises(SystemExit):
        run_recipe("benchmark", {"tasks": "helaswag", "run": run_folder})
    assert "Task helaswag does not exist. Pass one of truthfulqa" in capsys.readouterr().err


def test_without_lm_eval_one_sentence_says_what_to_install(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(InputError, match=r"pip install 'instruct-rlhf\[eval\]'"):
        harness.require_lm_eval()


def test_a_row_without_a_column_is_named(tmp_path):
    (tmp_path / "pairs.csv").write_text("sent_more,sent_less\na,b\nc,\n")
    with pytest.raises(InputError, match=r"pairs\.csv, row 2: no sent_less"):
        published_data.read_published("crows_pairs", tmp_path / "pairs.csv")


def test_a_folder_without_a_file_for_evaluation_is_refused(tmp_path):
    for name in ("one.csv", "two.csv"):
        (tmp_path / name).write_text("sent_more,sent_less\na,b\n")
    with pytest.raises(InputError, match="Name one after its split"):
        published_data.read_published("crows_pairs", tmp_path)
