"""Matching a sentence to the tissue that it names."""

from __future__ import annotations

from collections.abc import Sequence

from pathsynth.core.errors import CONTROLS, PathsynthError
from pathsynth.data.labels import slugify


class SentenceError(PathsynthError):
    """A sentence that does not name exactly one tissue of the benchmark, or is not text."""

    def __init__(self, sentence: str, problem: str, labels: Sequence[str]):
        super().__init__(f"{sentence!r} {problem}; known labels: {', '.join(labels)}")


def normalize_sentence(sentence: str, labels: Sequence[str]) -> str:
    """Collapses white space.

    Raises:
        SentenceError: if the sentence is empty or contains control characters or invalid UTF-8.
    """
    line = " ".join(sentence.split())
    if not line:
        raise SentenceError(sentence, "is empty", labels)
    # invalid UTF-8 of a command line arrives as surrogates
    printable = line.encode("utf-8", "replace").decode()
    if CONTROLS.search(line) or printable != line:
        raise SentenceError(printable, "contains control characters or invalid UTF-8", labels)
    return line


def match_label(sentence: str, labels: Sequence[str]) -> int:
    """Returns the index of the one label whose words occur in a sentence.

    Ignores case, punctuation and a plural s, unless two labels differ only by the s. A label that is part of a longer one does
    not match where the longer one occurs.

    Args:
        sentence: text in any script.
        labels: the tissues in words, in label order.

    Raises:
        SentenceError: if no label or more than one occurs.
    """
    text, matches = f" {_stem(sentence)} ", []
    for stem in sorted({_stem(label) for label in labels}, key=lambda stem: -len(stem)):
        if f" {stem} " in text:
            matches += _resolve_ambiguity([label for label in labels if _stem(label) == stem], sentence)
        while f" {stem} " in text:
            # the separator keeps the words on either side from forming a new label
            text = text.replace(f" {stem} ", " | ")
    if len(matches) != 1:
        problem = f"names {' and '.join(sorted(matches))}, but an image shows one tissue" if matches else "names no tissue"
        raise SentenceError(sentence, problem, labels)
    return list(labels).index(matches[0])


def is_label(sentence: str, label: str) -> bool:
    """Whether a sentence consists of the label alone."""
    return _stem(sentence) == _stem(label)


def _resolve_ambiguity(candidates: list[str], sentence: str) -> list[str]:
    """Returns, of labels that differ only by a plural s, the one that occurs literally; all of them if that is not unique."""
    literal = [label for label in candidates if f"_{slugify(label)}_" in f"_{slugify(sentence)}_"]
    return literal if len(literal) == 1 else candidates


def _stem(text: str) -> str:
    """The words in lower case without a final s, separated by single spaces; snake_case is split."""
    return " ".join(word.removesuffix("s") for word in slugify(text).split("_"))
