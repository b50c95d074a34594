"""A torch dataset gives the batches of its plan under any loader, and goes on from any of them."""

import hashlib
import itertools
import json
import pickle

import pytest
import torch
from torch.utils.data import DataLoader

from load_data import PICTURES, RULES, TOKENIZER, plan, write
from mmrlhf_engine import Budget, PreferenceDataset, PreferenceLoader
from mmrlhf_engine.errors import InputError

# The machine may have fewer cores than a test has workers.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

PACKS = 6


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write(tmp_path_factory.mktemp("preferences") / "set", queries=150, text_only=True)


def dataset(path, **options):
    return PreferenceDataset(path, 140, **({"packs_per_step": PACKS, "unit": "pair"} | options))


def loader_of(one, workers=0, **options):
    return DataLoader(one, batch_size=None, num_workers=workers, **options)


def name(batch):
    """What a batch is: its step, its pack, and a hash of its tokens and pairs."""
    content = batch.input_ids.tobytes() + batch.pair_row.tobytes()
    return batch.step, batch.pack, hashlib.sha256(content).hexdigest()


def names(batches):
    return [name(batch) for batch in batches]


def steps(batches):
    """A hash for each step, of its packs in order; empty packs only even out the ranks."""
    packs = {}
    for step, pack, digest in batches:
        if pack < PACKS:
            packs.setdefault(step, []).append((pack, digest))
    return {
        step: hashlib.sha256(repr(sorted(found)).encode()).hexdigest()
        for step, found in packs.items()
    }


@pytest.fixture(scope="module")
def epochs(path):
    """The batches of three epochs on one rank without workers."""
    one = dataset(path)
    return [names(one) for _ in range(3)]


def test_each_iteration_is_an_epoch_in_its_own_order(epochs):
    assert all(len(epoch) >= 200 for epoch in epochs)
    assert len({tuple(digest for *_, digest in epoch) for epoch in epochs}) == 3
    counted = [step for epoch in epochs for step, *_ in epoch]
    assert counted == sorted(counted)
    assert set(counted) == set(range(counted[-1] + 1))


def through(path, workers, ranks, *, state=None, stop=None):
    """Hashes of the steps of two epochs over all ranks, and the state after step ``stop``."""
    found, states = [], []
    for rank in range(ranks):
        one = dataset(path, rank=rank, world_size=ranks, state=state)
        loader = loader_of(one, workers)
        while True:
            for batch in loader:
                found.append(name(batch))
                if batch.step == stop and batch.ends_step:
                    break
            position = json.loads(batch.cursor)
            if position["epoch"] == 2 or batch.step == stop:
                states.append(one.state_dict(batch))
                break
    assert all(state == states[0] for state in states)  # Equal on every rank.
    return steps(found), states[0]


PLACES = list(itertools.product((0, 1, 3), (1, 2)))
SHORT = [((0, 1), (3, 2)), ((1, 2), (0, 1)), ((3, 2), (1, 1))]
ALL = list(itertools.product(PLACES, PLACES))


@pytest.mark.parametrize(
    ("before", "after"),
    [*SHORT, *(pytest.param(*case, marks=pytest.mark.slow) for case in ALL if case not in SHORT)],
)
def test_two_epochs_stopped_and_resumed_elsewhere_are_the_same_steps(path, epochs, before, after):
    """(Workers, ranks) before the stop in the middle of the second epoch, and after it."""
    expected = steps(epochs[0] + epochs[1])
    stop = epochs[1][len(epochs[1]) // 2][0]
    first, state = through(path, *before, stop=stop)
    second, _ = through(path, *after, state=json.loads(json.dumps(state)))
    assert min(second) == stop + 1
    assert {**first, **second} == expected
    assert len(first) + len(second) == len(expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_off_iteration_is_followed_by_the_next_epoch(path, epochs, workers):
    loader = loader_of(dataset(path), workers)
    for epoch in epochs:
        torch.manual_seed(0)  # Workers then get equal seeds, by which iterations are not told.
        assert names(itertools.islice(loader, 7)) == epoch[:7]


@pytest.mark.parametrize("options", [{}, {"persistent_workers": True}])
def test_workers_that_stay_or_not_follow_set_epoch_and_states(path, epochs, options):
    one = dataset(path)
    loader = loader_of(one, 2, **options)
    assert names(itertools.islice(loader, 9)) == epochs[0][:9]
    assert names(loader) == epochs[1]
    one.set_epoch(0)
    *_, last = batches = list(itertools.islice(loader, PACKS * 3))
    assert names(batches) == epochs[0][: PACKS * 3]
    one.set_epoch(2)
    assert names(itertools.islice(loader, 5)) == epochs[2][:5]
    one.load_state_dict(one.state_dict(last))
    one.set_epoch(0)  # That of the state, which stays.
    assert names(loader) == epochs[0][PACKS * 3 :]
    assert names(itertools.islice(loader, 5)) == epochs[1][:5]


def test_workers_that_begin_at_the_same_time_agree_on_the_epoch(path):
    loader = loader_of(dataset(path, window=64), 3, persistent_workers=True)
    for epoch in range(150):
        first = itertools.islice(loader, 3)  # One of each worker.
        assert [json.loads(batch.cursor)["epoch"] for batch in first] == [epoch] * 3


def test_other_numbers_of_workers_count_the_same_epochs(path, epochs):
    one = dataset(path)
    for workers, epoch in zip((1, 0, 3), epochs, strict=True):
        assert names(itertools.islice(loader_of(one, workers), 4)) == epoch[:4]


def test_an_epoch_is_begun_again_by_set_epoch(path, epochs):
    one = dataset(path)
    for epoch in (2, 2, 0):
        one.set_epoch(epoch)
        assert names(itertools.islice(one, 3)) == epochs[epoch][:3]
    with pytest.raises(InputError, match="epoch: found -1, expected 0 to"):
        one.set_epoch(-1)


def test_a_state_is_where_its_iteration_goes_on(path, epochs):
    one = dataset(path)
    assert one.state_dict()["step"] == 0
    *_, batch = itertools.islice(one, PACKS * 2)
    assert one.state_dict() == one.state_dict(batch) == json.loads(batch.cursor)
    again = dataset(path, state=one.state_dict())
    assert again.state_dict() == one.state_dict()
    assert names(again) == epochs[0][PACKS * 2 :]
    assert again.state_dict()["epoch"] == 1
    assert names(again) == epochs[1]
    again.load_state_dict(batch.cursor)
    assert names(again) == epochs[0][PACKS * 2 :]
    # In the middle of a step it is the step's start, which any number of ranks can go on from.
    *_, batch = itertools.islice(again, PACKS + 2)
    again.load_state_dict(again.state_dict(batch))
    assert names(again) == epochs[1][PACKS:]


def test_set_epoch_does_not_discard_a_loaded_state(path):
    one = dataset(path)
    *_, batch = itertools.islice(one, PACKS)
    one.load_state_dict(batch.cursor)
    with pytest.raises(InputError, match="set_epoch: found 3, expected 0, the epoch of the loaded"):
        one.set_epoch(3)


def test_the_state_of_batches_that_workers_make_is_refused_without_a_batch(path):
    one = dataset(path)
    loader = loader_of(one, 1)
    batch = next(iter(loader))
    with pytest.raises(InputError, match="workers of a DataLoader make the batches") as raised:
        one.state_dict()
    assert "state_dict(batch)" in raised.value.hint
    assert one.state_dict(batch) == json.loads(batch.cursor)
    one.load_state_dict(one.state_dict(batch))
    assert one.state_dict() == json.loads(batch.cursor)


@pytest.mark.parametrize("change", [{"seed": 1}, {"window": 64}, {"packs_per_step": 4}])
@pytest.mark.parametrize("entry", ["state", "load_state_dict", "cursor"])
def test_resuming_under_a_changed_plan_names_what_differs(path, change, entry):
    *_, batch = itertools.islice(dataset(path), PACKS)
    state = batch.cursor if entry == "cursor" else json.loads(batch.cursor)

    def resume():
        if entry == "state":
            return dataset(path, **change, state=state)
        return dataset(path, **change).load_state_dict(state)

    ((setting, value),) = change.items()
    with pytest.raises(InputError, match=f"cursor: found {setting} .*, expected {setting} {value}"):
        resume()


def test_a_state_is_gone_on_from_by_another_number_of_ranks_without_settings(path):
    """The steps stay those of the state, also where the ranks do not divide them."""
    options = {"tokens": 140, "unit": "pair"}
    for before, after in ((1, 2), (2, 1), (2, 3)):
        one = PreferenceDataset(path, **options, rank=0, world_size=before)
        state = next(batch for batch in one if batch.ends_step and batch.step == 20).cursor
        expected = PreferenceDataset(path, 140, unit="pair", packs_per_step=before, state=state)
        found = [
            batch
            for rank in range(after)
            for batch in PreferenceDataset(
                path, **options, rank=rank, world_size=after, state=json.loads(state)
            )
        ]
        made = [name(batch) for batch in found if batch.pack < before]
        assert sorted(made) == sorted(names(expected))
        assert len(made) > 50


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_the_length_is_that_of_the_epoch(path, ranks):
    for rank in range(ranks):
        one = dataset(path, rank=rank, world_size=ranks)
        *_, batch = itertools.islice(one, PACKS * 2)
        one.set_epoch(0)
        lengths = []
        for _ in range(2):
            loader = loader_of(one)
            expected = len(loader)
            lengths.append(expected)
            batches = iter(one)
            next(batches)
            assert len(one) == expected  # While the epoch is iterated, too.
            assert 1 + sum(1 for _ in batches) == expected
    resumed = dataset(path, rank=ranks - 1, world_size=ranks, state=batch.cursor)
    assert len(resumed) == lengths[0]  # Of the whole epoch.
    one.set_epoch(7)
    expected = len(one)
    assert sum(1 for _ in one) == expected


def test_the_length_after_workers_have_finished_is_that_of_the_next_epoch(path, epochs):
    one = dataset(path)
    list(loader_of(one, 2))
    assert len(one) == len(epochs[1])


def test_steps_are_counted_alike_however_an_epoch_is_reached(path, epochs):
    one = dataset(path)
    one.set_epoch(2)
    cursor = one.state_dict()
    list(one)
    by_walking = dataset(path)
    for _ in range(2):
        list(by_walking)
    assert by_walking.state_dict() == cursor
    *_, batch = itertools.islice(dataset(path), PACKS * 4)
    resumed = dataset(path, state=batch.cursor)
    list(resumed)
    list(resumed)
    assert resumed.state_dict() == cursor
    broken_off = dataset(path, state=batch.cursor)
    next(iter(broken_off))
    next(iter(broken_off))
    next(iter(broken_off))
    assert broken_off.state_dict() == cursor


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_torchdata_resumes_at_the_very_batch(path, epochs, workers):
    stateful = pytest.importorskip("torchdata.stateful_dataloader")

    def stateful_loader():
        one = dataset(path)
        return stateful.StatefulDataLoader(one, batch_size=None, num_workers=workers)

    whole = epochs[0] + epochs[1]
    first = len(epochs[0])
    for stop in (1, PACKS + 2, first - 1, first, first + PACKS + 3):
        loader, seen, state = stateful_loader(), [], None
        while state is None:
            for batch in loader:
                seen.append(name(batch))
                if len(seen) == stop:
                    state = json.loads(json.dumps(loader.state_dict()))
                    break
        again, rest = stateful_loader(), []
        again.load_state_dict(state)
        while len(seen) + len(rest) < len(whole):
            rest += names(again)
        assert seen + rest == whole


def test_a_state_of_torchdata_is_of_its_rank_and_workers(path):
    batches = iter(dataset(path))
    next(batches)
    state = batches.state_dict()
    other = iter(dataset(path, rank=1, world_size=2))
    with pytest.raises(InputError, match="state of a DataLoader: found rank 0, expected 1"):
        other.load_state_dict(state)


@pytest.mark.slow
def test_spawned_workers_give_the_same(path, epochs):
    loader = loader_of(dataset(path), 2, multiprocessing_context="spawn")
    assert names(loader) == epochs[0]
    assert names(loader) == epochs[1]


def test_a_copy_in_another_process_counts_epochs_of_its_own(path, epochs):
    one = dataset(path)
    next(iter(one))
    copy = pickle.loads(pickle.dumps(one))
    assert names(itertools.islice(copy, 3)) == epochs[1][:3]
    assert names(itertools.islice(one, 3)) == epochs[1][:3]


class EveryBatch(torch.utils.data.IterableDataset):
    """A dataset of one's own, which forgets that workers have to share."""

    def __init__(self, loader):
        self.loader = loader

    def __iter__(self):
        return iter(self.loader)


def test_a_loader_in_several_workers_is_refused(path):
    made = PreferenceLoader(path, plan("none", budget={"tokens": 140}))
    assert len(list(loader_of(EveryBatch(made), 1))) > 200
    with pytest.raises(InputError, match=r"a loader of all batches in worker \d of 2"):
        next(iter(loader_of(EveryBatch(made), 2)))


# What is found when a plan is opened.


def test_units_above_the_budget_are_found_on_opening(path):
    with pytest.raises(InputError, match=r"budget: found (\d+) of \d+ units \(pair\)") as raised:
        PreferenceDataset(path, 60, unit="pair")
    message = str(raised.value)
    enough = int(message.split("a budget of tokens=")[1].split()[0])
    count = int(message.split("found ")[1].split()[0])
    assert f"with {enough} tokens" in message
    assert 'too_large: "drop" or "alone"' in message
    made = [
        PreferenceDataset(path, 60, unit="pair", too_large="drop"),
        PreferenceDataset(path, 60, unit="pair", too_large="alone"),
        PreferenceDataset(path, enough, unit="pair"),
    ]
    rows = [set(_pairs(one)) for one in made]
    assert len(rows[1]) - len(rows[0]) == count
    assert rows[2] == rows[1]
    assert [one.units_above_budget for one in made] == [count, count, 0]
    state = made[1].state_dict()
    again = PreferenceDataset(path, 60, unit="pair", too_large="alone", state=state)
    assert again.units_above_budget is None
    with pytest.raises(InputError, match="budget: found 1 of"):
        PreferenceDataset(path, enough - 1, unit="pair")


def _pairs(batches):
    return [row for batch in batches for row in batch.pair_row.tolist()]


def test_a_budget_that_drops_every_unit_is_refused(path):
    with pytest.raises(InputError, match=r"found 150 of 150 units \(query\)") as raised:
        PreferenceDataset(path, 3, too_large="drop")
    assert "too_large" not in str(raised.value)


def test_each_limit_of_a_budget_has_its_number_in_the_hint(tmp_path):
    pictures = write(tmp_path / "set", queries=40)
    shown = {"image_rule": RULES["qwen2_vl"], "pictures": PICTURES["qwen2_vl"]}
    with pytest.raises(InputError) as raised:
        PreferenceDataset(pictures, budget=Budget(tokens=10_000, images=1), **shown)
    hint = str(raised.value).split("a budget of ")[1].split(" holds")[0]
    assert hint.startswith("tokens=10000, images=")
    limits = dict(limit.split("=") for limit in hint.split(", "))
    budget = {measure: int(limit) for measure, limit in limits.items()}
    assert budget["images"] > 1
    assert len(list(PreferenceDataset(pictures, budget=budget, **shown))) > 1


def test_images_without_a_rule_are_found_on_opening(tmp_path):
    pictures = write(tmp_path / "set", queries=5)
    with pytest.raises(InputError, match="images in the dataset: found no way to show them"):
        PreferenceDataset(pictures, 1000)


def test_the_processor_that_a_dataset_records_is_taken(tmp_path, monkeypatch):
    recorded = {
        "image_rule": RULES["qwen2_vl"],
        "pictures": PICTURES["qwen2_vl"].model_dump(mode="json"),
    }
    monkeypatch.setitem(TOKENIZER, "processor", recorded)
    pictures = write(tmp_path / "set", queries=20)
    given = {"image_rule": RULES["qwen2_vl"], "pictures": PICTURES["qwen2_vl"]}
    taken = list(PreferenceDataset(pictures, 2000))
    assert names(taken) == names(PreferenceDataset(pictures, 2000, **given))
    assert any(len(batch.pixel_values) for batch in taken)


# Ranks.


def test_the_rank_is_that_of_the_environment(path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    given = dataset(path, rank=1, world_size=2)
    assert names(dataset(path)) == names(given)
    # One pack of a step for each rank, unless it is said otherwise.
    assert len(PreferenceDataset(path, 140, unit="pair")) == len(dataset(path, packs_per_step=2))


def test_a_dataset_that_was_made_before_the_process_group_is_refused(path, tmp_path):
    one = dataset(path)
    assert names(itertools.islice(one, 2))
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        assert names(itertools.islice(one, 2))
        one._rank, one._world_size = 1, 2  # As if the group had other ranks.
        for loader in (one, loader_of(one, 1)):
            with pytest.raises(InputError, match=r"before torch\.distributed was initialised"):
                next(iter(loader))
    finally:
        torch.distributed.destroy_process_group()
