"""Settings of all tests: no network, one thread per worker. Fixtures: toys on disk, recipes as modules."""

import os
from pathlib import Path

# Before torch and the Hugging Face libraries are imported, which read them once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # toy models are faster on one thread, and workers share the cores

import pytest


def pytest_collection_modifyitems(items):
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture
def all_train(monkeypatch):
    """Puts every conversation into the train split: for tests of what is read from a few rows."""
    monkeypatch.setattr("rlhf.data.loading.split_of_id", lambda conversation: "train")


@pytest.fixture
def packed_on_cpu(monkeypatch):
    """Lets the trainers pack rows on a CPU, as they do on a GPU; plain torch takes the place of the kernel."""
    from reference_attention import reference_varlen

    import rlhf.models.packed_attention as packed_attention

    monkeypatch.setattr(packed_attention, "varlen_attn", reference_varlen)
    monkeypatch.setattr(packed_attention, "OPTIONS", {"window_size"})
    monkeypatch.setattr(packed_attention, "kernel_obstacle", lambda device, dtype: None)


@pytest.fixture
def load_recipe():
    """Imports a script of recipes/ as a module, without running it."""
    import importlib.util

    def load(script: str):
        path = Path(__file__).parent.parent / "recipes" / f"{script}.py"
        spec = importlib.util.spec_from_file_location(f"recipe_{script}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def parse_recipe(load_recipe, monkeypatch):
    """Returns what a script reads from a YAML, as on a machine with bfloat16: its dataclasses and their instances."""
    import rlhf.cli

    class Parsed(Exception):
        """Ends the script once its options are parsed."""

    def read(script: str, config: str) -> tuple[tuple[type, ...], tuple]:
        module = load_recipe(script)

        def parse(*classes, options=None):
            raise Parsed(classes, rlhf.cli.parse(*classes, args=["--config", config], options=options))

        monkeypatch.setattr(module, "parse", parse)
        monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
        with pytest.raises(Parsed) as caught:
            module.main()
        return caught.value.args

    return read


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory):
    """Returns the folder of a toy Llama and its tokenizer. Read only: tests share it."""
    from toys import save_toy

    return str(save_toy(tmp_path_factory.mktemp("toys") / "llama"))


@pytest.fixture(scope="session")
def toy_gpt2_folder(tmp_path_factory):
    """Returns the folder of a toy GPT-2 and its tokenizer. Read only: tests share it."""
    from toys import save_toy

    return str(save_toy(tmp_path_factory.mktemp("toys") / "gpt2", "gpt2"))


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """Returns a folder with base/, data, and sft/, reward/ and ppo/ that their recipes wrote. Read only."""
    from small_stages import run_stage, write_data
    from toys import save_toy

    home = tmp_path_factory.mktemp("small")
    save_toy(home / "base")
    write_data(home)
    for stage in ("sft", "reward", "ppo"):
        run_stage(stage, home)
    return home


@pytest.fixture
def own_run(small_run, tmp_path):
    """Returns a copy of `small_run` that the test may change."""
    import shutil

    return Path(shutil.copytree(small_run, tmp_path / "own"))


@pytest.fixture
def toy_tokenizer(toy_folder):
    """Returns the toy tokenizer as `load_tokenizer` gives it: with the default template and a pad token."""
    from rlhf.models.loading import load_tokenizer

    return load_tokenizer(toy_folder)


@pytest.fixture
def toy_base(toy_folder, toy_tokenizer):
    """Returns a new toy Llama as `load_base` gives it. The test may change it."""
    from trl import ModelConfig

    from rlhf.models.loading import load_base

    return load_base(ModelConfig(model_name_or_path=toy_folder), toy_tokenizer)


@pytest.fixture(scope="module")
def browser():
    """Starts a headless Chromium."""
    from label_browser import CHROMIUM
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()
