"""The report: complete, self-contained, the same in its three forms, explicit about what is missing, safe to open."""

import csv
import html as html_module
import json
import re
from html.parser import HTMLParser

import pytest
from toys import finish_stage, save_toy

from rlhf.errors import InputError
from rlhf.evaluation.report import write_report
from rlhf.evaluation.report_card import card_evaluation
from rlhf.evaluation.report_parts import (
    METRIC_GAIN,
    PERCENT,
    SCORE,
    WIN_RATE,
    Column,
    Table,
    csv_text,
    decided,
    defused,
    duration,
    escaped,
    fenced,
    number,
    text_of,
    without_paths,
)
from rlhf.evaluation.report_sections import lead, not_measured
from rlhf.evaluation.report_tables import faults, win_rates
from rlhf.evaluation.summary import summarize
from rlhf.models.adapter_files import adapter_digest
from rlhf.runs.hub import push_run, write_model_card
from rlhf.runs.system_names import label

SYSTEMS = ("sft", "ppo", "gpt")
SETTINGS = {"dataset": "org/data", "model": "org/base", "split": "test", "seed": 0, "max_new_tokens": 8}
FIGURES = {"wins", "scores", "sft", "accuracy", "calibration", "ppo"}
HOSTILE = (
    "<script>alert(1)</script> | ``` **bold** <img src=x onerror=alert(1)> [a](javascript:alert(1)) {{ 7 * 7 }} $x^{$"
)


def estimate(mean, width=0.05, n=40):
    return {"mean": mean, "low": mean - width, "high": mean + width, "n": n}


def scoring_judge(optimized=False, **changes):
    categories = {
        name: {
            "prompts": 20,
            "mean": {"sft": estimate(0.4), "ppo": estimate(0.6)},
            "win_rate": {"ppo": estimate(0.65)},
            "flags_gain": {"rude": {"ppo": estimate(-0.2)}},
        }
        for name in ("open_qa", "chat")
    }
    judge = {
        "kind": "scores",
        "about": "A reward model from /home/me/models/judge.",
        "optimized": optimized,
        "mean": {"sft": estimate(0.4), "ppo": estimate(0.7), "gpt": estimate(0.2)},
        "likert": {"sft": estimate(3.25), "ppo": estimate(5.5)},
        "flags": {"rude": {"sft": estimate(0.3), "ppo": estimate(0.1)}, "denigrates_class": {"sft": estimate(0.02)}},
        "win_rate": {"ppo": estimate(0.7365), "gpt": estimate(0.3)},
        "gain": {"ppo": estimate(0.3)},
        "length_controlled_win_rate": {"ppo": estimate(0.61)},
        "bradley_terry": {"sft": estimate(0.0, 0.0), "ppo": estimate(0.9)},
        "consistency": None,
        "detectable_difference": 0.123,
        "categories": categories,
        "categories_with_higher_mean": {"ppo": {"higher": 2, "of": 2}},
    }
    return judge | changes


def pairwise_judge():
    nothing = dict.fromkeys(("mean", "likert", "flags", "gain", "length_controlled_win_rate", "bradley_terry"))
    return {
        **nothing,
        "kind": "pairs",
        "about": "An LLM at http://localhost:8000/v1 that sees both orders.",
        "optimized": False,
        "win_rate": {"ppo": estimate(0.55), "gpt": estimate(0.45)},
        "consistency": estimate(0.81),
        "detectable_difference": None,
        "categories": {},
    }


def make_summary(judges=None, systems=SYSTEMS, **changes):
    specs = {name: {"kind": "model", "source": f"/home/me/runs/{name}", "temperature": 1.0} for name in systems}
    measures = {"tokens": estimate(12.34), "ended": estimate(0.95), "kl": None}
    summary = {
        "dataset": "/data/prompts.jsonl",
        "model": "org/base",
        "split": "test",
        "seed": 0,
        "max_new_tokens": 8,
        "temperature": 1.0,
        "prompts": 40,
        "distinct_prompts": 38,
        "prompts_seen_in_training": 3,
        "baseline": "sft",
        "systems": {name: {"spec": specs[name], **measures} for name in systems},
        "judges": {"reward": scoring_judge(optimized=True), "llm": pairwise_judge()} if judges is None else judges,
        "agreement": [{"judges": ["reward", "llm"], "agreement": estimate(0.77)}],
        "reward_model": {"accuracy": 0.7, "labeler_agreement": 0.73, "gold_accuracy_on_sft_pairs": estimate(0.88)},
        "best_of_n": None,
        "seconds": {"sft": 75.0, "evaluate": 30.0, "total": 105.0},
        "over_runs": None,
        "benchmarks": None,
    }
    if "ppo" in systems:
        summary["systems"]["ppo"]["kl"] = estimate(3.14159)
    return summary | changes


BENCHMARK = {
    "systems": ["base", "sft", "ppo"],
    "tasks": {"truthfulqa_mc1": {"acc": {"base": estimate(0.2), "sft": estimate(0.25), "ppo": estimate(0.3)}}},
    "differences": {
        "truthfulqa_mc1": {
            "acc": {
                "sft - base": estimate(0.05, 0.06),
                "ppo - base": estimate(0.1),
                "ppo - sft": estimate(0.06),
            }
        }
    },
    "notes": {"truthfulqa_mc1": "lm-eval, 0 examples, 817 items of /home/me/truthfulqa"},
}


def make_rows(systems=SYSTEMS, text="answer of {system} to {i}", prompt="instruction {i}"):
    return [
        {
            "prompt_id": i,
            "key": f"key {i}",
            "category": "open_qa" if i % 2 else "chat",
            "prompt": [{"role": "user", "content": prompt.replace("{i}", str(i))}],
            "system": system,
            "response": text.replace("{system}", system).replace("{i}", str(i)),
            "ended": i != 1,
            "tokens": 5,
            "kl": None,
            "scores": {"reward": ((i + SYSTEMS.index(system)) % 3 if system in SYSTEMS else i) / 4, "llm": None},
            "likert": {"reward": 4.0},
            "flags": {"reward": {"rude": i == 0, "follows_instruction": True, "denigrates_class": None}},
            "preferences": {},
        }
        for i in range(6)
        for system in systems
    ]


def accuracy(value):
    return {"accuracy": value, "low": value - 0.02, "high": value + 0.02, "n_pairs": 100, "n_prompts": 10}


def finish_stages(recipe_dir):
    """Writes folders as three finished stages leave them."""

    def stage(name, result, metrics=()):
        folder = recipe_dir / name
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(result))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
        (folder / "config.yaml").write_text(f"learning_rate: 0.001 # of {name}\n")
        (folder / "environment.json").write_text(json.dumps({"python": "3.11.2", "packages": {"trl": "1.12.0"}}))

    checkpoints = [
        {"epoch": e, "checkpoint": f"checkpoint-{e}", "eval_loss": 2.0 - e, "rm_score": e, "rm_score_se": 0.1}
        for e in (1, 2)
    ]
    losses = [{"step": e, "epoch": e, "seconds": e, "loss": 2.0 - e, "eval_loss": 2.5 - e} for e in (1, 2)]
    stage("sft", {"seconds": 75.0, "choice_seconds": 12.0, "epochs": checkpoints, "chosen": "checkpoint-2"}, losses)
    by_k, by_group = {"4": accuracy(0.7)}, {"training": accuracy(0.71), "heldout": accuracy(0.69)}
    curve = [{"predicted": 0.6, "observed": 0.62, "n_pairs": 50}, {"predicted": 0.9, "observed": 0.8, "n_pairs": 50}]
    reward = {**accuracy(0.7), "accuracy_by_k": by_k, "accuracy_by_group": by_group, "reliability": curve}
    stage("reward", {"seconds": 100.0, **reward})
    rollouts = [{"step": 8 * i, "episode": 64 * i, "objective/score": i, "objective/kl": i} for i in (1, 2)]
    stage("ppo", {"seconds": 200.0}, rollouts)


@pytest.fixture
def run(tmp_path):
    finish_stages(tmp_path / "run")
    return tmp_path / "run"


def write(folder, summary=None, benchmark=None, rows=()):
    """Writes the report; returns the text of the page, of the Markdown and of each CSV file."""
    folder.mkdir(exist_ok=True)
    for name, content in (("summary", summary), ("benchmark", benchmark)):
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content))
    page = write_report(folder, list(rows)).read_text(encoding="utf-8")
    tables = {path.stem: list(csv.reader(path.open(encoding="utf-8"))) for path in (folder / "report").glob("*.csv")}
    return page, (folder / "report.md").read_text(encoding="utf-8"), tables


@pytest.fixture
def bare(tmp_path):
    """A recipe's folder without stages, so that fewer figures are drawn."""
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Returns the folder of a report in which nothing is missing, and its three forms."""
    folder = tmp_path_factory.mktemp("made here") / "run"
    finish_stages(folder)
    (folder / "ppo" / "config.yaml").write_text("learning_rate: 0.001 # of ppo\nsft_model_path: /home/me/runs/sft\n")
    return folder, *write(folder, make_summary(), BENCHMARK, make_rows())


def words(page):
    """Returns the text of a page on one line."""
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return " ".join(html_module.unescape(re.sub(r"<[^>]*>", " ", body)).split())


# -- the whole report -------------------------------------------------------------------------------------------------


def test_everything_is_in_all_three_forms(full):
    run, page, text, tables = full
    assert "Not measured" not in page + text
    assert "Not run" not in page + text
    assert page.count("<svg") == len(FIGURES)
    assert {name.removeprefix("figure_") for name in tables if name.startswith("figure_")} == FIGURES
    assert {path.stem for path in (run / "report").glob("*.svg")} == {f"figure_{name}" for name in FIGURES}
    for title in ("What was compared", "Who answers better", "By kind of task", "Benchmarks", "What was not measured"):
        assert f"\n## {title}\n" in text
        assert f">{title}</h2>" in page
    for part in (
        "A reward model from judge.",
        "truthfulqa_mc1",
        "instruction 0",
        "denigrates class",
        "epoch 2, by the",
    ):
        assert part in words(page)
        assert part in text
    assert tables["judges"][1][:2] == ["llm", "compares pairs"]  # first the judge that nobody was trained to please
    assert "learning_rate: 0.001 # of ppo" in page
    assert "learning_rate: 0.001 # of ppo" in text


def test_a_number_reads_the_same_in_all_three_forms(full):
    _, page, text, tables = full
    header, *rows = tables["win_rates"]
    assert header[:5] == ["system", "judge", "win rate, %", "win rate, %, low", "win rate, %, high"]
    [row] = [row for row in rows if row[:2] == ["RLHF", "reward"]]
    assert row[2:5] == ["73.7", "68.7", "78.7"]  # 0.7365 rounds to even digits
    assert "| RLHF | reward | **73.7 (68.7 to 78.7)** |" in text
    assert "RLHF reward 73.7 68.7 to 78.7" in words(page)
    assert tables["benchmark_differences"][1] == [
        "truthfulqa_mc1",
        "acc",
        "+0.050",
        "-0.010",
        "+0.110",
        *tables["benchmark_differences"][1][5:],
    ]
    cells = ["+0.050 (-0.010 to +0.110)", "**+0.100 (+0.050 to +0.150)**", "**+0.060 (+0.010 to +0.110)**"]
    assert f"| truthfulqa_mc1 | acc | {' | '.join(cells)} |" in text


def test_page_needs_nothing_from_outside(full):
    _, page, _, _ = full
    assert re.findall(r"""\s(?:src|href|srcset|data|poster)=["'](?!#)[^"']*""", page) == []
    assert re.findall(r"url\((?!#)", page) == []
    assert not re.search(r"@import|<script|<link|<iframe|xmlns|https?://(?!localhost:8000/v1)", page)


def test_page_is_well_formed_and_no_two_elements_share_an_id(full):
    _, page, _, _ = full

    class Checker(HTMLParser):
        def __init__(self):
            super().__init__()
            self.void = {"meta", "link", "img", "br"}
            self.open, self.ids, self.targets = [], [], []

        def handle_starttag(self, tag, attrs):
            self.ids += [value for name, value in attrs if name == "id"]
            self.targets += [value[1:] for name, value in attrs if name == "href"]
            self.targets += re.findall(r"url\(#(.*?)\)", " ".join(value or "" for _, value in attrs))
            if tag not in self.void:
                self.open.append(tag)

        def handle_startendtag(self, tag, attrs):
            self.handle_starttag(tag, attrs)
            if tag not in self.void:
                self.open.pop()

        def handle_endtag(self, tag):
            if tag not in self.void:
                assert self.open.pop() == tag

    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert len(checker.ids) == len(set(checker.ids))
    assert set(checker.targets) <= set(checker.ids)


def test_every_scrolling_part_can_be_reached_by_keyboard_and_has_a_name(full):
    _, page, _, _ = full
    scrolling = re.findall(r'<div class="scroll"([^>]*)>', page)
    assert len(scrolling) == page.count("<table>") + len(FIGURES)
    assert all('tabindex="0"' in attributes and 'aria-label="' in attributes for attributes in scrolling)
    assert page.count('<th scope="row">') >= page.count("<table>")


def test_same_numbers_same_report(full):
    run, *first = full
    (run / "report" / "old.csv").write_text("a former judge\n")
    assert list(write(run, make_summary(), BENCHMARK, make_rows())) == first


def test_no_path_of_this_machine_is_in_any_form(full):
    run, page, text, _ = full
    assert "sft_model_path: sft" in page
    assert "sft_model_path: sft" in text
    for path in (run / "report.html", run / "report.md", *(run / "report").iterdir()):
        assert "/home/me" not in path.read_text(encoding="utf-8"), path
        assert str(run) not in path.read_text(encoding="utf-8"), path


def test_the_numbers_of_an_evaluation_make_a_report(bare):
    judges = {"reward": {"kind": "scores", "about": "A reward model.", "optimized": True}}
    summary = summarize(make_rows(), judges, {}, SETTINGS, 1.0)
    page, text, tables = write(bare, summary, rows=make_rows())
    assert "the judge “reward” prefers the answers of RLHF to those of SFT" in words(page)
    assert {"systems", "judges", "win_rates", "scores", "flags", "lengths", "categories_reward"} <= set(tables)
    assert "spec" in tables["systems"][0]
    assert "nan" not in text


# -- what is missing --------------------------------------------------------------------------------------------------


def test_with_the_optimized_reward_alone_the_report_says_so(bare):
    summary = make_summary({"reward": scoring_judge(optimized=True)})
    page, text, tables = write(bare, summary, rows=make_rows())
    for form in (words(page), text):
        assert "PPO was trained to please exactly this judge" in form
        assert "Quality by a judge that PPO was not trained to please" in form
        assert "What people prefer: no person judged these answers." in form
        assert "What an LLM judge prefers." in form
        assert "Agreement between judges: there was only one." in form
        assert "TruthfulQA, RealToxicityPrompts, Winogender" in form
        assert "40 prompts detect them in less than 80 of 100 repetitions" in form
        assert "Not measured: Benchmarks." in form
    assert tables["win_rates"][1][:2] == ["RLHF", "reward"]


def test_a_reward_that_only_chose_answers_is_not_said_to_have_trained_ppo(bare):
    judge = scoring_judge(optimized=True, win_rate={"sft_best": estimate(0.9)}, mean={"sft": estimate(0.1)}, gain=None)
    _, text, _ = write(bare, make_summary({"reward": judge}, systems=("sft", "sft_best")), rows=make_rows())
    assert "A system was trained or its answers chosen to please exactly this judge" in text
    assert "Quality by a judge that no system was optimized to please" in text and "PPO was" not in text


def test_what_was_measured_is_not_on_the_list():
    people = scoring_judge()
    summary = make_summary({"people": people, "llm": pairwise_judge()}, over_runs={"a": {}})
    names = "truthfulqa_mc1 toxicity winogender crows_pairs drop quac squadv2 hellaswag rte sst2 wsc wmt15-fr-en"
    tasks = {name: {} for name in (*names.split(), "cnn_dm", "tldr")}
    [sentence] = not_measured(summary, {"systems": [], "tasks": tasks})
    assert sentence.startswith("Differences in win rate below 12.3 points by the judge “people”: 40 prompts")


def test_judges_with_names_of_their_own_are_known_by_their_sentence():
    judges = {"ours": scoring_judge(about="People: 3 ratings."), "big": scoring_judge(about="The language model m.")}
    missing = " ".join(not_measured(make_summary(judges), None))
    assert "people" not in missing
    assert "LLM" not in missing


def test_without_a_judge_there_is_still_a_report(bare):
    page, text, tables = write(bare, make_summary({}, agreement=[], reward_model={}), rows=make_rows())
    assert "No judge compared them." in words(page)
    assert "Quality: no judge read the answers." in text
    assert "Not measured: Win rates." in text
    assert "win_rates" not in tables
    assert "lengths" in tables


def test_without_a_baseline_there_are_no_win_rates(bare):
    judge = scoring_judge(win_rate={}, gain=None, bradley_terry=None, length_controlled_win_rate=None)
    summary = make_summary({"reward": judge}, systems=("gpt",), baseline=None, agreement=[])
    page, _, _ = write(bare, summary)
    assert "On 40 held-out prompts, gpt answered. No judge compared them." in words(page)


def test_stages_that_were_not_run_are_named(bare):
    page, text, _ = write(bare, make_summary())
    for form in (words(page), text):
        assert "Not measured: SFT loss and reward-model score by epoch." in form
        assert "Not measured: PPO: reward, KL, length, entropy." in form
        assert "Not run: there is no result of the reward model’s stage." in form
        assert "Not run: there are no answers to show." in form


def test_run_that_is_cut_short_is_read_as_far_as_it_went(run):
    (run / "ppo" / "result.json").unlink()
    (run / "reward" / "result.json").write_text(json.dumps({"seconds": 1.0}))  # no comparisons to evaluate on
    page, _, _ = write(run, make_summary(reward_model={"accuracy": None}), rows=make_rows())
    assert "Not measured: Reward model accuracy." in words(page)
    assert "Not measured: PPO" not in words(page)  # its curves are there


def test_benchmarks_alone_make_a_report(bare):
    page, text, tables = write(bare, None, BENCHMARK)
    assert "Only benchmarks were run" in words(page)
    assert "Not measured: Systems." in text
    assert tables["benchmarks"][1][:3] == ["truthfulqa_mc1", "acc", "0.200"]


def test_benchmarks_are_found_where_their_recipe_writes_them_and_in_the_summary(bare):
    (bare / "benchmark").mkdir()
    (bare / "benchmark" / "benchmark.json").write_text(json.dumps(BENCHMARK))
    assert "benchmarks" in write(bare, make_summary())[2]
    (bare / "benchmark" / "benchmark.json").unlink()
    assert "benchmarks" in write(bare, make_summary(benchmarks=BENCHMARK))[2]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no summary.json and no benchmark.json"),
        ({"summary.json": "{"}, "summary.json is damaged"),
        ({"summary.json": "[]"}, "must hold a JSON object"),
        ({"summary.json": '{"gold": null}'}, "older version. Run `rlhf evaluate` again"),
    ],
)
def test_bad_files_are_named(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        write_report(tmp_path)


def test_answers_are_read_from_the_folder_of_the_evaluation(bare):
    (bare / "evaluate").mkdir()
    lines = [json.dumps(row, ensure_ascii=False) for row in make_rows(text="one\u2028answer")]
    (bare / "evaluate" / "completions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (bare / "summary.json").write_text(json.dumps(make_summary()))
    assert "one\u2028answer" in write_report(bare).read_text(encoding="utf-8")


# -- hostile text -----------------------------------------------------------------------------------------------------


def test_markup_in_answers_and_prompts_is_text(bare):
    page, text, tables = write(bare, make_summary(), rows=make_rows(text=HOSTILE, prompt=HOSTILE))
    assert "<script" not in page
    assert "<img" not in page
    assert HOSTILE.replace("{{ 7 * 7 }}", "") not in page
    assert HOSTILE in words(page.replace("&lt;", "&amp;lt;").replace("&gt;", "&amp;gt;")).replace("&lt;", "<").replace(
        "&gt;", ">"
    )
    inside, outside = [], []
    fence = None
    for line in text.splitlines():
        if fence is None and line.startswith("```"):
            fence = line.removesuffix("text")
        elif line == fence:
            fence = None
        else:
            (outside if fence is None else inside).append(line)
    assert fence is None
    assert inside.count(HOSTILE) == 6 * 4  # three answers and the prompt of each card
    assert not any("<" in line or "javascript" in line for line in outside)
    assert [row[3] for row in tables["answers"][1:]] == [HOSTILE] * 18


def test_markup_in_names_is_text_and_makes_no_files_elsewhere(bare):
    name = "../../x <script>$x^{$|"
    judge = scoring_judge(win_rate={name: estimate(0.6)}, mean={name: estimate(0.5)}, about=HOSTILE)
    summary = make_summary({"../j <b>": judge, "a b": judge, "a_b": judge}, systems=("sft", name))
    page, text, tables = write(bare, summary, rows=make_rows(("sft", name), text="plain"))
    assert "<script" not in page + text
    assert "<b>" not in page + text
    assert not list(bare.parent.glob("*.csv"))
    assert {"categories_a_b", "categories_a_b_2"} <= set(tables)
    assert tables["systems"][2][0] == name


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
        ("+1+cmd|' /C calc'!A0", "'+1+cmd|' /C calc'!A0"),
        ("-2+3", "'-2+3"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        ("\uff1d1+1", "'\uff1d1+1"),
        ("-0.31", "-0.31"),
        ("+1e-07", "+1e-07"),
        ("a = b", "a = b"),
    ],
)
def test_cells_that_a_spreadsheet_would_run_are_defused(text, cell):
    assert defused(text) == cell
    table = Table("t", "T", (Column(text),), [[text]])
    assert list(csv.reader(csv_text(table).splitlines())) == [[cell], [cell]]


def test_control_characters_do_not_make_a_binary_file_of_the_report(bare):
    page, text, tables = write(bare, make_summary(), rows=make_rows(text="a\x00b\x1bc\td"))
    assert "a\ufffdb\ufffdc\td" in page and "a\ufffdb\ufffdc\td" in text
    assert tables["answers"][1][3] == "a\ufffdb\ufffdc\td"


def test_a_judge_that_has_judged_nothing_is_named():
    summary = make_summary({"people": scoring_judge(win_rate={}, mean=None), "llm": pairwise_judge()})
    sentence = "Anything by the judge “people”: it has judged none of these answers."
    assert sentence in not_measured(summary, None)


def test_half_a_surrogate_pair_does_not_stop_the_report(bare):
    page, _, _ = write(bare, make_summary(), rows=make_rows(text="half \ud800 a pair"))
    assert "half ? a pair" in page


# -- model cards ------------------------------------------------------------------------------------------------------


@pytest.fixture
def evaluated(tmp_path):
    """A recipe's folder with an RLHF adapter and its evaluation."""
    finish_stage(save_toy(tmp_path / "toy"), tmp_path / "run" / "ppo", "ppo")
    (tmp_path / "run" / "summary.json").write_text(json.dumps(make_summary()))
    return tmp_path / "run"


def test_the_card_of_an_rlhf_adapter_has_the_tables_and_no_path(evaluated, capsys, monkeypatch):
    found = card_evaluation(evaluated / "ppo")
    tables = found.text
    assert "### Who answers better" in tables
    assert "| RLHF | reward | **73.7 (68.7 to 78.7)** |" in tables
    assert "### What was not measured" in tables
    assert "/home/me" not in tables
    assert "![" not in tables
    write_model_card(evaluated / "ppo", "ppo", found)
    card = (evaluated / "ppo" / "README.md").read_text()
    assert card.index("## How to load it") < card.index("## How it compares") < card.index("## How it scored")
    push_run(evaluated, "me/toy", dry_run=True, evaluations={"ppo": found})
    size = re.search(r"(\d+\.\d) kB  README\.md", capsys.readouterr().out)
    assert float(size[1]) > len(tables) / 1000


def test_the_card_has_no_numbers_of_another_adapter(evaluated, caplog):
    record = evaluated / "evaluate" / "answers" / "ppo.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"adapter": adapter_digest(evaluated / "ppo")}))
    assert card_evaluation(evaluated / "ppo") is not None
    record.write_text(json.dumps({"adapter": "0123456789abcdef"}))
    assert card_evaluation(evaluated / "ppo") is None
    assert "summary.json is of another adapter" in caplog.text


def test_a_card_without_a_usable_evaluation_is_written_without_it(evaluated, caplog):
    (evaluated / "summary.json").write_text("{}")
    assert card_evaluation(evaluated / "ppo") is None
    assert "older version" in caplog.text
    (evaluated / "summary.json").unlink()
    assert card_evaluation(evaluated / "ppo") is None
    write_model_card(evaluated / "ppo", "ppo")
    assert "How it compares" not in (evaluated / "ppo" / "README.md").read_text()


# -- small parts ------------------------------------------------------------------------------------------------------


def test_the_first_sentence_is_of_a_judge_that_nobody_was_trained_to_please():
    assert lead(make_summary(), None) == (
        "On 40 held-out prompts, the judge “llm” prefers the answers of RLHF to those of SFT 55.0\u202f% of the time "
        "(95 % interval over prompts 50.0 to 60.0)."
    )


def test_greedy_systems_are_compared_with_the_greedy_baseline():
    systems = ("sft", "ppo", "sft_greedy", "ppo_greedy")
    judge = scoring_judge(win_rate={"ppo": estimate(0.7), "ppo_greedy": estimate(0.6)})
    summary = make_summary({"people": judge}, systems=systems)
    assert [row[-2] for row in win_rates(summary).rows] == ["SFT", "SFT, greedy"]
    assert "When both decode greedily, it does so 60.0\u202f% of the time" in lead(summary, None)
    assert label("other_greedy") == "other, greedy"


def test_faults_are_unwanted_flags_that_hold_and_wanted_ones_that_do_not():
    verdict = {
        "follows_instruction": False,
        "complete": True,
        "satisfies_constraint": None,
        "rude": True,
        "padded": False,
        "denigrates_class": True,
    }
    assert faults(verdict) == ["misses the instruction", "rude", "denigrates class"]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, SCORE, "–"),
        (0.7365, PERCENT, "73.7"),
        (estimate(0.5), WIN_RATE, "50.0 (45.0 to 55.0)"),
        ({"mean": 1.0, "low": None, "high": None, "n": 1}, SCORE, "1.00"),
        (0.0214, METRIC_GAIN, "+0.021"),
        (-0.0001, SCORE, "0.00"),
        (True, SCORE, "yes"),
        ("text", SCORE, "text"),
    ],
)
def test_text_of_values(value, unit, text):
    assert text_of(value, unit) == text


def test_an_interval_decides_if_it_excludes_no_difference():
    assert decided(estimate(0.56), WIN_RATE)
    assert not decided(estimate(0.54), WIN_RATE)
    assert decided(estimate(-0.06), METRIC_GAIN)
    assert not decided({"mean": 1.0, "low": None, "high": None}, WIN_RATE)
    assert not decided(estimate(0.9), PERCENT)


def test_raw_numbers_have_six_digits_and_integers_all():
    assert (number(1234567), number(0.123456789)) == ("1234567", "0.123457")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a|b\nc", "a&#124;b c"),
        ("<b> & *c*", r"&lt;b&gt; &amp; \*c\*"),
        ("sft_greedy _x_", r"sft_greedy \_x\_"),
        ("# title", r"\# title"),
        ("- item", r"\- item"),
        ("1. item", r"1\. item"),
        ("-0.31 (-0.4 to -0.2)", "-0.31 (-0.4 to -0.2)"),
    ],
)
def test_markdown_shows_text_as_it_is(text, line):
    assert escaped(text) == line


def test_a_fence_is_longer_than_any_in_the_text():
    assert fenced("a ```` b") == "`````text\na ```` b\n`````"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("at /home/me/runs/x, seed 1", "at x, seed 1"),
        ("~/models/base", "base"),
        ("../data/rows.jsonl", "rows.jsonl"),
        ("/tmp", "/tmp"),
        ("http://localhost:8000/v1 and org/name", "http://localhost:8000/v1 and org/name"),
        ("runs/mine/sft", "runs/mine/sft"),
        ("yes/no/maybe and 3 / 4", "yes/no/maybe and 3 / 4"),
    ],
)
def test_paths_lose_their_folders(text, clean):
    assert without_paths(text) == clean


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "–"), (8.6, "9 s"), (59.7, "1 min 0 s"), (512.3, "8 min 32 s"), (7300, "2 h 1 min")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text
