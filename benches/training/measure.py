"""One measurement in a process of its own: ``python measure.py '{"what": "steps", ...}'``.

Prints one line of JSON. ``steps`` alternates the contenders, so that each ratio is of two runs side
by side; ``memory`` and ``first`` are of one contender.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any


def measure(request: dict[str, Any]) -> Any:
    """Dispatch by ``what``."""
    from training import first, rounds
    from training.prepare import prepare

    kinds = {
        "prepare": prepare,
        "steps": rounds.steps,
        "memory": rounds.memory,
        "first": first.first_step,
    }
    return kinds[request["what"]](request)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import torch

    torch.set_num_threads(1)
    print(json.dumps(measure(json.loads(sys.argv[1]))), flush=True)
    os._exit(0)
