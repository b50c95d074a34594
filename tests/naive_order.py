"""The order of training, slow and clear: the specification that the core is compared with.

Everything is written as it is said, with Python's whole numbers: no cleverness, no caches, no
search trees. BLAKE3 is here for inputs of one chunk, which is all that a key needs.
"""

from collections import Counter

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15
SHUFFLED_UP_TO = 2**17
MEASURES = ("tokens", "text_tokens", "image_tokens", "images")

# BLAKE3


def _rotate(word, bits):
    return ((word >> bits) | (word << (32 - bits))) & 0xFFFFFFFF


def blake3(content):
    """The 32 bytes of BLAKE3 of at most 1,024 bytes."""
    assert len(content) <= 1024
    start = [0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A]
    start += [0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19]
    blocks = [content[at : at + 64] for at in range(0, len(content), 64)] or [b""]
    chain = start
    for number, block in enumerate(blocks):
        first, last = number == 0, number == len(blocks) - 1
        flags = first * 1 + last * (2 + 8)
        padded = block.ljust(64, b"\0")
        words = [int.from_bytes(padded[at : at + 4], "little") for at in range(0, 64, 4)]
        chain = _compress([*chain, *start[:4], 0, 0, len(block), flags], words)
    return b"".join(word.to_bytes(4, "little") for word in chain)


def _compress(state, words):
    order = [2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8]
    columns = [(0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)]
    diagonals = [(0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)]
    for _ in range(7):
        for mixed, (a, b, c, d) in enumerate(columns + diagonals):
            for half, (turn_d, turn_b) in enumerate([(16, 12), (8, 7)]):
                word = words[2 * mixed + half]
                state[a] = (state[a] + state[b] + word) & 0xFFFFFFFF
                state[d] = _rotate(state[d] ^ state[a], turn_d)
                state[c] = (state[c] + state[d]) & 0xFFFFFFFF
                state[b] = _rotate(state[b] ^ state[c], turn_b)
        words = [words[at] for at in order]
    return [state[at] ^ state[at + 8] for at in range(8)]


# Keys


def mix64(value):
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


class Key:
    def __init__(self, seed, epoch, stream, purpose):
        numbers = b"".join(number.to_bytes(8, "little") for number in (seed, epoch, stream))
        digest = blake3(b"mmrlhf order:1\0" + numbers + purpose.encode())
        self.seed = seed
        self.low = int.from_bytes(digest[:8], "little")
        self.high = int.from_bytes(digest[8:16], "little")
        self.count = 0

    def round_keys(self):
        halves = [self.low, self.high] * 3
        return [
            mix64(((mix64(self.seed) ^ half) + (at + 1) * GOLDEN) & MASK)
            for at, half in enumerate(halves)
        ]

    def below(self, bound):
        while True:
            self.count += 1
            number = mix64(mix64((self.low + self.count * GOLDEN) & MASK) ^ self.high)
            product = number * bound
            if product & MASK >= 2**64 % bound:
                return product >> 64

    def shuffled(self, items):
        items = list(items)
        for last in range(len(items) - 1, 0, -1):
            other = self.below(last + 1)
            items[last], items[other] = items[other], items[last]
        return items


# Parts


def held_out(queries, share, seed=0):
    """Rows of the queries that are held out; ``queries`` are keys, and hashes of pictures shown."""
    groups = []
    for row, (key, pictures) in enumerate(queries):
        group = ({row}, {key}, set(pictures))
        apart = []
        for other in groups:
            if group[1] & other[1] or group[2] & other[2]:
                group = tuple(one | two for one, two in zip(group, other, strict=True))
            else:
                apart.append(other)
        groups = [*apart, group]
    held = set()
    for rows, keys, _ in groups:
        digest = blake3(b"mmrlhf hold_out:1\0" + seed.to_bytes(8, "little") + min(keys))
        if int.from_bytes(digest[:8], "little") < int(share * 2**64):
            held |= rows
    return held


# Permutation


def keyed_permutation(n, key, place):
    bits = max(2, (n - 1).bit_length())
    low_bits = (bits + 1) // 2
    low_mask, high_mask = 2**low_bits - 1, 2 ** (bits - low_bits) - 1
    keys = key.round_keys()
    while True:
        high, low = place >> low_bits, place & low_mask
        for at in range(6):
            if at % 2 == 0:
                high ^= mix64(low ^ keys[at]) & high_mask
            else:
                low ^= mix64(high ^ keys[at]) & low_mask
        place = high << low_bits | low
        if place < n:
            return place


def permutation(n, seed, epoch, stream, purpose="perm"):
    key = Key(seed, epoch, stream, purpose)
    if n <= SHUFFLED_UP_TO:
        return key.shuffled(range(n))
    return [keyed_permutation(n, key, place) for place in range(n)]


def block_shuffle(n, seed, epoch, stream):
    """Blocks of 256 in permuted order, then each run of 512 blocks shuffled unit by unit."""
    blocks = [list(range(first, min(first + 256, n))) for first in range(0, n, 256)]
    order = permutation(len(blocks), seed, epoch, stream, "blocks")
    line = []
    for number, first in enumerate(range(0, len(order), 512)):
        units = [unit for block in order[first : first + 512] for unit in blocks[block]]
        line += Key(seed, epoch, stream, f"block window {number}").shuffled(units)
    return line


# Mixture


def cumulative(mixture, block, sources):
    """Units of the first so many sources before a block."""
    units = 0
    stages = mixture["stages"]
    for number, stage in enumerate(stages):
        end = stages[number + 1]["from_block"] if number + 1 < len(stages) else block
        blocks = max(0, min(block, end) - stage["from_block"])
        part = sum(stage["weights"][:sources]) * 2**32 // sum(stage["weights"])
        units += blocks * mixture["block"] * part // 2**32
    return units


def mixture_block(mixture, block, seed, epoch):
    """The source of each place of a block."""
    places = []
    for source in range(len(mixture["sources"])):
        edges = [cumulative(mixture, block + end, source + 1) for end in (0, 1)]
        under = [cumulative(mixture, block + end, source) for end in (0, 1)]
        places += [source] * ((edges[1] - under[1]) - (edges[0] - under[0]))
    return Key(seed, epoch, block, "mixture").shuffled(places)


def sequence(plan, sources, epoch):
    """What is drawn in an epoch, in order; ``sources`` are numbers of units, or of queries."""
    seed = plan["seed"]
    shuffle = {"full": permutation, "block": block_shuffle}[plan.get("shuffle", "full")]
    mixture = plan.get("mixture")
    if mixture is None:
        return shuffle(sum(sources), seed, epoch, 0)
    first = [sum(sources[:source]) for source in range(len(sources))]
    weighing = {s for stage in mixture["stages"] for s, w in enumerate(stage["weights"]) if w}
    given = [0] * len(sources)
    lines = {}
    units, block = [], 0
    limit = mixture.get("units_per_epoch") or sum(sources)
    while True:
        for source in mixture_block(mixture, block, seed, epoch):
            if mixture["ends"] == "restart" and len(units) == limit:
                return units
            if mixture["ends"] == "stop_first" and given[source] == sources[source]:
                return units
            if mixture["ends"] == "stop_all" and all(given[s] >= sources[s] for s in weighing):
                return units
            turn, index = divmod(given[source], sources[source])
            if (source, turn) not in lines:
                stream = source | turn << 32
                lines[source, turn] = shuffle(sources[source], seed, epoch, stream)
            units.append(first[source] + lines[source, turn][index])
            given[source] += 1
        block += 1


# Packs


def best_fit_decreasing(costs, budget, units, opens=(), draws=None):
    """Places of ``costs`` (tuples of MEASURES) in packs, and the places that fit none.

    ``draws`` gives places whose units came together, and are packed apart, the same number.
    """
    draws = range(len(costs)) if draws is None else draws
    limits = {at: budget[name] for at, name in enumerate(MEASURES) if budget.get(name) is not None}
    fits = [all(cost[at] <= limit for at, limit in limits.items()) for cost in costs]
    places = [place for place, fit in enumerate(fits) if fit]

    def share(amount, limit):
        return amount * 2**32 // limit if limit else 0

    demand = {at: sum(share(costs[p][at], limit) for p in places) for at, limit in limits.items()}
    most = max([*demand.values(), 1])
    weight = {at: max(1, demand[at] * 2**16 // most) for at in limits}

    def score(amounts):
        return sum(weight[at] * share(amounts[at], limit) for at, limit in limits.items())

    sums = {at: sum(costs[p][at] for p in places) for at in limits}
    fewest = max(1, *(-(-sums[at] // max(1, limit)) for at, limit in limits.items()))
    of_draw = Counter(draws[p] for p in places)
    share_of_draw = {draw: -(-units // fewest) for draw, units in of_draw.items()}

    def has_its_share(pack, draw):
        return sum(draws[p] == draw for p in pack) >= share_of_draw[draw]

    places.sort(key=lambda p: (p not in opens, -score(costs[p]), units[p], p))
    packs, left = [], []
    for place in places:
        fitting = [
            (score(amounts), number)
            for number, amounts in enumerate(left)
            if place not in opens and all(costs[place][at] <= amounts[at] for at in limits)
        ]
        held = [fit for fit in fitting if not has_its_share(packs[fit[1]], draws[place])]
        if len(packs) >= fewest:
            held = held or fitting
        number = min(held)[1] if held else len(packs)
        if not held:
            packs.append([])
            left.append(dict(limits))
        packs[number].append(place)
        left[number] = {at: amounts - costs[place][at] for at, amounts in left[number].items()}
    return packs, [place for place, fit in enumerate(fits) if not fit]


def draws_per_window(plan, costs, queries):
    """Units, or the queries that have so many on average."""
    window = plan.get("window", 4096)
    if plan.get("draw", "unit") == "unit":
        return window
    return max(1, window * len(queries) // max(1, len(costs)))


def window(plan, draws, costs, epoch, number, queries=None):
    """The packs of one window as lists of units, and the units left out.

    ``draws`` are those of the epoch in order: units, or numbers of ``queries``, which are lists of
    units. ``costs`` maps each unit to (text, image, images).
    """
    size = draws_per_window(plan, costs, queries)
    numbered = [
        (unit, draw)
        for draw, drawn in enumerate(draws[number * size : (number + 1) * size])
        for unit in ([drawn] if plan.get("draw", "unit") == "unit" else queries[drawn])
    ]
    drawn = [unit for unit, _ in numbered]
    measured = [(sum(costs[unit][:2]), *costs[unit]) for unit in drawn]
    packs, too_large = best_fit_decreasing(
        measured, plan["budget"], drawn, draws=[draw for _, draw in numbered]
    )
    dropped = []
    if plan.get("too_large") == "drop":
        dropped = [drawn[place] for place in too_large]
    else:
        packs += [[place] for place in too_large]
    packs = Key(plan["seed"], epoch, number, "bins").shuffled(packs)
    return [[drawn[place] for place in sorted(pack)] for pack in packs], dropped


def steps(plan, sources, costs, epochs, queries=None):
    """Every step as (units of each pack, the cursor's epoch, window, pack and step after it)."""
    size = plan["packs_per_step"]
    number = 0
    for epoch in range(epochs):
        units = sequence(plan, sources, epoch)
        windows = -(-len(units) // draws_per_window(plan, costs, queries))
        packs = []
        for w in range(windows):
            held, _ = window(plan, units, costs, epoch, w, queries)
            for at, pack in enumerate(held):
                after = (epoch, w, at + 1) if at + 1 < len(held) else (epoch, w + 1, 0)
                packs.append((pack, after))
        for at in range(0, len(packs), size):
            taken = packs[at : at + size]
            after = taken[-1][1] if at + size < len(packs) else (epoch + 1, 0, 0)
            number += 1
            yield [pack for pack, _ in taken] + [[]] * (size - len(taken)), (*after, number)
