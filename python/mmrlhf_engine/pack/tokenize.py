"""Messages to token ids: the prompt once, each response as what the template puts after it.

1. The prompt is rendered with the opening of an answer, the whole conversation with the answer in
   it; the text of the response is what the second has more, end of turn included.
2. Both are tokenised, many texts at once, by the Rust tokenizers. The tokens of the prompt and of
   the response must add up to those of the whole conversation. Where a token would span the seam
   (an answer that begins with a line break), the response is tokenised by itself, as a model that
   continues the prompt would write it; these are counted.
3. A picture is one id, ``SENTINEL``, wherever the template puts it; how many tokens it becomes is
   for the loader to say, which knows the model.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmrlhf_engine.errors import ConfigError
from mmrlhf_engine.pack.chat_template import (
    SLOT,
    ChatTemplate,
    Conversation,
    Texts,
    seam,
)
from mmrlhf_engine.shards.tokenizer import SENTINEL, load_fast_tokenizer, sha256_of_tokenizer
from mmrlhf_engine.sources.preferences.record import BadRecordError

__all__ = [
    "SENTINEL",
    "ChatTokenizer",
    "TokenizedConversation",
    "load_tokenizer",
]


# What pack itself gives to apply_chat_template.
_OWN_ARGUMENTS = frozenset(
    {"messages", "conversation", "tools", "chat_template", "tokenize", "add_generation_prompt"}
    | {"continue_final_message", "documents", "padding", "truncation", "max_length"}
    | {"return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs"}
)


@dataclass(frozen=True)
class TokenizedConversation:
    """Token ids, uint32, SENTINEL for each image."""

    prompt: np.ndarray
    responses: list[np.ndarray | BadRecordError]
    prompt_text: str


class ChatTokenizer:
    """A fast tokenizer with its chat template; ``identity`` is what the shards record of them."""

    def __init__(
        self,
        tokenizer: Any,
        template: str | None,
        *,
        identity: dict[str, Any],
        image_mark: str | None,
        strings: str,
        template_args: Mapping[str, Any] | None = None,
    ) -> None:
        self.identity = identity
        self.tokenised_apart = 0
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        # A tokenizer.json may carry the limits of the model it was trained for.
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.add_special_tokens([SLOT])
        self._slot_id = self._backend.token_to_id(SLOT)
        self._template = ChatTemplate(tokenizer, template, image_mark, strings, template_args)
        if template is not None:
            self._choose_opening()

    @property
    def opens_as_conversation(self) -> bool:
        """Whether an answer is opened as in a conversation, not by the generation prompt."""
        return self._template.opens_as_conversation

    def tokenize(
        self, conversations: Sequence[Conversation]
    ) -> list[TokenizedConversation | BadRecordError]:
        """Tokenise many conversations at once.

        Returns:
            One item a conversation: its ids, or why the prompt cannot be used; inside it, one item
            a response.
        """
        texts = [self._template.render(conversation) for conversation in conversations]
        ids = self._encode_all(texts)
        return [
            text if isinstance(text, BadRecordError) else self._tokenized(text, ids)
            for text in texts
        ]

    def encode(self, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
        """Plain ids of texts; ``special`` adds what the tokenizer puts around a text."""
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=special)
        return [encoding.ids for encoding in encodings]

    def _encode_all(self, texts: Sequence["Texts | BadRecordError"]) -> dict[Any, list[int]]:
        """(plain, text) -> ids of every text that was rendered."""
        wanted: dict[tuple[bool, str], None] = {}
        for text in texts:
            if isinstance(text, Texts):
                for one in (text.prompt, *text.whole):
                    if isinstance(one, str):
                        wanted[text.plain, one] = None
        ids: dict[Any, list[int]] = {}
        for plain in (False, True):
            keys = [key for key in wanted if key[0] == plain]
            if keys:
                encoded = self.encode([key[1] for key in keys], special=plain)
                ids.update(zip(keys, encoded, strict=True))
        return ids

    def _tokenized(self, text: Texts, ids: dict[Any, list[int]]) -> TokenizedConversation:
        prompt = ids[text.plain, text.prompt]
        responses: list[np.ndarray | BadRecordError] = []
        for whole in text.whole:
            if isinstance(whole, BadRecordError):
                responses.append(whole)
                continue
            both = ids[text.plain, whole]
            if both[: len(prompt)] == prompt:
                answer = both[len(prompt) :]
            else:
                self.tokenised_apart += 1
                answer = self.encode([whole[len(text.prompt) :]])[0]
            responses.append(self._array(answer))
        shown = text.prompt.replace(SLOT, "<image>")
        return TokenizedConversation(self._array(prompt), responses, shown)

    def _choose_opening(self) -> None:
        """The opening of an answer with which the tokens of prompt and answer add up.

        It is tried in a plain example, and in one that reasons, where the generation prompt begins
        the reasoning.

        Raises:
            ConfigError: there is none.
        """
        prompt, whole = self._template.probe()
        if self._adds_up(prompt, whole):
            return
        if whole.startswith(prompt) and self._adds_up(*self._template.probe("It has fur.")):
            return
        self._template.opens_as_conversation = True
        as_conversation, whole = self._template.probe()
        same = "".join(prompt.split()) == "".join(as_conversation.split())
        if not same or not self._adds_up(as_conversation, whole):
            raise ConfigError(
                "chat template: the tokens of prompt and answer do not add up to those of the "
                f"conversation: {seam(prompt, whole)}",
                hint="the opening of an answer (add_generation_prompt) must be how a full "
                "conversation goes on; an argument of the template may say so (--template-arg "
                "enable_thinking=false), or another template (--chat-template FILE)",
            )

    def _adds_up(self, prompt: str, whole: str) -> bool:
        first, both = self.encode([prompt, whole])
        return whole.startswith(prompt) and both[: len(first)] == first

    def _array(self, ids: list[int]) -> np.ndarray:
        array = np.array(ids, dtype=np.uint32)
        array[array == self._slot_id] = SENTINEL
        return array


def load_tokenizer(
    name: str,
    *,
    chat_template: str | None,
    image_mark: str | None,
    strings: str,
    template_args: Mapping[str, Any] | None = None,
) -> ChatTokenizer:
    """A tokenizer by name or folder, with its chat template or the one in the file given.

    Raises:
        ConfigError: there is no such tokenizer, it is not a fast one, it has no chat template, it
            lacks the token of an image, or the template does not know an argument.
        MissingExtraError: transformers is not installed.
    """
    tokenizer = load_fast_tokenizer(name, needed_for="pack")
    template = _template(tokenizer, name, chat_template)
    if template is None and strings != "plain":
        raise ConfigError(
            f"--tokenizer {name}: it has no chat template",
            hint="give one with --chat-template FILE, or --strings plain for bare text",
        )
    if image_mark and len(tokenizer.tokenize(image_mark)) != 1:
        raise ConfigError(
            f"--tokenizer {name}: {image_mark!r} is no token of it, as the image rule needs",
            hint="choose the --image-rule of this model, or none",
        )
    _check_arguments(template_args or {}, template)
    identity = {
        "name": name if not Path(name).is_dir() else Path(name).resolve().name,
        "sha256": sha256_of_tokenizer(tokenizer, name),
        "vocabulary": len(tokenizer),
        "chat_template_sha256": hashlib.sha256((template or "").encode()).hexdigest(),
    }
    if template_args:
        identity["template_args"] = dict(template_args)
    return ChatTokenizer(
        tokenizer,
        template,
        identity=identity,
        image_mark=image_mark,
        strings=strings,
        template_args=template_args,
    )


def _check_arguments(arguments: Mapping[str, Any], template: str | None) -> None:
    for name in arguments:
        if name in _OWN_ARGUMENTS or not re.search(rf"\b{re.escape(name)}\b", template or ""):
            raise ConfigError(
                f"--template-arg {name}: the chat template has no such argument",
                hint="the name of a variable that it reads, such as enable_thinking",
            )


def _template(tokenizer: Any, name: str, file: str | None) -> str | None:
    """The template of the file given, of a processor in the same folder, or of the tokenizer."""
    if file is not None:
        try:
            return Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--chat-template {file}: {error}") from None
    of_processor = Path(name) / "chat_template.json"
    if of_processor.is_file():
        template = json.loads(of_processor.read_text(encoding="utf-8")).get("chat_template")
        return str(template) if template else None
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return str(template) if template else None
