"""Synthetic images as PNG files whose metadata say what they are, what drew them, and whether a gate has checked them."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self
from xml.sax.saxutils import quoteattr

import numpy as np
from pydantic import AfterValidator, Field, ValidationError, model_validator

from pathsynth import __version__
from pathsynth.core.errors import DataError, one_line
from pathsynth.core.io import atomic_write
from pathsynth.core.params import MixedPrecision, Section, WeightDtype
from pathsynth.data import labels

if TYPE_CHECKING:
    import PIL.Image

DISCLAIMER = "Synthetic image: drawn by a generative model, shows no patient. Research and teaching only, not for diagnosis."
STAND_IN_NOTICE = f"{DISCLAIMER} It imitates drawn phantoms, which stand in for tissue."
# What decides, with prompt, seed and weights, how an image is drawn.
SAMPLING = ("scheduler", "num_inference_steps", "guidance_scale", "negative_prompt", "mixed_precision", "weight_dtype")
SHEET = "sheet.png"
BY_GATE: Final = "by the gate"
NOT_CHECKED: Final = "not checked"
# The text chunk of the PNG that holds the record.
RECORD = "pathsynth:record"
# IPTC's term for media that a trained model has made; stock agencies and browsers look for it.
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_XMP = """\
<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
 Iptc4xmpExt:DigitalSourceType={source} Iptc4xmpExt:AISystemUsed={system} Iptc4xmpExt:AIPromptInformation={prompt}/>
</rdf:RDF></x:xmpmeta>
<?xpacket end="r"?>"""

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Checked = Literal["by the gate", "not checked"]


def _slug(value: str) -> str:
    if value != labels.slug(value) or not value:
        raise ValueError("must be a name in small letters, digits and _")
    return value


def _picture_name(value: str) -> str:
    if not value.endswith(".png") or value == SHEET:
        raise ValueError(f"must be a name in small letters, digits and _ with .png, other than {SHEET}")
    _slug(value.removesuffix(".png"))
    return value


def _notice(value: str) -> str:
    if value not in (DISCLAIMER, STAND_IN_NOTICE):
        raise ValueError("must be the notice that `python -m pathsynth synthesize` writes")
    return value


Slug = Annotated[str, Field(max_length=labels.LONGEST_SLUG), AfterValidator(_slug)]


class Record(Section):
    """What a synthetic image is and how it is drawn again.

    Attributes:
        file: name of its PNG.
        tissue: slug of the class it is to show, or None where the prompt is free text.
        prompt, negative_prompt: what the base was told.
        seed: of the noise that this image began as.
        attempt: how many earlier tries at it the gate had refused.
        checked: whether the gate has seen the class in it, or was not asked.
        predicted, confidence: slug and probability of the class that the gate saw, or None.
        scheduler, num_inference_steps, guidance_scale, mixed_precision, weight_dtype: of the sampling, as in params.yaml.
        image_size, channels: in pixels, and 1 for grey images.
        benchmark, base, lora: their names; images of `phantom` imitate tissue phantoms, not tissue.
        unet_sha256, lora_sha256, gate_sha256: of the weights; no gate where none was asked.
        pixels_sha256: of the pixels, uint8 (H, W, 3).
        made_with: versions of pathsynth, diffusers and torch.
        notice: what everybody has to know of it.
    """

    file: Annotated[str, Field(max_length=200), AfterValidator(_picture_name)]
    tissue: Slug | None = None
    prompt: str
    negative_prompt: str
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    attempt: Annotated[int, Field(ge=0)]
    checked: Checked
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
    notice: Annotated[str, AfterValidator(_notice)]

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        answer = (self.tissue, self.predicted, self.confidence, self.gate_sha256)
        if self.checked == BY_GATE and None in answer:
            raise ValueError("checked by the gate, but tissue, predicted, confidence or gate_sha256 is missing")
        if self.checked == BY_GATE and self.predicted != self.tissue:
            raise ValueError(f"checked by the gate, which lets {self.tissue} alone through, but predicted is {self.predicted}")
        if self.checked == NOT_CHECKED and answer[1:] != (None, None, None):
            raise ValueError("not checked, but predicted, confidence or gate_sha256 is given")
        return self


def write_picture(path: Path, image: np.ndarray, record: Record) -> None:
    """Writes a PNG with its record and, for other programs, the standard texts of PNG and IPTC's mark of synthetic media.

    Args:
        path: of the file.
        image: uint8 (H, W, 3).
        record: what it is.

    Raises:
        DataError: the file cannot be written.
    """
    from PIL import Image

    texts = {
        "Title": f"Synthetic image of {(record.tissue or 'free text').replace('_', ' ')}",
        "Comment": _checked(record),
        RECORD: json.dumps(record.model_dump(), ensure_ascii=False),
    }
    _write(path, Image.fromarray(image), record, texts)


def write_sheet(path: Path, sheet: PIL.Image.Image, records: Sequence[Record]) -> None:
    """Writes a picture of several images with the same marks; what drew them is told of the first.

    Raises:
        DataError: the file cannot be written.
    """
    _write(path, sheet, records[0], {"Title": f"Contact sheet of {len(records)} synthetic images"}, optimize=True)


def _write(path: Path, picture: PIL.Image.Image, record: Record, texts: dict[str, str], optimize: bool = False) -> None:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    texts |= {
        "Description": record.prompt,
        "Disclaimer": record.notice,
        "Source": f"{record.base} with LoRA {record.lora}, benchmark {record.benchmark}",
        "Software": f"pathsynth {__version__}",
    }
    for key, text in texts.items():
        info.add_itxt(key, text)
    said = (SOURCE_TYPE, texts["Source"], record.prompt)
    source, system, prompt = (quoteattr(text) for text in said)
    info.add_itxt("XML:com.adobe.xmp", _XMP.format(source=source, system=system, prompt=prompt))
    with atomic_write(path) as part:
        picture.save(part, format="PNG", pnginfo=info, optimize=optimize)


def read_record(path: Path) -> Record:
    """The record of a PNG that `write_picture` wrote.

    Raises:
        DataError: the file is missing, no whole PNG, or has no whole record.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as picture:
            picture.load()
            text = picture.info.get(RECORD)
    except (OSError, ValueError, SyntaxError, struct.error, zlib.error, EOFError, Image.DecompressionBombError) as error:
        raise DataError(path, f"is no whole PNG: {one_line(error)}") from error
    if text is None:
        raise DataError(path, "has no record: it is not of `python -m pathsynth synthesize`, or a program has saved it anew")
    try:
        return as_record(json.loads(text), path)
    except (ValueError, RecursionError) as error:
        raise DataError(path, f"has a damaged record: {one_line(error)}") from error


def as_record(values: Any, where: object) -> Record:
    """A checked record from a mapping of values; `where` is named in errors.

    Raises:
        DataError: a value is missing, unknown or not allowed.
    """
    try:
        return Record.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "record"
        raise DataError(where, f"{key}: {one_line(ValueError(first['msg']))}") from error


def _checked(record: Record) -> str:
    if record.checked == NOT_CHECKED:
        return "Not checked by any classifier."
    return f"Checked by the gate, which sees {record.predicted} with confidence {record.confidence}."
