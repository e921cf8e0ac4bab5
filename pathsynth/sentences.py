"""Which tissue a sentence asks for."""

from __future__ import annotations

from collections.abc import Sequence

from pathsynth.errors import PathsynthError
from pathsynth.labels import slug


class SentenceError(PathsynthError):
    """A sentence that names no tissue of the benchmark, or several."""

    def __init__(self, sentence: str, problem: str, labels: Sequence[str]):
        super().__init__(f"{sentence!r} {problem}; known are: {', '.join(labels)}")


def tissue_named(sentence: str, labels: Sequence[str]) -> int:
    """The number of the one label whose words stand in a sentence.

    Case, punctuation and a plural's s do not matter. A label that is a part of a longer one is not meant where that one stands.

    Args:
        sentence: words in any script.
        labels: the tissues in words, in the order of their numbers.

    Raises:
        SentenceError: no label is named, or more than one.
    """
    words, named = f" {_words(sentence)} ", []
    for label in sorted(labels, key=lambda label: -len(_words(label))):
        if (wanted := f" {_words(label)} ") in words:
            named.append(label)
            # the place stays taken, so that words on either side do not come to stand together
            words = words.replace(wanted, " | ")
    if len(named) != 1:
        problem = f"names {' and '.join(sorted(named))}, where one image shows one" if named else "names no class"
        raise SentenceError(sentence, problem, labels)
    return list(labels).index(named[0])


def is_name(sentence: str, label: str) -> bool:
    """Whether a sentence is the label alone."""
    return _words(sentence) == _words(label)


def _words(text: str) -> str:
    """The words in lower case, each without an s at its end, one space apart; of snake_case names too."""
    return " ".join(word.removesuffix("s") for word in slug(text).split("_"))
