"""What the page does: draws images as the gate accepts them, and draws an image again from its PNG file."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from threading import Lock

from pathsynth.app.recent_images import RecentImages
from pathsynth.app.request import Request, RequestError, check_request
from pathsynth.app.views import Card, make_card, render_images, render_status
from pathsynth.core.errors import PathsynthError
from pathsynth.core.gpu import explain_gpu_error
from pathsynth.synthesis.artifacts import Artifacts
from pathsynth.synthesis.records import DISCLAIMER, REJECTED, STAND_IN_NOTICE, Record, read_record, write_png
from pathsynth.synthesis.stream import SyntheticImage, stream_images
from pathsynth.synthesis.synthesizer import OtherWeights, redraw

# Images per batch on a GPU; on a CPU they are padded to 16 anyway.
BATCH_SIZE = 4
# No record names its file so, because a hyphen is not allowed there.
UPLOADED = "uploaded-file.png"
# A file comes from anyone, and drawing it again must not block the page for hours: multiple of the configured steps.
MAX_STEPS_FACTOR = 4


class DrawingService:
    """Draws one batch at a time with models that stay loaded.

    Args:
        artifacts: settings and models.
        recent: where the PNG files go.
    """

    def __init__(self, artifacts: Artifacts, recent: RecentImages):
        self.artifacts, self._recent = artifacts, recent
        # a stopped request may still compute its last batch when the next one begins
        self._models = Lock()

    @property
    def notice(self) -> str:
        """The statement that images are synthetic, and drawn phantoms at that."""
        return STAND_IN_NOTICE if self.artifacts.dataset.stand_in else DISCLAIMER

    def draw(
        self,
        sentence: str | None,
        number: float | None,
        seed: float | None,
        guidance_scale: float | None,
        show_rejected: bool = False,
    ) -> Iterator[tuple[str, str]]:
        """Yields status line and images as HTML, after every batch; a mistake is a status line.

        Args:
            sentence, number, seed, guidance_scale: as in `check_request`.
            show_rejected: whether rejected images are shown too.
        """
        images = ""
        try:
            request = check_request(sentence, number, seed, guidance_scale)
            for status, images in self._draw(request, show_rejected):
                yield render_status(status), images
        except (PathsynthError, RuntimeError) as error:
            yield render_status(_explain(error), alert=True), images

    def draw_again(self, path: str | None) -> tuple[str, str]:
        """Draws the image of an uploaded PNG file again; returns status line and both images as HTML."""
        try:
            return self._draw_again(path)
        except (PathsynthError, RuntimeError) as error:
            # the visitor knows the file by its name only
            message = _explain(error).replace(str(path), Path(path or "").name)
            return render_status(message, alert=True), ""

    def _draw(self, request: Request, show_rejected: bool) -> Iterator[tuple[str, str]]:
        with self._models:
            batches = stream_images(
                request.sentence,
                request.number,
                artifacts=self.artifacts,
                seed=request.seed,
                guidance_scale=request.guidance_scale,
                batch_size=BATCH_SIZE,
            )
        yield "Drawing the first images …", ""
        folder, cards, attempted, accepted = self._recent.add_folder(), [], 0, 0
        for batch in self._take_turns(batches):
            attempted += len(batch)
            for made in batch:
                rejected = made.record.checked == REJECTED
                accepted += not rejected
                if show_rejected or not rejected:
                    cards.append(_save(folder, made))
            images = render_images(cards, self.notice)
            yield f"Drawing: {accepted} of {request.number} accepted in {attempted} attempts so far …", images
        yield _summarize(request.number, accepted, attempted), images

    def _draw_again(self, path: str | None) -> tuple[str, str]:
        if not path:
            raise RequestError("Choose a PNG file that this page or `python -m pathsynth synthesize` has saved.")
        old = read_record(Path(path))
        self._check_cost(old)
        try:
            with self._models:
                made = redraw([old], artifacts=self.artifacts)
        except OtherWeights as error:
            raise RequestError(f"{error.problem}. Start the app with the LoRA that drew this image.") from error
        new, folder = made.records[0], self._recent.add_folder()
        shutil.copyfile(path, folder / UPLOADED)
        drawn = _save(folder, SyntheticImage(0, made.images[0], new), "drawn again, synthetic")
        cards = [make_card(folder / UPLOADED, old, "uploaded, synthetic"), drawn]
        if new.pixels_sha256 == old.pixels_sha256:
            status = "Drawn again: every pixel is the same."
        else:
            status = (
                "Drawn again, with other pixels: CPU, GPU, package versions, VAE or text encoder differ from those of the file."
            )
        return render_status(status), render_images(cards, self.notice)

    def _check_cost(self, record: Record) -> None:
        """Refuses a record that would take much longer to draw than an image of the page."""
        size, steps = self.artifacts.dataset.image_size, self.artifacts.generation.sampler.num_inference_steps
        if record.image_size != size:
            raise RequestError(f"The image is {record.image_size} px wide. This page draws images of {size} px.")
        if record.num_inference_steps > (most := MAX_STEPS_FACTOR * steps):
            raise RequestError(f"The image was drawn in {record.num_inference_steps} steps. This page draws up to {most}.")

    def _take_turns(self, batches: Iterator[list[SyntheticImage]]) -> Iterator[list[SyntheticImage]]:
        """Computes one batch at a time, with the models to itself."""
        while True:
            with self._models:
                batch = next(batches, None)
            if batch is None:
                return
            yield batch


def _save(folder: Path, made: SyntheticImage, label: str = "synthetic") -> Card:
    write_png(folder / made.record.file, made.image, made.record)
    return make_card(folder / made.record.file, made.record, label)


def _summarize(number: int, accepted: int, attempted: int) -> str:
    if accepted == number:
        return f"Done: {accepted} of {number} images accepted in {attempted} attempts."
    remedy = "Try the bare name of the tissue, another seed or another guidance scale."
    return f"Done: {accepted} of {number} images accepted in {attempted} attempts; the gate rejected all others. {remedy}"


def _explain(error: PathsynthError | RuntimeError) -> str:
    """The message of an error for users; any other RuntimeError goes on."""
    if isinstance(error, PathsynthError):
        return error.message
    if (explained := explain_gpu_error(error)) is None:
        raise error
    return explained.message
