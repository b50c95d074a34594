"""Settings: strict, explained, and equal after a round trip through YAML."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf_engine.errors import ConfigError
from mmrlhf_engine.pipeline import CurateConfig
from mmrlhf_engine.run.config import load_config, parse_bytes, to_yaml


def test_overrides_lie_over_the_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("seed: 3\nselect: {count: 10}\n")
    config = load_config(CurateConfig, file, ["select.count=500", "dedup.max_per_image=null"])
    assert (config.seed, config.select.count, config.dedup.max_per_image) == (3, 500, None)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("select.cuont=5", "did you mean count"),
        ("sleect.count=5", "did you mean select"),
        ("select.count=-1", "select.count: found -1"),
        ("select.count=many", "select.count: found 'many'"),
        ("select", "expected key=value"),
        ("seed.deeper=1", "seed: found {'deeper': 1}"),
        ("dedup.policy=[", "not valid YAML"),
    ],
)
def test_a_mistake_is_explained(override, expected):
    with pytest.raises(ConfigError) as raised:
        load_config(CurateConfig, overrides=[override])
    assert expected in str(raised.value)


def test_a_file_that_is_no_mapping_is_named(tmp_path):
    file = tmp_path / "list.yaml"
    file.write_text("- 1\n- 2\n")
    with pytest.raises(ConfigError, match=r"list\.yaml: found list, expected a mapping"):
        load_config(CurateConfig, file)


def test_resolved_settings_survive_yaml():
    config = load_config(CurateConfig, overrides=["seed=7", "embed.encoder=lite0", "memory=4G"])
    assert CurateConfig.model_validate(yaml.safe_load(to_yaml(config))) == config


@given(
    st.integers(1, 2**20), st.sampled_from([("", 0), ("k", 1), ("M", 2), ("GiB", 3), (" tb", 4)])
)
def test_sizes_are_powers_of_1024(number, unit):
    suffix, power = unit
    assert parse_bytes(f"{number}{suffix}") == number * 1024**power


@pytest.mark.parametrize("text", ["", "0", "-1G", "4 X", "G"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ConfigError, match="expected a size"):
        parse_bytes(text)
