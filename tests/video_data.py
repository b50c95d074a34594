"""Preference shards with videos: in prompts and answers, beside images, in one run or several."""

import numpy as np

from load_data import FRAME, IMAGE, RUN, VIDEO, Rows, picture, store


def write_videos(folder, *, queries=60, seed=0):
    """A dataset of images and videos of 1 to 7 frames; some cannot be read or are refused."""
    random = np.random.default_rng(seed)
    stills = ["plain"] * 8 + ["turned"] * 2 + ["broken"]
    kinds = ["plain"] * 9 + ["turned"] * 2 + ["mixed", "broken", "wide"]
    files = [picture(random, kind) for kind in stills]
    clips = []
    for kind in kinds:
        clips.append(range(len(files), len(files) + 7))
        files += clip(random, kind)

    def make_rows(blobs):
        images = blobs[: len(stills)]
        return rows(random, queries, images, [[blobs[at] for at in clip] for clip in clips])

    return store(folder, files, make_rows)


def clip(random, kind):
    """The files of seven frames: of one size, except ``mixed``."""
    size = tuple(int(side) for side in random.integers(2, 40, 2))
    frames = [picture(random, "plain" if kind == "mixed" else kind, size) for _ in range(7)]
    if kind in ("mixed", "broken"):
        frames[1:] = [picture(random, "plain", size) for _ in range(6)]
        other = tuple(side + 1 for side in size)
        frames[3] = picture(random, "broken", size) if kind == "broken" else frames[3]
        frames[4] = picture(random, "plain", other) if kind == "mixed" else frames[4]
        frames[0] = frames[2]
    return frames


def rows(random, queries, images, clips):
    """Queries of 2 to 4 responses, whose media are drawn independently."""
    made = Rows([], [], [])
    for number in range(queries):
        items = drawn_items(random, int(random.integers(0, 4)))
        prompt = text(random, int(random.integers(2, 30)), items)
        media, seconds = media_of(random, items, images, clips)
        known = any(items) and random.random() < 0.9
        made.queries.append(
            {
                "prompt": [*prompt, 900],
                "media": media,
                "media_t": seconds if known else [],
                "weight": 1.0,
            }
        )
        first, count = len(made.responses), int(random.integers(2, 5))
        for _ in range(count):
            own = drawn_items(random, int(random.choice([0, 0, 0, 1])))
            ids = text(random, int(random.integers(1, 20)), own)
            # Other media for the placeholders of the prompt.
            instead = items if items and not own and random.random() < 0.15 else own
            seen, _ = media_of(random, instead, images, clips)
            made.responses.append({"q": number, "tokens": ids, "media": seen})
        for chosen in range(count):
            for rejected in range(chosen + 1, count):
                made.pairs.append(
                    {
                        "chosen": first + chosen,
                        "rejected": first + rejected,
                        "margin": 0.5,
                        "weight": 1.0,
                        "flags": 0,
                    }
                )
    return made


def drawn_items(random, count):
    """For each image an empty list, for each video the frames of its runs."""
    return [
        [] if random.random() < 0.4 else [int(run) for run in runs_of(random)] for _ in range(count)
    ]


def runs_of(random):
    frames = int(random.integers(1, 8))
    while frames > 2 and random.random() < 0.5:
        run = 2 * int(random.integers(1, (frames + 1) // 2))
        yield run
        frames -= run
    yield frames


def text(random, length, items):
    """Ids, between which the items stand in order; their runs have text between them."""
    ids = [int(number) for number in random.integers(1, 900, length)]
    places = sorted(int(place) for place in random.integers(0, length + 1, len(items)))
    out, done = [], 0
    for place, runs in zip(places, items, strict=True):
        out += ids[done:place]
        done = place
        if not runs:
            out.append(IMAGE)
        for number, frames in enumerate(runs):
            if number:
                out += [int(id) for id in random.integers(1, 900, int(random.integers(1, 4)))]
            out += [RUN if number else VIDEO] + [FRAME] * (frames - 1)
    return out + ids[done:]


def media_of(random, items, images, clips):
    """Blob ids and seconds; a still is at second 0."""
    media, seconds = [], []
    for runs in items:
        if not runs:
            media.append(int(random.choice(images)))
            seconds.append(0.0)
            continue
        clip = clips[int(random.integers(len(clips)))]
        media += clip[: sum(runs)]
        step = float(random.choice([0.1, 0.5, 1.0, 1 / 3, 2.6]))
        seconds += [round(4 + step * number, 3) for number in range(sum(runs))]
    return media, seconds
