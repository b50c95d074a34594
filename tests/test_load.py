"""The loader hands out what its reference implementation does, whatever makes the batches."""

import ast
import dataclasses
import inspect
import itertools
import json
import re
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from load_data import PICTURES, RULES, assert_same, plan, write
from mmrlhf_engine.shards.batch import BATCH_FIELDS, METADATA, PreferenceBatch
from mmrlhf_engine.shards.loader import PreferenceLoader
from naive_loader import NaiveLoader


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write(tmp_path_factory.mktemp("preferences") / "set", queries=60)


def loader(path, family="qwen2_vl", chosen=None, **options):
    options = {"threads": 1, "balance": False} | options
    return PreferenceLoader(
        path, plan(family, **(chosen or {})), pictures=PICTURES[family], **options
    )


@pytest.mark.parametrize("unit", ["pair", "response", "query"])
@pytest.mark.parametrize(
    "family",
    ["qwen2_vl", "llava_onevision", "internvl", "llava_next", "stretch", "crop", "pad"],
)
def test_batches_equal_the_reference(dataset, family, unit):
    chosen = {"unit": unit, "packs_per_step": 3}
    options = {"rank": 1, "world_size": 2}
    ours = loader(dataset, family, chosen, threads=2, **options)
    theirs = NaiveLoader(dataset, plan(family, **chosen), pictures=PICTURES[family], **options)
    count = 0
    for batch, expected in zip(ours, theirs, strict=True):
        assert_same(batch, expected)
        assert len(batch.unreadable) == int(batch.image_unreadable.sum())
        count += 1
    assert count > 5


@pytest.mark.parametrize("unit", ["pair", "query"])
def test_text_alone_needs_no_pictures(tmp_path, unit):
    path = write(tmp_path / "set", queries=30, text_only=True)
    chosen = {"unit": unit, "packs_per_step": 4}
    batches = list(loader(path, "none", chosen, epochs=2))
    expected = list(NaiveLoader(path, plan("none", **chosen), epochs=2))
    for batch, other in zip(batches, expected, strict=True):
        assert_same(batch, other)
        assert not batch.step_has_images


def test_pairs_per_query_changes_with_the_epoch_and_brings_no_other_response(dataset):
    seen = []
    for batch in loader(dataset, chosen={"unit": "query", "pairs_per_query": 1}, epochs=2):
        counts = np.bincount(batch.pair_query)
        assert counts.max(initial=0) <= 1
        taken = np.concatenate([batch.pair_chosen, batch.pair_rejected])
        answers = np.flatnonzero(batch.sequence_response >= 0)
        assert sorted(taken) == sorted(answers)
        seen += list(batch.pair_row)
    half = len(seen) // 2
    assert len(seen) == 120
    assert set(seen[:half]) != set(seen[half:])


def record(batches):
    """(step, pair rows) -> the bytes of the sequences; and steps in order."""
    steps = {}
    for batch in batches:
        steps.setdefault(batch.step, []).append(
            (
                sorted(batch.pair_row.tolist()),
                batch.input_ids.tobytes(),
                batch.pixel_values.tobytes(),
            )
        )
    return {step: sorted(packs) for step, packs in steps.items()}


def merged(records):
    steps = {}
    for one in records:
        for step, packs in one.items():
            steps.setdefault(step, []).extend(pack for pack in packs if pack[0])
    return {step: sorted(packs) for step, packs in steps.items()}


def digest(steps):
    import hashlib

    return {step: hashlib.sha256(repr(packs).encode()).hexdigest() for step, packs in steps.items()}


def by_ranks(dataset, ranks, state=None, **options):
    """What all ranks together hand out."""
    options = {"balance": True} | options
    return merged(
        record(loader(dataset, rank=rank, world_size=ranks, state=state, **options))
        for rank in range(ranks)
    )


def through_torch(path, rank, ranks, workers, state, **options):
    from torch.utils.data import DataLoader

    from mmrlhf_engine import PreferenceDataset

    one = PreferenceDataset(
        path,
        400,
        packs_per_step=6,
        unit="pair",
        seed=3,
        window=64,
        too_large="alone",
        image_rule=RULES["qwen2_vl"],
        pictures=PICTURES["qwen2_vl"],
        rank=rank,
        world_size=ranks,
        state=state,
        **options,
    )
    return DataLoader(one, batch_size=None, num_workers=workers)


@pytest.fixture(scope="module")
def expected(dataset):
    """The digests of all steps, and the state after the first, the middle and the last."""
    steps, states = {}, {}
    one = loader(dataset, threads=2)
    for batch in one:
        steps.setdefault(batch.step, []).append(
            (
                sorted(batch.pair_row.tolist()),
                batch.input_ids.tobytes(),
                batch.pixel_values.tobytes(),
            )
        )
        if batch.ends_step:
            states[batch.step] = one.state_dict()
            assert json.loads(batch.cursor) == states[batch.step]
    steps = {step: sorted(pack for pack in packs if pack[0]) for step, packs in steps.items()}
    pairs = sorted(pair for packs in steps.values() for pack in packs for pair in pack[0])
    assert pairs == list(range(len(pairs)))  # Every pair exactly once.
    assert len(steps) > 5
    last = max(states)
    return digest(steps), {"first": states[0], "mid": states[last // 2], "last": states[last]}


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 8])
@pytest.mark.parametrize(
    ("threads", "prefetch_bytes"), [(1, 1), (1, 1 << 23), (4, 1), (4, 1 << 23)]
)
def test_the_order_is_the_same_for_all_ranks_and_threads(
    dataset, expected, ranks, threads, prefetch_bytes
):
    options = {"threads": threads, "prefetch_bytes": prefetch_bytes}
    assert digest(by_ranks(dataset, ranks, **options)) == expected[0]
    for state in expected[1].values():
        again = digest(by_ranks(dataset, ranks, state, **options))
        assert again == {s: d for s, d in expected[0].items() if s >= state["step"]}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("ranks", [1, 3])
def test_workers_of_torch_change_nothing(dataset, expected, workers, threads, ranks):
    state = expected[1]["mid"]
    pieces = []
    for rank in range(ranks):
        batches = list(through_torch(dataset, rank, ranks, workers, state, threads=threads))
        assert [batch.step for batch in batches] == sorted(batch.step for batch in batches)
        pieces.append(record(batches))
    assert digest(merged(pieces)) == {s: d for s, d in expected[0].items() if s >= state["step"]}


def test_a_small_cache_changes_no_byte(dataset, expected):
    for cache_bytes in (0, 3000, 1 << 20):
        assert digest(by_ranks(dataset, 1, cache_bytes=cache_bytes)) == expected[0]


def prepared(dataset, **options):
    """Images that are prepared for an epoch, and those in its batches."""
    one = loader(dataset, prefetch_bytes=1, **options)
    images = 0
    for batch in one:
        images += len(batch.image_blob)
        progress = one._core.progress()
        assert progress[0] <= batch.step * 6 + batch.pack + 2  # At most one batch ahead.
        if batch.ends_step:
            found = progress[1]
    return found, images


def test_cache_bytes_and_look_ahead_save_preparing_images_again(dataset):
    none, images = prepared(dataset, cache_bytes=0)
    assert none == images
    little, _ = prepared(dataset, cache_bytes=3000)
    short, _ = prepared(dataset, look_ahead=1)
    whole, _ = prepared(dataset)
    assert len(set(image_keys(dataset))) <= whole < little < none
    assert whole < short <= none


def image_keys(dataset):
    """(blob, whether it is alone in its sequence) of all images shown."""
    for batch in loader(dataset):
        counts = np.bincount(batch.placeholder_sequence, minlength=len(batch.prefix_sequence))
        for sequence, image in zip(
            batch.placeholder_sequence, batch.placeholder_image, strict=True
        ):
            yield int(batch.image_blob[image]), bool(counts[sequence] == 1)


def test_prefetch_bytes_lets_batches_be_begun_ahead(dataset):
    count = sum(1 for _ in loader(dataset))
    one = loader(dataset, threads=2, prefetch_bytes=1 << 30)
    next(one)
    while one._core.progress()[0] < count:
        time.sleep(0.001)


def test_balance_shares_the_image_tokens_of_a_step_out(dataset):
    def busiest(balance):
        steps = {}
        for rank in range(2):
            for batch in loader(dataset, rank=rank, world_size=2, balance=balance):
                work = steps.setdefault(batch.step, [0, 0])
                work[rank] += int(batch.placeholder_length.sum())
        assert len(steps) > 5
        return sum(max(work) for work in steps.values())

    assert busiest(True) < busiest(False)


def test_state_in_the_middle_of_a_step_is_its_start(dataset):
    one = loader(dataset)
    states = [one.state_dict()]
    for batch in one:
        states.append(one.state_dict())
        if not batch.ends_step:
            assert states[-1] == states[-2]
        else:
            assert states[-1]["step"] == batch.step + 1
        if batch.step == 2:
            break
    again = loader(dataset, state=states[-1])
    first = next(again)
    assert (first.step, first.pack) == (2, 0)


def test_state_of_another_plan_or_dataset_is_refused_by_name(dataset, tmp_path):
    from mmrlhf_engine.errors import InputError

    state = loader(dataset).state_dict()
    changed = {"seed": 4, "budget": {"tokens": 500}}
    said = "cursor: found budget.tokens 400, seed 3, expected budget.tokens 500, seed 4"
    with pytest.raises(InputError, match=said):
        loader(dataset, chosen=changed, state=state)
    without = {name: value for name, value in state.items() if name != "settings"}
    with pytest.raises(InputError, match=r"cursor: found plan b3:.*, expected plan b3:"):
        loader(dataset, chosen=changed, state=without)
    assert next(loader(dataset, state=without)).step == 0
    other = write(tmp_path / "other", queries=5, seed=1)
    with pytest.raises(InputError, match="cursor: found dataset b3:"):
        loader(other, state=state)


def test_batches_are_writable_views_of_one_block(dataset):
    batch = next(loader(dataset))
    start = batch.memory.ctypes.data
    for (name, _, _), (_, offset) in zip(BATCH_FIELDS, batch.layout, strict=True):
        array = getattr(batch, name)
        assert array.flags.writeable
        assert array.size == 0 or array.ctypes.data == start + offset
        assert (start + offset) % 64 == 0
    batch.input_ids[0] = 7
    tensors = batch.to_torch(pin=False)
    assert tensors.input_ids[0] == 7
    tensors.input_ids[0] = 8
    assert batch.input_ids[0] == 8
    assert tensors.pixel_values.shape == batch.pixel_values.shape


def test_the_arrays_of_a_batch_are_those_of_the_core():
    """Names and order by the class, dtypes and axes by what its docstrings begin with."""
    tree = ast.parse(inspect.getsource(PreferenceBatch)).body[0]
    documented = []
    for field, doc in itertools.pairwise(tree.body):
        if isinstance(field, ast.AnnAssign) and ast.unparse(field.annotation) == "Array":
            documented.append(
                (field.target.id, *re.match(r"(\w+)(?: (\[.*?\]))?", doc.value.value).groups())
            )
    assert documented == [*BATCH_FIELDS, ("memory", "uint8", None)]
    others = {field.name for field in dataclasses.fields(PreferenceBatch)}
    assert others - {name for name, *_ in documented} == {*METADATA, "layout"}


def test_a_batch_outlives_its_loader(dataset):
    one = loader(dataset)
    batches = [next(one) for _ in range(3)]
    copies = [batch.input_ids.copy() for batch in batches]
    del one
    for batch, copy in zip(batches, copies, strict=True):
        assert np.array_equal(batch.input_ids, copy)


def test_normalised_pixels_are_what_a_model_takes(dataset):
    import torch

    from mmrlhf_engine.shards.loader import normalise

    pictures = PICTURES["llava_onevision"].model_copy(
        update={"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.25, 0.125)}
    )
    batch = next(loader(dataset, "llava_onevision")).to_torch(pin=False)
    ours = normalise(batch.pixel_values, pictures)
    for channel in range(3):
        mean, std = pictures.mean[channel], pictures.std[channel]
        theirs = (batch.pixel_values[:, channel].float() / 255 - mean) / std
        assert torch.allclose(ours[:, channel], theirs, atol=1e-6)


def test_wrong_settings_are_clear_errors(dataset):
    from mmrlhf_engine.errors import InputError

    with pytest.raises(InputError, match="rank: found 2, expected below 2"):
        next(loader(dataset, rank=2, world_size=2))
    with pytest.raises(InputError, match="world_size: found 0"):
        loader(dataset, world_size=0)
    with pytest.raises(InputError, match="image_token: found none"):
        PreferenceLoader(dataset, plan("qwen2_vl"))
    with pytest.raises(InputError, match="images in the dataset: found no way to show them"):
        list(loader(dataset, "none"))
    with pytest.raises(InputError, match="no folder _mmrlhf in it"):
        loader(dataset / "absent")
    with pytest.raises(InputError, match="cursor: found missing field"):
        loader(dataset, state={"v": 1})
    for name, least in {"threads": 0, "prefetch_bytes": 0, "look_ahead": 1, "epochs": 1}.items():
        with pytest.raises(
            InputError, match=f"{name}: found {least - 1}, expected at least {least}"
        ):
            loader(dataset, **{name: least - 1})
    for name in ("image_token", "video_token", "image_start_token", "image_end_token"):
        pictures = PICTURES["qwen2_vl"].model_copy(update={name: 1000})
        with pytest.raises(InputError, match=f"{name}: found 1000, expected below 1000"):
            PreferenceLoader(dataset, plan(), pictures=pictures)


def test_positions_are_those_of_qwen2_vl(dataset):
    """transformers tells pictures apart by the text between them, so those that touch are left."""
    import torch
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

    class Borrowed:
        class config:
            class vision_config:
                spatial_merge_size = 2

        get_rope_index = Qwen2VLModel.get_rope_index
        get_vision_position_ids = Qwen2VLModel.get_vision_position_ids

    compared = 0
    for batch in loader(dataset):
        for sequence in range(len(batch.prefix_sequence)):
            start, end = batch.cu_seqlens[sequence : sequence + 2]
            here = np.flatnonzero(batch.placeholder_sequence == sequence)
            starts = batch.placeholder_start[here]
            ends = starts + batch.placeholder_length[here]
            if not len(here) or np.isin(starts, ends).any():
                continue
            ids = torch.from_numpy(batch.input_ids[start:end]).long()[None]
            grids = torch.from_numpy(batch.image_grid_thw[batch.placeholder_image[here]]).long()
            kinds = (ids == 990).int()
            theirs, _ = Borrowed().get_rope_index(ids, kinds, image_grid_thw=grids)
            assert np.array_equal(batch.position_ids[:, start:end], theirs[:, 0].numpy())
            compared += 1
    assert compared > 100


@pytest.mark.parametrize("table", ["blobs", "data"])
def test_a_flipped_byte_stops_the_run_and_names_the_file(tmp_path, table):
    from mmrlhf_engine.errors import CorruptDataError

    path = write(tmp_path / "set", queries=20, shard_pairs=1000)
    pattern = "b*.arrow" if table == "blobs" else "s*-r-*.arrow"
    file = next((path / table).glob(pattern))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(CorruptDataError, match=file.name):
        list(loader(path))


def test_blank_images_are_named_and_their_pairs_have_weight_0(dataset):
    unreadable, zero_weight_pairs = {}, 0
    for batch in loader(dataset):
        unreadable |= dict(batch.unreadable)
        zero_weight_pairs += batch.zero_weight_pairs
        for image in np.flatnonzero(batch.image_unreadable):
            first, end = batch.image_blocks[image : image + 2]
            assert end > first
            assert not batch.pixel_values[first:end].any()
        assert (batch.pair_weight == 0).sum() == batch.zero_weight_pairs
    # Two files are damaged, one has a shape that the processor refuses.
    assert len(unreadable) == 3
    assert sum("200 times" in problem for problem in unreadable.values()) == 1
    assert zero_weight_pairs > 10


@settings(max_examples=12, derandomize=True)
@given(
    seed=st.integers(0, 99),
    family=st.sampled_from(["qwen2_vl", "llava_onevision", "internvl"]),
    drawn=st.sampled_from(
        [("pair", "query"), ("pair", "unit"), ("response", "unit"), ("query", "unit")]
    ),
    budget=st.integers(50, 900),
    size=st.integers(1, 7),
    window=st.integers(3, 60),
    ranks=st.integers(1, 4),
    threads=st.integers(1, 3),
)
def test_any_plan_gives_what_the_reference_gives(
    tmp_path_factory, seed, family, drawn, budget, size, window, ranks, threads
):
    path = write(tmp_path_factory.mktemp("any") / "set", queries=12, seed=seed, shard_pairs=20)
    chosen = {
        "unit": drawn[0],
        "draw": drawn[1],
        "budget": {"tokens": budget},
        "packs_per_step": size,
        "window": window,
        "seed": seed,
    }
    share = {"rank": seed % ranks, "world_size": ranks, "epochs": 2}
    ours = loader(path, family, chosen, threads=threads, cache_bytes=5000, **share)
    theirs = NaiveLoader(path, plan(family, **chosen), pictures=PICTURES[family], **share)
    for batch, expected in zip(ours, theirs, strict=True):
        assert_same(batch, expected)
