"""Tests that need a GPU: CUDA graphs, 16-bit and 4-bit bases, memory. `make test` skips them without one."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.utils import counters
from toys import EOS, PAD, VOCAB, causal, logged, lora, ppo_config, prompts, save_toy, shared_base, trainer
from trl import ModelConfig

import rlhf.generation.continuous_batching as continuous_batching
from rlhf.generation.continuous_batching import StaticBatch, decode_continuously, supports_continuous_batching
from rlhf.generation.decode_linears import fast_decode_linears
from rlhf.generation.random_numbers import inverse_cdf, sampling_uniforms
from rlhf.generation.sampler import decode, sample
from rlhf.generation.slot_attention import kernel_fault
from rlhf.models import compiled_layers
from rlhf.models.loading import load_base, load_tokenizer
from rlhf.models.shared_base import SharedBase
from rlhf.ppo import PPOTrainer
from rlhf.tensors import pad_left

pytestmark = pytest.mark.gpu

PROMPTS = [[4 + (7 * i + j) % (VOCAB - 4) for j in range(1 + i % 9)] for i in range(40)]
STOPS = [EOS, 5, 6, 7]


def chooser(length: int):
    uniforms = sampling_uniforms(len(PROMPTS), length, "test").cuda()
    return lambda logits, rows, step: inverse_cdf(logits, uniforms[rows, step], 0.8)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
def test_cuda_graphs_give_the_responses_of_batches(kind, monkeypatch):
    monkeypatch.setattr(continuous_batching, "WINDOW", 16)  # several graphs
    lm, choose = causal(kind).eval().cuda(), chooser(40)
    assert supports_continuous_batching(lm)
    for given in (PROMPTS, [ids for ids in PROMPTS[:8] for _ in range(5)]):
        expected = decode(lm, *pad_left(given, PAD, lm.device), choose, STOPS, 40)
        for _ in range(2):
            assert decode_continuously(lm, given, choose, STOPS, 40, 8) == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("heads", "key_heads", "size"), [(32, 8, 64), (32, 8, 128), (12, 12, 64), (8, 1, 256), (2, 2, 8)]
)
def test_the_kernel_of_filled_slots_is_right(heads, key_heads, size, dtype):
    assert kernel_fault(torch.device("cuda"), dtype, heads, key_heads, size) is None


def test_in_16_bits_steps_read_the_filled_slots_in_one_graph(monkeypatch):
    windows, step = [], StaticBatch.step
    monkeypatch.setattr(continuous_batching, "WINDOW", 16)
    monkeypatch.setattr(StaticBatch, "step", lambda self, window: windows.append(window) or step(self, window))
    lm = causal().eval().cuda().bfloat16()
    decode_continuously(lm, PROMPTS[:9], chooser(40), [], 40, 8)
    assert windows == [56, 56]  # 49 rounded up; the first step and the captured one, none with a smaller window
    assert lm.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_cuda_graphs_and_lora_the_chosen_tokens_are_likely(dtype, autocast):
    """Rounding to 16 bits may change a greedy choice, so the ids are compared with the logits of full sequences."""
    base = shared_base().eval().cuda()
    base.lm.to(dtype)
    with torch.no_grad(), base.use("policy"), torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        with fast_decode_linears(base.lm, 8):
            choose = lambda logits, rows, step: logits.argmax(-1)  # noqa: E731
            responses = decode_continuously(base.lm, PROMPTS, choose, STOPS, 20, 8)
        for prompt, response in zip(PROMPTS, responses, strict=True):
            logits = base.lm(torch.tensor([prompt + response], device="cuda")).logits[0, len(prompt) - 1 : -1].float()
            chosen = logits.gather(1, torch.tensor(response, device="cuda")[:, None]).squeeze(1)
            assert (logits.amax(-1) - chosen).max() <= (1e-3 if dtype == torch.float32 and not autocast else 0.02)


def test_the_next_graph_uses_the_trained_weights():
    base, uniforms = shared_base().cuda(), sampling_uniforms(len(PROMPTS), 12, "test")
    options = dict(temperature=1.0, stop_ids=STOPS, pad_id=PAD, batch_size=8)
    with base.use("policy"):
        before = sample(base.lm, PROMPTS, uniforms, **options)
        assert sample(base.lm, PROMPTS, uniforms, **options) == before
        with torch.no_grad():
            for parameter in base.trainable_parameters("policy"):
                parameter.add_(0.1)
        assert sample(base.lm, PROMPTS, uniforms, **options) != before


# docs/trl-faults.md, faults 9 and 10
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fault_09_10_at_lr_0_the_ratio_is_1_and_the_kl_is_0_on_a_gpu(tmp_path, dtype, bf16):
    base = shared_base()
    base.lm.to(dtype)
    args = ppo_config(tmp_path, use_cpu=False, bf16=bf16, learning_rate=0.0, value_learning_rate=0.0, logging_steps=1)
    ppo = trainer(args, base)
    ppo.train()
    assert ppo.model.language_model.device.type == "cuda"
    assert set(logged(ppo, "policy/approxkl") + logged(ppo, "policy/clipfrac") + logged(ppo, "objective/kl")) == {0.0}


# docs/trl-faults.md, faults 9 and 10
@pytest.mark.parametrize("bf16", [False, True])
def test_fault_09_10_at_lr_0_the_ratio_is_1_and_the_kl_is_0_with_compiled_layers_on_a_gpu(tmp_path, bf16, monkeypatch):
    monkeypatch.setattr(compiled_layers, "MIN_TOKENS", 1)
    counters.clear()
    args = ppo_config(tmp_path, use_cpu=False, bf16=bf16, learning_rate=0.0, value_learning_rate=0.0, compile=True)
    ppo = trainer(args)
    ppo.train()
    assert counters["stats"]["unique_graphs"] > 0
    assert set(logged(ppo, "policy/approxkl") + logged(ppo, "policy/clipfrac") + logged(ppo, "objective/kl")) == {0.0}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_ppo_on_a_4_bit_base(tmp_path, checkpointing):
    pytest.importorskip("bitsandbytes")
    folder = str(save_toy(tmp_path / "base", hidden_size=64, intermediate_size=128))
    tokenizer = load_tokenizer(folder)
    lm = load_base(ModelConfig(model_name_or_path=folder, load_in_4bit=True), tokenizer)
    base = SharedBase(lm)
    base.add_adapter("sft", lora_config=lora())
    base.add_adapter("reward", lora_config=lora(init_lora_weights=False), head=True)
    base.add_adapter("policy", copy_of="sft", trainable=True)
    base.add_adapter("value", copy_of="reward", trainable=True, head=True)
    before = copy.deepcopy(base._state_of("policy")[1])
    args = ppo_config(tmp_path / "run", use_cpu=False, bf16=True, gradient_checkpointing=checkpointing, logging_steps=1)
    data = prompts().map(lambda row: {"prompt": row["prompt"].replace("w", "")})
    ppo = trainer(args, base, processing_class=tokenizer, train_dataset=data)
    ppo.train()
    after = base._state_of("policy")[1]
    assert any(not torch.equal(after[name].cpu(), weight.cpu()) for name, weight in before.items())
    assert all(torch.isfinite(torch.tensor(logged(ppo, name))).all() for name in ("loss", "objective/kl"))


def test_a_resumed_run_ends_like_an_uninterrupted_one_on_a_gpu(tmp_path):
    options = dict(use_cpu=False, total_episodes=24, save_strategy="steps", save_steps=3, logging_steps=1)
    for name in ("full", "resumed"):
        ppo = trainer(ppo_config(tmp_path / name, **options))
        ppo.train(resume_from_checkpoint=str(tmp_path / "full" / "checkpoint-3") if name == "resumed" else None)
        ppo.model.save("policy", tmp_path / name / "policy")
    full, resumed = (load_file(tmp_path / n / "policy" / "adapter_model.safetensors") for n in ("full", "resumed"))
    for name, weight in full.items():
        torch.testing.assert_close(resumed[name], weight, rtol=1e-4, atol=1e-6, msg=name)


def test_memory_does_not_grow_with_vocabulary_times_rollout(tmp_path):
    """TRL's logits of one rollout alone would be 64 x 64 x 32,000 floats, half a gigabyte."""
    torch.manual_seed(0)
    base = SharedBase(causal(vocab_size=32000, max_position_embeddings=128))
    for name, head in (("sft", False), ("reward", True)):
        base.add_adapter(name, lora_config=lora(init_lora_weights=False), head=head)
    base.add_adapter("policy", copy_of="sft", trainable=True)
    base.add_adapter("value", copy_of="reward", trainable=True, head=True)
    args = ppo_config(
        tmp_path, use_cpu=False, response_length=64, num_mini_batches=4, per_device_train_batch_size=16,
        gradient_accumulation_steps=1, total_episodes=128, local_rollout_forward_batch_size=64,
    )  # fmt: skip
    ppo = trainer(args, base, cls=PPOTrainer)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    ppo.train()
    assert torch.cuda.max_memory_allocated() - before < 64 * 64 * 32000 * 4 / 2


def test_recipes_run_on_a_gpu(tmp_path):
    """Runs a few steps of SFT, reward model and PPO of the sandbox with Accelerate's configuration for one GPU."""
    root = Path(__file__).parent.parent
    common = ["--bf16", "true", "--dataset_size", "64"]
    start = ["--sft_model_path", str(tmp_path / "sft")]
    rewarded = ["--reward_model_path", str(tmp_path / "reward")]
    stages = {
        "sft": ["--num_train_epochs", "1"],
        "reward": ["--max_steps", "4", *start],
        "ppo": ["--batch_size", "64", "--mini_batch_size", "32", "--total_episodes", "128", *start, *rewarded],
    }
    for stage, options in stages.items():
        command = [
            sys.executable, "-m", "accelerate.commands.launch",
            "--config_file", "accelerate_configs/single_gpu.yaml", f"recipes/{stage}.py",
            "--config", f"recipes/sandbox/{stage}.yaml",
            "--output_dir", str(tmp_path / stage), "--use_cpu", "false", *common, *options,
        ]  # fmt: skip
        result = subprocess.run(command, capture_output=True, text=True, cwd=root)
        assert result.returncode == 0, result.stderr[-3000:]
        assert (tmp_path / stage / "adapter_model.safetensors").exists()
    config = json.loads((tmp_path / "ppo" / "adapter_config.json").read_text())
    assert config["task_type"] == "CAUSAL_LM"
