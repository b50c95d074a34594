"""Runs kernels in Triton's interpreter, in a process of its own that all tests share.

Whether a kernel is interpreted is decided when its decorator runs, and Triton's own library is
decorated when ``triton`` is first imported. So the choice holds for a whole process: switching it
in the test session would leave one half of Triton compiled and the other interpreted, and would
change what every later test imports. Here ``TRITON_INTERPRET=1`` is set for one child before it
starts. Calls travel to it over pipes; the session compares what comes back::

    sweep = interpreted("triton_sweep.sweep", hidden, weight, None, target, HeadOptions())
"""

import atexit
import contextlib
import functools
import io
import os
import subprocess
import sys
import traceback
from importlib import import_module
from pathlib import Path

import torch

BENCHES = Path(__file__).parents[1] / "benches"
LENGTH = 8
"""Bytes of the length before each message."""


class InterpretedError(Exception):
    """The call raised in the child; ``kind`` is the name of what it raised."""

    def __init__(self, kind, message, trace):
        super().__init__(f"{kind}: {message}\n{trace}")
        self.kind = kind
        self.message = message


def interpreted(call, *args, returning=None, **kwargs):
    """Call something in the child and return its result.

    ``call`` is a function of a module in this folder or in ``benches``, or ``<module>.<attribute>``
    of the package, as text: naming it does not import it here. The child works on copies:
    ``returning`` names a keyword argument that the call writes to, and the result is then a pair
    of what the call returned and that argument.
    """
    return start_interpreted(call, *args, returning=returning, **kwargs)()


def start_interpreted(call, *args, returning=None, **kwargs):
    """Like :func:`interpreted`, but return at once: calling what is returned waits for the result.

    The next call of either function has to come after that.
    """
    child = _child()
    _send(child.stdin, (call, args, kwargs, returning))

    def result():
        kind, result, *rest = _receive(child.stdout)
        if kind != "result":
            raise InterpretedError(kind, result, *rest)
        return result

    return result


@functools.cache
def _child():
    import mmrlhf_kernels

    package = Path(mmrlhf_kernels.__file__).parents[1]
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "TRITON_DEFAULT_FP_FUSION": "1",
        "MMRLHF_KERNELS": "triton",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(package), str(BENCHES)]),
    }
    child = subprocess.Popen(
        [sys.executable, "-W", "error", __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    atexit.register(_end, child)
    return child


def _end(child):
    with contextlib.suppress(OSError):
        child.stdin.close()
    child.wait()
    child.stdout.close()


def _send(pipe, message):
    buffer = io.BytesIO()
    torch.save(message, buffer)
    body = buffer.getvalue()
    pipe.write(len(body).to_bytes(LENGTH, "little") + body)
    pipe.flush()


def _receive(pipe):
    head = pipe.read(LENGTH)
    if len(head) < LENGTH:
        raise EOFError("the other end has closed")
    return torch.load(io.BytesIO(pipe.read(int.from_bytes(head, "little"))), weights_only=False)


def _answer(call, args, kwargs, returning):
    try:
        if isinstance(call, str):
            module, *attributes = call.split(".")
            call = functools.reduce(getattr, attributes, import_module(f"mmrlhf_kernels.{module}"))
        result = call(*args, **kwargs)
        return "result", result if returning is None else (result, kwargs[returning])
    except Exception as error:
        return type(error).__name__, str(error), traceback.format_exc()


def _serve():
    # What a kernel prints belongs to a person, not into the pipe.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    with contextlib.suppress(EOFError):
        while True:
            _send(answers, _answer(*_receive(sys.stdin.buffer)))


if __name__ == "__main__":
    _serve()
