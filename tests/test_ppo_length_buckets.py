"""Rows in buckets of similar length."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import causal

from rlhf.models.pass_limits import CPU_LIMITS, pass_limits
from rlhf.ppo.length_buckets import bucket_by_length, bucket_sizes, pack_sizes
from rlhf.ppo.rollout import micro_batch

LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=8).map(lambda lengths: sorted(lengths, reverse=True))


def divisions(rows: int):
    """Yields all lists of sizes that add up to `rows`."""
    for cuts in itertools.product([False, True], repeat=rows - 1):
        sizes = [1]
        for cut in cuts:
            sizes = [*sizes, 1] if cut else [*sizes[:-1], sizes[-1] + 1]
        yield sizes


def buckets_of(lengths, sizes):
    starts = itertools.accumulate(sizes, initial=0)
    return [lengths[start : start + size] for start, size in zip(starts, sizes, strict=False)]


@given(LENGTHS, st.integers(8, 40), st.integers(0, 20))
def test_no_division_costs_less(lengths, most, per_pass):
    def cost(sizes):
        return sum(per_pass + len(bucket) * bucket[0] for bucket in buckets_of(lengths, sizes))

    def allowed(sizes):
        return all(len(bucket) == 1 or len(bucket) * bucket[0] <= most for bucket in buckets_of(lengths, sizes))

    best = bucket_sizes(lengths, most, per_pass)
    assert sum(best) == len(lengths)
    assert allowed(best)
    assert cost(best) == min(cost(sizes) for sizes in divisions(len(lengths)) if allowed(sizes))


@pytest.mark.parametrize("packed", [False, True])
def test_every_row_is_in_a_bucket_without_its_padding(packed):
    prompts, responses = [[5], [6] * 9, [7] * 3, [8] * 200], [[10, 11], [12], [13, 14, 15], [16, 1]]
    batch = micro_batch([0, 1, 2, 3], prompts, responses, [1], 0, torch.device("cpu"))
    arguments = batch.input_ids, batch.attention_mask, batch.response_mask
    order, buckets = bucket_by_length(*arguments, limits=(210, 64), packed=packed)
    assert len(buckets) == 2
    rows = iter(order.tolist())
    for bucket in buckets:
        targets, predicts = bucket.targets.tolist(), list(zip(*(x.tolist() for x in bucket.predicts), strict=True))
        for r, last in zip(*(x.tolist() for x in bucket.last), strict=True):
            row = next(rows)
            ids = prompts[row] + responses[row]
            assert bucket.input_ids[r, last + 1 - len(ids) : last + 1].tolist() == ids
            for token in range(len(prompts[row]), len(ids)):
                assert targets.pop(0) == ids[token]
                assert predicts.pop(0) == (r, last - len(ids) + token)
        assert not targets and not predicts
        assert not packed or bucket.input_ids.shape == (1, bucket.packed["position_ids"].shape[1])
    assert next(rows, None) is None
    assert len(bucket_by_length(*arguments, one=True, packed=packed)[1]) == 1


@given(LENGTHS, st.integers(8, 40))
def test_packed_passes_have_similar_sizes(lengths, most):
    passes = buckets_of(lengths, pack_sizes(lengths, most))
    assert list(itertools.chain(*passes)) == lengths
    assert all(len(each) == 1 or sum(each) <= most for each in passes)
    assert sum(lengths) > most or len(passes) == 1
    assert max(map(sum, passes)) - min(map(sum, passes)) <= 2 * max(lengths)


def test_a_pass_on_a_gpu_costs_more_tokens_where_layers_are_small():
    narrow, wide = causal(), causal(hidden_size=64, intermediate_size=128)
    (tokens, per_pass), (_, of_narrow) = (pass_limits(lm, torch.device("cuda")) for lm in (wide, narrow))
    assert of_narrow > 10 * per_pass  # weight matrices of a sixteenth of the size
    assert tokens == pass_limits(causal(num_hidden_layers=4), torch.device("cuda"))[0]


def test_a_pass_on_a_cpu_takes_more_tokens_where_several_threads_share_small_layers(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    cpu, few = torch.device("cpu"), CPU_LIMITS
    assert pass_limits(causal(), cpu) == (4 * few[0], 4 * few[1])
    assert pass_limits(causal(hidden_size=512, intermediate_size=2048), cpu) == few
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert pass_limits(causal(), cpu) == few
