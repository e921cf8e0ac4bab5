"""The PNG files of the last requests, which the page shows and visitors save."""

from __future__ import annotations

import secrets
import shutil
from collections import deque
from pathlib import Path

# Requests whose files are kept. The page of an older one has lost its images.
KEPT = 20


class RecentImages:
    """A folder with one folder per request, of which the last KEPT stay.

    Args:
        folder: an existing folder that nothing else uses.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._names: deque[str] = deque()

    def add_folder(self) -> Path:
        """Makes the folder of a new request, under a name that cannot be guessed, and removes the oldest one if necessary."""
        while len(self._names) >= KEPT:
            shutil.rmtree(self.folder / self._names.popleft(), ignore_errors=True)
        name = secrets.token_hex(8)
        (self.folder / name).mkdir()
        self._names.append(name)
        return self.folder / name
