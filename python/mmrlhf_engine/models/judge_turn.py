"""The turn that asks for a critique: what a chat template puts between an answer and a critique.

A conversation goes on after the answer: the user asks for a judgement, the assistant gives it. What
the template writes between and behind is found by rendering an example and looking what is there
beyond the answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mmrlhf_engine.errors import ConfigError

__all__ = ["INSTRUCTION", "JudgeTurn", "critique_tokens", "judge_turn"]

INSTRUCTION = (
    "Judge the answer above as an impartial expert. Say whether it is correct, clear and complete, "
    "what is good about it, and what should be improved."
)
"""What the user asks after an answer; after the critique prompt of MM-RLHF (arXiv 2502.10391)."""

_ANSWER, _CRITIQUE = "A small cat.", "The answer is right."


@dataclass(frozen=True)
class JudgeTurn:
    """Token ids around a critique."""

    opening: npt.NDArray[np.uint32]
    """uint32 [a], between the end of the answer's turn and the critique."""
    closing: npt.NDArray[np.uint32]
    """uint32 [b], behind the critique."""


def judge_turn(tokenizer: Any, instruction: str = INSTRUCTION) -> JudgeTurn:
    """The tokens around a critique, by the chat template of a tokenizer.

    Args:
        tokenizer: Of transformers, with a chat template.
        instruction: What the user asks after the answer.

    Raises:
        ConfigError: the template does not render such a conversation, or its tokens do not add up.
    """
    turns = [("user", "What is this?"), ("assistant", _ANSWER), ("user", instruction)]
    answered = _rendered(tokenizer, turns[:2])
    asked = _rendered(tokenizer, turns, opening=True)
    judged = _rendered(tokenizer, [*turns, ("assistant", _CRITIQUE)])
    before, found, closing = judged.rpartition(_CRITIQUE)
    # Where a conversation goes on with other white space than the generation prompt has.
    opening = before[len(answered) :]
    same = before.startswith(answered) and "".join(asked.split()) == "".join(before.split())
    if not found or not same or instruction not in opening:
        raise ConfigError(
            "chat template: a second question does not follow an answer as it was, so critiques "
            f"cannot follow answers; after the answer it has {before[len(answered) :][:80]!r}",
            hint="critiques=none, or another template",
        )
    first, middle, critique, last, whole = _encoded(
        tokenizer, [answered, opening, _CRITIQUE, closing, judged]
    )
    if [*first, *middle, *critique, *last] != whole:
        raise ConfigError(
            "chat template: the tokens of answer, request and critique do not add up to those of "
            "the conversation",
            hint="turns must begin and end with special tokens; another template",
        )
    return JudgeTurn(np.array(middle, np.uint32), np.array(last, np.uint32))


def critique_tokens(tokenizer: Any, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
    """The ids of critiques by themselves, without special tokens."""
    return [np.array(ids, np.uint32) for ids in _encoded(tokenizer, texts)]


def _encoded(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return ids


def _rendered(tokenizer: Any, turns: Sequence[tuple[str, str]], *, opening: bool = False) -> str:
    """A conversation as text, whether the template takes text or parts."""
    import jinja2

    problem: Exception | None = None
    for as_parts in (False, True):
        messages = [
            {"role": role, "content": [{"type": "text", "text": text}] if as_parts else text}
            for role, text in turns
        ]
        try:
            found = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=opening
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            problem = error
            continue
        if all(text in found for _, text in turns) and "'type'" not in found:
            return str(found)
    raise ConfigError(
        "chat template: it does not render two questions and their answers: "
        f"{problem or 'text is lost'}",
        hint="critiques=none, or another template",
    )
