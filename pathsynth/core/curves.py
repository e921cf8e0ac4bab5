"""Training curves through DVCLive, as tab-separated tables that `dvc plots` and editors read while training runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from pathsynth.core.errors import DataError
from pathsynth.core.io import reason


class Curves:
    """Logs values by step. A context manager that closes the tables.

    Args:
        folder: where the tables go: FOLDER/plots/metrics/NAME.tsv.
        silent: whether to log nothing, as all but one of several processes do.
    """

    def __init__(self, folder: Path, silent: bool = False):
        self._live = None
        if silent:
            return
        from dvclive import Live

        self._folder = folder
        # dvcyaml: a dvc.yaml of its own would clash with the pipeline's; exp: the pipeline saves experiments, not a stage
        with self._faults():
            self._live = Live(str(folder), dvcyaml=None, save_dvc_exp=False, report=None, monitor_system=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._live:
            return
        with self._faults():
            self._live.end()
            # DVC would take DVCLive's summary for a curve of one point
            Path(self._live.metrics_file).unlink(missing_ok=True)

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """Turns what DVCLive meets when it writes into one line.

        Raises:
            DataError: the folder cannot be written.
        """
        try:
            yield
        except OSError as error:
            raise DataError(self._folder, f"could not be written: {reason(error)}") from error

    def __call__(self, step: int, values: dict[str, float]) -> None:
        """Adds one point to the curve of every name in `values`."""
        if not self._live:
            return
        self._live.step = step
        with self._faults():
            for name, value in values.items():
                self._live.log_metric(name, value)
            self._live.make_summary()
