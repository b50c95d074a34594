"""Answers of a model that another process serves by the HTTP interface of OpenAI, as vLLM does.

A prompt of text is sent as its token ids (``/completions``), which servers take as they are. One
with pictures is sent as a message (``/chat/completions``), and the server lays it out itself.
"""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from mmrlhf_engine.errors import ConfigError, InputError, StageError
from mmrlhf_engine.models.generation import SamplingSettings
from mmrlhf_engine.run.config import Section

__all__ = ["Completion", "EndpointSettings", "complete"]

_AGAIN = frozenset({408, 409, 429, 500, 502, 503, 504})
"""Answers of a server that may be different a moment later."""


class EndpointSettings(Section):
    """A server of a model."""

    url: str
    """Up to the version, such as ``http://localhost:8000/v1``."""
    model: str
    """The name under which the server knows the model."""
    key: str = "OPENAI_API_KEY"
    """The environment variable that holds the key; it may be unset for a server without keys."""
    concurrency: PositiveInt = 32
    """Requests that are open at once."""
    timeout: PositiveFloat = 600.0
    """Seconds that a request may take."""
    retries: NonNegativeInt = 5
    """How often a request is repeated that failed for the moment, after 1, 2, 4, ... seconds."""


@dataclass(frozen=True)
class Completion:
    """One answer."""

    text: str
    """Without the token that ended it."""
    finish: str
    """``stop`` or ``length``."""
    logp: float | None
    """Sum of the log-probabilities of its tokens; None where the server gives none."""


def complete(
    prompts: Sequence[Sequence[int] | list[dict[str, Any]]],
    endpoint: EndpointSettings,
    sampling: SamplingSettings,
    seeds: Sequence[int],
) -> Iterator[list[Completion]]:
    """The answers to each prompt, in order.

    Args:
        prompts: Token ids, or messages as the interface has them.
        endpoint: The server.
        sampling: How answers are drawn; ``top_k`` is sent where it is not 0, which not all servers
            take.
        seeds: Of each prompt.

    Raises:
        ConfigError: the server refuses the key, the model or a setting.
        InputError: it refuses a prompt.
        StageError: it cannot be reached, or goes on failing.
    """
    bodies = [
        _body(prompt, endpoint, sampling, seed) for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    with ThreadPoolExecutor(endpoint.concurrency) as pool:
        for path, answer in pool.map(lambda one: (one[0], _post(endpoint, *one)), bodies):
            yield [_completion(choice, path) for choice in _choices(answer, sampling.samples)]


def _body(
    prompt: Any, endpoint: EndpointSettings, sampling: SamplingSettings, seed: int
) -> tuple[str, dict[str, Any]]:
    body: dict[str, Any] = {
        "model": endpoint.model,
        "n": sampling.samples,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_new_tokens,
        "seed": seed % 2**31,
    }
    if sampling.top_k:
        body["top_k"] = sampling.top_k
    if prompt and isinstance(prompt[0], Mapping):
        return "chat/completions", {**body, "messages": prompt, "logprobs": True}
    return "completions", {**body, "prompt": [int(one) for one in prompt], "logprobs": 1}


def _post(endpoint: EndpointSettings, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The answer of the server; asked again where it fails for the moment."""
    address = f"{endpoint.url.rstrip('/')}/{path}"
    headers = {"Content-Type": "application/json"}
    if os.environ.get(endpoint.key):
        headers["Authorization"] = f"Bearer {os.environ[endpoint.key]}"
    request = urllib.request.Request(address, json.dumps(body).encode(), headers)
    for attempt in range(endpoint.retries + 1):
        try:
            with urllib.request.urlopen(request, timeout=endpoint.timeout) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except urllib.error.HTTPError as error:
            problem = f"{error.code}: {error.read().decode('utf-8', 'replace')[:300]}"
            if error.code not in _AGAIN:
                raise _refused(address, error.code, problem, endpoint) from None
        except (urllib.error.URLError, TimeoutError, ConnectionError, ValueError) as error:
            problem = str(getattr(error, "reason", error))
        if attempt < endpoint.retries:
            time.sleep(2**attempt)
    raise StageError(
        f"{address}: {problem}, after {endpoint.retries + 1} attempts",
        hint="is the server running? the same command goes on where it was",
    )


def _refused(address: str, code: int, problem: str, endpoint: EndpointSettings) -> Exception:
    if code in (401, 403):
        hint = f"set the key in the environment variable {endpoint.key}"
        return ConfigError(f"{address}: {problem}", hint=hint)
    if code == 404:
        hint = f"is {endpoint.model!r} the name of a model there, and does the url end in /v1?"
        return ConfigError(f"{address}: {problem}", hint=hint)
    return InputError(f"{address}: {problem}", hint="the server does not take this request")


def _choices(answer: Mapping[str, Any], samples: int) -> list[Mapping[str, Any]]:
    choices = answer.get("choices")
    if not isinstance(choices, list) or len(choices) != samples:
        found = f"{len(choices)} answers" if isinstance(choices, list) else "no choices"
        raise StageError(f"the server gave {found}, expected {samples}")
    return choices


def _completion(choice: Mapping[str, Any], path: str) -> Completion:
    logs = choice.get("logprobs") or {}
    if path == "completions":
        text, values = choice.get("text"), logs.get("token_logprobs")
    else:
        text = (choice.get("message") or {}).get("content")
        content = logs.get("content")
        values = None if content is None else [one.get("logprob") for one in content]
    known = values is not None and all(isinstance(value, int | float) for value in values)
    finish = "length" if choice.get("finish_reason") == "length" else "stop"
    return Completion(str(text or ""), finish, float(sum(values)) if known and values else None)
