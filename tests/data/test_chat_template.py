"""Chat templates render to the character as transformers renders them."""

from __future__ import annotations

import pytest
from random_model import CHAT_TEMPLATE
from transformers.utils.chat_template_utils import render_jinja_template

from nptool.data.chat_template import ChatTemplate
from nptool.data.record import Message
from nptool.errors import GgufError, UsageError

CONVERSATION = (
    Message("system", "Be <brief> & kind."),
    Message("user", 'Hello "you"\n'),
    Message("assistant", " hi "),
    Message("user", "größer"),
)
CHATML = """
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content | trim + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
LLAMA = """{{ bos_token }}{% for message in messages %}
    {% if loop.index0 > 5 %}{% break %}{% endif %}
    {% set content = message['content'] %}
    {% if message['role'] == 'user' %}[INST] {{ content }} [/INST]
    {% elif message['role'] == 'assistant' %}{% generation %}{{ content }}{{ eos_token }}{% endgeneration %}
    {% else %}<<SYS>>{{ {'text': content} | tojson }}<</SYS>>
    {% endif %}
{% endfor %}"""
NAMESPACE = """
{%- set ns = namespace(found=false, count=0) -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}{%- set ns.count = ns.count + 1 -%}{%- endif -%}
{{- message.content.split(' ')[0] ~ '|' -}}
{%- endfor -%}
{{ ns.count }} tools={{ tools is none }} {{ messages | length }}"""


@pytest.mark.parametrize("source", [CHAT_TEMPLATE, CHATML, LLAMA, NAMESPACE])
def test_as_transformers_renders_it(source: str) -> None:
    turns = [{"role": message.role, "content": message.content} for message in CONVERSATION]
    (expected,), _ = render_jinja_template(
        [turns], chat_template=source, add_generation_prompt=True, bos_token="<s>", eos_token="</s>"
    )
    assert ChatTemplate(source, bos="<s>", eos="</s>").render(CONVERSATION) == expected


def test_a_template_may_refuse() -> None:
    source = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}ok"
    template = ChatTemplate(source, origin="m.gguf")
    assert template.render(CONVERSATION[1:]) == "ok"
    with pytest.raises(UsageError, match=r"chat template of m\.gguf refuses the conversation: no system role"):
        template.render(CONVERSATION)


def test_the_date_is_known() -> None:
    assert ChatTemplate("{{ strftime_now('%Y') | length }}").render(CONVERSATION) == "4"


def test_a_broken_template_is_the_files_fault() -> None:
    with pytest.raises(GgufError, match=r"chat template of m\.gguf is not valid: .*--raw"):
        ChatTemplate("{% if %}", origin="m.gguf")


@pytest.mark.parametrize(
    "source",
    ["{{ messages.__class__.__mro__ }}", "{{ ''.__class__.__base__.__subclasses__() }}", "{{ nothing.at.all }}"],
)
def test_the_sandbox_holds(source: str) -> None:
    with pytest.raises(UsageError, match="refuses the conversation"):
        ChatTemplate(source).render(CONVERSATION)
