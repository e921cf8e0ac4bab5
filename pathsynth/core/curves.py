"""Training curves, written by DVCLive as tab-separated tables that can be watched during training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from pathsynth.core.errors import DataError
from pathsynth.core.io import os_error_reason


class Curves:
    """Logs values by step, as a context manager that closes the tables.

    Args:
        folder: where the tables go: FOLDER/plots/metrics/NAME.tsv.
        silent: whether to log nothing; only the main process logs.
    """

    def __init__(self, folder: Path, silent: bool = False):
        self._folder, self._live = folder, None
        if silent:
            return
        from dvclive import Live

        # dvcyaml: a second dvc.yaml would clash with the pipeline's; save_dvc_exp: the pipeline saves experiments
        with self._catch_write_errors():
            self._live = Live(str(folder), dvcyaml=None, save_dvc_exp=False, report=None, monitor_system=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            with self._catch_write_errors():
                self._live.end()
                # DVC would plot the summary as a curve of one point
                Path(self._live.metrics_file).unlink(missing_ok=True)

    def __call__(self, step: int, values: dict[str, float]) -> None:
        """Adds a point to the curve of every name in `values`.

        Raises:
            DataError: if the folder cannot be written.
        """
        if self._live:
            self._live.step = step
            with self._catch_write_errors():
                for name, value in values.items():
                    self._live.log_metric(name, value)
                self._live.make_summary()

    @contextmanager
    def _catch_write_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(self._folder, f"could not be written: {os_error_reason(error)}") from error
