"""Chat templates that treat a conversation as those of released models do.

They are written for these tests: what matters is where white space, images and the opening of an
answer stand, not the wording of a model's tools or system text.
"""

_IMAGES = (
    "{% for part in message.content %}{% if part.type == 'image' %}{{ %s }}{% endif %}{% endfor %}"
)
_TEXTS = (
    "{% for part in message.content %}{% if part.type == 'text' %}{{ %s }}{% endif %}{% endfor %}"
)

LLAVA_ONEVISION = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + ' ' }}"
    + _IMAGES.replace("%s", "'<image>'")
    + _TEXTS.replace("%s", "'\\n' + part.text")
    + "{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The role line ends in a blank, a text begins with a line break; the opening has no blank."""

LLAVA = (
    "{% for message in messages %}"
    "{% if message.role != 'system' %}{{ message.role.upper() + ': ' }}{% endif %}"
    + _IMAGES.replace("%s", "'<image>\\n'")
    + _TEXTS.replace("%s", "part.text + ' '")
    + "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""LLaVA-1.5 and LLaVA-NeXT with Vicuna: no marks of their own, the opening has no blank."""

QWEN2_VL = (
    "{% for message in messages %}{% if loop.first and message.role != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message.role }}\n{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}{% if part.type == 'image' or 'image' in part %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in part %}{{ part.text }}"
    "{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

GEMMA3 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{% set before = (messages[0].content if messages[0].content is string "
    "else messages[0].content[0].text) + '\n\n' %}{% set turns = messages[1:] %}"
    "{% else %}{% set before = '' %}{% set turns = messages %}{% endif %}"
    "{% for message in turns %}"
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' "
    "+ (before if loop.first else '') }}"
    "{% if message.content is string %}{{ message.content | trim }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}{{ '<start_of_image>' }}"
    "{% elif part.type == 'text' %}{{ part.text | trim }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

INTERNVL = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

QWEN3 = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    "<|im_end|>\n{% endif %}"
    "{% for message in messages %}"
    "{% set content = message.content if message.content is string else '' %}"
    "{% if message.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ content }}\n"
    "</tool_response><|im_end|>\n"
    "{% elif message.role != 'assistant' %}<|im_start|>{{ message.role }}\n"
    "{{ content }}<|im_end|>\n"
    "{% else %}<|im_start|>assistant\n"
    "{% if loop.last %}<think>\n{{ (message.reasoning_content or '').strip('\n') }}\n</think>\n\n"
    "{% endif %}{{ content.lstrip('\n') }}"
    "{% for call in message.tool_calls or [] %}\n<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n'
    "</tool_call>{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% else %}<think>\nLet me think.{% endif %}{% endif %}"
)
"""Reasons by default: without ``enable_thinking=False`` the opening is no part of an answer."""
