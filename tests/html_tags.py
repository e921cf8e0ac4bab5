"""Tags of an HTML page."""

from __future__ import annotations

from html.parser import HTMLParser

HOSTILE = "<script>alert('mucus $x$')</script>"
VOID = {"meta", "link", "img", "br", "input"}


class Tags(HTMLParser):
    """Collects tags with their attributes, and checks that every opened tag is closed in turn."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str):
        assert self.open.pop() == tag
