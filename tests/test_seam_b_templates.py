"""Templates without a generation prompt: the prompt ends with what the template writes before answers."""

import pytest
from chat_families import SYSTEM, USER
from toys import bpe_model, bpe_tokenizer
from transformers import AutoTokenizer

from rlhf.data.encode import encode_prompt_and_completions
from rlhf.data.prompt_style import refused_roles
from rlhf.models.loading import load_tokenizer

OLD_CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' "
    "+ '\\n'}}{% endfor %}\n"
)
ALPACA = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}### Response:\n{{ m['content'] + '\\n\\n' }}{% else %}"
    "### Instruction:\n{{ m['content'] + '\\n\\n' }}{% endif %}{% endfor %}"
)
LLAMA_2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)


@pytest.fixture
def saved(tmp_path):
    def save(template):
        tokenizer = bpe_tokenizer(320, special_tokens=("<pad>", "<s>", "<|im_start|>", "<|im_end|>"))
        tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "pad_token": "<pad>", "bos_token": "<s>"})
        tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>"]})
        tokenizer.chat_template = template
        bpe_model(vocab_size=384, eos_token_id=tokenizer.eos_token_id).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        return tmp_path

    return save


@pytest.mark.parametrize(("template", "header"), [(OLD_CHATML, "<|im_start|>assistant\n"), (ALPACA, "### Response:\n")])
def test_seam_b12_a_prompt_ends_with_what_the_template_writes_before_answers(saved, tmp_path, template, header):
    folder = saved(template)
    tokenizer = load_tokenizer(str(folder))
    for prompt in (USER, SYSTEM):
        before = AutoTokenizer.from_pretrained(folder).apply_chat_template(prompt, tokenize=False)
        prompt_ids, [answer] = encode_prompt_and_completions(tokenizer, prompt, ["A pear."])
        assert tokenizer.decode(prompt_ids) == before + header
        assert tokenizer.decode(answer) == "A pear.<|im_end|>"
    tokenizer.save_pretrained(tmp_path / "stage")
    assert load_tokenizer(str(tmp_path / "stage")).chat_template == tokenizer.chat_template


def test_seam_b12_a_space_before_answers_belongs_to_the_answer(saved):
    tokenizer = load_tokenizer(str(saved(LLAMA_2)))
    assert tokenizer.chat_template == LLAMA_2
    prompt_ids, [answer] = encode_prompt_and_completions(tokenizer, USER, ["A pear."])
    assert tokenizer.decode(prompt_ids) == "<s>[INST] Name a fruit. [/INST]"
    assert tokenizer.decode(answer) == " A pear. <|im_end|>"


def test_seam_b14_messages_that_the_template_leaves_out_are_bad_rows(saved):
    """Else rows that differ in the system message alone train opposite answers to one prompt."""
    unaware = (
        "{% for m in messages %}{% if m.role == 'user' %}[Q] {{ m.content }}\n[A] {% elif m.role == 'assistant' %}"
        "{{ m.content }}{{ eos_token }}\n{% endif %}{% endfor %}"
    )
    last = "<|im_start|>{{ messages[-1].content }}<|im_end|>"
    for template, roles, lost in (
        (unaware, ("system", "user"), "message 1 of 2 (role system)"),
        (last, ("user", "assistant", "user"), "message 1 of 3 (role user)"),
    ):
        tokenizer = load_tokenizer(str(saved(template)))
        assert lost in str(refused_roles(tokenizer, [{"role": role, "content": role} for role in roles]))
        assert refused_roles(tokenizer, USER) is None
    assert refused_roles(load_tokenizer(str(saved(OLD_CHATML))), SYSTEM) is None


def test_seam_b15_an_answer_begins_alike_with_and_without_a_system_message(saved):
    """Mistral's template writes the system message into the last message of the user, another one after an answer."""
    tokenizer = load_tokenizer(
        str(
            saved(
                "{% set system = messages[0].content if messages[0].role == 'system' else '' %}{{ bos_token }}"
                "{% for m in messages %}{% if m.role == 'user' %}[INST] {% if loop.last and system %}"
                "{{ system + '\n\n' }}{% endif %}{{ m.content }}[/INST]{% elif m.role == 'assistant' %}"
                "{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
            )
        )
    )
    answers = [encode_prompt_and_completions(tokenizer, prompt, ["Pear."])[1][0] for prompt in (USER, SYSTEM)]
    assert answers[0] == answers[1] and tokenizer.decode(answers[0]).startswith(" Pear.")
