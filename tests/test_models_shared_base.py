"""The shared base: the active adapter, gradients, and adapter folders on disk."""

import json
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch.nn.functional import pad
from torch.utils.checkpoint import CheckpointError
from toys import BPE_MODELS, bpe_model, save_toy
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, set_seed
from trl import ModelConfig

from rlhf.errors import InputError
from rlhf.models.adapter_files import (
    check_adapter,
    read_adapter,
    read_calibration,
    remove_adapter,
    same_base,
    write_calibration,
)
from rlhf.models.loading import load_base, load_tokenizer, lora_config
from rlhf.models.positions import forward_inputs
from rlhf.models.reward_model import load_reward_model
from rlhf.models.shared_base import SharedBase

INPUT_IDS = torch.tensor([[5, 17, 60, 101, 33, 9], [88, 41, 7, 12, 200, 63]])
MASK = torch.ones_like(INPUT_IDS)
LORA = ModelConfig(lora_r=4, lora_dropout=0.0)


def randomize(parameters, seed=0):
    """Sets random values in place of LoRA's zeros, so that the adapters differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def add(shared, name, seed, **kwargs):
    shared.add_adapter(name, lora_config=lora_config(LORA), **kwargs)
    randomize(shared._parameters_of(name), seed)


@pytest.fixture(params=BPE_MODELS)
def base(request, tmp_path):
    folder = str(save_toy(tmp_path / "base", request.param))
    return load_base(ModelConfig(model_name_or_path=folder), load_tokenizer(folder))


def make_shared(base):
    """Returns a base as PPO uses it: sft and reward frozen, policy and value trained."""
    shared = SharedBase(base)
    add(shared, "sft", 1)
    add(shared, "reward", 2, head=True)
    add(shared, "policy", 3, trainable=True)
    add(shared, "value", 4, trainable=True, head=True)
    return shared


@pytest.fixture
def shared(base):
    return make_shared(base)


@pytest.fixture
def llama(toy_base):
    return make_shared(toy_base)


def logits_of(shared, name, input_ids, attention_mask, **options):
    with shared.use(name):
        return shared.lm(**forward_inputs(shared.lm, input_ids, attention_mask), **options).logits


def generate(shared, name, **options):
    with shared.use(name):
        return shared.lm.generate(**options)


def trainable(shared):
    return {name: parameter.requires_grad for name, parameter in shared.named_parameters()}


# -- the active adapter -----------------------------------------------------------------------------------------------


def test_without_adapter_the_base_is_unchanged_bit_for_bit(base):
    before = base(INPUT_IDS, attention_mask=MASK).logits
    shared = make_shared(base)
    assert torch.equal(logits_of(shared, None, INPUT_IDS, MASK), before)
    assert torch.equal(shared.lm(INPUT_IDS, attention_mask=MASK).logits, before)  # outside of any context
    with shared.use("policy"):
        assert not torch.allclose(shared.lm(INPUT_IDS, attention_mask=MASK).logits, before)
        assert torch.equal(logits_of(shared, None, INPUT_IDS, MASK), before)


def test_every_adapter_computes_what_plain_peft_computes(shared, tmp_path):
    answers = [logits_of(shared, name, INPUT_IDS, MASK) for name in ("sft", "reward", "policy", "value")]
    for i, one in enumerate(answers):
        assert all(not torch.allclose(one, other) for other in answers[:i])
    shared.save_adapter("policy", tmp_path / "policy")
    plain = AutoModelForCausalLM.from_pretrained(shared.lm.name_or_path)
    if len(plain.get_input_embeddings().weight) < 301:
        plain.resize_token_embeddings(301)
    plain = PeftModel.from_pretrained(plain, tmp_path / "policy")
    logits = plain(INPUT_IDS, attention_mask=MASK).logits[..., :300]
    torch.testing.assert_close(logits, logits_of(shared, "policy", INPUT_IDS, MASK)[..., :300], rtol=0, atol=1e-5)


def test_use_nests_and_survives_exceptions(llama):
    base, sft, policy = (logits_of(llama, name, INPUT_IDS, MASK) for name in (None, "sft", "policy"))

    def now():
        return llama.lm(INPUT_IDS, attention_mask=MASK).logits

    with llama.use("sft"):
        with pytest.raises(RuntimeError, match="inside"), llama.use("policy"):
            assert torch.equal(now(), policy)
            with llama.use(None):
                assert torch.equal(now(), base)
            assert torch.equal(now(), policy)
            raise RuntimeError("inside")
        assert torch.equal(now(), sft)
    assert torch.equal(now(), base)


def test_use_of_an_unknown_adapter(llama):
    with pytest.raises(ValueError, match=r"named judge\. Pass one of: sft, reward, policy, value"):
        llama.use("judge")


def test_one_context_can_be_entered_again(llama):
    context = llama.use("policy")
    with context, llama.use("sft"), context:
        assert llama._active == "policy"
    with context:
        assert llama._active == "policy"
    assert llama._active is None


# -- gradients --------------------------------------------------------------------------------------------------------


def test_only_adapters_declared_trainable_require_gradients(shared):
    for name, requires_grad in trainable(shared).items():
        wanted = any(f".{adapter}." in name or f"heads.{adapter}" in name for adapter in ("policy", "value"))
        assert requires_grad == wanted, name
    assert shared.trainable_parameters("sft") == shared.trainable_parameters("reward") == []
    counted = sum(len(shared.trainable_parameters(name)) for name in ("policy", "value"))
    assert counted == sum(trainable(shared).values())


def test_no_pass_and_no_new_adapter_changes_requires_grad(llama, tmp_path):
    before = trainable(llama)
    for name in (None, "sft", "reward", "policy"):
        with llama.use(name):
            assert trainable(llama) == before
    logits_of(llama, "sft", INPUT_IDS, MASK)
    llama.token_scores("reward", INPUT_IDS, MASK)
    generate(llama, "policy", input_ids=INPUT_IDS, attention_mask=MASK, max_new_tokens=2)
    llama.save_adapter("reward", tmp_path / "reward")
    llama.add_adapter("copy", copy_of="policy")
    llama.add_adapter("loaded", folder=tmp_path / "reward")
    after = trainable(llama)
    assert {name: after[name] for name in before} == before
    assert not any(after[name] for name in after.keys() - before.keys())


def test_gradients_reach_the_adapter_of_the_pass_alone(shared):
    logits_of(shared, "policy", INPUT_IDS, MASK).logsumexp(-1).sum().backward()
    assert all(parameter.grad is not None for parameter in shared.trainable_parameters("policy"))
    assert all(parameter.grad is None for parameter in shared.trainable_parameters("value"))
    shared.zero_grad()
    shared.token_scores("value", INPUT_IDS, MASK).sum().backward()
    assert all(parameter.grad is not None for parameter in shared.trainable_parameters("value"))
    assert all(parameter.grad is None for parameter in shared.trainable_parameters("policy"))
    assert not logits_of(shared, "sft", INPUT_IDS, MASK).requires_grad


# -- activation checkpointing -----------------------------------------------------------------------------------------


def interleaved_gradients(shared, backward_under=None):
    """Returns the gradients of one backward through a policy, a value, a reference and another policy pass."""
    shared.train()
    shared.zero_grad()
    logprobs = logits_of(shared, "policy", INPUT_IDS, MASK).log_softmax(-1)
    values = shared.token_scores("value", INPUT_IDS, MASK)
    reference = logits_of(shared, "sft", INPUT_IDS, MASK).log_softmax(-1)
    again = logits_of(shared, "policy", INPUT_IDS.flip(1), MASK).log_softmax(-1)
    loss = (logprobs - reference).square().mean() + values.square().mean() + again[..., 0].mean()
    with shared.use(backward_under):
        loss.backward()
    return {name: p.grad.clone() for name, p in shared.named_parameters() if p.grad is not None}


def checkpointed_layers(shared):
    return [module for module in shared.modules() if getattr(module, "gradient_checkpointing", False)]


@pytest.mark.parametrize("backward_under", [None, "policy", "value", "sft"])
def test_recomputation_uses_the_adapter_of_the_forward(shared, backward_under):
    plain = interleaved_gradients(shared)
    shared.gradient_checkpointing_enable()
    assert checkpointed_layers(shared)
    checkpointed = interleaved_gradients(shared, backward_under)
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("backward_under", [None, "value"])
def test_without_the_context_recomputation_goes_wrong(llama, backward_under):
    """Shows that the test above can fail: torch detects other shapes in a recomputation, but not another adapter."""
    plain = interleaved_gradients(llama)
    llama.gradient_checkpointing_enable()
    for layer in checkpointed_layers(llama):
        layer._gradient_checkpointing_func.keywords["context_fn"] = lambda: (nullcontext(), nullcontext())
    try:
        checkpointed = interleaved_gradients(llama, backward_under)
    except CheckpointError:
        assert backward_under is None
    else:
        assert any(not torch.allclose(plain[name], checkpointed[name], rtol=1e-3) for name in plain)


def test_recomputation_twice(llama):
    llama.gradient_checkpointing_enable()
    llama.train()
    values = llama.token_scores("value", INPUT_IDS, MASK)
    parameters = llama.trainable_parameters("value")
    first = torch.autograd.grad(values.sum(), parameters, retain_graph=True)
    second = torch.autograd.grad(values.sum(), parameters)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_frozen_passes_keep_no_graph_under_checkpointing(llama):
    llama.gradient_checkpointing_enable()
    llama.train()
    assert not logits_of(llama, "sft", INPUT_IDS, MASK).requires_grad
    assert not logits_of(llama, None, INPUT_IDS, MASK).requires_grad


def test_checkpointing_as_the_trainer_calls_it(llama):
    llama.activation_checkpointing_enable(activation_checkpointing_kwargs=None, every_n_layers=1, offload=False)
    assert checkpointed_layers(llama)
    with pytest.raises(InputError, match="use_reentrant"):
        llama.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})


# -- several processes ------------------------------------------------------------------------------------------------


class Step(torch.nn.Module):
    """Passes of several adapters in one forward, as in a trainer."""

    def __init__(self, shared):
        super().__init__()
        self.shared = shared

    def forward(self, input_ids):
        mask = torch.ones_like(input_ids)
        logprobs = logits_of(self.shared, "policy", input_ids, mask).log_softmax(-1)
        with torch.no_grad():
            reference = logits_of(self.shared, "sft", input_ids, mask).log_softmax(-1)
        values = self.shared.token_scores("value", input_ids, mask)
        return (logprobs - reference).square().mean() + values.square().mean()


def step_gradients(shared, wrap, input_ids):
    shared.gradient_checkpointing_enable()
    step = wrap(Step(shared.train()))
    step(input_ids).backward()
    gradients = {name: p.grad for name, p in shared.named_parameters() if p.grad is not None}
    return {
        name: g.full_tensor() if hasattr(g, "full_tensor") else g for name, g in gradients.items()
    }  # shards of FSDP


def fully_shard_layers(step):
    from torch.distributed.fsdp import fully_shard

    for layer in step.shared.lm.model.layers:
        fully_shard(layer)
    return fully_shard(step)


WRAPPERS = {"ddp": torch.nn.parallel.DistributedDataParallel, "fsdp": fully_shard_layers}


def worker(rank, folder, store):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    for name, wrap in WRAPPERS.items():
        base = load_base(ModelConfig(model_name_or_path=folder), load_tokenizer(folder))
        gradients = step_gradients(make_shared(base), wrap, INPUT_IDS[rank : rank + 1])
        if rank == 0:
            torch.save(gradients, f"{store}.{name}")
    torch.distributed.destroy_process_group()


def test_two_processes_are_one(toy_folder, toy_base, tmp_path):
    store = str(tmp_path / "store")
    torch.multiprocessing.spawn(worker, (toy_folder, store), nprocs=2)
    one = step_gradients(make_shared(toy_base), lambda step: step, INPUT_IDS)
    assert len(one) == 58  # A and B of 14 layers, twice, and the value head
    for wrapper in WRAPPERS:
        both = torch.load(f"{store}.{wrapper}", weights_only=True)
        assert both.keys() == one.keys()
        for name, gradient in one.items():
            torch.testing.assert_close(both[name], gradient, rtol=1e-4, atol=1e-6, msg=f"{wrapper}: {name}")


# -- forward passes ---------------------------------------------------------------------------------------------------


def test_logits_to_keep(shared):
    every = logits_of(shared, "policy", INPUT_IDS, MASK)
    assert every.shape[:2] == INPUT_IDS.shape
    torch.testing.assert_close(logits_of(shared, "policy", INPUT_IDS, MASK, logits_to_keep=2), every[:, -2:])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(shared, side):
    width = (3, 0) if side == "left" else (0, 3)
    real = slice(3, None) if side == "left" else slice(None, -3)
    ids, mask = pad(INPUT_IDS, width, value=300), pad(MASK, width)
    torch.testing.assert_close(
        logits_of(shared, "policy", ids, mask)[:, real],
        logits_of(shared, "policy", INPUT_IDS, MASK),
        rtol=1e-4,
        atol=1e-4,
    )
    torch.testing.assert_close(
        shared.token_scores("value", ids, mask)[:, real],
        shared.token_scores("value", INPUT_IDS, MASK),
        rtol=1e-4,
        atol=1e-4,
    )


def test_token_scores_are_float32_on_a_bfloat16_base_and_under_autocast(toy_base):
    shared = make_shared(toy_base.bfloat16())
    shared.heads["value"].bias.data.fill_(1000.0)  # bfloat16 would round to multiples of 4 here
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = shared.token_scores("value", INPUT_IDS, MASK)
    assert values.dtype == torch.float32 and values.shape == INPUT_IDS.shape
    assert not torch.equal(values, values.bfloat16().float())
    assert logits_of(shared, "policy", INPUT_IDS, MASK).dtype == torch.bfloat16
    assert all(parameter.dtype == torch.float32 for parameter in shared.trainable_parameters("policy"))


def test_generate_follows_the_adapter(shared):
    kwargs = {"attention_mask": MASK, "max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    generated = generate(shared, "policy", input_ids=INPUT_IDS, **kwargs)
    sequence = INPUT_IDS
    for _ in range(4):
        step = logits_of(shared, "policy", sequence, torch.ones_like(sequence), logits_to_keep=1).argmax(-1)
        sequence = torch.cat([sequence, step], dim=1)
    assert torch.equal(generated, sequence)


# -- sources of adapters ----------------------------------------------------------------------------------------------


def test_new_adapter_changes_nothing(shared):
    shared.add_adapter("new", lora_config=lora_config(LORA), head=True)
    torch.testing.assert_close(logits_of(shared, "new", INPUT_IDS, MASK), logits_of(shared, None, INPUT_IDS, MASK))
    assert shared.token_scores("new", INPUT_IDS, MASK).std() > 0


def test_copy_is_equal_and_separate(shared):
    shared.add_adapter("copy", copy_of="reward", trainable=True, head=True)
    assert torch.equal(shared.token_scores("copy", INPUT_IDS, MASK), shared.token_scores("reward", INPUT_IDS, MASK))
    assert torch.equal(logits_of(shared, "copy", INPUT_IDS, MASK), logits_of(shared, "reward", INPUT_IDS, MASK))
    before = shared.token_scores("reward", INPUT_IDS, MASK)
    randomize(shared.trainable_parameters("copy"), seed=9)
    assert torch.equal(shared.token_scores("reward", INPUT_IDS, MASK), before)
    assert not torch.allclose(shared.token_scores("copy", INPUT_IDS, MASK), before)


def test_new_layers_are_in_the_mode_of_the_model(toy_base):
    shared = SharedBase(toy_base)  # in evaluation mode, as load_base leaves it
    shared.add_adapter("sft", lora_config=lora_config(ModelConfig(lora_dropout=0.5)))
    assert not any(module.training for module in shared.modules())
    shared.train()
    shared.add_adapter("policy", copy_of="sft")
    assert all(module.training for module in shared.modules())


def test_exactly_one_source(llama):
    with pytest.raises(ValueError, match="exactly one"):
        llama.add_adapter("x")
    with pytest.raises(ValueError, match="exactly one"):
        llama.add_adapter("x", copy_of="sft", lora_config=lora_config(LORA))
    with pytest.raises(ValueError, match="exists already"):
        llama.add_adapter("sft", copy_of="policy")


@pytest.mark.parametrize("name", ["policy", "value"])
def test_saved_adapter_loads_as_it_was(shared, tmp_path, name):
    shared.save_adapter(name, tmp_path / name)
    head = name in shared.heads
    shared.add_adapter("again", folder=tmp_path / name, head=head)
    assert torch.equal(logits_of(shared, "again", INPUT_IDS, MASK), logits_of(shared, name, INPUT_IDS, MASK))
    if head:
        torch.testing.assert_close(
            shared.token_scores("again", INPUT_IDS, MASK), shared.token_scores(name, INPUT_IDS, MASK)
        )
        assert read_calibration(tmp_path / name) == pytest.approx(-shared.heads[name].bias.item())


def test_fully_trained_modules_follow_the_adapter(toy_base, tmp_path):
    """Tests `lora_modules_to_save`, e.g. an unembedding trained for new tokens."""
    untouched = toy_base(INPUT_IDS).logits
    shared = SharedBase(toy_base)
    config = lora_config(ModelConfig(lora_r=4, lora_modules_to_save=["lm_head"]))
    shared.add_adapter("sft", lora_config=config, trainable=True)
    randomize(shared.trainable_parameters("sft"))
    add(shared, "policy", 1)
    sft = logits_of(shared, "sft", INPUT_IDS, MASK)
    shared.save_adapter("sft", tmp_path / "sft")
    shared.add_adapter("again", folder=tmp_path / "sft")
    shared.add_adapter("copy", copy_of="sft")
    assert torch.equal(logits_of(shared, "again", INPUT_IDS, MASK), sft)
    assert torch.equal(logits_of(shared, "copy", INPUT_IDS, MASK), sft)
    assert torch.equal(logits_of(shared, None, INPUT_IDS, MASK), untouched)
    assert not torch.allclose(logits_of(shared, "policy", INPUT_IDS, MASK), sft)


# -- reward adapters of TRL and PEFT ----------------------------------------------------------------------------------


@pytest.fixture
def reward_adapter(base, tmp_path):
    """Returns a folder as RewardTrainer writes it, with a calibration, and the model that was saved."""
    config = base.config
    model = AutoModelForSequenceClassification.from_pretrained(base.name_or_path, num_labels=1)
    if model.get_input_embeddings().num_embeddings < base.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(base.get_input_embeddings().num_embeddings)
        model.get_input_embeddings().load_state_dict(base.get_input_embeddings().state_dict())
    model.config.pad_token_id = config.pad_token_id
    model = get_peft_model(model, lora_config(LORA, "SEQ_CLS"))
    randomize([parameter for parameter in model.parameters() if parameter.requires_grad], seed=5)
    model.save_pretrained(tmp_path / "reward")
    write_calibration(tmp_path / "reward", 0.75, {"demonstrations": 8})
    return tmp_path / "reward", model.eval()


def one_by_one(model):
    """Returns the logits [B, 1] of INPUT_IDS; transformers batches only models that have a pad token."""
    return torch.cat([model(row[None]).logits for row in INPUT_IDS])


def test_shared_base_scores_as_the_classifier_does(base, reward_adapter):
    folder, model = reward_adapter
    shared = SharedBase(base)
    shared.add_adapter("reward", folder=folder, head=True)
    scores = shared.token_scores("reward", INPUT_IDS, MASK)[:, -1]
    torch.testing.assert_close(scores, one_by_one(model)[:, 0] - 0.75, rtol=0, atol=1e-5)
    assert shared.heads["reward"].bias.item() == -0.75
    padded = shared.token_scores("reward", pad(INPUT_IDS, (0, 2), value=300), pad(MASK, (0, 2)))
    torch.testing.assert_close(padded[:, -3], scores, rtol=0, atol=1e-5)


def test_an_ensemble_scores_the_mean_or_the_minimum(shared):
    add(shared, "reward_2", 7, head=True)
    add(shared, "reward_3", 8, head=True)
    members = ("reward", "reward_2", "reward_3")
    with torch.no_grad():
        for name in members:
            shared.heads[name].bias -= shared.token_scores(name, INPUT_IDS, MASK).mean()
    scores = torch.stack([shared.token_scores(name, INPUT_IDS, MASK) for name in members])
    value = shared.token_scores("value", INPUT_IDS, MASK)
    assert len(set(scores.argmin(0).flatten().tolist())) > 1  # several members are the minimum somewhere
    shared.add_ensemble("reward", members, "mean")
    torch.testing.assert_close(shared.token_scores("reward", INPUT_IDS, MASK), scores.mean(0))
    shared.add_ensemble("reward", members, "min")
    torch.testing.assert_close(shared.token_scores("reward", INPUT_IDS, MASK), scores.min(0).values)
    assert torch.equal(shared.token_scores("value", INPUT_IDS, MASK), value)
    assert torch.equal(shared.token_scores("reward_2", INPUT_IDS, MASK), scores[1])
    with pytest.raises(ValueError, match="reward_4"):
        shared.add_ensemble("reward", ("reward", "reward_4"), "min")


def test_load_reward_model_scores_as_the_classifier_does(reward_adapter):
    folder, model = reward_adapter
    loaded = load_reward_model(folder)
    assert not isinstance(loaded, PeftModel) and not any("lora" in name for name, _ in loaded.named_modules())
    torch.testing.assert_close(loaded(INPUT_IDS).logits, one_by_one(model) - 0.75, rtol=0, atol=1e-5)
    ids = pad(INPUT_IDS, (0, 2), value=loaded.config.pad_token_id)
    scores = loaded(ids, attention_mask=pad(MASK, (0, 2))).logits
    torch.testing.assert_close(scores, one_by_one(model) - 0.75, rtol=0, atol=1e-5)


def test_value_adapter_loads_as_reward_model(shared, tmp_path):
    shared.save_adapter("value", tmp_path / "value")
    scores = load_reward_model(tmp_path / "value")(INPUT_IDS).logits[:, 0]
    torch.testing.assert_close(scores, shared.token_scores("value", INPUT_IDS, MASK)[:, -1], rtol=0, atol=1e-5)


def test_saved_reward_adapter_is_what_peft_saves(base, reward_adapter, tmp_path):
    folder, _ = reward_adapter
    shared = SharedBase(base)
    shared.add_adapter("reward", folder=folder, head=True)
    shared.save_adapter("reward", tmp_path / "again")
    (theirs, their_score), (ours, our_score) = read_adapter(folder), read_adapter(tmp_path / "again")
    ours_and_base = theirs.keys() - ours.keys()  # embeddings of a base that gained a row for the pad token
    assert ours.keys() <= theirs.keys() and all("lora" not in key for key in ours_and_base)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours) and torch.equal(our_score, their_score)
    one, other = (json.loads((path / "adapter_config.json").read_text()) for path in (folder, tmp_path / "again"))
    one["target_modules"], other["target_modules"] = sorted(one["target_modules"]), sorted(other["target_modules"])
    assert {**one, "modules_to_save": set(one["modules_to_save"])} == {
        **other,
        "modules_to_save": set(other["modules_to_save"]),
    }
    assert read_calibration(tmp_path / "again") == 0.75


def test_reward_model_without_a_head(llama, tmp_path):
    llama.save_adapter("policy", tmp_path / "policy")
    with pytest.raises(InputError, match="has no score head"):
        llama.add_adapter("critic", folder=tmp_path / "policy", head=True)
    with pytest.raises(InputError, match="not a reward model"):
        load_reward_model(tmp_path / "policy")
    assert "critic" not in llama.adapters


# -- wrong input ------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(llama, tmp_path):
    llama.save_adapter("policy", tmp_path / "policy")
    return tmp_path / "policy"


def rewrite_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_missing_adapter(saved, tmp_path):
    with pytest.raises(InputError, match="nowhere does not exist"):
        check_adapter(tmp_path / "nowhere")
    with pytest.raises(InputError, match="neither a local folder nor on the Hub"):
        check_adapter("owner/no-such-adapter")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no adapter_config\.json"):
        check_adapter(tmp_path / "empty")
    (saved / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"holds no adapter_model\.safetensors"):
        check_adapter(saved)


def test_adapter_of_another_base(saved, llama, toy_folder, toy_gpt2_folder):
    assert check_adapter(saved, toy_folder).r == 4
    with pytest.raises(InputError, match=rf"trained on {toy_folder}, not on {toy_gpt2_folder}"):
        check_adapter(saved, toy_gpt2_folder)
    rewrite_config(saved, base_model_name_or_path="gpt2")
    with pytest.raises(InputError, match="trained on gpt2"):
        llama.add_adapter("loaded", folder=saved)


def test_same_base(tmp_path, monkeypatch):
    for folder in ("a/base", "b/base", "models/SmolLM2-135M"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert same_base("a/base", str(tmp_path / "a" / "base")) and same_base("a/base/", "./a/base")
    assert not same_base("a/base", "b/base")
    assert same_base("HuggingFaceTB/SmolLM2-135M", "models/SmolLM2-135M")
    assert not same_base("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-360M")
    assert same_base("sandbox", "/elsewhere/site-packages/rlhf/sandbox/base")
    assert same_base("/here/rlhf/sandbox/base", "/there/rlhf/sandbox/base")
    assert not same_base("sandbox", "a/base") and not same_base("sandbox", "gpt2")


def test_adapter_of_another_kind_or_shape(saved, llama):
    rewrite_config(saved, r=8)
    with pytest.raises(InputError, match="does not fit the base"):
        llama.add_adapter("loaded", folder=saved)
    rewrite_config(saved, bias="all")
    with pytest.raises(InputError, match="trained biases"):
        check_adapter(saved)
    rewrite_config(saved, peft_type="IA3", feedforward_modules=[])
    with pytest.raises(InputError, match="IA3"):
        check_adapter(saved)
    (saved / "adapter_config.json").write_text("{")
    with pytest.raises(InputError, match="not a PEFT configuration"):
        check_adapter(saved)


def test_damaged_weights(saved, llama):
    (saved / "adapter_model.safetensors").write_bytes(b"\0" * 7)
    with pytest.raises(InputError, match=r"adapter_model\.safetensors is damaged"):
        llama.add_adapter("loaded", folder=saved)


def test_remove_adapter_leaves_only_the_configuration(tmp_path):
    """The configuration alone is no adapter, and the next adapter must not inherit the bias."""
    for name in ("adapter_config.json", "adapter_model.safetensors", "calibration.json"):
        (tmp_path / name).write_text("{}")
    remove_adapter(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter_config.json"]
    remove_adapter(tmp_path)


def test_calibration(saved):
    assert read_calibration(saved) == 0.0
    write_calibration(saved, -1.5, {"demonstrations": 12})
    assert read_calibration(saved) == -1.5
    assert json.loads((saved / "calibration.json").read_text()) == {"bias": -1.5, "demonstrations": 12}
    for text in ("", "{}", '{"bias": "x"}', "[]", '{"bias": NaN}'):
        (saved / "calibration.json").write_text(text)
        with pytest.raises(InputError, match=r"calibration\.json"):
            read_calibration(saved)


# -- without this library ---------------------------------------------------------------------------------------------

PLAIN_PEFT = """
import sys, torch
from peft import AutoPeftModelForCausalLM
model = AutoPeftModelForCausalLM.from_pretrained(sys.argv[1])
assert not any(name.startswith("rlhf") for name in sys.modules)
ids = torch.tensor([[5, 17, 60, 101]])
print(model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False).tolist())
"""


def test_plain_peft_in_a_fresh_process_generates_the_same(llama, saved):
    output = subprocess.run([sys.executable, "-c", PLAIN_PEFT, saved], capture_output=True, text=True, check=True)
    ids = torch.tensor([[5, 17, 60, 101]])
    mask = torch.ones_like(ids)
    tokens = generate(llama, "policy", input_ids=ids, attention_mask=mask, max_new_tokens=12, do_sample=False)
    assert output.stdout.strip() == str(tokens.tolist())
    assert not torch.equal(tokens, generate(llama, None, input_ids=ids, attention_mask=mask, max_new_tokens=12))


# -- 4-bit ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def score_all(shared):
    shared.eval()
    return [logits_of(shared, name, INPUT_IDS, MASK) for name in (None, *shared.adapters)]


def test_four_bit_base(tmp_path):
    pytest.importorskip("bitsandbytes")
    folder = str(
        save_toy(tmp_path / "base", hidden_size=64, intermediate_size=128)
    )  # 4-bit weights come in blocks of 64
    four_bit = ModelConfig(model_name_or_path=folder, load_in_4bit=True)
    base = load_base(four_bit, load_tokenizer(folder))
    untouched = base(INPUT_IDS, attention_mask=MASK).logits
    shared = make_shared(base)
    assert torch.equal(logits_of(shared, None, INPUT_IDS, MASK), untouched)
    plain = interleaved_gradients(shared)
    score_all(shared)  # as in a rollout between updates
    after = interleaved_gradients(shared)
    assert all(torch.equal(after[name], gradient) for name, gradient in plain.items())
    assert len(plain) == sum(trainable(shared).values()) and all(gradient.any() for gradient in plain.values())
    shared.gradient_checkpointing_enable()
    checkpointed = interleaved_gradients(shared)
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-4, atol=1e-6, msg=name)

    shared.eval()
    shared.save_adapter("value", tmp_path / "value")
    model = load_reward_model(tmp_path / "value", four_bit)
    values = shared.token_scores("value", INPUT_IDS, MASK)[:, -1]
    torch.testing.assert_close(model(INPUT_IDS).logits[:, 0], values, rtol=0, atol=1e-5)


def test_toy_models_are_deterministic():
    set_seed(7)
    one = bpe_model()
    set_seed(8)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), bpe_model().parameters(), strict=True))
