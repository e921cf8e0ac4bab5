"""Which tissue a sentence asks for."""

from __future__ import annotations

from collections.abc import Sequence

from pathsynth.core.errors import CONTROLS, PathsynthError
from pathsynth.data.labels import slug


class SentenceError(PathsynthError):
    """A sentence that names no tissue of the benchmark, or several."""

    def __init__(self, sentence: str, problem: str, labels: Sequence[str]):
        super().__init__(f"{sentence!r} {problem}; known are: {', '.join(labels)}")


def one_line_of(sentence: str, labels: Sequence[str]) -> str:
    """The sentence with one space between words.

    Raises:
        SentenceError: it is empty, or has characters that are no text.
    """
    line = " ".join(sentence.split())
    if not line:
        raise SentenceError(sentence, "is empty", labels)
    # bytes of a command line that are not UTF-8 come as halves of characters
    if CONTROLS.search(line) or line.encode("utf-8", "replace").decode() != line:
        raise SentenceError(line.encode("utf-8", "replace").decode(), "has characters that are no text", labels)
    return line


def match_label(sentence: str, labels: Sequence[str]) -> int:
    """The number of the one label whose words stand in a sentence.

    Case and punctuation do not matter, nor does a plural's s, unless two labels differ by nothing else. A label that is a part
    of a longer one is not meant where that one stands.

    Args:
        sentence: words in any script.
        labels: the tissues in words, in the order of their numbers.

    Raises:
        SentenceError: no label is named, or more than one.
    """
    words, named = f" {_words(sentence)} ", []
    for common in sorted({_words(label) for label in labels}, key=lambda common: -len(common)):
        wanted = f" {common} "
        if wanted in words:
            named += _meant([label for label in labels if _words(label) == common], sentence)
        while wanted in words:
            # the place stays taken, so that words on either side do not come to stand together
            words = words.replace(wanted, " | ")
    if len(named) != 1:
        problem = f"names {' and '.join(sorted(named))}, where one image shows one" if named else "names no class"
        raise SentenceError(sentence, problem, labels)
    return list(labels).index(named[0])


def _meant(alike: list[str], sentence: str) -> list[str]:
    """Of labels that differ by a plural's s alone the one that stands in the sentence so, or all where that does not tell."""
    as_written = [label for label in alike if f"_{slug(label)}_" in f"_{slug(sentence)}_"]
    return as_written if len(as_written) == 1 else alike


def is_name(sentence: str, label: str) -> bool:
    """Whether a sentence is the label alone."""
    return _words(sentence) == _words(label)


def _words(text: str) -> str:
    """The words in lower case, each without an s at its end, one space apart; of snake_case names too."""
    return " ".join(word.removesuffix("s") for word in slug(text).split("_"))
