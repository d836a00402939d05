# ruff: noqa: E501
"""Tokenizers of families of chat models: short versions of their chat templates, with the same behavior."""

from pathlib import Path

from tokenizers import processors
from toys import bpe_model, bpe_tokenizer
from transformers import PreTrainedTokenizerFast

from rlhf.models.chat_template import fix_date
from rlhf.models.stop_tokens import add_stop_ids

USER = [{"role": "user", "content": "Name a fruit."}]
SYSTEM = [{"role": "system", "content": "Be brief."}, *USER]

GEMMA = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}\
{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}\
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""
PHI_3 = """\
{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"""
QWEN_3 = """\
{%- set ns = namespace(last=0) %}{%- for message in messages %}{%- if message.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{%- set content = message.content %}{%- set thoughts = '' %}
{%- if '</think>' in content %}
{%- set thoughts = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{%- if loop.index0 > ns.last and (loop.last or thoughts) %}
{{- '<|im_start|>assistant\\n<think>\\n' + thoughts.strip('\\n') + '\\n</think>\\n\\n' + content + '<|im_end|>\\n' }}
{%- else %}{{- '<|im_start|>assistant\\n' + content + '<|im_end|>\\n' }}{%- endif %}
{%- else %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""
LLAMA_3_2 = """\
{{- bos_token }}
{%- if not date_string is defined %}
{%- if strftime_now is defined %}{%- set date_string = strftime_now("%d %b %Y") %}
{%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] | trim %}
{%- set messages = messages[1:] %}{%- else %}{%- set system_message = '' %}{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + date_string + '\\n\\n' + system_message + '<|eot_id|>' }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""
MISTRAL = """\
{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}\
{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}\
{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"""
R1 = """\
{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '<|User|>' + message['content'] }}\
{% elif message['role'] == 'assistant' %}{% set content = message['content'] %}\
{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}\
{{ '<|Assistant|>' + content + eos_token }}{% else %}{{ message['content'] }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{% endif %}"""

# template, special tokens, tokens that are added and not special, BOS, EOS, and the tokens that the model stops at
FAMILIES = {
    "gemma-2": (GEMMA, ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"], [], "<bos>", "<eos>", ["<end_of_turn>"]),
    "phi-3": (PHI_3, ["<s>", "<|endoftext|>", "<|end|>", "<|user|>", "<|system|>"], ["<|assistant|>"], "<s>", "<|endoftext|>", ["<|end|>"]),
    "qwen3": (QWEN_3, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], ["<think>", "</think>"], None, "<|im_end|>", ["<|endoftext|>"]),
    "llama-3.2": (LLAMA_3_2, ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>"], [], "<|begin_of_text|>", "<|eot_id|>", ["<|eom_id|>"]),
    "mistral": (MISTRAL, ["<s>", "</s>"], [], "<s>", "</s>", []),
    "r1": (R1, ["<bos>", "<eos>", "<|User|>", "<|Assistant|>"], ["<think>", "</think>"], "<bos>", "<eos>", []),
}  # fmt: skip


def family_tokenizer(family: str, loaded: bool = True) -> PreTrainedTokenizerFast:
    """Returns a tokenizer with the template and the special tokens of a family, and BOS before every text."""
    template, special, added, bos, eos, stops = FAMILIES[family]
    tokenizer = bpe_tokenizer(320, special_tokens=("<pad>", *special))
    tokenizer.add_special_tokens({"eos_token": eos, "pad_token": "<pad>"} | ({"bos_token": bos} if bos else {}))
    tokenizer.add_special_tokens({"extra_special_tokens": [token for token in special if token not in (bos, eos)]})
    tokenizer.add_tokens(added)
    if bos:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.convert_tokens_to_ids(bos))]
        )
    tokenizer.chat_template = template
    if loaded:
        fix_date(tokenizer)
        add_stop_ids(tokenizer, tokenizer.convert_tokens_to_ids(stops))
    return tokenizer


def save_family(family: str, folder: Path) -> None:
    """Writes a model whose generation config alone names the token that ends a turn, as Gemma's does."""
    tokenizer = family_tokenizer(family, loaded=False)
    model = bpe_model(vocab_size=384, eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id)
    stops = tokenizer.convert_tokens_to_ids(FAMILIES[family][-1])
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *stops]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
