"""An edited stage is not "finished": the fingerprint follows the code it is made of."""

import pytest

from mmrlhf_engine.run import code_hash as module
from mmrlhf_engine.run.code_hash import code_hash, project_imports


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A project of its own: ``stage`` imports ``helper``, which imports ``deep`` in a function."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "__init__.py").write_text("from project import stage\n")
    (folder / "stage.py").write_text("import json\nfrom project.helper import work\n")
    (folder / "helper.py").write_text("def work():\n    from project import deep\n")
    (folder / "deep.py").write_text("VALUE = 1\n")
    (folder / "other.py").write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(module, "_PACKAGES", ("project",))
    yield folder
    clear()


def clear():
    module.code_hash.cache_clear()
    module._file_of.cache_clear()


def hash_now():
    clear()
    return code_hash("project.stage")


def test_a_line_edited_in_any_imported_module_changes_the_hash(package):
    assert project_imports("project.stage") == ["project.deep", "project.helper", "project.stage"]
    before = hash_now()
    for name in ("stage", "helper", "deep"):
        file = package / f"{name}.py"
        text = file.read_text()
        file.write_text(text + "# edited\n")
        assert hash_now() != before, name
        file.write_text(text)
    (package / "other.py").write_text("VALUE = 2\n")
    assert hash_now() == before


def test_every_stage_is_made_of_its_own_modules_and_the_core():
    from mmrlhf_engine.pipeline import STAGES

    clear()
    for stage in STAGES.values():
        modules = project_imports(stage.run.__module__)
        assert stage.run.__module__ in modules
        assert "mmrlhf_engine.pipeline" not in modules
        assert not any(name.startswith("mmrlhf_engine.cli") for name in modules)
    assert "mmrlhf_engine._core" in project_imports("mmrlhf_engine.curate.dedup")
    assert "mmrlhf_engine.models.encoder" in project_imports("mmrlhf_engine.curate.embed")
    hashes = {code_hash(stage.run.__module__) for stage in STAGES.values()}
    assert len(hashes) == len(STAGES)
