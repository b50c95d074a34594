"""Wrong arguments of a torch dataset are refused, with what is expected."""

import itertools

import pytest
from torch.utils.data import DataLoader

from load_data import plan, write
from mmrlhf_engine import Budget, PreferenceDataset, PreferenceLoader
from mmrlhf_engine.errors import ConfigError, InputError
from test_torch_dataset import PACKS, dataset, names


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write(tmp_path_factory.mktemp("preferences") / "set", queries=150, text_only=True)


def test_a_state_of_other_steps_is_refused_with_what_goes_on(path):
    *_, batch = itertools.islice(dataset(path), PACKS)
    for refused in (
        lambda: dataset(path, packs_per_step=2, state=batch.cursor),
        lambda: dataset(path, packs_per_step=2).load_state_dict(batch.cursor),
    ):
        with pytest.raises(InputError, match="found packs_per_step 6, expected") as raised:
            refused()
        assert raised.value.hint.startswith("packs_per_step=6 goes on")
    with pytest.raises(InputError, match="found seed 0, expected seed 1") as raised:
        dataset(path, seed=1, state=batch.cursor)
    assert raised.value.hint is None
    with pytest.raises(InputError, match="expected the JSON of a cursor"):
        PreferenceDataset(path, 140, state="step 3")
    with pytest.raises(InputError, match="state: found int, expected what state_dict"):
        PreferenceDataset(path, 140, state=3)


def test_wrong_settings_are_clear_errors(path):
    with pytest.raises(ConfigError, match=r"found tokns, expected settings among .*window"):
        PreferenceDataset(path, tokns=16)
    with pytest.raises(ConfigError, match="tokens and budget: found none, expected one"):
        PreferenceDataset(path)
    with pytest.raises(ConfigError, match="tokens and budget: found both, expected one"):
        PreferenceDataset(path, 10, budget=Budget(images=1))
    with pytest.raises(ConfigError, match=r"budget\.tokens: found 0"):
        PreferenceDataset(path, 0)
    with pytest.raises(ConfigError, match="window: found -1"):
        PreferenceDataset(path, 10, window=-1)
    with pytest.raises(InputError, match="rank 1 and world_size None, expected both or none"):
        PreferenceDataset(path, 10, rank=1)
    with pytest.raises(InputError, match="threads: found -1, expected at least 0"):
        PreferenceDataset(path, 1000, threads=-1)
    with pytest.raises(InputError, match="threads: found '2', expected a whole number"):
        PreferenceDataset(path, 1000, threads="2")
    with pytest.raises(InputError, match="path: found None, expected the folder"):
        PreferenceDataset(None, 1000)
    with pytest.raises(InputError, match="path: found None, expected the folder"):
        PreferenceLoader(None, plan("none"))
    with pytest.raises(InputError, match="epoch: found '1', expected a whole number"):
        dataset(path).set_epoch("1")


@pytest.mark.parametrize("measure", Budget.model_fields)
def test_a_limit_of_more_than_32_bits_is_a_clear_error(path, measure):
    with pytest.raises(ConfigError, match=rf"budget\.{measure}: found 4294967296, .* less than"):
        PreferenceDataset(path, budget={measure: 2**32})
    assert len(PreferenceDataset(path, budget={measure: 2**32 - 1})) >= 1
    for number in ("packs_per_step", "pairs_per_query"):
        with pytest.raises(ConfigError, match=rf"{number}.*: found 4294967296, .* less than"):
            PreferenceDataset(path, budget={measure: 100}, **{number: 2**32})


def test_columns_that_are_no_requests_are_refused(path):
    with pytest.raises(InputError, match="columns: r: found 'reflogp/x', expected a ColumnReq"):
        dataset(path, columns={"r": "reflogp/x"})
    with pytest.raises(InputError, match=r"columns: found \['x'\], expected a ColumnRequest by"):
        dataset(path, columns=["x"])


def test_a_batch_size_is_refused_with_what_is_right(path):
    one = dataset(path)
    with pytest.raises(InputError, match="batch_size: found a number, expected None"):
        one.data_loader(batch_size=4)
    assert names(one.data_loader(batch_size=None)) == names(dataset(path))
    for options in ({}, {"num_workers": 1}, {"num_workers": 1, "multiprocessing_context": "spawn"}):
        with pytest.raises(InputError, match="found a batch size, expected batch_size=None"):
            next(iter(DataLoader(one, **options)))


def test_an_environment_that_is_no_rank_is_a_clear_error(path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for variable, expected in (
        ("x", "environment variable RANK: found 'x', expected a whole number"),
        ("2", "rank: found 2, expected below 2, the world_size"),
    ):
        monkeypatch.setenv("RANK", variable)
        with pytest.raises(InputError, match=expected):
            PreferenceDataset(path, 140)


@pytest.mark.parametrize(
    ("rank", "world_size", "expected"),
    [
        (2, 2, "rank: found 2, expected below 2, the world_size"),
        (-1, 2, "rank: found -1, expected at least 0"),
        (0, 0, "world_size: found 0, expected at least 1"),
        ("0", 1, "rank: found '0', expected a whole number"),
    ],
)
def test_a_rank_that_is_not_of_the_world_is_refused(path, rank, world_size, expected):
    with pytest.raises(InputError, match=expected):
        PreferenceDataset(path, 140, rank=rank, world_size=world_size)
    with pytest.raises(InputError, match=expected):
        PreferenceLoader(path, plan("none", budget={"tokens": 140}), rank, world_size)
