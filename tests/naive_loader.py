"""The loader as one would write it down: row by row over the getters of a dataset, one thread.

Windows and their packs come from the core's order over costs counted here; sizes of images and
videos and the pixels of an image are the core's, which `test_load_pixels.py` holds to transformers.
Everything else is said again, in plain Python.
"""

import io
import itertools
import json
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image, ImageOps

from mmrlhf_engine import _core

IMAGE, VIDEO, RUN, FRAME = 0xFFFF_FFFF, 0xFFFF_FFFE, 0xFFFF_FFFD, 0xFFFF_FFFC


class Still(NamedTuple):
    """An image, by what decides its pixels."""

    blob: int
    alone: bool


class Video(NamedTuple):
    """A video, by where its frames are."""

    table: str
    row: int
    first: int
    frames: int


class Stretch(NamedTuple):
    """An image, or frames of a video between two texts."""

    key: Still | Video
    before: int
    frames: int
    is_last: bool


class NaiveLoader:
    """All batches of a rank, over all epochs."""

    def __init__(
        self,
        path,
        plan,
        rank=0,
        world_size=1,
        *,
        pictures=None,
        epochs=1,
        deleted=(),
        columns=None,
        added=None,
    ):
        """``deleted`` are rows of pairs; ``columns`` has lists of values under ``p`` and ``r``;
        ``added`` are tokens that are added to each response, by row.
        """
        self.added = added
        self.dataset = _core.Dataset(path)
        self.deleted, self.columns = set(deleted), {"pairs": [], "responses": []} | (columns or {})
        self.plan, self.plan_json = json.loads(plan), plan
        self.rule = self.plan["image_rule"]
        self.pictures = pictures
        self.rank, self.world_size, self.epochs = rank, world_size, epochs
        self.prepared = {}

    def __iter__(self):
        step = 0
        for epoch in range(self.epochs):
            packs = list(self.packs(epoch))
            size = self.plan["packs_per_step"]
            for start in range(0, len(packs), size):
                turns = -(-size // self.world_size)
                for turn in range(turns):
                    pack = turn * self.world_size + self.rank
                    here = start + pack
                    units = packs[here] if pack < size and here < len(packs) else []
                    yield {
                        "step": step,
                        "pack": pack,
                        "ends_step": turn == turns - 1,
                        **self.batch(units),
                    }
                step += 1

    def packs(self, epoch):
        table = {"pair": "pairs", "response": "responses", "query": "queries"}[self.plan["unit"]]
        costs = [self.cost(unit) for unit in range(self.dataset.rows(table))]
        columns = [pa.array(column, pa.uint32()) for column in zip(*costs, strict=True)]
        queries = None
        if self.plan["unit"] == "pair":
            of_query = map(self.pairs_of, range(self.dataset.rows("queries")))
            queries = [len(pairs) for pairs in of_query]
        order = _core.Order(self.plan_json, *columns, queries=queries)
        for window in range(order.windows(epoch)):
            units, offsets, _ = (pa.array(part).to_pylist() for part in order.window(epoch, window))
            for start, end in itertools.pairwise(offsets):
                yield units[start:end]

    def cost(self, unit):
        """Tokens of text, tokens of images and videos, and different images or frames."""
        batch = self.batch([unit], pixels=False)
        image_tokens = int(batch["placeholder_length"].sum())
        images = int(np.maximum(batch["image_frames"], 1).sum())
        text = len(batch["input_ids"]) - image_tokens
        if self.added is not None:
            responses = batch["sequence_response"]
            text += sum(int(self.added[row]) for row in responses if row >= 0)
        return text, image_tokens, images

    def contents(self, units):
        """Sequences (query, response, has prompt, prefix) and pairs (row, chosen, rejected)."""
        sequences, pairs = [], []
        for unit in units:
            if self.plan["unit"] == "query":
                self.add_query(unit, sequences, pairs)
            elif self.plan["unit"] == "response":
                query = self.dataset.response(unit)[0]
                if self.is_left(query, unit):
                    sequences.append((query, unit, True, -1))
            elif unit not in self.deleted:
                query, chosen, rejected, *_ = self.dataset.pair(unit)
                pairs.append((unit, len(sequences), len(sequences) + 1))
                sequences += [(query, chosen, True, -1), (query, rejected, True, -1)]
        if self.plan["unit"] == "response":
            place = {response: index for index, (_, response, *_) in enumerate(sequences)}
            for query in sorted({query for query, *_ in sequences}):
                for row, chosen, rejected in self.pairs_left(query):
                    if chosen in place and rejected in place:
                        pairs.append((row, place[chosen], place[rejected]))
        return sequences, pairs

    def pairs_of(self, query):
        rows = range(*self.dataset.ranges(query)[2:])
        return [(row, *self.dataset.pair(row)[1:3]) for row in rows]

    def pairs_left(self, query):
        return [pair for pair in self.pairs_of(query) if pair[0] not in self.deleted]

    def is_left(self, query, response):
        """A response goes only with its last pair."""
        rows = {row for row, *sides in self.pairs_of(query) if response in sides}
        return not rows or bool(rows - self.deleted)

    def add_query(self, query, sequences, pairs):
        place, prompt = {}, None
        for response in range(*self.dataset.ranges(query)[:2]):
            if not self.is_left(query, response):
                continue
            if len(self.dataset.response_media(response)):
                place[response] = len(sequences)
                sequences.append((query, response, True, -1))
                continue
            if prompt is None:
                prompt = len(sequences)
                sequences.append((query, -1, True, -1))
            place[response] = len(sequences)
            sequences.append((query, response, False, prompt))
        for row, chosen, rejected in self.pairs_left(query):
            pairs.append((row, place[chosen], place[rejected]))

    def batch(self, units, *, pixels=True):
        sequences, pairs = self.contents(units)
        out = {"input_ids": [], "positions": [], "placeholders": [], "images": {}, "starts": [0]}
        prompt_lengths, ends = [], []
        for index, (query, response, has_prompt, prefix) in enumerate(sequences):
            next_position = ends[prefix] if prefix >= 0 else 0
            prompt = listed(self.dataset.prompt(query)) if has_prompt else []
            answer = listed(self.dataset.tokens(response)) if response >= 0 else []
            of_query, of_response = ("queries", query), ("responses", response)
            own = self.media(*of_response) if response >= 0 else []
            if not has_prompt or set(answer) & {IMAGE, VIDEO}:
                shown = (of_query if has_prompt else None, of_response)
            else:
                shown = (of_response if own else of_query, None)
            stills = prompt.count(IMAGE) + answer.count(IMAGE)
            before = len(out["input_ids"])
            next_position = self.write(out, index, prompt, shown[0], stills, next_position)
            prompt_lengths.append(len(out["input_ids"]) - before)
            next_position = self.write(out, index, answer, shown[1], stills, next_position)
            ends.append(next_position)
            out["starts"].append(len(out["input_ids"]))
        return self.arrays(out, sequences, pairs, prompt_lengths, pixels=pixels)

    def media(self, table, row):
        read = self.dataset.media if table == "queries" else self.dataset.response_media
        return listed(read(row))

    def write(self, out, index, ids, owner, stills, position):
        """Append the ids, images and videos written out; the position after them."""
        for part in parts(ids, owner, self.media(*owner) if owner else [], stills):
            if not isinstance(part, Stretch):
                out["input_ids"].append(part)
                out["positions"].append((position,) * 3)
                position += 1
                continue
            image = out["images"].setdefault(part.key, len(out["images"]))
            position = write_edge(out, self.pictures.image_start_token, position)
            grid, offset, length = self.place(part)
            out["placeholders"].append((index, len(out["input_ids"]), length, image, offset))
            out["input_ids"] += [self.token(part.key)] * length
            position = self.write_positions(out, part, grid, length, position)
            position = write_edge(out, self.pictures.image_end_token, position)
        return position

    def token(self, key):
        if isinstance(key, Still) or self.pictures.video_token is None:
            return self.pictures.image_token
        return self.pictures.video_token

    def place(self, stretch):
        """Groups, rows and columns, the first of the item's features, and how many there are."""
        shape = self.shape(stretch.key)
        if isinstance(stretch.key, Still):
            return (1, shape["rows"], shape["columns"]), 0, shape["tokens"]
        temporal = self.temporal()
        extra = self.rule["video"].get("extra_tokens", 0)
        of_group = (shape["tokens"] - extra) // shape["groups"]
        groups = -(-stretch.frames // temporal)
        length = groups * of_group + (extra if stretch.is_last else 0)
        offset = stretch.before // temporal * of_group
        return (groups, shape["rows"], shape["columns"]), offset, length

    def temporal(self):
        return self.rule["video"].get("temporal", 1)

    def write_positions(self, out, stretch, grid, length, position):
        """The positions of an image or of frames; the position after them."""
        if self.rule["family"] != "qwen2_vl":
            out["positions"] += [(position + at,) * 3 for at in range(length)]
            return position + length
        groups, rows, columns = grid[0], grid[1] // 2, grid[2] // 2
        for group in range(groups):
            time = position + int(np.float32(group) * self.interval(stretch.key))
            for row in range(rows):
                for column in range(columns):
                    out["positions"].append((time, position + row, position + column))
        return position + max(rows, columns)

    def interval(self, key):
        """Positions in time between two groups, in the precision of transformers."""
        tokens_per_second = (self.rule.get("video") or {}).get("tokens_per_second")
        if isinstance(key, Still) or tokens_per_second is None:
            return np.float32(1)
        times = listed(self.dataset.media_seconds(key.row)) if key.table == "queries" else []
        times = times[key.first : key.first + key.frames]
        known = len(times) > 1
        spacing = round((times[-1] - times[0]) / (len(times) - 1), 6) if known else 1.0
        return np.float32(tokens_per_second) * np.float32(self.temporal() * spacing)

    def size(self, blob):
        width, height, orientation = self.dataset.blob_size(blob)
        return (height, width) if orientation >= 5 else (width, height)

    def shape(self, key):
        """What the image becomes; where it is refused, what a small square becomes."""
        if isinstance(key, Still):
            size, read, counts = (
                self.size(key.blob),
                _core.image_shapes,
                [1 if key.alone else 2] * 2,
            )
        else:
            size, read = self.size(self.media(key.table, key.row)[key.first]), _core.video_shapes
            counts = [key.frames, max(key.frames, self.temporal())]
        for (width, height), count in zip([size, (28, 28)], counts, strict=True):
            columns = [pa.array([number], pa.uint32()) for number in (width, height, count)]
            found = pa.array(read(json.dumps(self.rule), *columns)).to_pylist()[0]
            if found["tokens"] is not None:
                return found
        raise AssertionError("a small square is refused")

    def blocks(self, key):
        """The blocks of an image, and whether they are blank because it cannot be read."""
        if key not in self.prepared and isinstance(key, Video):
            self.prepared[key] = self.video_blocks(key)
        if key not in self.prepared:
            content = pa.array([self.dataset.blob(key[0])[0]], pa.large_binary())
            settings = self.pictures.model_dump(include={"background"})
            pixels, shape, table = _core.preprocess_images(
                json.dumps(self.rule),
                content,
                processor=json.dumps(settings),
                images=1 if key[1] else 2,
            )
            found = self.shape(key)
            patches = self.rule["family"] == "qwen2_vl"
            count = found["rows"] * found["columns"] if patches else found["views"]
            unreadable = pa.array(table).to_pylist()[0]["detail"] is not None
            blank = np.zeros((count, *shape), np.uint8)
            whole = blank if unreadable else np.frombuffer(pixels, np.uint8).reshape(blank.shape)
            self.prepared[key] = (whole, unreadable)
        return self.prepared[key]

    def video_blocks(self, key):
        """The blocks of a video, and whether they are blank."""
        rule, shape = json.dumps(self.rule), self.shape(key)
        blobs = self.media(key.table, key.row)[key.first : key.first + key.frames]
        sizes = [pa.array([side], pa.uint32()) for side in (*self.size(blobs[0]), key.frames)]
        refused = pa.array(_core.video_shapes(rule, *sizes)).to_pylist()[0]["tokens"] is None
        frames = [self.frame(blob) for blob in blobs]
        readable = all(frame and frame.size == frames[0].size for frame in frames) and not refused
        size = (shape["resized_width"], shape["resized_height"])
        if readable:
            frames = [frame.resize(size, Image.Resampling.BICUBIC) for frame in frames]
        else:
            frames = [Image.new("RGB", size)] * (shape["groups"] * self.temporal())
        pixels = np.stack([np.asarray(frame) for frame in frames]).transpose(0, 3, 1, 2)
        if self.rule["family"] == "qwen2_vl":
            pixels = patches(pixels, self.temporal(), self.rule["patch"], self.rule["merge"])
        return pixels, not readable

    def frame(self, blob):
        """The image as seen, or None where it cannot be read."""
        try:
            image = Image.open(io.BytesIO(self.dataset.blob(blob)[0]))
            return ImageOps.exif_transpose(image).convert("RGB")
        except OSError:
            return None

    def arrays(self, out, sequences, pairs, prompt_lengths, *, pixels):
        keys = list(out["images"])
        made = [self.blocks(key) for key in keys] if pixels else []
        positions = np.array(out["positions"], np.int32).reshape(-1, 3).T
        three = self.rule is not None and self.rule["family"] == "qwen2_vl"
        return {
            "input_ids": np.array(out["input_ids"], np.int32),
            "position_ids": positions if three else positions[0],
            "cu_seqlens": np.array(out["starts"], np.int32),
            "prompt_lengths": np.array(prompt_lengths, np.int32),
            "prefix_sequence": column(sequences, 3),
            "sequence_query": column(sequences, 0, np.int64),
            "sequence_response": column(sequences, 1, np.int64),
            "placeholder_sequence": column(out["placeholders"], 0),
            "placeholder_start": column(out["placeholders"], 1),
            "placeholder_length": column(out["placeholders"], 2),
            "placeholder_image": column(out["placeholders"], 3),
            "placeholder_offset": column(out["placeholders"], 4),
            **self.image_arrays(keys, made),
            "pair_columns": taken(self.columns["pairs"], [row for row, *_ in pairs]),
            "sequence_columns": taken(self.columns["responses"], [row for _, row, *_ in sequences]),
            **self.pair_arrays(
                out["placeholders"], sequences, pairs, [unreadable for _, unreadable in made]
            ),
        }

    def image_arrays(self, keys, made):
        shapes = [self.shape(key) for key in keys]
        grid = [(shape.get("groups", 1), shape["rows"], shape["columns"]) for shape in shapes]
        blobs = [
            key.blob if isinstance(key, Still) else self.media(key.table, key.row)[key.first]
            for key in keys
        ]
        sizes = [self.size(blob)[::-1] for blob in blobs]
        frames = [0 if isinstance(key, Still) else key.frames for key in keys]
        ends = np.cumsum([0] + [len(blocks) for blocks, _ in made])
        return {
            "image_blob": np.array(blobs, np.int64),
            "image_sizes": np.array(sizes, np.int32).reshape(-1, 2),
            "image_grid_thw": np.array(grid, np.int32).reshape(-1, 3),
            "image_frames": np.array(frames, np.int32),
            "image_blocks": ends.astype(np.int32),
            "image_unreadable": np.array([unreadable for _, unreadable in made], np.uint8),
            "pixel_values": np.concatenate([blocks for blocks, _ in made]) if made else None,
        }

    def pair_arrays(self, placeholders, sequences, pairs, unreadable):
        table = [self.dataset.pair(row) for row, *_ in pairs]
        blank = {
            index for index, _, _, image, _ in placeholders if unreadable and unreadable[image]
        }
        blanked = [
            any({place, sequences[place][3]} & blank for place in places) for _, *places in pairs
        ]
        margins = [np.nan if row[3] is None else row[3] for row in table]
        weights = [0 if zero else row[4] for row, zero in zip(table, blanked, strict=True)]
        return {
            "pair_row": column(pairs, 0, np.int64),
            "pair_query": column(table, 0, np.int64),
            "pair_chosen": column(pairs, 1),
            "pair_rejected": column(pairs, 2),
            "pair_margin": np.array(margins, np.float32),
            "pair_weight": np.array(weights, np.float32),
            "pair_flags": column(table, 5),
            "zero_weight_pairs": sum(blanked),
        }


def parts(ids, owner, media, stills):
    """Tokens of text, and stretches of image tokens."""
    placeholders = [token for token in ids if token >= FRAME]
    assert len(placeholders) == len(media)
    videos = []
    for at, token in enumerate(placeholders):
        if token == VIDEO:
            videos.append([at])
        elif token != IMAGE:
            videos[-1].append(at)
    frames_of = {frames[0]: len(frames) for frames in videos}
    first_of = {at: frames[0] for frames in videos for at in frames}
    shown = 0
    for token, group in itertools.groupby(enumerate(ids), lambda item: kind_of(ids, item[0])):
        tokens = [id for _, id in group]
        if token is None:
            yield from tokens
        elif tokens[0] == IMAGE:
            yield Stretch(Still(media[shown], stills == 1), 0, 1, True)
            shown += 1
        else:
            first = first_of[shown]
            key = Video(*owner, first, frames_of[first])
            before, shown = shown - first, shown + len(tokens)
            yield Stretch(key, before, len(tokens), shown - first == key.frames)


def kind_of(ids, at):
    """Equal for placeholders of one stretch: where it begins; None for text."""
    if ids[at] < FRAME:
        return None
    while ids[at] == FRAME:
        at -= 1
    return at


def patches(pixels, temporal, patch, merge):
    """Frames [time, 3, height, width] as the rows of patches of Qwen2-VL."""
    fill = np.repeat(pixels[-1:], -len(pixels) % temporal, axis=0)
    pixels = np.concatenate([pixels, fill])
    time, _, height, width = pixels.shape
    down, across = height // patch // merge, width // patch // merge
    pixels = pixels.reshape(
        time // temporal, temporal, 3, down, merge, patch, across, merge, patch
    ).transpose(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return pixels.reshape(-1, 3 * temporal * patch * patch)


def column(rows, place, kind=np.int32):
    return np.array([row[place] for row in rows], kind)


def taken(columns, rows):
    """Values at rows, NaN at row -1."""
    values = [[column[row] if row >= 0 else np.nan for row in rows] for column in columns]
    return np.array(values, np.float32).reshape(len(columns), len(rows))


def write_edge(out, token, position):
    if token is None:
        return position
    out["input_ids"].append(token)
    out["positions"].append((position,) * 3)
    return position + 1


def listed(array):
    return pa.array(array).to_pylist()
