"""Log-probabilities in one pass: against plain autograd, and what must be equal to the bit."""

from functools import partial
from itertools import accumulate

import pytest
import torch
from architectures import architecture
from peft import LoraConfig, get_peft_model
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from toys import VOCAB, causal

from rlhf.models.logprobs import chunked_logprobs, chunked_statistics, find_unembedding, is_frozen, token_logprobs

CHUNK = 5
IDS = torch.tensor([[5, 6, 7, 8]])


def tied():
    lm = architecture("llama")
    lm.lm_head.weight = lm.model.embed_tokens.weight
    return lm


MODELS = {
    "tied": tied,
    "untied": lambda: architecture("llama"),
    "softcap": lambda: architecture("gemma2"),
    "scaled": lambda: architecture("cohere"),
    "divided": lambda: architecture("granite"),
    "bias": lambda: architecture("phi"),
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr("rlhf.models.logprobs.chunk_size", lambda vocabulary, device: CHUNK)


def linear_head(trained: bool = False) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(16, VOCAB, bias=False).requires_grad_(trained)


def problem(n: int, width: int = 16, vocabulary: int = VOCAB, dtype: torch.dtype = torch.float32):
    """Returns hidden states [n, width], ids [n], and the gradients [n] that backward brings."""
    generator = torch.Generator().manual_seed(n)
    hidden = torch.randn(n, width, generator=generator).to(dtype).requires_grad_()
    return hidden, torch.randint(vocabulary, (n,), generator=generator), torch.randn(n, generator=generator)


def by_autograd(head, hidden, ids, temperature, weights):
    """Log-probabilities and gradients of the hidden states, in the precision of `head`, all logits at once."""
    hidden = hidden.detach().to(torch.float64).requires_grad_()
    logprobs = (head(hidden) / temperature).log_softmax(-1).gather(1, ids[:, None]).squeeze(1)
    return logprobs.detach(), torch.autograd.grad((logprobs * weights).sum(), hidden)[0]


@pytest.mark.parametrize("n", [0, 1, CHUNK, CHUNK + 1, 3 * CHUNK - 1])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("name", MODELS)
def test_values_and_gradients_are_those_of_autograd_in_float64(name, temperature, n):
    lm = MODELS[name]().requires_grad_(False).eval()
    unembed = find_unembedding(lm, IDS)
    head, vocabulary = partial(unembed, lm), lm.config.vocab_size
    hidden, ids, weights = problem(n, lm.config.hidden_size, vocabulary)
    logprobs = chunked_logprobs(head, hidden, ids, temperature, vocabulary)
    (logprobs * weights).sum().backward()
    expected, gradient = by_autograd(partial(unembed, lm.double()), hidden, ids, temperature, weights)
    torch.testing.assert_close(logprobs.detach().double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(hidden.grad.double(), gradient, atol=1e-5, rtol=1e-5)


def largest_sum_of_allocations(function) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = profiler.profiler.kineto_results.events()
    return max(accumulate(event.nbytes() for event in events if event.name() == "[memory]"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_logits_of_one_chunk_exist_at_a_time(dtype):
    head, vocabulary = torch.nn.Linear(16, 4096, bias=False).to(dtype).requires_grad_(False), 4096

    def peak(n: int) -> int:
        hidden, ids, _ = problem(n, vocabulary=vocabulary, dtype=dtype)
        return largest_sum_of_allocations(lambda: chunked_logprobs(head, hidden, ids, 1.0, vocabulary))

    assert peak(3 * CHUNK) == pytest.approx(peak(CHUNK), rel=0.02)


@pytest.mark.parametrize("name", ["tied", "softcap"])
def test_hooks_on_saved_tensors_see_no_backward_in_forward(name):
    """TRL's activation_offloading frees what it has brought back only in the first backward after a forward."""
    lm, unpacked = MODELS[name]().requires_grad_(False).eval(), []
    head, vocabulary = partial(find_unembedding(lm, IDS), lm), lm.config.vocab_size
    hidden, ids, _ = problem(2 * CHUNK, lm.config.hidden_size, vocabulary)
    with saved_tensors_hooks(lambda x: x, lambda x: unpacked.append(x.shape) or x):
        logprobs = chunked_logprobs(head, hidden, ids, 1.0, vocabulary)
    assert not unpacked
    logprobs.sum().backward()
    assert unpacked == [hidden.shape]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_16_bit_gradients_are_as_exact_as_those_of_autograd(temperature):
    """The direction is rounded once more, when it meets the gradient."""
    head = linear_head().bfloat16()
    hidden, ids, weights = problem(60, dtype=torch.bfloat16)
    exact, gradient = by_autograd(linear_head().bfloat16().double(), hidden, ids, temperature, weights)
    plain = torch.autograd.grad(
        (torch.log_softmax(head(hidden).float() / temperature, -1).gather(1, ids[:, None]).squeeze(1) * weights).sum(),
        hidden,
    )[0]
    logprobs = chunked_logprobs(head, hidden, ids, temperature, VOCAB)
    (logprobs * weights).sum().backward()
    ours, autograds = ((g.double() - gradient).norm() / gradient.norm() for g in (hidden.grad, plain))
    assert ours < 1.5 * autograds < 0.01
    torch.testing.assert_close(logprobs.double(), exact, atol=0.05, rtol=0)


def test_gradients_of_likely_tokens_are_exact():
    """1 - pi is computed from log pi: in bfloat16 a softmax of .999 would round to 1."""
    logits = torch.zeros(1, VOCAB)
    logits[0, 3] = 12.0
    expected = -torch.log_softmax(logits.double(), -1)[0, 3].expm1()
    logits = logits.bfloat16().requires_grad_()
    token_logprobs(logits, torch.tensor([3]), 1.0).sum().backward()
    assert logits.grad[0, 3].item() == pytest.approx(expected.item(), rel=2**-8)


def test_logits_are_computed_once():
    """4 V H FLOPs for a token, in chunks too; a trained unembedding takes 8: logits again, and its own gradient."""
    weight = linear_head().weight
    for trained, products in ((False, 4), (True, 8)):
        hidden, ids, _ = problem(3 * CHUNK)
        head = partial(torch.nn.functional.linear, weight=weight.requires_grad_(trained))
        with FlopCounterMode(display=False) as counter:
            chunked_logprobs(head, hidden, ids, 1.0, VOCAB).sum().backward()
        assert counter.get_total_flops() == products * VOCAB * 16 * 3 * CHUNK
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        chunked_logprobs(head, hidden, ids, 1.0, VOCAB)
    assert counter.get_total_flops() == 2 * VOCAB * 16 * 3 * CHUNK


def test_no_logits_are_kept_for_backward():
    hidden, ids, _ = problem(3 * CHUNK)
    logprobs = chunked_logprobs(linear_head(), hidden, ids, 1.0, VOCAB)
    assert [kept.shape for kept in logprobs.grad_fn.saved_tensors] == [hidden.shape]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_paths_give_the_same_numbers_to_the_bit(dtype):
    """At lr = 0 the ratio is 1, and the KL to a reference with a frozen unembedding is 0."""
    for n in (1, CHUNK, 3 * CHUNK - 1):
        hidden, ids, _ = problem(n, dtype=dtype)
        found = []
        for head in (linear_head().to(dtype), linear_head(trained=True).to(dtype)):
            found.append(chunked_logprobs(head, hidden, ids, 0.7, VOCAB).detach())
            with torch.no_grad():
                found.append(chunked_logprobs(head, hidden, ids, 0.7, VOCAB))
            found.append(chunked_statistics(head, hidden, ids, VOCAB)[0].detach() if n > CHUNK else found[0])
        assert all(torch.equal(found[0], other) for other in (*found[1:2], *found[3:5]))
        assert torch.equal(found[2], found[5])


def test_trained_unembeddings_are_found():
    hidden = torch.randn(3, 16)

    def frozen(lm) -> bool:
        return is_frozen(partial(find_unembedding(lm, IDS), lm), hidden)

    assert not frozen(causal())
    assert frozen(causal().requires_grad_(False))
    for changes in ({}, {"target_modules": ["q_proj", "lm_head"]}, {"modules_to_save": ["lm_head"]}):
        adapted = get_peft_model(causal(), LoraConfig(**{"target_modules": ["q_proj"], **changes}))
        assert frozen(adapted.get_base_model()) == (changes == {})
    lm = tied().requires_grad_(False)
    assert is_frozen(lm.lm_head, torch.randn(3, 32))
    lm.get_input_embeddings().requires_grad_()
    assert not is_frozen(lm.lm_head, torch.randn(3, 32))


def test_a_trained_adapter_of_the_unembedding_has_its_gradient():
    lm = get_peft_model(causal(), LoraConfig(target_modules=["lm_head"], init_lora_weights=False)).get_base_model()
    head = lm.get_output_embeddings()
    hidden, ids, weights = problem(3 * CHUNK)
    factors = [p for p in head.parameters() if p.requires_grad]
    assert len(factors) == 2
    logprobs = head(hidden).log_softmax(-1).gather(1, ids[:, None]).squeeze(1)
    expected = torch.autograd.grad((logprobs * weights).sum(), [hidden, *factors])
    found = torch.autograd.grad((chunked_logprobs(head, hidden, ids, 1.0, VOCAB) * weights).sum(), [hidden, *factors])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("trained", [False, True])
def test_a_second_derivative_is_refused(trained):
    hidden, ids, weights = problem(CHUNK)
    weights.requires_grad_()
    logprobs = chunked_logprobs(linear_head(trained), hidden, ids, 1.0, VOCAB)
    (gradient,) = torch.autograd.grad((logprobs * weights).sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("n", [1, 3 * CHUNK - 1])
def test_statistics(trained, n):
    head, (hidden, ids, weights) = linear_head(trained), problem(n)
    with torch.no_grad():
        ids[::2] = head(hidden)[::2].argmax(-1)
    logprobs, entropies, correct = chunked_statistics(head, hidden, ids, VOCAB)
    logs = head(hidden).log_softmax(-1)
    torch.testing.assert_close(logprobs, logs.gather(1, ids[:, None]).squeeze(1))
    torch.testing.assert_close(entropies, torch.distributions.Categorical(logits=logs).entropy())
    assert correct.tolist() == (logs.argmax(-1) == ids).float().tolist()
    assert not entropies.requires_grad and not correct.requires_grad
    (logprobs * weights).sum().backward()
    assert hidden.grad.any()


def test_autocast_computes_the_product_alone_in_16_bits():
    head, (hidden, ids, weights) = linear_head(), problem(3 * CHUNK)
    with torch.autocast("cpu", torch.bfloat16):
        assert head(hidden).dtype == torch.bfloat16
        logprobs = chunked_logprobs(head, hidden, ids, 1.0, VOCAB)
        expected = token_logprobs(head(hidden), ids, 1.0)
    assert logprobs.dtype == torch.float32
    (logprobs * weights).sum().backward()
    assert hidden.grad.dtype == torch.float32
    torch.testing.assert_close(logprobs, expected, atol=1e-2, rtol=0)
    torch.testing.assert_close(
        hidden.grad, torch.autograd.grad((expected * weights).sum(), hidden)[0], atol=2e-2, rtol=2e-2
    )
