"""Which samples match a question of a benchmark, written plainly: texts of words of letters alone.

The specification of ``find_contaminated`` where hashes and thresholds decide.
"""

from collections import Counter

RUN, MIN_RUNS, SHARED_RUN, CONTAINED = 8, 6, 4, 0.3
RADIUS = 4


def windows(text, width):
    words = text.split()
    return {tuple(words[at : at + width]) for at in range(len(words) - width + 1)}


def shingles(text):
    return windows(text, 3) or {tuple(text.split())}


def jaccard(a, b):
    return len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b))


def own_runs(questions):
    """Of each question the runs that few others have."""
    found = [windows(text, RUN) for text, _ in questions]
    counts = Counter(run for runs in found for run in runs)
    return [{run for run in runs if counts[run] <= SHARED_RUN} for runs in found]


def texts_match(sample, question, runs, threshold):
    """(jaccard, share of the runs or None), or None where the texts do not match."""
    measured = jaccard(sample, question)
    share = None
    if len(runs) >= MIN_RUNS:
        share = len(runs & windows(sample, RUN)) / len(runs)
    if measured >= threshold or (share is not None and share >= CONTAINED):
        return measured, share
    return None


def pictures_match(own, asked):
    """The largest distance of the pictures of a question to the nearest of a sample, or None."""
    nearest = [min(((a ^ b).bit_count() for a in own), default=64) for b in asked]
    return max(nearest) if nearest and max(nearest) <= RADIUS else None


def contaminated(samples, questions, by, threshold):
    """(row, question, (jaccard, share) or None, distance or None): the first question of each row.

    Samples and questions are pairs of a text and a list of picture hashes.
    """
    runs = own_runs(questions)
    found = []
    for row, (sample, own) in enumerate(samples):
        for number, (question, asked) in enumerate(questions):
            text = pictures = None
            if by != "picture":
                text = texts_match(sample, question, runs[number], threshold)
            if by != "text":
                pictures = pictures_match(own, asked)
            matches = {
                "both": text is not None and (not asked or pictures is not None),
                "text": text is not None,
                "picture": pictures is not None,
                "either": text is not None or pictures is not None,
            }
            if matches[by]:
                found.append((row, number, text, pictures))
                break
    return found
