"""Videos in batches are what the reference implementation and the models of transformers say."""

import json
import re

import numpy as np
import pyarrow as pa
import pytest

from load_data import (
    FRAME,
    IMAGE,
    PICTURES,
    RULES,
    RUN,
    VIDEO,
    Rows,
    assert_same,
    picture,
    plan,
    store,
)
from mmrlhf_engine._core import video_shapes
from mmrlhf_engine.errors import InputError
from mmrlhf_engine.shards.loader import PreferenceLoader
from naive_loader import NaiveLoader
from video_data import write_videos

FAMILIES = [family for family in RULES if family.endswith("_video")]
QWENS = [family for family in FAMILIES if family.startswith("qwen")]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_videos(tmp_path_factory.mktemp("videos") / "set")


def loader(path, family, chosen=None, **options):
    options = {"threads": 1, "balance": False, "pictures": PICTURES[family]} | options
    return PreferenceLoader(path, plan(family, **(chosen or {})), **options)


@pytest.mark.parametrize("unit", ["pair", "response", "query"])
@pytest.mark.parametrize("family", FAMILIES)
def test_batches_equal_the_reference(dataset, family, unit):
    chosen = {"unit": unit, "packs_per_step": 3}
    options = {"rank": 1, "world_size": 2, "pictures": PICTURES[family]}
    ours = loader(dataset, family, chosen, threads=2, **options)
    theirs = NaiveLoader(dataset, plan(family, **chosen), **options)
    videos = unreadable = continued = 0
    for batch, expected in zip(ours, theirs, strict=True):
        assert_same(batch, expected)
        assert len(batch.unreadable) == int(batch.image_unreadable.sum())
        videos += int((batch.image_frames > 0).sum())
        unreadable += int((batch.image_frames * batch.image_unreadable > 0).sum())
        continued += int((batch.placeholder_offset > 0).sum())
    assert videos > 20
    assert unreadable >= 3
    assert continued > 10


@pytest.mark.parametrize("family", ["qwen2_vl_video", "internvl_video"])
def test_a_frame_is_one_image_of_the_budget(dataset, family):
    chosen = {"unit": "pair", "budget": {"images": 9}, "packs_per_step": 4}
    pictures = PICTURES[family]
    ours = list(loader(dataset, family, chosen))
    theirs = NaiveLoader(dataset, plan(family, **chosen), pictures=pictures)
    for batch, expected in zip(ours, theirs, strict=True):
        assert_same(batch, expected)
    frames = [int(np.maximum(batch.image_frames, 1).sum()) for batch in ours]
    assert sum(count in (8, 9) for count in frames) > len(frames) / 3


@pytest.mark.parametrize("family", FAMILIES)
def test_runs_take_each_feature_of_a_video_once(dataset, family):
    """Of a video that one sequence shows, in several runs or in one."""
    for batch in loader(dataset, family, {"unit": "pair"}):
        shapes = shapes_of(family, batch)
        for sequence in range(len(batch.prefix_sequence)):
            here = batch.placeholder_sequence == sequence
            for image in np.unique(batch.placeholder_image[here]):
                mine = here & (batch.placeholder_image == image)
                ends = (batch.placeholder_offset + batch.placeholder_length)[mine]
                assert ends.max() == shapes[image] or not batch.image_frames[image]
                # Each begins where one ended, or the video is shown from its start again.
                assert set(batch.placeholder_offset[mine]) <= {0, *ends}


def shapes_of(family, batch):
    """Tokens of the videos; a batch says what blank ones have instead."""
    height, width = (pa.array(side.astype(np.uint32)) for side in batch.image_sizes.T)
    count = pa.array(np.maximum(batch.image_frames, 1).astype(np.uint32))
    rows = pa.array(video_shapes(json.dumps(RULES[family]), width, height, count)).to_pylist()
    grids = batch.image_grid_thw.prod(axis=1) // 4
    return [
        grid if row["tokens"] is None else row["tokens"]
        for row, grid in zip(rows, grids, strict=True)
    ]


def one_video_a_query(folder, *, frames, runs_of, text=3, seed=5):
    """A dataset of queries with a video in the prompt, whose frames are of one size."""
    random = np.random.default_rng(seed)
    count = 24
    files = []
    for _ in range(count):
        size = tuple(int(side) for side in random.integers(9, 60, 2))
        files += [picture(random, "plain", size) for _ in range(frames)]

    def make_rows(blobs):
        made = Rows([], [], [])
        for number in range(count):
            prompt = [3, 4]
            for place, run in enumerate(runs_of):
                prompt += [RUN if place else VIDEO] + [FRAME] * (run - 1) + [7] * text
            step = [0.04, 0.25, 0.5, 1.1][number % 4]
            made.queries.append(
                {
                    "prompt": prompt,
                    "media": blobs[number * frames :][:frames],
                    "media_t": [step * at for at in range(frames)] if number % 5 else [],
                    "weight": 1.0,
                }
            )
            for answer in range(2):
                made.responses.append({"q": number, "tokens": [8, 9 + answer], "media": []})
            pair = {"chosen": 2 * number, "rejected": 2 * number + 1, "margin": 1.0}
            made.pairs.append(pair | {"weight": 1.0, "flags": 0})
        return made

    return store(folder, files, make_rows)


@pytest.mark.parametrize(
    ("family", "frames", "runs"),
    [
        ("qwen2_vl_video", 7, [7]),
        ("qwen2_5_vl_video", 7, [7]),
        ("qwen2_5_vl_video", 1, [1]),
        ("qwen3_vl_video", 7, [2, 2, 2, 1]),
    ],
)
def test_positions_are_those_of_the_models(tmp_path, family, frames, runs):
    torch = pytest.importorskip("torch")
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

    models = {"qwen2_vl": Qwen2VLModel, "qwen2_5_vl": Qwen2_5_VLModel, "qwen3_vl": Qwen3VLModel}
    model = models[family.removesuffix("_video")]

    class Borrowed:
        class config:
            class vision_config:
                spatial_merge_size = 2
                tokens_per_second = 3

        get_rope_index = model.get_rope_index
        get_vision_position_ids = model.get_vision_position_ids

    path = one_video_a_query(tmp_path / "set", frames=frames, runs_of=runs)
    compared = 0
    for batch in loader(path, family):
        for sequence in range(len(batch.prefix_sequence)):
            start, end = batch.cu_seqlens[sequence : sequence + 2]
            query = batch.sequence_query[sequence]
            image = batch.placeholder_image[batch.placeholder_sequence == sequence][0]
            step = [0.04, 0.25, 0.5, 1.1][query % 4] if query % 5 and frames > 1 else 1.0
            ids = torch.from_numpy(batch.input_ids[start:end]).long()[None]
            options = (
                {}
                if model is not Qwen2_5_VLModel
                else {"second_per_grid_ts": torch.tensor([2 * step])}
            )
            theirs, _ = Borrowed().get_rope_index(
                ids,
                2 * (ids == 993).int(),
                video_grid_thw=torch.from_numpy(batch.image_grid_thw[[image]]).long(),
                **options,
            )
            assert np.array_equal(batch.position_ids[:, start:end], theirs[:, 0].numpy())
            compared += 1
    assert compared == 48


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([1, FRAME], r"token 1: found the placeholder of a further frame \(0xFFFFFFFC\)"),
        ([VIDEO, 1, FRAME], "token 2: found the placeholder of a further frame"),
        ([IMAGE, FRAME], "token 1: .* expected directly after another frame"),
        ([RUN, FRAME], r"token 0: found the placeholder of a further run \(0xFFFFFFFD\)"),
        ([VIDEO, IMAGE, 5, RUN], "token 3: .*, expected after its video"),
        ([VIDEO, FRAME, FRAME, 5, RUN], "found 3, expected a multiple of 2, except in the last"),
    ],
)
def test_placeholders_in_another_order_are_refused(tmp_path, prompt, message):
    random = np.random.default_rng(0)
    size, count = (20, 20), sum(token >= FRAME for token in prompt)

    def make_rows(blobs):
        pair = {"chosen": 0, "rejected": 1, "margin": 1.0, "weight": 1.0, "flags": 0}
        responses = [{"q": 0, "tokens": [5 + answer], "media": []} for answer in range(2)]
        query = {"prompt": prompt, "media": blobs[:count], "weight": 1.0}
        return Rows([query], responses, [pair])

    files = [picture(random, "plain", size) for _ in range(5)]
    path = store(tmp_path / "set", files, make_rows)
    with pytest.raises(InputError, match=f"response 0 to query 0: .*{message}"):
        next(loader(path, "qwen2_vl_video"))


def test_a_rule_without_videos_is_a_clear_error(dataset):
    with pytest.raises(InputError, match="image rule: found no `video`, expected the parameters"):
        list(loader(dataset, "qwen2_vl"))


def test_video_token_is_that_of_images_where_there_is_none(dataset):
    pictures = PICTURES["qwen2_vl_video"]
    others = loader(
        dataset, "qwen2_vl_video", pictures=pictures.model_copy(update={"video_token": None})
    )
    for batch, other in zip(loader(dataset, "qwen2_vl_video"), others, strict=True):
        changed = batch.input_ids != other.input_ids
        assert set(batch.input_ids[changed]) <= {993}
        assert set(other.input_ids[changed]) <= {990}


def test_what_is_wrong_with_a_video_is_said(dataset):
    problems = [
        problem for batch in loader(dataset, "qwen3_vl_video") for _, problem in batch.unreadable
    ]
    for said in (
        r"frame 4 of \d: \d+ x \d+ pixels, but \d+ x \d+ in the first",
        r"frame 3 of \d",
        "1 frames, expected at least 2",
        "expected one side at most 200 times the other",
    ):
        assert any(re.search(said, problem) for problem in problems), (said, set(problems))


def test_frames_of_a_patch_are_those_of_the_rule(dataset):
    pictures = PICTURES["qwen2_vl_video"].model_copy(update={"temporal": 1})
    with pytest.raises(InputError, match=r"processor.temporal: found 1, expected 2, that of the"):
        loader(dataset, "qwen2_vl_video", pictures=pictures)
