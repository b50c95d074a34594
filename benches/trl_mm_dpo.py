"""Fifty steps of MM-DPO in TRL's trainer and in a bare loop: two curves side by side.

Needs TRL, which is not among the requirements of this project::

    pip install trl datasets
    python benches/trl_mm_dpo.py
"""

import argparse
import importlib.util
import sys
import tempfile
from pathlib import Path

from heads.training import LN2, bare_loop


def main() -> int:
    """Train twice, print both curves; the exit code says whether they agree."""
    parser = argparse.ArgumentParser(description="MM-DPO inside TRL's trainer and in a bare loop")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--tolerance", type=float, default=1e-4, help="of the losses, absolute")
    arguments = parser.parse_args()
    if importlib.util.find_spec("trl") is None:
        print("trl_mm_dpo needs TRL; hint: pip install trl datasets", file=sys.stderr)
        return 2
    from heads.trl_trainer import train_in_trl

    with tempfile.TemporaryDirectory() as folder:
        inside = train_in_trl(arguments.steps, Path(folder))
    bare = bare_loop(arguments.steps)
    print("step  loss in TRL  loss bare  preference in TRL  preference bare")
    for step, (a, b) in enumerate(zip(inside, bare, strict=True)):
        print(
            f"{step:4d}  {a.loss:11.6f}  {b.loss:9.6f}"
            f"  {a.preference_loss:17.6f}  {b.preference_loss:15.6f}"
        )
    apart = max(abs(a.loss - b.loss) for a, b in zip(inside, bare, strict=True))
    begin = abs(inside[0].preference_loss - LN2)
    print(f"largest difference of the losses {apart:.2e}; first preference loss - ln 2 {begin:.1e}")
    return 0 if apart < arguments.tolerance and begin < 1e-6 else 1


if __name__ == "__main__":
    sys.exit(main())
