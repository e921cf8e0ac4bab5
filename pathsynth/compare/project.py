"""The project at any git revision: files that git holds, and files that DVC's cache holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pathsynth.compare.cache import FindCached, find_cached
from pathsynth.compare.experiments import ReadFile, read_lock
from pathsynth.core.errors import DataError, one_line


@dataclass(frozen=True)
class Project:
    """Two functions of a revision and a path: `read` gives a file that git holds, `find_cached` one that DVC's cache holds."""

    read: ReadFile
    find_cached: FindCached


@contextmanager
def open_project() -> Iterator[Project]:
    """Opens the project in the working directory, which may be a sub folder of its git and its DVC repository.

    Raises:
        DataError: there is no project or no git repository.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.scm import SCMError
    from pygit2 import GitError

    try:
        repo = Repo()
    except (DvcException, SCMError, GitError) as error:
        raise DataError("compare", f"the project cannot be opened: {one_line(error)}") from error
    here = Path.cwd().resolve()
    # DVC's root is that of the larger repository if the project has no `.dvc` of its own
    project = next((path for path in (here, *here.parents) if (path / "params.yaml").is_file()), here)
    folder = project.relative_to(Path(repo.scm.root_dir).resolve())

    def read(revision: str, path: str) -> bytes | None:
        try:
            return repo.scm.get_fs(revision).cat_file((folder / path).as_posix())
        except FileNotFoundError:
            return None

    def find(revision: str, path: str) -> Path | None:
        return find_cached(read_lock(revision, read), path, repo.cache.local.oid_to_path)

    with repo:
        yield Project(read, find)
