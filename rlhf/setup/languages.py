"""Languages of a source: those that a column names, else the scripts of its letters. Nothing is guessed."""

import unicodedata
from collections import Counter
from collections.abc import Iterable
from itertools import islice

from rlhf.data.arguments import DataArguments
from rlhf.data.loading import find_rows

COLUMNS = ("lang", "language")
ROWS = 1_000  # of the source's first split that are read
LETTERS = 2_000  # of each text that are counted
UNNAMED = "none named"
LEAST = 5  # percent of the rows, or letters, of a language or script that is named


def languages_text(kind: str, args: DataArguments, scripts: Counter[str]) -> str:
    """Returns the languages of a source in words.

    Args:
        kind: of rows that the source holds.
        scripts: of `count_scripts`.
    """
    named = named_languages(kind, args)
    chosen = str(args.dataset_config)
    if chosen in named:  # of OpenAssistant's data, the stages read one language
        named = Counter({chosen: 1})
    if named:
        return f"{_shares(named)}, by the column {' or '.join(COLUMNS)}"
    return f"{_shares(scripts)} script; no column names the language" if scripts else "no letters"


def named_languages(kind: str, args: DataArguments) -> Counter[str]:
    """Returns {language: rows} as a column names them, or the first message of a tree; empty if none does."""
    rows = next(iter(find_rows(kind, args).values()))
    counts: Counter[str] = Counter()
    for row in islice(rows(), ROWS):
        first = row.content.get("prompt")
        first = first if isinstance(first, dict) else row.content
        given = (value for name in COLUMNS if isinstance(value := first.get(name), str) and value.strip())
        counts[next(given, UNNAMED)] += 1
    return counts if set(counts) - {UNNAMED} else Counter()


def count_scripts(texts: Iterable[str]) -> Counter[str]:
    """Returns {script: letters}: the first word of a letter's Unicode name, such as Latin, Cyrillic or Cjk."""
    letters = Counter(letter for text in texts for letter in text[:LETTERS] if letter.isalpha())
    scripts: Counter[str] = Counter()
    for letter, number in letters.items():
        scripts[unicodedata.name(letter, "UNKNOWN").split()[0].capitalize()] += number
    return scripts


def _shares(counts: Counter[str]) -> str:
    """Returns the names of more than `LEAST` percent, most frequent first, with their shares if there are several."""
    total = counts.total()
    shares = [(name, 100 * number / total) for name, number in counts.most_common()]
    large = [(name, share) for name, share in shares if share > LEAST]
    if len(large) == 1 and large[0][1] > 100 - LEAST:
        return large[0][0]
    rest = 100 - sum(share for _, share in large)
    others = f" and others {rest:.0f} %" if rest >= 0.5 else ""
    return ", ".join(f"{name} {share:.0f} %" for name, share in large) + others
