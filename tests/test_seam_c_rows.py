"""Rows with a known meaning, in every layout and kind of file, are read as meant or reported: never a third thing.

`benchmarks/read_rows_property.py` writes and checks them; it does the same with any number of rows.
"""

import runpy
from itertools import permutations
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_data_formats import CASES

from rlhf.data import DataArguments
from rlhf.data.bad_rows import BadRows
from rlhf.data.files import SourceRow
from rlhf.data.loading import checked_rows
from rlhf.errors import InputError

ROOT = Path(__file__).parent.parent
rows = runpy.run_path(str(ROOT / "benchmarks" / "read_rows_property.py"))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(rng=st.randoms(use_true_random=False))
def test_seam_c_rows_are_read_as_meant_or_reported(tmp_path_factory, rng):
    _, counts = rows["file_case"](rng, tmp_path_factory.mktemp("rows"), num_rows=3)
    assert counts["read"] + counts["reported"] >= 3


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(rng=st.randoms(use_true_random=False))
def test_seam_c_a_row_that_is_read_as_something_else_is_noticed(tmp_path_factory, rng):
    """The check itself: an answer that is exchanged, or a turn that is lost, is a failure."""
    layout = rng.choice(["prompt, completion", "messages", "ranks"])
    _, _, (meant, *_) = rows["layout_rows"](rng, layout, 1)
    prompt = [{"role": role, "content": content} for role, content in meant.turns]
    right = {"prompt": prompt}
    right |= {"completions": meant.answers, "ranks": meant.ranks} if meant.ranks else {"completion": meant.answers[0]}
    plain, expected = rows["plain_of"], rows["expected_of"]
    assert plain(right) == expected(meant, right)
    assert plain(right | {"prompt": prompt[1:]}) != expected(meant, right)
    changed = {"ranks": [rank + 1 for rank in meant.ranks]} if meant.ranks else {"completion": meant.answers[0] + "x"}
    assert plain(right | changed) != expected(meant, right | changed)


def test_seam_c_columns_of_two_formats_are_refused_or_read_as_one_of_them():
    """A row with the columns of two formats has no third meaning, and loses nothing without a word."""
    ours = [
        ("ours", [{"prompt": "Z", "completions": ["a", "b"], "ranks": [0, 1]}], {}),
        ("pair", [{"prompt": "Z", "chosen": "a", "rejected": "b"}], {}),
        ("demonstration", [{"prompt": "Z", "completion": "y"}], {}),
        ("messages", [{"messages": [{"role": "user", "content": "z"}, {"role": "assistant", "content": "y"}]}], {}),
        ("question", [{"question": "X", "answer": "w"}], {}),
        ("text", [{"text": "t"}], {}),
    ]
    accepted = set()
    for (one, (a, *_), _), (other, (b, *_), _) in permutations([*CASES, *ours], 2):
        for kind in ("demonstrations", "comparisons"):
            got = read(kind, b | a)
            if got:
                assert got in (read(kind, a), read(kind, b)), (kind, one, other)
                accepted.add(frozenset([one, other]))
    # A pair with more columns, and demonstrations with labels: the columns of one are among those of the other.
    within = [("capybara", "pair"), ("capybara", "hh_rlhf"), ("hh_rlhf", "pair"), ("trl_unpaired", "demonstration")]
    assert accepted == {frozenset(pair) for pair in within}


def read(kind, row):
    args, bad_rows = DataArguments("file", on_bad_rows="skip"), BadRows("skip", None)
    try:
        return list(checked_rows(kind, [SourceRow("file", "row 1", row)], args, bad_rows))
    except InputError:  # the format has no such kind
        return None
