"""Many GPUs and many architectures: LoRA's layers, classifiers, logits of response positions, GAE in one pass."""

import pytest
import torch
from architectures import ARCHITECTURES, SIZES, architecture, architecture_config, save_architecture
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from toys import EOS, PAD, causal, save_adapter
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, OpenAIGPTConfig, OpenAIGPTLMHeadModel
from trl import ModelConfig

from rlhf.errors import InputError
from rlhf.generation.completions import sample_completions
from rlhf.generation.continuous_batching import StaticBatch, decode_continuously, similar_rooms
from rlhf.generation.random_numbers import inverse_cdf, sampling_uniforms
from rlhf.generation.sampler import decode, sample
from rlhf.models.classifier import classifier_class
from rlhf.models.loading import (
    check_lora,
    context_length,
    load_base,
    load_sequence_classifier,
    load_tokenizer,
    lora_config,
)
from rlhf.models.logprobs import find_unembedding, output_layer, whole_head
from rlhf.models.reward_model import load_reward_model
from rlhf.models.shared_base import SharedBase
from rlhf.ppo.advantages import gae
from rlhf.ppo.layouts import SharedActorCritic
from rlhf.ppo.rollout import micro_batch
from rlhf.reward.prefix import enable_shared_prompts
from rlhf.tensors import pad_left

SFT_LORA = ModelConfig(lora_r=2, lora_dropout=0.2)
IDS = torch.tensor([[5, 17, 60, 101, 33, 9]])


class Kernels(TorchDispatchMode):
    """Counts what torch computes, views left out."""

    def __init__(self):
        super().__init__()
        self.count, self.largest = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function.is_view:
            return out
        self.count += 1
        if isinstance(out, torch.Tensor) and out.shape[-1:] == (SIZES["vocab_size"],) and out.ndim > 1:
            self.largest = max(self.largest, out.numel() // out.shape[-1])
        return out


# ---- Layers of LoRA


def adapted(model) -> set[str]:
    return {name for name, module in model.named_modules() if hasattr(module, "lora_A")}


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "deepseek_v2", "phimoe", "granitemoe"])
def test_seam_h4_the_dropout_of_sft_does_not_stop_experts(name):
    lm = architecture(name)
    layers = adapted(get_peft_model(lm, lora_config(SFT_LORA, model=lm)).get_base_model())
    assert any("attn" in layer for layer in layers)
    assert not any(".experts" in layer or "Router" in type(lm.get_submodule(layer)).__name__ for layer in layers)


def test_seam_h5_a_vision_tower_is_not_adapted_and_every_adapter_gets_a_gradient():
    lm = architecture("gemma3")
    model = get_peft_model(lm, lora_config(ModelConfig(lora_r=2), model=lm))
    assert len(adapted(lm)) == 14 and all(".language_model." in layer for layer in adapted(lm))
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "gpt_neox"])
def test_seam_h5_text_models_are_adapted_as_before(name):
    ours, pefts = architecture(name), architecture(name)
    get_peft_model(ours, lora_config(ModelConfig(lora_r=2), model=ours))
    get_peft_model(pefts, lora_config(ModelConfig(lora_r=2)))
    assert adapted(ours) == adapted(pefts) != set()


@pytest.mark.parametrize("name", ["mamba", "jamba", "falcon_h1", "qwen3_next", "lfm2"])
def test_seam_h5_no_adapter_of_a_state_model_is_without_gradient(name):
    lm = architecture(name)
    model = get_peft_model(lm, lora_config(ModelConfig(lora_r=2), model=lm))
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("llama", {"lora_target_modules": ["query"]}, "query"),
        ("mixtral", {"lora_target_modules": ["q_proj", "w1", "w2", "w3"], "lora_dropout": 0.2}, "lora_dropout"),
        ("mamba", {"lora_target_modules": ["out_proj"]}, "out_proj"),
        ("llama", {"lora_modules_to_save": ["lm_haed"]}, "lm_haed"),
    ],
)
def test_seam_h6_lora_that_cannot_be_is_refused_without_weights(name, options, message, tmp_path):
    architecture_config(name).save_pretrained(tmp_path)  # and no weights
    good = {"model_name_or_path": str(tmp_path), "lora_r": 2}
    check_lora(ModelConfig(**good, lora_dropout=0.2))
    with pytest.raises(InputError, match=message):
        check_lora(ModelConfig(**good, **options))


# ---- Classifiers


@pytest.mark.parametrize("name", ["granite", "cohere", "lfm2", "codegen", "ernie4_5", "opt_350m", "mamba", "falcon_h1"])
def test_seam_h7_every_causal_model_has_a_classifier_with_its_backbone(name, tmp_path):
    folder = str(save_architecture(name, tmp_path / "base"))
    args, tokenizer = ModelConfig(model_name_or_path=folder), load_tokenizer(folder)
    model, lm = load_sequence_classifier(args, tokenizer), load_base(args, tokenizer)
    ours, theirs = (getattr(m, m.base_model_prefix) for m in (model, lm))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    buffers = dict(ours.named_buffers())  # also those that are in no file
    assert all(torch.equal(buffers.pop(key), buffer) for key, buffer in theirs.named_buffers()) and not buffers
    hidden = theirs(input_ids=IDS, use_cache=False).last_hidden_state
    assert torch.equal(ours(input_ids=IDS, use_cache=False).last_hidden_state, hidden)
    torch.testing.assert_close(model(input_ids=IDS).logits, model.score(hidden[:, -1]))
    assert model.score.in_features == hidden.shape[-1] and model.config.num_labels == 1


def test_seam_h7_a_classifier_of_transformers_is_used_where_there_is_one():
    for name in ARCHITECTURES:
        config = architecture_config(name)
        theirs = type(config) in AutoModelForSequenceClassification._model_mapping
        assert (classifier_class(config) is AutoModelForSequenceClassification) == theirs


def test_seam_h8_a_fresh_head_of_opt_350m_fits_its_projection():
    shared = SharedBase(architecture("opt_350m"))
    shared.add_adapter("value", lora_config=lora_config(ModelConfig(lora_r=2)), head=True)
    assert shared.token_scores("value", IDS).shape == IDS.shape


# ---- Logits


@pytest.mark.parametrize("name", ["llama", "gemma2", "cohere", "granite", "gemma3", "opt_350m", "mamba", "mpt"])
def test_seam_h9_logits_of_response_positions_alone(name):
    shared = SharedBase(architecture(name))
    for adapter in ("sft", "policy", "value"):
        shared.add_adapter(adapter, lora_config=lora_config(ModelConfig(lora_r=2)), head=adapter == "value")
    for key, parameter in shared.named_parameters():
        if ".policy." in key:
            parameter.requires_grad_()
    networks = SharedActorCritic(shared)
    prompts = [[5, 6, 7] * 9, [8] * 20, [9, 10]]
    batch = micro_batch([0, 1, 2], prompts, [[11, 12], [13], [14, 15, 16]], [0], 300, shared.device)
    networks("policy_logprobs", **batch.inputs())  # finds out how the model unembeds
    with Kernels() as kernels:
        logprobs = networks("policy_logprobs", **batch.inputs())
        logprobs.sum().backward()
    assert kernels.largest <= 6  # response tokens; whole rows are 29 + 21 + 5 positions
    for row, prompt in enumerate(prompts):
        ids = batch.input_ids[row][batch.attention_mask[row].bool()][None]
        with shared.use("policy"):
            naive = shared.lm(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        naive = naive.gather(1, ids[0, len(prompt) :, None]).squeeze(1)
        torch.testing.assert_close(logprobs[row, : len(naive)], naive, atol=1e-5, rtol=1e-5)
    plain = name not in ("gemma2", "cohere", "granite")
    assert find_unembedding(shared.lm, IDS) is (output_layer if plain else whole_head)


def test_seam_h9_the_backbone_is_itself_again():
    lm = architecture("gemma2")
    before = lm(input_ids=IDS).logits
    with pytest.raises(RuntimeError):
        whole_head(lm, torch.zeros(3, 7))  # of another width
    assert "forward" not in vars(lm.model)
    assert torch.equal(lm(input_ids=IDS).logits, before)


# ---- GAE


def loop(rewards, values, mask, gamma, lam):
    """GAE token by token, as its equations are written."""
    values = values * mask
    advantages = torch.zeros_like(values)
    advantage = next_value = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        advantage = (rewards[:, t] + gamma * next_value - values[:, t] + gamma * lam * advantage) * mask[:, t]
        advantages[:, t] = advantage
        next_value = values[:, t]
    return advantages, advantages + values


@pytest.mark.parametrize("length", [1, 2, 3, 64, 100, 513])
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.99, 1.0), (0.9, 0.0), (1.0, 1.0)])
def test_seam_h10_gae_is_that_of_the_loop(length, gamma, lam):
    generator = torch.Generator().manual_seed(length)
    rewards, values = torch.randn(2, 5, length, generator=generator)
    lengths = torch.randint(1, length + 1, (5,), generator=generator)
    mask = torch.arange(length) < lengths[:, None]
    exact = loop(rewards.double(), values.double(), mask, gamma, lam)
    for ours, theirs in zip(gae(rewards, values, mask, gamma, lam), exact, strict=True):
        assert ours.dtype == torch.float32 and not ours[~mask].any()
        torch.testing.assert_close(ours.double(), theirs, atol=2e-5, rtol=1e-5)
    for ours, theirs in zip(gae(rewards.double(), values.double(), mask, gamma, lam), exact, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


def test_seam_h10_gae_takes_tens_of_kernels():
    mask = torch.ones(4, 512, dtype=torch.bool)
    with Kernels() as kernels:
        gae(torch.rand(4, 512), torch.rand(4, 512), mask, 1.0, 0.95)
    assert kernels.count < 100
    with Kernels() as before:
        loop(torch.rand(4, 512), torch.rand(4, 512), mask, 1.0, 0.95)
    assert before.count > 2000


# ---- Sampling


def test_seam_h11_longrope_ends_at_its_original_context(tmp_path, caplog):
    """Beyond it, keys in the cache have factors that one pass over the sequence has not."""
    folder = str(save_architecture("phi3", tmp_path / "base"))
    tokenizer = load_tokenizer(folder)
    lm = load_base(ModelConfig(model_name_or_path=folder), tokenizer)
    assert lm.config.max_position_embeddings == 256 and context_length(lm.config) == 64
    assert "limited to 64 of 256 tokens" in caplog.text
    shared = SharedBase(lm)
    with pytest.raises(InputError, match="context of 64"):
        sample_completions(shared, None, [[5] * 60], tokenizer, max_new_tokens=5)
    assert context_length(architecture_config("llama")) == 256

    def differing(length):  # greedy tokens that one pass would not choose
        prompts, uniforms = [[5, 17, 60] * 4], torch.zeros(1, length)
        [ids] = sample(lm, prompts, uniforms, temperature=0, stop_ids=[-1], pad_id=300, batch_size=1)
        logits = lm(input_ids=torch.tensor([prompts[0] + ids])).logits[0, len(prompts[0]) - 1 : -1]
        return sum(a != b for a, b in zip(ids, logits.argmax(-1).tolist(), strict=True))

    assert differing(52) == 0 and differing(60) > 0


def test_seam_h12_one_long_prompt_does_not_make_all_slots_long(monkeypatch):
    sizes = []
    init = StaticBatch.__init__
    monkeypatch.setattr(StaticBatch, "__init__", lambda self, *args: (init(self, *args), sizes.append(self))[0])
    lm, prompts = causal().eval(), [[7] * 50, *([8] * n for n in (9, 8, 7, 6, 5, 4, 3, 2, 1))]
    uniforms = sampling_uniforms(len(prompts), 8, "test")

    def choose(logits, rows, step):
        return inverse_cdf(logits, uniforms[rows, step], 1.0)

    responses = decode_continuously(lm, prompts, choose, [EOS], 8, size=4)
    assert [(batch.size, batch.capacity) for batch in sizes] == [(1, 64), (4, 24)]  # capacities in eights
    assert responses == decode(lm, *pad_left(prompts, PAD, lm.device), choose, [EOS], 8)
    assert similar_rooms([64, 40, 32, 31, 20, 16, 15]) == [[0, 1, 2], [3, 4, 5], [6]]
    assert similar_rooms([15, 16, 31, 30, 64]) == [[0, 1], [2, 3], [4]]


def test_seam_h13_graphs_are_captured_on_the_device_of_the_model(monkeypatch):
    """Read: on the current device, cuda:0, the graphs of a model on cuda:3 would be empty."""
    entered = []

    class Device:
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            entered.append(self.device)

        def __exit__(self, *_):
            entered.append(None)

    class OnAGPU:
        device = torch.device("cuda", 3)

    monkeypatch.setattr(torch.cuda, "device", Device)
    monkeypatch.setattr("rlhf.generation.continuous_batching._decode_group", lambda *args: entered.append("decode"))
    decode_continuously(OnAGPU(), [[5], [6]], None, [EOS], 4, size=2)
    assert entered == [torch.device("cuda", 3), "decode", None]


@pytest.mark.parametrize("name", ["mamba", "jamba", "falcon_h1", "lfm2", "qwen3_next", "minimax", "deepseek_v2"])
def test_seam_h14_rows_leave_the_batch_in_models_with_states(name):
    lm, prompts, length = architecture(name), [[5, 6, 7, 8], [9], [10, 11], [12, 13, 14]], 10
    uniforms = sampling_uniforms(len(prompts), length, "test")
    stops = list(range(0, 150))  # many, so that rows finish at different times
    responses = sample(lm, prompts, uniforms, temperature=1.0, stop_ids=stops, pad_id=300, batch_size=4)
    assert len({len(ids) for ids in responses}) > 1
    for i, (prompt, ids) in enumerate(zip(prompts, responses, strict=True)):
        logits = lm(input_ids=torch.tensor([prompt + ids]), use_cache=False).logits[0, len(prompt) - 1 : -1]
        assert inverse_cdf(logits, uniforms[i, : len(ids)], 1.0).tolist() == ids


def test_seam_h14_a_model_without_a_cache_is_refused(tmp_path):
    """Its forward would ignore the cache, and each token would be sampled from the last one alone."""
    OpenAIGPTLMHeadModel(OpenAIGPTConfig(n_embd=16, n_layer=1, n_head=2, vocab_size=320)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="OpenAIGPTLMHeadModel has no key-value cache"):
        load_base(ModelConfig(model_name_or_path=str(tmp_path)))


# ---- Shared prompts of the reward model


@pytest.mark.parametrize(("name", "shares"), [("llama", True), ("granite", True), ("nemotron", False), ("lfm2", False)])
def test_seam_h15_prompts_are_shared_where_the_layers_take_them(name, shares):
    config = architecture_config(name)
    auto = classifier_class(config) is AutoModelForSequenceClassification
    make = AutoModelForSequenceClassification.from_config if auto else classifier_class(config)
    model = make(config)
    obstacle = enable_shared_prompts(model, 64)
    assert (obstacle is None) == shares
    assert model.config._attn_implementation == ("sdpa_packed" if shares else "sdpa")


def test_seam_h7_a_stranger_reads_a_reward_model_with_peft_alone(tmp_path):
    """As docs/reward-model.md says."""
    save_architecture("granite", tmp_path / "base")
    save_adapter(tmp_path / "base", tmp_path / "reward", "reward")
    folder = str(tmp_path / "reward")
    config = PeftConfig.from_pretrained(folder)
    config.task_type, config.modules_to_save = "CAUSAL_LM", None
    base = AutoModelForCausalLM.from_pretrained(config.base_model_name_or_path)
    lm = PeftModel.from_pretrained(base, folder, config=config).get_base_model()
    head = load_file(f"{folder}/adapter_model.safetensors")["base_model.model.score.weight"]
    hidden = getattr(lm, lm.base_model_prefix)(IDS).last_hidden_state
    torch.testing.assert_close(hidden[:, -1] @ head.T - 0.25, load_reward_model(folder)(IDS).logits)
