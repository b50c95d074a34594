"""The Python of ``kernels/README.md``, so that tests run what the page shows."""

import re
from pathlib import Path

README = Path(__file__).parents[2] / "kernels" / "README.md"


def blocks() -> list[str]:
    """Every Python block of the page, in its order."""
    return re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)
