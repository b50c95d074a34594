"""The compiled half of the engine: used by the Python module of the same name, and nowhere else.

Arrow arrays come in as pyarrow arrays of exactly the type named, contiguous; what goes out offers
``__arrow_c_array__`` and becomes a pyarrow array by ``pa.array(result)``. Errors are those of
``mmrlhf_engine.errors``.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, final

import pyarrow as pa

SOURCE_HASH: str
__version__: str

def raise_for_test(kind: str) -> None:
    """Raise the error of this kind of the core, ``panic`` among them."""

@final
class ArrowArray:
    def __arrow_c_array__(self, requested_schema: object = None) -> tuple[object, object]: ...
    def __len__(self) -> int: ...

# ingest

@final
class RecordSplitter:
    def __new__(
        cls, layout: Literal["lines", "array", "member"], member: str | None = None
    ) -> RecordSplitter: ...
    def feed(self, block: bytes, last: bool) -> ArrowArray:
        """``struct{number: uint64, record: large_binary}``"""

@final
class TarReader:
    def __new__(cls, path: Path) -> TarReader: ...
    def next_members(self, limit: int, texts: list[str]) -> ArrowArray:
        """``struct{name, offset: uint64, length: uint64, text: large_binary, reason, detail}``"""

@final
class FirstSeen:
    def __new__(cls) -> FirstSeen: ...
    def insert(self, texts: pa.Array) -> ArrowArray:
        """large_string in, bool out: whether each is new."""

@final
class UniqueIds:
    def __new__(cls) -> UniqueIds: ...
    def claim(self, records: pa.Array, ids: pa.Array, turns: pa.Array) -> ArrowArray:
        """uint32, large_string and uint32 in, a row a turn (0: the only one); uint32 out."""

def read_records(
    records: pa.Array, columns: Mapping[str, str], threads: int, *, attached: pa.Array | None = None
) -> tuple[ArrowArray, ArrowArray, ArrowArray]:
    """large_binary JSON in, and uint32: how many media each record has by file names.

    Out, a row a turn: ``struct{record, turn, source_id, pair, prompt, answer, question_type,
    reason, detail, options, history, needs_history}``; a row a media reference: ``struct{record,
    name, cell, content, hash, phash, colour, width, height}``; a row a field that is not read:
    ``struct{rows, name, kind, example}``.
    """

def record_fields() -> list[str]: ...
def role_names() -> list[tuple[str, str]]:
    """Every name of a conversation role with the role it means: system, user, assistant, tool."""

def inspect_named_media(
    starts: Sequence[Path],
    names: pa.Array,
    *,
    within: Sequence[Path],
    follow_links: bool = False,
    max_pixels: int,
    threads: int,
) -> ArrowArray:
    """large_string in; ``struct{hash, kind, format, path, reason, detail, width, height, frames,
    bytes}`` out."""

def inspect_located_media(
    paths: pa.Array,
    offsets: pa.Array,
    lengths: pa.Array,
    inline: pa.Array,
    *,
    max_pixels: int,
    threads: int,
) -> ArrowArray:
    """Locations in, as for :func:`hash_images`; out as :func:`inspect_named_media`."""

# image

def hash_images(
    paths: pa.Array,
    offsets: pa.Array,
    lengths: pa.Array,
    inline: pa.Array,
    *,
    max_pixels: int,
    threads: int,
    reduced: bool = False,
) -> ArrowArray:
    """large_string, uint64, uint64 and large_binary in; inline wins where it is not null.

    ``reduced`` decodes JPEG at 1/8 to 1/2 of its size, where each side keeps 64 pixels.

    Out: ``struct{phash: uint64, colour: fixed_size_list<uint8>[192], reason, detail}``.
    """

def decode_images(
    paths: pa.Array,
    offsets: pa.Array,
    lengths: pa.Array,
    inline: pa.Array,
    *,
    size: int,
    fit: str,
    filter: str,
    max_pixels: int,
    threads: int,
) -> tuple[bytes, ArrowArray]:
    """Pixels uint8 [n, size, size, 3], zeros where there are none; ``struct{reason, detail}``."""

def thumbnail_images(
    paths: pa.Array,
    offsets: pa.Array,
    lengths: pa.Array,
    inline: pa.Array,
    *,
    edge: int,
    max_pixels: int,
    threads: int,
) -> ArrowArray:
    """large_binary JPEG, longer side ``edge``; null where it cannot be made."""

# judge

def judge_pictures(
    paths: pa.Array,
    offsets: pa.Array,
    lengths: pa.Array,
    inline: pa.Array,
    first: pa.Array,
    second: pa.Array,
    *,
    thumbnails: bool,
    max_pixels: int,
    threads: int,
) -> ArrowArray:
    """Whether pictures ``first[i]`` and ``second[i]`` (uint32, rows of the pictures located as for
    ``hash_images``) are copies. A picture is prepared once where its pairs follow each other.

    Out: ``struct{copy, equal: bool, cause: frames | shape | thumbnail | luma | chroma,
    luma, chroma: float32, width, height: uint32, scale_x, scale_y, shift_x, shift_y: float32,
    background: none | white | black, left, top, difference_width, difference_height: float32,
    reason, detail}``; without reason and detail unless a picture of the pair cannot be read, and
    then with nothing else.
    """

# dedup

def find_duplicates(
    samples: Mapping[str, Any],
    pictures: Mapping[str, Any],
    *,
    settings: Mapping[str, Any],
    judge: Callable[[list[int], list[int]], tuple[list[bool], list[bool]]] | None,
    threads: int,
    frequencies: pa.StructArray | ArrowArray | None = None,
    text_keys: Sequence[pa.LargeListArray] | None = None,
    text_measures: TextMeasures | None = None,
    memory: int | None = None,
    scratch: str | None = None,
) -> tuple[ArrowArray, ArrowArray, dict[str, int]]:
    """Samples have ``prompts`` and ``answers`` (large_string, or lists of such arrays, one behind
    the other), ``media`` (large_list<uint32>), ``rank`` (uint32) and ``overrides`` (pairs of rows
    that are kept apart); pictures ``media`` (uint32), ``phash`` (uint64) and ``colour`` (uint8, 192
    a picture). ``judge`` says of pairs of media which are copies and which are equal;
    ``frequencies`` are those of :func:`count_frequencies`, without which nothing is common in the
    texts. ``text_keys`` are columns of :func:`text_key_lists`, together of all texts, which are
    then not read for their keys; with them ``text_measures`` spare comparing texts that were
    compared before, and are replaced by those that were used. What does not fit into ``memory``
    bytes, beside a few numbers a row, goes into files in the folder ``scratch``.

    Out: duplicates ``struct{row, kept, kind, text_jaccard, image_hamming, conflict,
    text_differences}``, near misses ``struct{row, other, text_jaccard, image_hamming,
    text_differences}``, and how many pairs were ``compared``, rows ``not_all_judged`` because they
    have too many near pictures, and texts ``without_word_lists``.
    """

def file_hash(path: Path) -> str:
    """XXH3 of 128 bits over the bytes of a file, 32 hexadecimal digits."""

def text_key_lists(
    texts: pa.LargeStringArray,
    *,
    settings: Mapping[str, Any],
    threads: int,
    frequencies: pa.StructArray | ArrowArray | None = None,
) -> ArrowArray:
    """The keys by which texts meet, large_list<uint64>: of each text the two halves of the key that
    equal texts have, the hash of its bytes, then the keys by which it meets others. Settings and
    ``frequencies`` are those of :func:`find_duplicates`.
    """

@final
class TextMeasures:
    """What was measured of pairs of texts: ``struct{high: uint64, low: uint64, jaccard: float32,
    same: bool, unlisted: uint8, differences: large_string}``, a row for each pair.
    """

    def __new__(cls, table: pa.StructArray | None = None) -> TextMeasures: ...
    def __len__(self) -> int: ...
    def table(self) -> ArrowArray:
        """The table, ascending by ``high`` and ``low``."""

def find_contaminated(
    samples: Mapping[str, Any],
    questions: Mapping[str, Any],
    pictures: Mapping[str, Any],
    *,
    by: str,
    settings: Mapping[str, Any],
    judge: Callable[[list[int], list[int]], tuple[list[bool], list[bool]]] | None,
    threads: int,
    frequencies: pa.StructArray | ArrowArray | None = None,
) -> ArrowArray:
    """Samples and questions have ``texts`` (large_string, or a list of such
    arrays) and ``media`` (large_list<uint32>);
    pictures, judge and frequencies are as of :func:`find_duplicates`, ``by`` is both, text, picture
    or either.

    Out: for each sample that matches a question the first one, ascending by row, as
    ``struct{row, question, text_jaccard, contained, image_hamming, text_differences}``.
    """

def keep_orders(
    ids: pa.Array, pixels: pa.Array, lengths: pa.Array, *, threads: int
) -> tuple[ArrowArray, ArrowArray]:
    """large_string, uint64, uint32 in; two of uint32 out: the rows ascending by id, and of every
    row its place in keep order (more pixels, the longer answer, the smaller id)."""

def picture_limits() -> dict[str, float]:
    """From where on local differences make pictures no copies: ``luma``, and ``chroma`` of 255."""

def near_hashes(hashes: pa.Array, *, radius: int, threads: int) -> ArrowArray:
    """uint64 in; uint32 out: the place of the first hash that each is connected with by hashes
    that differ in at most ``radius`` bits."""

def near_texts(texts: pa.Array, *, threshold: float, threads: int) -> ArrowArray:
    """large_string in; uint32 out: the first text that each is connected with by near texts."""

def judge_texts(
    left: pa.Array,
    right: pa.Array,
    *,
    rule: str,
    threshold: float,
    document_tokens: int,
    shingle_words: int,
    threads: int,
    frequencies: pa.StructArray | ArrowArray | None = None,
) -> ArrowArray:
    """Whether the texts of each row ask the same; large_string in.

    ``rule`` is ``prompts`` (every difference is explained), ``documents`` (the Jaccard index of the
    shingles reaches ``threshold``) or ``auto`` (documents where both have ``document_tokens``).
    ``frequencies`` are those of :func:`count_frequencies`: unlisted words that are common are not
    taken for spelling mistakes.

    Out: ``struct{same: bool, jaccard: float32, differences: string, word_lists: bool}``.
    """

def answers_contradict(answer: str, other: str) -> bool:
    """Whether both answers to one question are short and state different things.

    A letter of an option, a number and words are compared with their like alone.
    """

def count_frequencies(
    texts: pa.Array | Sequence[pa.Array], *, shingle_words: int, common_from: int, threads: int
) -> ArrowArray:
    """What is common in texts; large_string in, or several such arrays.

    Out: ``struct{hash: uint64, count: uint32, is_word: bool}``: shingles of more than
    ``common_from`` texts, and words that no list has, with the number of texts.
    """

def frequency_form(shingle_words: int) -> int:
    """Equal for tables of :func:`count_frequencies` whose hashes are made in the same way."""

def text_keys(
    texts: pa.Array,
    *,
    shingle_words: int,
    bands: int,
    rows_per_band: int,
    threads: int,
    frequencies: pa.StructArray | ArrowArray | None = None,
) -> ArrowArray:
    """The keys by which texts meet; large_string in, large_list<uint64> out."""

# select

def select_queries(
    candidates: pa.Array,
    embeddings: pa.Array | None,
    *,
    count: int,
    ratios: list[float],
    modality_bounds: list[tuple[int, int]],
    source_bounds: list[tuple[int, int]],
    order: str,
    seed: int,
    semantic_threshold: float | None,
    threads: int,
) -> tuple[ArrowArray, ArrowArray]:
    """``struct{id, question_type, modality, source, cluster, row}`` in (large_string, int32 for the
    cluster, else uint32), and fixed_size_list<uint16>[d], the bits of float16 unit rows.

    Out: picks in order ``struct{candidate, floor_modality, floor_source}``, and the semantic
    duplicates met ``struct{candidate, close_to, cosine}``.
    """

def share_by_ratio(amount: int, ratios: list[float], limits: list[int]) -> list[int]:
    """``amount`` in whole parts by ratio, none above its limit."""

# load

def preprocess_images(
    rule: str, contents: pa.Array, *, processor: str = "{}", images: int = 1, threads: int = 0
) -> tuple[bytes, list[int], ArrowArray]:
    """An image rule and settings as JSON, and large_binary in; ``images`` to a sequence.

    Out: the blocks of all pictures (uint8 tiles or patches), the dimensions of one block, and
    ``struct{blocks, rows, columns, tokens: uint64, detail}``, numbers null where there is a detail.
    """

def added_tokens_hash(counts: pa.Array) -> str:
    """What a plan says of the tokens that are added to responses, uint32 [responses]."""

def batch_fields() -> list[tuple[str, str, str]]:
    """Name, numpy type and axes, such as ``[S + 1]``, of each array of a batch, in order."""

@final
class DatasetPart:
    """The queries of the part of a dataset that a plan with ``hold_out`` is of."""

    def __new__(cls, dataset: Dataset, plan: str) -> DatasetPart: ...
    @property
    def fingerprint(self) -> str:
        """Of the dataset."""

    def queries(self) -> ArrowArray:
        """Its rows of queries, ascending; uint64."""

@final
class BatchLoader:
    def __new__(
        cls,
        dataset: Dataset,
        plan: str,
        *,
        part: DatasetPart | None = None,
        pair_columns: list[tuple[str, str]],
        response_columns: list[tuple[str, str]],
        processor: str,
        image_token: int | None,
        image_start_token: int | None,
        image_end_token: int | None,
        video_token: int | None = None,
        rank: int,
        ranks: int,
        balance: bool,
        worker: int,
        workers: int,
        epochs: int,
        cursor: str | None,
        taken: int,
        number: int,
        threads: int,
        prefetch_bytes: int,
        cache_bytes: int,
        look_ahead: int,
        pixels: bool = True,
        added_tokens: pa.Array | None = None,
    ) -> BatchLoader:
        """Plan, processor settings and cursor are JSON; columns are sets and fields of float32.

        A plan with ``hold_out`` needs the part; one with ``added_tokens`` needs
        their numbers, uint32 [responses].
        Without ``pixels`` no image is made, and ``pixel_values`` has no block.
        """

    def next_batch(
        self,
    ) -> (
        tuple[
            memoryview,
            list[tuple[list[int], int]],
            tuple[int, int, bool, bool, str],
            list[tuple[int, str]],
            int,
        ]
        | None
    ):
        """The next batch; none at the end.

        Writable memory; shape and offset of each array, in the order of :func:`batch_fields`; step,
        pack, whether it ends the step, whether the step has images, cursor; blob ids of unreadable
        images and videos and why; pairs of weight 0 for them.
        """

    def cursor(self) -> str:
        """The boundary between two steps to go on from."""

    def taken(self) -> tuple[int, int]:
        """Batches passed after the cursor, and the number of all since it began."""

    def check_units(self, epoch: int, *, threads: int = 0) -> int:
        """The units that fit no pack; an error if the plan refuses them, or one cannot be read."""

    def epoch(self, cursor: str, *, threads: int = 0) -> tuple[int, str]:
        """The batches of this rank in a cursor's epoch, and the cursor that starts the next."""

    def progress(self) -> tuple[int, int]:
        """Batches begun and images prepared since the threads were started."""

    def stop(self) -> None:
        """End the threads."""

# shard

@final
class DatasetWriter:
    def __new__(
        cls,
        path: Path,
        *,
        tokenizer: str,
        shard_pairs: int = 65_536,
        shard_bytes: int = 268_435_456,
        blob_bytes: int = 536_870_912,
        threads: int = 0,
    ) -> DatasetWriter: ...
    def add_media(self, bytes: pa.Array | None = None, paths: pa.Array | None = None) -> ArrowArray:
        """large_binary, large_string in; bytes win where they are not null.

        Out, a row each: ``struct{id: uint64, width: uint32, height: uint32, problem}``; either the
        problem is null or the rest.
        """

    def append(self, queries: pa.Array, responses: pa.Array, pairs: pa.Array) -> None:
        """Struct arrays; whole queries, references by row of this call.

        Queries: prompt large_list<uint32>, media large_list<uint64>, media_t large_list<float32>,
        source uint16, weight float32, prompt_text large_string. Responses: q uint32, tokens
        large_list<uint32>, media large_list<uint64>, rank int16, score float32, critique
        large_string, critique_tok large_list<uint32>, model uint16. Pairs: chosen uint32, rejected
        uint32, margin float32, weight float32, flags uint16. Only prompt, q, tokens, chosen and
        rejected are required.
        """

    def pair_ids(self, queries: pa.Array, responses: pa.Array, pairs: pa.Array) -> ArrowArray:
        """fixed_size_binary[16] out: the ``pid`` that each pair gets from :meth:`append`."""

    def commit(self) -> int:
        """The new version; the writer is used up."""

    def abort(self) -> None: ...

@final
class Dataset:
    def __new__(
        cls,
        path: Path,
        version: int | None = None,
        verify: Literal["off", "lazy", "open"] = "lazy",
    ) -> Dataset: ...
    @property
    def version(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def tokenizer(self) -> str: ...
    @property
    def manifest(self) -> str: ...
    def rows(self, table: str) -> int:
        """Of ``queries``, ``responses``, ``pairs`` or ``blobs``."""

    def prompt(self, query: int) -> ArrowArray:
        """uint32 [tokens]"""

    def media(self, query: int) -> ArrowArray:
        """uint64 [media], blob ids"""

    def media_seconds(self, query: int) -> ArrowArray:
        """float32 [media], or [0] for stills"""

    def query(self, query: int) -> tuple[str | None, int, float]:
        """Prompt text, source, weight."""

    def ranges(self, query: int) -> tuple[int, int, int, int]:
        """First and end of its responses, first and end of its pairs."""

    def tokens(self, response: int) -> ArrowArray:
        """uint32 [tokens]"""

    def critique_tokens(self, response: int) -> ArrowArray:
        """uint32 [tokens]"""

    def response_media(self, response: int) -> ArrowArray:
        """uint64 [media], blob ids"""

    def response(self, response: int) -> tuple[int, int, int | None, float | None, str | None, int]:
        """Query, number of tokens, rank, score, critique, model."""

    def pair(self, pair: int) -> tuple[int, int, int, float | None, float, int]:
        """Query, chosen, rejected (rows over all shards), margin, weight, flags."""

    def key(self, table: str, row: int) -> bytes:
        """qid, rid or pid: 16 bytes; for ``blobs`` the BLAKE3 of the blob with this id."""

    def blob(self, id: int) -> tuple[bytes, int, int, int, int, int]:
        """Bytes, width, height, format, orientation, frames."""

    def blob_size(self, id: int) -> tuple[int, int, int]:
        """Width, height, orientation."""

    def blob_row(self, id: int) -> int:
        """Row of a blob over all files of blobs: that of its values in sidecar columns."""

    def coverage(self) -> str:
        """JSON: a list of ``{set, table, rev, fields, filled, rows, missing}``."""

    def column(self, set: str, field: str, start: int = 0, end: int | None = None) -> ArrowArray:
        """Null where it is not computed; the types are those of :func:`add_column`."""

def add_column(
    path: Path,
    *,
    table: str,
    set: str,
    values: pa.Array,
    provenance: str,
    start: int = 0,
) -> int:
    """The new version. ``values``: a struct array, a field per column, for rows ``start`` on of
    ``table``; float32, uint32, uint64, bool, large_string, large_list<float32> or
    large_list<float16>.
    """

def shard_schema() -> str:
    """JSON: a list of ``{name, letter, rows_per_batch, columns}``, a table each.

    A column is ``{name, type, nullable, input, default, description}``; ``input`` is ``computed``
    by the writer, ``required`` or ``optional`` in :meth:`DatasetWriter.append`.
    """

def verify_dataset(
    path: Path, version: int | None = None, deep: bool = False
) -> tuple[Literal["good", "damaged", "wrong_version"], str]:
    """And JSON: ``{version, foreign_profile, files, bytes, damages}``."""

def diff_datasets(first: Dataset, second: Dataset) -> str:
    """JSON: ``{same_data, rows, added, removed, columns_changed, columns_removed}``."""

def collect_garbage(path: Path, *, keep: int | None = None, dry_run: bool = False) -> str:
    """JSON: ``{versions, files, bytes}``."""

def rekey_column(source: Path, target: Path, set: str) -> str:
    """JSON: ``{version, matched, rows}``."""

# order

def permute(
    n: int, *, seed: int, epoch: int, stream: int, start: int, count: int, keyed: bool = False
) -> ArrowArray:
    """What stands at ``start .. start + count`` of the permutation of ``0..n``; uint64 out.

    ``keyed`` asks for the one computed place by place, even where n is small enough to shuffle.
    """

def invert(
    items: pa.Array, n: int, *, seed: int, epoch: int, stream: int, keyed: bool = False
) -> ArrowArray:
    """Where items stand in the permutation of ``0..n``; uint64 in and out."""

def plan_hash(plan: str) -> tuple[str, str]:
    """The canonical JSON of a plan, and its hash."""

def plan_differences(found: str, expected: str) -> list[str]:
    """The fields in which two plans differ, each as ``name: found, expected``."""

def plan_windows(
    plan: str,
    text_tokens: pa.Array,
    image_tokens: pa.Array,
    images: pa.Array,
    *,
    epoch: int,
    window: int,
    sources: list[int] | None = None,
) -> tuple[ArrowArray, ArrowArray, ArrowArray]:
    """One window of an :class:`Order` made for this call."""

@final
class Order:
    """A plan over units that cost so much (uint32 columns, a row a unit).

    ``sources`` or ``queries`` are numbers of units, those of the first one first. ``part`` are the
    queries, ascending, that a plan with ``hold_out`` is of; without ``queries`` each unit is one.
    """

    def __new__(
        cls,
        plan: str,
        text_tokens: pa.Array,
        image_tokens: pa.Array,
        images: pa.Array,
        *,
        sources: list[int] | None = None,
        queries: list[int] | None = None,
        part: list[int] | None = None,
        dataset: str = "",
        manifest: int = 0,
    ) -> Order: ...
    @property
    def plan_hash(self) -> str: ...
    def windows(self, epoch: int) -> int:
        """The number of windows in an epoch."""

    def window(self, epoch: int, window: int) -> tuple[ArrowArray, ArrowArray, ArrowArray]:
        """Units, offsets of each pack and the end, and units left out; uint64."""

    def summarise(self, epoch: int, *, threads: int = 0) -> ArrowArray:
        """A row a window: ``struct{packs, units, pairs, text_tokens, image_tokens, images,
        dropped: uint64}``.
        """

    def start(self) -> str:
        """The cursor before the first step, as JSON."""

    def steps(
        self,
        cursor: str,
        *,
        epochs: int,
        rank: int = 0,
        ranks: int = 1,
        balance: bool = False,
        before: Order | None = None,
    ) -> Steps:
        """One rank's steps from a cursor on, up to the end of epoch ``epochs - 1``.

        With ``before``, the plan that the cursor is of, its window is finished under that plan.
        """

    def seek(
        self, start: str, *, step: int | None = None, units: int | None = None, threads: int = 0
    ) -> str:
        """The cursor before a step of the epoch that ``start`` begins, or the first after which so
        many of its units were seen.
        """

    def find(self, epoch: int, unit: int) -> tuple[int, int] | None:
        """The window and the pack of a unit in an epoch, if it comes to it."""

@final
class Steps:
    """Made by :meth:`Order.steps`."""

    def __iter__(self) -> Steps: ...
    def __next__(self) -> tuple[int, list[int], ArrowArray, ArrowArray, bool, str]:
        """The number of a step, which of its packs this rank takes, their units and offsets,
        whether any pack of the step has pictures, and the cursor after it.
        """

def image_tokens(rule: str, width: pa.Array, height: pa.Array, images: pa.Array) -> ArrowArray:
    """Tokens of pictures and around them, uint32; null where the processor would refuse one.

    uint32 columns in; ``images`` says how many pictures the sample of each has.
    """

def image_shapes(rule: str, width: pa.Array, height: pa.Array, images: pa.Array) -> ArrowArray:
    """``struct{tokens, framing_tokens, resized_width, resized_height, canvas_width, canvas_height,
    columns, rows, views: uint32}``, null where the processor would refuse a picture.
    """

def video_shapes(rule: str, width: pa.Array, height: pa.Array, frames: pa.Array) -> ArrowArray:
    """Of whole videos, ``struct{tokens, resized_width, resized_height, columns, rows, groups:
    uint32}``, null where the processor would refuse one. uint32 columns in.
    """
