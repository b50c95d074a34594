"""A batch of gathered queries made ready: pictures found, text tokenised, lengths within bounds.

1. The pictures of all messages are found and their headers read, before anything is written.
2. Prompts and responses are tokenised at once; critiques too.
3. What is too long is treated by the policy.
4. Only what is still alive brings its pictures into the dataset.

Whatever fails takes the pairs that need it out of the batch, by name, and nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from mmrlhf_engine._core import DatasetWriter
from mmrlhf_engine.models.families.placeholders import SMALLEST_ID
from mmrlhf_engine.pack.chat_template import Conversation
from mmrlhf_engine.pack.gather import Query, RowAccounting
from mmrlhf_engine.pack.over_long import (
    CountTokens,
    OverLongPolicy,
    ReadyQuery,
    ReadyResponse,
    fit,
)
from mmrlhf_engine.pack.shard_rows import to_tables
from mmrlhf_engine.pack.tokenize import ChatTokenizer
from mmrlhf_engine.sources.pictures import FrameSettings, Located, Picture, find_pictures
from mmrlhf_engine.sources.preferences.record import BadRecordError, Media, Message, Response

__all__ = ["Counts", "Packer"]

_Found = dict[Located, list[Picture] | BadRecordError]


@dataclass
class Counts:
    """What has been written."""

    queries: int = 0
    responses: int = 0
    pairs: int = 0
    ties: int = 0
    pictures: int = 0
    text_tokens: int = 0
    image_tokens: int = 0


@dataclass
class Packer:
    """Takes gathered queries to the writer."""

    writer: DatasetWriter
    tokenizer: ChatTokenizer
    frames: FrameSettings
    count_tokens: CountTokens
    max_length: int | None
    over_long: OverLongPolicy
    accounting: RowAccounting
    counts: Counts

    def pack(self, queries: Sequence[Query]) -> None:
        """Prepare a batch of queries and append it.

        Raises:
            InputError: a sequence is too long and the policy is ``error``.
            MissingExtraError: a package for videos or for shrinking is not installed.
        """
        queries = [query for query in queries if any(pair.alive for pair in query.pairs)]
        found = find_pictures(_located(queries), self.frames)
        queries = [query for query in queries if self._has_pictures(query, found)]
        ready = self._tokenize(queries, found)
        for one in ready:
            self._drop_refused_sizes(one)
            if self.max_length is not None:
                fit(one, self.max_length, self.over_long, self.count_tokens, self.accounting)
            self._name_animations(one)
        blobs = self._store_pictures(ready)
        critiques = self._critiques(ready)
        tables = to_tables(ready, blobs, critiques)
        if tables[0].num_rows:
            rows_of = [table.to_struct_array() for table in tables]
            self.writer.append(rows_of[0], rows_of[1], rows_of[2])
            self._count(ready, tables)

    def _has_pictures(self, query: Query, found: _Found) -> bool:
        """Drop what lacks a picture: every pair for one of the prompt, else those of the answer."""
        bad = _first_bad(query, _media_of(query.prompt), found)
        for number, response in enumerate(query.responses):
            problem = bad or _first_bad(query, _media(response), found)
            if problem is None:
                continue
            for pair in query.pairs:
                if number in (pair.chosen, pair.rejected):
                    self.accounting.drop(pair, problem.reason, problem.detail)
        return any(pair.alive for pair in query.pairs)

    def _tokenize(self, queries: list[Query], found: _Found) -> list[ReadyQuery]:
        conversations = [
            Conversation(
                query.prompt,
                tuple(response.messages for response in query.responses),
                partial(_times_of, query.root, found),
            )
            for query in queries
        ]
        tokenized = self.tokenizer.tokenize(conversations)
        ready = []
        for query, item in zip(queries, tokenized, strict=True):
            if isinstance(item, BadRecordError):
                for pair in query.pairs:
                    self.accounting.drop(pair, item.reason, item.detail)
                continue
            pictures = _pictures(query, item.prompt_media, found)
            one = ReadyQuery(query, item.prompt, item.prompt_text, pictures, [])
            for number, answer in enumerate(item.responses):
                if isinstance(answer, BadRecordError):
                    one.responses.append(None)
                    one.drop(number, answer.reason, answer.detail, self.accounting)
                else:
                    response = query.responses[number]
                    tokens, media = answer
                    own = _pictures(query, [*media, *response.instead], found)
                    one.responses.append(ReadyResponse(tokens, own, bool(response.instead)))
                    if response.instead and len(own) != len(pictures):
                        detail = f"{len(own)} pictures in place of {len(pictures)} of the prompt"
                        one.drop(number, "media_count", detail, self.accounting)
            ready.append(one)
        return ready

    def _drop_refused_sizes(self, ready: ReadyQuery) -> None:
        """Drop what the model's own image processor would refuse, such as extreme aspect."""
        for number in ready.live():
            response = ready.responses[number]
            try:
                placeholders = ready.placeholders_with(response)
                self.count_tokens(_sizes(ready.seen_with(response)), placeholders)
            except BadRecordError as error:
                ready.drop(number, error.reason, error.detail, self.accounting)

    def _name_animations(self, ready: ReadyQuery) -> None:
        """Say of every row whose image is an animation that only its first frame is seen."""
        pictures = [picture for pictures in _picture_lists(ready) for picture in pictures]
        animated = next((p for p in pictures if p.seconds is None and p.frames > 1), None)
        if animated is None:
            return
        detail = f"{animated.path or 'an image'} has {animated.frames} frames; the first is taken"
        for row in {pair.row: None for pair in ready.query.pairs if pair.alive}:
            self.accounting.change(row, "first_frame", detail)

    def _store_pictures(self, ready: list[ReadyQuery]) -> dict[Picture, int]:
        """The blob of each picture that is still needed; what the writer refuses is dropped."""
        wanted: dict[Picture, None] = {}
        for one in ready:
            for pictures in _picture_lists(one):
                wanted.update(dict.fromkeys(pictures))
        if not wanted:
            return {}
        contents = pa.array([picture.content for picture in wanted], pa.large_binary())
        paths = [picture.path if picture.content is None else None for picture in wanted]
        added = self.writer.add_media(contents, pa.array(paths, pa.large_string()))
        rows = dict(zip(wanted, pa.array(added).to_pylist(), strict=True))
        refused = {p: row["problem"] for p, row in rows.items() if row["problem"] is not None}
        for one in ready if refused else []:
            self._drop_refused(one, refused)
        return {picture: row["id"] for picture, row in rows.items()}

    def _drop_refused(self, ready: ReadyQuery, refused: dict[Picture, str]) -> None:
        for number in ready.live():
            response = ready.responses[number]
            own = response.pictures if response is not None else []
            bad = next((refused[p] for p in (*ready.pictures, *own) if p in refused), None)
            if bad is not None:
                ready.drop(number, "unreadable_media", bad, self.accounting)

    def _critiques(self, ready: list[ReadyQuery]) -> dict[str, list[int]]:
        texts = {
            critique: None
            for one in ready
            for number in one.live()
            if (critique := one.query.responses[number].critique)
        }
        return dict(zip(texts, self.tokenizer.encode(list(texts)), strict=True)) if texts else {}

    def _count(
        self, ready: list[ReadyQuery], tables: tuple[pa.RecordBatch, pa.RecordBatch, pa.RecordBatch]
    ) -> None:
        queries, responses, pairs = tables
        self.counts.queries += queries.num_rows
        self.counts.responses += responses.num_rows
        self.counts.pairs += pairs.num_rows
        for one in ready:
            live = one.live()
            if not live:
                continue
            alive = [pair for pair in one.query.pairs if pair.alive]
            self.counts.ties += sum(pair.tie for pair in alive)
            answers = [answer for n in live if (answer := one.responses[n]) is not None]
            pictures = [*one.pictures, *(p for answer in answers for p in answer.pictures)]
            ids = np.concatenate([one.prompt, *(answer.tokens for answer in answers)])
            placeholders = [int(number) for number in ids[ids >= SMALLEST_ID]]
            self.counts.pictures += len(pictures)
            self.counts.text_tokens += len(ids) - len(placeholders)
            self.counts.image_tokens += sum(self.count_tokens(_sizes(pictures), placeholders))


def _sizes(pictures: Sequence[Picture]) -> list[tuple[int, int]]:
    return [(picture.width, picture.height) for picture in pictures]


def _media_of(messages: tuple[Message, ...]) -> list[Media]:
    return [media for message in messages for media in message.media]


def _media(response: Response) -> list[Media]:
    """The media of a response: its own, or those it goes with in place of the prompt's."""
    return [*_media_of(response.messages), *response.instead]


def _located(queries: Sequence[Query]) -> list[Located]:
    return [
        (query.root, media)
        for query in queries
        for group in (_media_of(query.prompt), *map(_media, query.responses))
        for media in group
    ]


def _times_of(root: Path, found: _Found, media: Media) -> list[float]:
    pictures = found[root, media]
    return [p.seconds or 0.0 for p in pictures] if isinstance(pictures, list) else []


def _first_bad(query: Query, media: list[Media], found: _Found) -> BadRecordError | None:
    outcomes = (found[query.root, item] for item in media)
    return next((outcome for outcome in outcomes if isinstance(outcome, BadRecordError)), None)


def _pictures(query: Query, media: list[Media], found: _Found) -> list[Picture]:
    """The pictures of media in the order of their slots."""
    pictures: list[Picture] = []
    for item in media:
        outcome = found[query.root, item]
        pictures += outcome if isinstance(outcome, list) else []
    return pictures


def _picture_lists(ready: ReadyQuery) -> list[list[Picture]]:
    """The pictures of the prompt and of every living response."""
    live = ready.live()
    own = [answer.pictures for number in live if (answer := ready.responses[number]) is not None]
    return [ready.pictures, *own] if live else []
