"""Rules that no linter holds: sizes, versions, names, what importing costs."""

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import mmrlhf_engine

ROOT = Path(__file__).parents[1]
FOLDERS = ("python", "kernels", "rust_core", "tests", "benches")
SOURCES = sorted(
    path
    for folder in FOLDERS
    for kind in ("py", "rs")
    for path in (ROOT / folder).rglob(f"*.{kind}")
    if "target" not in path.relative_to(ROOT).parts  # what cargo fuzz builds
)
LONGEST_FILE = 500
LONGEST_FUNCTION = 80


def functions(path):
    """(name, number of lines) of every function of a file, from ``def`` or ``fn`` to its end."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node.name, node.end_lineno - node.lineno + 1
        return
    # rustfmt closes a function with a brace at the indent of its `fn`.
    pattern = r"^( *)(?:pub(?:\([a-z]+\))? )?(?:const |unsafe )*fn (\w+)[\s\S]*?^\1\}"
    for match in re.finditer(pattern, text, re.MULTILINE):
        yield match[2], match[0].count("\n") + 1


def test_there_is_something_to_look_at():
    assert len(SOURCES) > 30
    assert any(path.suffix == ".rs" for path in SOURCES)


def test_no_file_is_too_long():
    long = {str(p): n for p in SOURCES if (n := len(p.read_text().splitlines())) > LONGEST_FILE}
    assert long == {}


def test_no_function_is_too_long():
    long = {
        f"{path.relative_to(ROOT)}:{name}": length
        for path in SOURCES
        for name, length in functions(path)
        if length > LONGEST_FUNCTION
    }
    assert long == {}


def test_the_version_is_the_same_in_every_place():
    workspace = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]
    kernels = tomllib.loads((ROOT / "kernels" / "pyproject.toml").read_text())["project"]
    engine = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert mmrlhf_engine.__version__ == workspace["version"] == kernels["version"]
    assert f"mmrlhf-kernels=={kernels['version']}" in engine["optional-dependencies"]["train"]


def test_kernels_is_not_mistaken_for_the_package_of_that_name():
    spec = importlib.util.find_spec("kernels")
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    assert str(ROOT / "kernels") not in places
    assert not (ROOT / "kernels" / "__init__.py").exists()


@pytest.mark.parametrize(
    "arguments", [["--help"], ["curate", "--help"], ["pack", "--help"], ["config"]]
)
def test_the_command_line_imports_nothing_heavy(arguments):
    program = (
        "import sys\n"
        "from mmrlhf_engine.cli import cli\n"
        f"cli({arguments!r}, standalone_mode=False)\n"
        "heavy = {'torch', 'faiss', 'transformers', 'open_clip', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_stage_file_opens_with_its_idea():
    from mmrlhf_engine.pipeline import STAGES

    for name, stage in STAGES.items():
        module = sys.modules[stage.run.__module__]
        assert stage.name == name == module.__name__.rpartition(".")[2]
        assert module.STAGE is stage
        first = (module.__doc__ or "").strip().splitlines()[0]
        assert len(first) > 20, f"{name}: {first!r}"


def test_the_compiled_core_is_imported_by_the_modules_that_need_it_alone():
    importers = set()
    for path in (ROOT / "python").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in getattr(node, "names", [])]
            if "_core" in f"{getattr(node, 'module', '')} {names}":
                importers.add(path.relative_to(ROOT / "python" / "mmrlhf_engine").parts[0])
    assert "curate" in importers
    assert importers <= {"collect", "curate", "pack", "run", "shards", "sources"}
