"""The errors of the core arrive as one tree of Python exceptions."""

import errno
import pickle
import subprocess
import sys

import pyarrow as pa
import pytest

from mmrlhf_engine import _core, errors


def caught(kind: str) -> BaseException:
    with pytest.raises(BaseException) as raised:  # noqa: PT011
        _core.raise_for_test(kind)
    return raised.value


@pytest.mark.parametrize(
    ("kind", "exception", "message"),
    [
        ("invalid input", errors.InputError, "rows: found 3, expected 4"),
        ("corrupt data", errors.CorruptDataError, "a.arrow: rows: found 3, expected 4"),
        ("conflict", errors.ConflictError, "a.arrow: found somebody writing, expected nobody"),
        ("io", errors.FileError, "a.arrow: No space left on device"),
        ("missing", errors.FileMissingError, "a.arrow: entity not found"),
        ("denied", errors.FileDeniedError, "a.arrow: permission denied"),
        ("internal", errors.InternalError, "internal error: rows: 3 of 2"),
    ],
)
def test_each_kind_has_its_exception(kind, exception, message):
    error = caught(kind)
    assert type(error) is exception
    assert isinstance(error, errors.MmrlhfError)
    assert str(error).startswith(message)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_panic_is_an_internal_error_that_asks_for_a_report(capfd):
    error = caught("panic")
    assert type(error) is errors.InternalError
    assert str(error).startswith("internal error: panic: as asked for\n")
    assert "report this" in error.hint
    assert errors.describe_error(error) is None, "a defect keeps its traceback"
    assert "panicked at" in capfd.readouterr().err


def test_an_interrupt_is_python_s_own():
    assert type(caught("interrupted")) is KeyboardInterrupt


def test_errors_of_files_are_those_of_the_operating_system_too():
    full = caught("io")
    assert isinstance(full, OSError)
    assert full.errno == errno.ENOSPC
    assert isinstance(caught("missing"), FileNotFoundError)
    assert isinstance(caught("denied"), PermissionError)
    with pytest.raises(FileNotFoundError):
        _core.verify_dataset("/nowhere", None, False)


def test_the_hint_is_apart_from_the_message():
    error = caught("corrupt data")
    assert error.args == ("a.arrow: rows: found 3, expected 4",)
    assert error.hint == "copy it again"
    assert str(error).endswith("\n\nhint: copy it again")


def test_the_first_error_may_come_from_any_thread():
    program = """if True:
        from concurrent.futures import ThreadPoolExecutor
        from mmrlhf_engine import _core

        def kind(_):
            try:
                _core.raise_for_test("conflict")
            except Exception as error:
                return type(error).__name__

        with ThreadPoolExecutor(8) as pool:
            print(set(pool.map(kind, range(32))))
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "{'ConflictError'}\n", done.stderr


def test_arrow_types_are_told_in_words():
    lists = pa.array([[1.5]], pa.list_(pa.float64()))
    with pytest.raises(errors.InputError) as raised:
        _core.read_records(lists, {}, 1)
    assert str(raised.value) == (
        "records: found a list of 64-bit floats (list), expected bytes (large_binary)"
    )
    with pytest.raises(errors.InputError) as raised:
        _core.invert(pa.array(["a"]), 3, seed=1, epoch=0, stream=0)
    assert str(raised.value).endswith("found text (string), expected unsigned 64-bit integer")


def test_errors_need_no_extension():
    program = "import mmrlhf_engine.errors, sys; print('mmrlhf_engine._core' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
