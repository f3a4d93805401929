"""How the chat templates that TRL ships, and others, show the assistant's answers and calls of tools."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import trl

from scaleup.models.builtin import CHATML
from tests.unit.data.chat_oracle import Look

FOLDER = Path(trl.__file__).parent / "chat_templates"
CALL = {"type": "function", "id": "abcdef123", "function": {"name": "weather", "arguments": {"city": "X"}}}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "d",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]


JSON_CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "X"}}\n</tool_call>'
XML_CALL = "<tool_call>\n<function=weather>\n<parameter=city>\nX\n</parameter>\n</function>\n</tool_call>"
DEEPSEEK_CALL = (
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n"
    '```json\n{"city": "X"}\n```<｜tool▁call▁end｜>'
)
GEMMA_CALL = '<|tool_call>call:weather{city:<|"|>X<|"|>}<tool_call|>'
GLM_CALL = "\n<think></think>\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>X</arg_value>\n</tool_call>"
MUSE_CALL = (
    ' to=weather<|message|><atem:function_calls>\n<atem:invoke name="weather">\n'
    '<atem:parameter name="city">X</atem:parameter>\n</atem:invoke>\n</atem:function_calls><|eot|>'
)
OSS_CALL = ' to=functions.weather<|channel|>commentary json<|message|>{"city": "X"}<|call|>'
OSS_THOUGHT = "<|channel|>analysis<|message|>Think<|end|><|start|>assistant<|channel|>final<|message|>"
MUSE_THOUGHT = " to=self<|message|>Think<|eom|><|start|>assistant to=user<|message|>"
ENDS = "<｜end▁of▁sentence｜>"
NO_THOUGHT = "<think>\n\n</think>\n\n"

IM = Look("<|im_start|>assistant\n", "<|im_end|>\n")
QWEN = replace(IM, call=f"{JSON_CALL}<|im_end|>\n")
QWEN3 = replace(
    IM,
    lead=NO_THOUGHT,
    later=("", "<|im_end|>\n"),
    first="",
    thought="<think>\nThink\n</think>\n\n",
    keeps_thought=False,
    call=f"{NO_THOUGHT}{JSON_CALL}<|im_end|>\n",
    late_call=f"{JSON_CALL}<|im_end|>\n",
)
QWEN3_5 = replace(
    IM,
    given=f"{IM.header}<think>\n",
    lead=NO_THOUGHT,
    later=("", "<|im_end|>\n"),
    goes_on="user",
    thought="<think>\nThink\n</think>\n\n",
    keeps_thought=False,
    call=f"{NO_THOUGHT}{XML_CALL}<|im_end|>\n",
    late_call=f"{XML_CALL}<|im_end|>\n",
    needs_user=True,
)
QWEN3_5_NOTHINK = replace(QWEN3_5, given=f"{IM.header}{NO_THOUGHT}")
QWEN3_8 = replace(QWEN3_5, later=None, keeps_thought=True)
QWEN3_TRAINING = replace(QWEN3, given=None, later=None, first=None, keeps_thought=True, marks=True)
QWEN3_5_TRAINING = replace(QWEN3_8, given=None, needs_user=False, marks=True)
ULTRA = replace(
    IM,
    given=f"{IM.header}<think>\n",
    lead="<think></think>",
    thought="<think>\nThink</think>",
    keeps_thought=False,
    call=f"<think></think>\n{XML_CALL}\n<|im_end|>\n",
)
ULTRA_TRAINING = replace(ULTRA, given=None, marks=True)
NEMOTRON = replace(ULTRA, thought="<think>\nThink\n</think>\n", late_thought="<think></think>\n")
NEMOTRON_TRAINING = replace(NEMOTRON, given=None, marks=True)
LFM = replace(IM, call="<|tool_call_start|>[weather(city='X')]<|tool_call_end|><|im_end|>\n")
LFM_2_5 = replace(LFM, thought="<think>Think</think>", keeps_thought=False, marks=True)
COHERE = Look("<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>", "<|END_OF_TURN_TOKEN|>")
COHERE2 = Look(f"{COHERE.header}<|START_RESPONSE|>", f"<|END_RESPONSE|>{COHERE.end}")
R1 = Look("<｜Assistant｜>", ENDS, call=DEEPSEEK_CALL, after_tool=("<｜tool▁outputs▁end｜>", ""))
V3 = replace(R1, call=f"{DEEPSEEK_CALL}<｜tool▁calls▁end｜>{ENDS}")
GEMMA = Look("<start_of_turn>model\n", "<end_of_turn>\n")
GEMMA4 = Look(
    "<|turn>model\n",
    "<turn|>\n",
    call=f"{GEMMA_CALL}<|tool_response>",
    after_tool=("<tool_response|>", ""),
    after_answer="",
)
GEMMA_THOUGHT = "<|channel>thought\nThink\n<channel|>"
GLM = Look(
    "<|assistant|>",
    "",
    lead="\n<think></think>\n",
    thought="\n<think>Think</think>\n",
    keeps_thought=False,
    call=GLM_CALL,
)
OSS = Look(
    "<|start|>assistant",
    "<|return|>",
    lead="<|channel|>final<|message|>",
    later=("<|channel|>final<|message|>", "<|end|>"),
    thought=OSS_THOUGHT,
    keeps_thought=False,
    call=OSS_CALL,
)
LLAMA = Look("<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>")
LLAMA_CALLS = replace(LLAMA, call='{"name": "weather", "parameters": {"city": "X"}}<|eot_id|>')
MUSE = Look("<|start|>assistant", "<|eot|>", lead=" to=user<|message|>", thought=MUSE_THOUGHT, call=MUSE_CALL)
PHI = Look("<|assistant|>\n", "<|end|>\n")
SMOL = Look("Assistant:", "<end_of_utterance>\n", lead=" ")
LLAVA = Look("", "</s>", lead=" ")


def marked(look: Look, header: str | None = None) -> Look:
    """The same where the template marks answers, from behind `header` on."""
    if header is None:
        return replace(look, marks=True)
    more = look.header.removeprefix(header)
    texts = {key: more + value for key in ("lead", "thought", "call") if (value := getattr(look, key)) is not None}
    later = look.later and (more + look.later[0], look.later[1])
    return replace(look, header=header, later=later, marks=True, **texts)


DEEPSEEK_MARKED = ("", "<｜tool▁outputs▁end｜>")
GEMMA4_LATE = replace(GEMMA4, thought=GEMMA_THOUGHT, keeps_thought=False)
LOOKS: dict[str, Look] = {
    "cohere": COHERE,
    "cohere_training": marked(COHERE),
    "cohere2": COHERE2,
    "cohere2_training": marked(COHERE2),
    "deepseek_r1_distill": R1,
    "deepseek_r1_distill_training": replace(marked(R1, ""), after_tool=DEEPSEEK_MARKED),
    "deepseekv3": V3,
    "deepseekv3_training": replace(marked(V3, ""), after_tool=DEEPSEEK_MARKED),
    "diffusion_gemma": replace(GEMMA4_LATE, after_tool=("<tool_response|>", GEMMA4.header)),
    "diffusion_gemma_training": replace(
        marked(GEMMA4_LATE), call=GEMMA_CALL, after_tool=(f"<tool_response|>{GEMMA4.header}", "")
    ),
    "gemma": GEMMA,
    "gemma_training": marked(GEMMA),
    "gemma3": GEMMA,
    "gemma3_training": marked(GEMMA),
    "gemma4": GEMMA4,
    "gemma4_v2": replace(GEMMA4, call=f"{GEMMA_CALL}<turn|>\n", after_tool=None),
    "gemma4_v3": GEMMA4,
    "gemma4_v4": GEMMA4,
    "gemma4_v5": GEMMA4_LATE,
    "glm4moe": GLM,
    "glm4moe_training": replace(marked(GLM), end="<|user|>", call=f"{GLM_CALL}<|observation|>"),
    "gptoss": OSS,
    "gptoss_training": marked(OSS, ""),
    "idefics3": SMOL,
    "idefics3_training": marked(SMOL),
    "lfm2": IM,
    "lfm2_training": marked(IM),
    "lfm2_2_5": LFM_2_5,
    "lfm2_2_5_v2": LFM_2_5,
    "lfm2_2_5_vl": LFM_2_5,
    "lfm2_v2": LFM,
    "lfm2_v2_training": marked(LFM),
    "llama3": LLAMA,
    "llama3_training": marked(LLAMA),
    "llama3_1": LLAMA_CALLS,
    "llama3_2": LLAMA_CALLS,
    "llava_next": LLAVA,
    "llava_next_training": marked(LLAVA),
    "muse_glimmer": MUSE,
    "muse_glimmer_training": marked(MUSE, ""),
    "nemotron_3_5_lightning": ULTRA,
    "nemotron_3_5_lightning_training": ULTRA_TRAINING,
    "nemotron_3_nano": NEMOTRON,
    "nemotron_3_nano_training": NEMOTRON_TRAINING,
    "nemotron_3_super": NEMOTRON,
    "nemotron_3_super_training": NEMOTRON_TRAINING,
    "nemotron_3_ultra": ULTRA,
    "nemotron_3_ultra_training": ULTRA_TRAINING,
    "phi3": PHI,
    "phi3_training": replace(marked(PHI), tail="<|im_end|>"),
    "phi3_5": PHI,
    "phi3_5_training": replace(marked(PHI), tail="<|im_end|>"),
    "qwen2_5": QWEN,
    "qwen2_5_training": marked(QWEN, "<|im_start|>assistant"),
    "qwen2_5_vl": IM,
    "qwen2_5_vl_training": marked(IM),
    "qwen3": QWEN3,
    "qwen3_training": QWEN3_TRAINING,
    "qwen3_5_nothink": QWEN3_5_NOTHINK,
    "qwen3_5_nothink_training": QWEN3_5_TRAINING,
    "qwen3_5_think": QWEN3_5,
    "qwen3_5_think_training": QWEN3_5_TRAINING,
    "qwen3_6": QWEN3_5,
    "qwen3_6_training": QWEN3_5_TRAINING,
    "qwen3_8": QWEN3_8,
    "qwen3_8_training": QWEN3_5_TRAINING,
    "qwen3_instruct_2507": QWEN,
    "qwen3_instruct_2507_training": marked(QWEN),
    "qwen3_vl": QWEN,
    "qwen3_vl_training": marked(QWEN),
    "smolvlm": SMOL,
    "smolvlm_training": marked(SMOL),
}

DEFAULT_SYSTEM = "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}" + CHATML
INST = "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
MARKDOWN = "### {{ m.role | capitalize }}:\n{{ m.content }}\n\n"
SPOKEN = "{{ m.role | capitalize }}: "
PROMPT = "{% if add_generation_prompt %}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
ASKS_SYSTEM = "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}"


def each(of_a_message: str, behind: str = "") -> str:
    """A template that shows each message `m` so."""
    return "{% for m in messages %}" + of_a_message + "{% endfor %}" + behind


OWN: dict[str, tuple[str, Look]] = {
    "chatml": (CHATML, IM),
    "default system": (DEFAULT_SYSTEM, IM),
    "llama2": (
        NO_SYSTEM + each(INST + "{% else %} {{ m.content }} {{ eos_token }}{% endif %}"),
        Look("", " <|im_end|>", " "),
    ),
    "mistral": (
        NO_SYSTEM + each(INST + "{% else %} {{ m.content }}{{ eos_token }}{% endif %}"),
        Look("", "<|im_end|>", " "),
    ),
    "alpaca": (
        each(MARKDOWN, PROMPT + "### Assistant:\n{% endif %}"),
        Look("### Assistant:\n", "\n\n"),
    ),
    "no prompt": (each(SPOKEN + "{{ m.content }}{{ eos_token }}\n"), Look("Assistant:", "<|im_end|>\n", " ")),
    "trims": (
        each(SPOKEN + "{{ m.content | trim }}{{ eos_token }}\n", PROMPT + "Assistant:{% endif %}"),
        Look("Assistant:", "<|im_end|>\n", " "),
    ),
    "ends the chat": (
        each(
            "<|{{ m.role }}|>{{ m.content }}<|end|>",
            PROMPT + "<|assistant|>{% else %}{{ eos_token }}{% endif %}",
        ),
        Look("<|assistant|>", "<|end|>"),
    ),
    "ends the chat alone": (
        each(SPOKEN + "{{ m.content }}\n", PROMPT + "Assistant:{% else %}{{ eos_token }}{% endif %}"),
        Look("Assistant:", "\n<|im_end|>", " ", later=(" ", "\n")),
    ),
    "asks for a system": (
        ASKS_SYSTEM + each("<|{{ m.role }}|>{{ m.content }}</s>", PROMPT + "<|assistant|>{% endif %}"),
        Look("<|assistant|>", "</s>"),
    ),
}
