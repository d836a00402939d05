"""A toy Llama as a GGUF file, as llama.cpp's converter writes it."""

import json
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def write_gguf(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path, license: str = "") -> None:
    """Writes model and byte-level BPE tokenizer to one file, in the model's precision.

    Args:
        model: a Llama with tied embeddings. Its rows above the tokenizer's become unused tokens.
        license: of the header; "" leaves it out.
    """
    gguf = pytest.importorskip("gguf")
    config = model.config
    path.parent.mkdir(exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama")
    if license:
        writer.add_license(license)
        writer.add_languages(["en"])
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)

    # Tokenizer
    known = len(tokenizer)
    writer.add_tokenizer_model("gpt2")
    unused = [f"<unused{i}>" for i in range(config.vocab_size - known)]
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(known)) + unused)
    writer.add_token_types([3] + [1] * (known - 1) + [5] * len(unused))  # control, normal, unused
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_eos_token_id(0)

    # Weights
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":
            continue  # tied
        for projection, count in heads.items():
            if projection in name:  # llama.cpp interleaves the two halves of rotary embeddings
                weight = weight.view(count, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
        writer.add_tensor(names.get_name(name, (".weight",)), weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
