"""Make words.txt and variants.txt again from SCOWL's word lists, as Debian packages them.

    apt-get install wamerican-large wbritish-large wamerican-small wbritish-small
    python make_words.py [/usr/share/dict]

words.txt: every word of the American and the British list (SCOWL sizes up to 70) in lower case,
names included, each also without its accents, ascending by code points; `+` follows a word that is
also in a small list (sizes up to 35).
variants.txt: `british american`, where each is in one of the two lists only and a regular change of
spelling turns one into the other.
"""

import sys
import unicodedata
from pathlib import Path

CHANGES = (
    ("our", "or"),
    ("is", "iz"),
    ("ys", "yz"),
    ("tre", "ter"),
    ("bre", "ber"),
    ("ogue", "og"),
    ("ll", "l"),
    ("l", "ll"),
    ("ae", "e"),
    ("oe", "e"),
    ("ence", "ense"),
    ("amme", "am"),
    ("grey", "gray"),
    ("cheque", "check"),
    ("tyre", "tire"),
    ("plough", "plow"),
    ("mould", "mold"),
    ("sceptic", "skeptic"),
    ("aluminium", "aluminum"),
    ("yjama", "ajama"),
)


def main() -> None:
    """Write both files beside this one."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "/usr/share/dict")
    american, british = (read(folder / f"{name}-english-large") for name in ("american", "british"))
    common = read(folder / "american-english-small") | read(folder / "british-english-small")
    here = Path(__file__).parent
    words = sorted(american | british)
    lines = [word + "+" * (word in common) for word in words]
    (here / "words.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    pairs = [
        f"{word} {other}"
        for word in sorted(british - american)
        for other in sorted(spellings(word) & (american - british))[:1]
    ]
    (here / "variants.txt").write_text("\n".join(pairs) + "\n", encoding="utf-8")


def read(path: Path) -> set[str]:
    """The words of a list in lower case, with and without accents; none has an apostrophe."""
    lines = path.read_text(encoding="utf-8").split()
    words = {line.lower() for line in lines if "'" not in line}
    return words | {without_accents(word) for word in words}


def without_accents(word: str) -> str:
    """The letters of a word without the marks on them."""
    return "".join(c for c in unicodedata.normalize("NFD", word) if not unicodedata.combining(c))


def spellings(word: str) -> set[str]:
    """What one regular change, made at any one place or at all of them, turns a word into."""
    found = set()
    for old, new in CHANGES:
        found.add(word.replace(old, new))
        start = word.find(old)
        while start >= 0:
            found.add(word[:start] + new + word[start + len(old) :])
            start = word.find(old, start + 1)
    return found


if __name__ == "__main__":
    main()
