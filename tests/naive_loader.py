"""The loader as one would write it down: row by row over the getters of a dataset, one thread.

Windows and their packs come from the core's order over costs counted here; sizes and pixels of an
image are the core's, which `test_load_pixels.py` holds to transformers. Everything else is said
again, in plain Python.
"""

import itertools
import json

import numpy as np
import pyarrow as pa

from mmrlhf_engine import _core

SENTINEL = 0xFFFF_FFFF


class NaiveLoader:
    """All batches of a rank, over all epochs."""

    def __init__(
        self, path, plan, rank=0, world_size=1, *, pictures=None, epochs=1, deleted=(), columns=None
    ):
        """``deleted`` are rows of pairs; ``columns`` has lists of values under ``p`` and ``r``."""
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
        """Tokens of text, tokens of images, and different images."""
        batch = self.batch([unit], pixels=False)
        image_tokens = int(batch["placeholder_length"].sum())
        return len(batch["input_ids"]) - image_tokens, image_tokens, len(batch["image_blob"])

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
            shown = listed(self.dataset.media(query)) if has_prompt else []
            own = listed(self.dataset.response_media(response)) if response >= 0 else []
            shown = shown + own if SENTINEL in answer else own or shown
            before = len(out["input_ids"])
            media = iter(shown)
            next_position = self.write(out, index, prompt, media, len(shown), next_position)
            prompt_lengths.append(len(out["input_ids"]) - before)
            next_position = self.write(out, index, answer, media, len(shown), next_position)
            ends.append(next_position)
            out["starts"].append(len(out["input_ids"]))
        return self.arrays(out, sequences, pairs, prompt_lengths, pixels=pixels)

    def write(self, out, index, ids, media, count, position):
        """Append the ids, images written out; the position after them."""
        for token in ids:
            if token != SENTINEL:
                out["input_ids"].append(token)
                out["positions"].append((position,) * 3)
                position += 1
                continue
            key = (next(media), count == 1)
            image = out["images"].setdefault(key, len(out["images"]))
            shape = self.shape(key)
            position = write_edge(out, self.pictures.image_start_token, position)
            out["placeholders"].append((index, len(out["input_ids"]), shape["tokens"], image))
            position = self.write_image(out, shape, position)
            position = write_edge(out, self.pictures.image_end_token, position)
        return position

    def write_image(self, out, shape, position):
        out["input_ids"] += [self.pictures.image_token] * shape["tokens"]
        if self.rule["family"] != "qwen2_vl":
            out["positions"] += [(position + at,) * 3 for at in range(shape["tokens"])]
            return position + shape["tokens"]
        rows, columns = shape["rows"] // 2, shape["columns"] // 2
        for row in range(rows):
            for column in range(columns):
                out["positions"].append((position, position + row, position + column))
        return position + max(rows, columns)

    def size(self, blob):
        width, height, orientation = self.dataset.blob_size(blob)
        return (height, width) if orientation >= 5 else (width, height)

    def shape(self, key):
        """What the image becomes; where it is refused, what a small square becomes."""
        blob, alone = key
        sides = [pa.array([side], pa.uint32()) for side in (*self.size(blob), 1 if alone else 2)]
        found = pa.array(_core.image_shapes(json.dumps(self.rule), *sides)).to_pylist()[0]
        if found["tokens"] is None:
            sides[:2] = [pa.array([28], pa.uint32())] * 2
            found = pa.array(_core.image_shapes(json.dumps(self.rule), *sides)).to_pylist()[0]
            found["refused"] = True
        return found

    def blocks(self, key):
        """The blocks of an image, and whether they are blank because it cannot be read."""
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
            **self.image_arrays(keys, made),
            "pair_columns": taken(self.columns["pairs"], [row for row, *_ in pairs]),
            "sequence_columns": taken(self.columns["responses"], [row for _, row, *_ in sequences]),
            **self.pair_arrays(
                out["placeholders"], sequences, pairs, [unreadable for _, unreadable in made]
            ),
        }

    def image_arrays(self, keys, made):
        shapes = [self.shape(key) for key in keys]
        grid = [(1, shape["rows"], shape["columns"]) for shape in shapes]
        sizes = [self.size(blob)[::-1] for blob, _ in keys]
        ends = np.cumsum([0] + [len(blocks) for blocks, _ in made])
        return {
            "image_blob": column(keys, 0, np.int64),
            "image_sizes": np.array(sizes, np.int32).reshape(-1, 2),
            "image_grid_thw": np.array(grid, np.int32).reshape(-1, 3),
            "image_blocks": ends.astype(np.int32),
            "image_unreadable": np.array([unreadable for _, unreadable in made], np.uint8),
            "pixel_values": np.concatenate([blocks for blocks, _ in made]) if made else None,
        }

    def pair_arrays(self, placeholders, sequences, pairs, unreadable):
        table = [self.dataset.pair(row) for row, *_ in pairs]
        blank = {index for index, _, _, image in placeholders if unreadable and unreadable[image]}
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
