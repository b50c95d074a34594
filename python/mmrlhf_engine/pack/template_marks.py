"""Marks of chat templates in texts that should hold none.

A text that was rendered by a template before would be rendered again, its marks doubled; and the
tokenizer takes a mark for one, wherever in a text it stands.
"""

from typing import Any

from mmrlhf_engine.sources.preferences.record import BadRecordError, Message

__all__ = ["check_marks", "marks_of"]

_OF_OTHER_TEMPLATES = (
    *("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|eot_id|>", "<start_of_turn>"),
    *("<end_of_turn>", "[INST]", "[/INST]", "<|user|>", "<|assistant|>"),
)
"""Marks of common templates; bare texts that hold them were rendered for another model."""


def marks_of(tokenizer: Any, rendered: str) -> tuple[str, ...]:
    """The special tokens that the template has written, and those that begin and end a text."""
    added = tokenizer.added_tokens_decoder.values()
    special = {*tokenizer.all_special_tokens, *(str(token) for token in added if token.special)}
    ends = {token for token in (tokenizer.bos_token, tokenizer.eos_token) if token}
    return tuple(sorted({mark for mark in special if mark in rendered} | ends))


def check_marks(messages: tuple[Message, ...], marks: tuple[str, ...], *, bare: bool) -> None:
    """Refuse messages whose texts hold marks; of ``bare`` texts, marks of any template.

    Raises:
        BadRecordError: one does.
    """
    wanted = (*marks, *_OF_OTHER_TEMPLATES) if bare else marks
    for message in messages:
        text = message.text
        found = next((mark for mark in wanted if mark in text), None)
        if found is not None:
            advice = "; --strings plain takes texts as they stand" if bare else ""
            raise BadRecordError(
                "template_mark_in_text",
                f"{found!r} in a text of the {message.role} is a mark of a chat template{advice}",
            )
