"""Judges from their specifications: scores, what is kept of them, and what is refused before a model is loaded."""

import json

import pytest

from rlhf.errors import InputError
from rlhf.evaluation.judges import ScoringJudge, Verdict, find_judges, preference
from rlhf.sandbox import datasets

ENDED = [True, True]


class Length(ScoringJudge):
    """Scores by length; counts what it is asked."""

    asked = 0

    def judge(self, prompts, responses, ended):
        self.asked += len(prompts)
        return [Verdict(float(len(text)), flags={"whole": e}) if text else None for text, e in zip(responses, ended)]  # noqa: B905


def test_the_gold_judge_has_scores_likert_and_the_flags_of_table_3():
    prompt = datasets.prompts("test", size=1)[0]["prompt"]
    [gold] = find_judges(["gold"], dataset_name="sandbox")
    [verdict, unknown] = gold.score([prompt, "What is 2 + 2?"], ["I do not know.", "4"], [False, True])
    assert unknown is None
    assert 0 <= verdict.score < 1 and 1 <= verdict.likert <= 7
    assert verdict.flags["follows_instruction"] is False and verdict.flags["complete"] is False
    assert "category" not in verdict.flags and not gold.optimized


def test_preference_compares_scores_and_a_missing_verdict_decides_nothing():
    good, bad = Verdict(0.3), Verdict(0.1 + 0.1)
    assert [preference(good, bad), preference(bad, good), preference(good, None)] == [1.0, 0.0, None]
    assert preference(Verdict(0.3), Verdict(0.1 + 0.2)) == 0.5


def test_a_new_system_judges_only_its_own_answers(tmp_path):
    prompts, answers = ["p", "q"], ["one", ""]
    first = Length("length", "", folder=tmp_path)
    verdicts = first.score(prompts, answers, ENDED)
    again = Length("length", "", folder=tmp_path)
    assert again.score(prompts, answers, ENDED) == verdicts == [Verdict(3.0, flags={"whole": True}), None]
    assert again.asked == 0
    again.score([*prompts, "p", "p"], [*answers, "new", "new"], [*ENDED, True, True])
    assert again.asked == 1  # two equal answers are one question
    again.score(["p"], ["one"], [False])
    assert again.asked == 2  # an answer that was cut off is another one
    other = Length("length", "", identity="other weights", folder=tmp_path)
    other.score(prompts, answers, ENDED)
    assert other.asked == 2


def test_a_line_that_a_crash_cut_short_is_judged_again(tmp_path):
    Length("length", "", folder=tmp_path).score(["p", "q"], ["one", "four"], ENDED)
    path = tmp_path / "length.jsonl"
    path.write_text(path.read_text()[:-9])
    again = Length("length", "", folder=tmp_path)
    again.score(["p", "q"], ["one", "four"], ENDED)
    assert again.asked == 1
    assert json.loads(path.read_text().splitlines()[-1])["verdict"]["score"] == 4.0
    last = Length("length", "", folder=tmp_path)
    last.score(["p", "q"], ["one", "four"], ENDED)
    assert last.asked == 0


def test_a_score_that_is_not_finite_is_refused():
    judge = Length("length", "")
    judge.judge = lambda *_: [Verdict(float("nan"))]
    with pytest.raises(InputError, match="Judge length gave the score nan to the answer 'one'"):
        judge.score(["p"], ["one"], [True])


@pytest.mark.parametrize(
    "spec, message",
    [
        ("golden", "Judge 'golden' is unknown. Choose from gold, reward="),
        ("", "Judge '' is unknown"),
        ("reward", "Judge reward has no value"),
        ("gold=x", "Judge gold takes no value"),
        ("gold,weight=2", "gold has no option weight. Choose from name."),
        ("gold,name=a,name=b", "gold has the option name twice"),
        ("gold,name=../b", "has the name '../b'"),
        ("reward=runs/none", "runs/none"),
        ("reward=x,dtype=int8", "dtype=int8"),
    ],
)
def test_a_judge_that_is_not_known_is_refused(spec, message):
    with pytest.raises(InputError) as refused:
        find_judges([spec], dataset_name="sandbox")
    assert message in str(refused.value)


def test_two_judges_of_one_name_and_gold_without_the_sandbox_are_refused():
    with pytest.raises(InputError, match="Two judges have the name gold"):
        find_judges(["gold", "gold"], dataset_name="sandbox")
    assert [judge.name for judge in find_judges(["gold", "gold,name=two"], dataset_name="sandbox")] == ["gold", "two"]
    with pytest.raises(InputError, match="Judge gold knows the sandbox's prompts alone, not trl-lib/tldr"):
        find_judges(["gold"], dataset_name="trl-lib/tldr")
