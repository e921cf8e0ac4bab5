"""Synthetic images as PNG files whose metadata hold their provenance and the gate's prediction."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self
from xml.sax.saxutils import quoteattr

import numpy as np
from pydantic import AfterValidator, Field, ValidationError, model_validator

from pathsynth import __version__
from pathsynth.core.errors import DataError, one_line
from pathsynth.core.io import atomic_write, catch_read_errors
from pathsynth.core.params import MixedPrecision, Section, WeightDtype
from pathsynth.data import labels

if TYPE_CHECKING:
    import PIL.Image

DISCLAIMER = "Synthetic image: drawn by a generative model, shows no patient. Research and teaching only, not for diagnosis."
STAND_IN_NOTICE = f"{DISCLAIMER} It imitates drawn phantoms, which stand in for tissue."
# With prompt, seed and weights, these settings determine an image.
SAMPLING = ("scheduler", "num_inference_steps", "guidance_scale", "negative_prompt", "mixed_precision", "weight_dtype")
CONTACT_SHEET = "sheet.png"
# A larger weight of the text only distorts images.
MAX_GUIDANCE_SCALE = 100
BY_GATE: Final = "by the gate"
REJECTED: Final = "rejected by the gate"
NOT_CHECKED: Final = "not checked"
# Key of the PNG text chunk that holds the record.
RECORD_KEY = "pathsynth:record"
# IPTC's term for media made by a trained model, which stock agencies and browsers look for.
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_XMP = """\
<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
 Iptc4xmpExt:DigitalSourceType={source} Iptc4xmpExt:AISystemUsed={system} Iptc4xmpExt:AIPromptInformation={prompt}/>
</rdf:RDF></x:xmpmeta>
<?xpacket end="r"?>"""


def _check_slug(value: str) -> str:
    if value != labels.slugify(value) or not value:
        raise ValueError("must consist of lower-case letters, digits and _")
    return value


def _check_file_name(value: str) -> str:
    if not value.endswith(".png") or value == CONTACT_SHEET:
        raise ValueError(f"must be a name of lower-case letters, digits and _ with .png, other than {CONTACT_SHEET}")
    _check_slug(value.removesuffix(".png"))
    return value


Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Slug = Annotated[str, Field(max_length=labels.LONGEST_SLUG), AfterValidator(_check_slug)]


class Record(Section):
    """The provenance of a synthetic image, sufficient to redraw it.

    Attributes:
        file: name of the PNG file.
        tissue: slug of the requested tissue; None for free text.
        prompt, negative_prompt: text that the base was conditioned on.
        seed: seed of the initial noise.
        attempt: number of earlier attempts that the gate rejected.
        checked: whether the gate has accepted or rejected the image.
        predicted, confidence: slug and probability of the gate's prediction; None if not checked.
        scheduler, num_inference_steps, guidance_scale, mixed_precision, weight_dtype: sampler settings.
        image_size, channels: side length in pixels, and 1 for grey images.
        benchmark, base, lora: their names.
        unet_sha256, lora_sha256, gate_sha256: checksums of the weights; no gate if not checked.
        pixels_sha256: checksum of the pixels, uint8 (H, W, 3).
        made_with: versions of pathsynth, diffusers and torch.
        notice: DISCLAIMER, or STAND_IN_NOTICE for images of phantoms.
    """

    file: Annotated[str, Field(max_length=200), AfterValidator(_check_file_name)]
    tissue: Slug | None = None
    prompt: str
    negative_prompt: str
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    attempt: Annotated[int, Field(ge=0)]
    checked: Literal["by the gate", "rejected by the gate", "not checked"]
    predicted: Slug | None = None
    confidence: Annotated[float, Field(ge=0, le=1)] | None = None
    scheduler: Annotated[str, Field(pattern=r"^[A-Za-z0-9]+Scheduler$")]
    num_inference_steps: Annotated[int, Field(gt=0, le=1000)]
    guidance_scale: Annotated[float, Field(ge=1)]
    mixed_precision: MixedPrecision
    weight_dtype: WeightDtype
    image_size: Annotated[int, Field(ge=8, le=1024, multiple_of=8)]
    channels: Literal[1, 3]
    benchmark: str
    base: str
    lora: str
    unet_sha256: Digest
    lora_sha256: Digest
    gate_sha256: Digest | None = None
    pixels_sha256: Digest
    made_with: str
    notice: str

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if self.notice not in (DISCLAIMER, STAND_IN_NOTICE):
            raise ValueError("notice must be the one that `python -m pathsynth synthesize` writes")
        prediction = (self.predicted, self.confidence, self.gate_sha256)
        if self.checked != NOT_CHECKED and None in (self.tissue, *prediction):
            raise ValueError("checked by the gate, but tissue, predicted, confidence or gate_sha256 is missing")
        if self.checked == BY_GATE and self.predicted != self.tissue:
            raise ValueError(f"checked by the gate, which accepts only {self.tissue}, but predicted is {self.predicted}")
        if self.checked == REJECTED and self.predicted == self.tissue:
            raise ValueError(f"rejected by the gate, but predicted is the requested {self.tissue}")
        if self.checked == NOT_CHECKED and prediction != (None, None, None):
            raise ValueError("not checked, but predicted, confidence or gate_sha256 is given")
        return self


def compute_pixels_sha256(image: np.ndarray) -> str:
    """Returns the SHA-256 of an image's pixels, uint8 (H, W, 3), in hexadecimal digits."""
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()


def write_png(path: Path, image: np.ndarray, record: Record) -> None:
    """Writes an image with its record, PNG's standard text chunks, and IPTC's mark of synthetic media.

    Args:
        path: the file.
        image: uint8 (H, W, 3).
        record: its provenance.

    Raises:
        DataError: if the file cannot be written.
    """
    from PIL import Image

    comment = "Not checked by any classifier."
    if record.checked != NOT_CHECKED:
        verdict = "Accepted" if record.checked == BY_GATE else "Rejected"
        comment = f"{verdict} by the gate, which predicted {record.predicted} with confidence {record.confidence}."
    texts = {
        "Title": f"Synthetic image of {(record.tissue or 'free text').replace('_', ' ')}",
        "Comment": comment,
        RECORD_KEY: json.dumps(record.model_dump(), ensure_ascii=False),
    }
    _save_png(path, Image.fromarray(image), record, texts)


def write_contact_sheet(path: Path, sheet: PIL.Image.Image, records: Sequence[Record]) -> None:
    """Writes a picture of several images with the same metadata; the provenance is that of the first image.

    Raises:
        DataError: if the file cannot be written.
    """
    _save_png(path, sheet, records[0], {"Title": f"Contact sheet of {len(records)} synthetic images"}, optimize=True)


def _save_png(path: Path, image: PIL.Image.Image, record: Record, texts: dict[str, str], optimize: bool = False) -> None:
    from PIL.PngImagePlugin import PngInfo

    system = f"{record.base} with LoRA {record.lora}, benchmark {record.benchmark}"
    texts |= {
        "Description": record.prompt,
        "Disclaimer": record.notice,
        "Source": system,
        "Software": f"pathsynth {__version__}",
        "XML:com.adobe.xmp": _XMP.format(
            source=quoteattr(SOURCE_TYPE), system=quoteattr(system), prompt=quoteattr(record.prompt)
        ),
    }
    info = PngInfo()
    for key, text in texts.items():
        info.add_itxt(key, text)
    with atomic_write(path) as part:
        image.save(part, format="PNG", pnginfo=info, optimize=optimize)


def read_record(path: Path) -> Record:
    """Reads the record of a PNG file that `write_png` wrote.

    Raises:
        DataError: if the file is missing, damaged, or has no valid record.
    """
    from PIL import Image, UnidentifiedImageError

    with catch_read_errors(path, "a PNG file"):
        try:
            with Image.open(path, formats=["PNG"]) as image:
                image.load()
                text = image.info.get(RECORD_KEY)
        except UnidentifiedImageError as error:
            # an OSError, which would be reported as one of the disk
            raise DataError(path, f"is not a PNG file, or it is damaged: {one_line(error)}") from error
    if text is None:
        raise DataError(path, "has no record: not made by `python -m pathsynth synthesize`, or saved by a different program")
    with catch_read_errors(path, "a PNG file with a JSON record"):
        values = json.loads(text)
    return parse_record(values, path)


def parse_record(values: Any, where: object) -> Record:
    """Validates a mapping of values; `where` is named in errors.

    Raises:
        DataError: if a value is missing, unknown or invalid.
    """
    try:
        return Record.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "record"
        raise DataError(where, f"{key}: {one_line(ValueError(first['msg']))}") from error
