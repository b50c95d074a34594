"""The Python of ``kernels/README.md``, so that tests and benches run what the page shows."""

import re
from pathlib import Path
from typing import Any

README = Path(__file__).parents[2] / "kernels" / "README.md"


def blocks() -> list[str]:
    """Every Python block of the page, in its order."""
    return re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)


def run(containing: str) -> dict[str, Any]:
    """Run the one block that contains a text; its names."""
    (block,) = (text for text in blocks() if containing in text)
    names: dict[str, Any] = {"__name__": "readme"}
    exec(compile(block, str(README), "exec"), names)
    return names
