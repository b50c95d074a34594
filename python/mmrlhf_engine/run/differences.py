"""In which places two JSON values differ, for messages."""

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["differences"]


def differences(name: str, made: Any, here: Any) -> list[str]:
    """Each place in which two JSON values differ, with what it is in both."""
    if isinstance(made, Mapping) and isinstance(here, Mapping):
        prefix = f"{name}." if name else ""
        return [
            line
            for key in sorted({*made, *here})
            for line in differences(f"{prefix}{key}", made.get(key), here.get(key))
        ]
    if made == here:
        return []
    return [f"{name}: found {json.dumps(made)}, expected {json.dumps(here)}"]
