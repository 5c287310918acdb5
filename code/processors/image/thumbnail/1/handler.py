"""image/thumbnail@1: three thumbnails of one picture, and what is known of it. Both modes do the same work, here."""

import base64
import binascii
import hashlib
import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any, BinaryIO

from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import Base as Exif
from processor_runtime.handler import InputsInvalid

SIZES = {"small": 128, "medium": 512, "large": 1024}  # pixels of the longer edge, at most
MAX_PIXELS = 50_000_000  # decoded, a few kilobytes can be gigabytes: what is larger is refused by its header

# Pillow's names of what is read, and what a file of it may call itself.
KINDS = {
    "BMP": ("bmp",),
    "GIF": ("gif",),
    "JPEG": ("jpeg", "jpg", "jpe", "jfif"),
    "PNG": ("png", "apng"),
    "TIFF": ("tiff", "tif"),
    "WEBP": ("webp",),
}
JPEG_WITH_MORE = "MPO"  # further pictures behind the first, as many phones write it
DATA_URL = re.compile(r"data:image/(?P<kind>[a-z0-9.+-]+);base64,", re.IGNORECASE)

UPRIGHT = {  # EXIF's orientation: what undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Of PNG's ways to compress the one that searches for no repetitions: how zlib searches depends on the processor.
PNG = {"format": "PNG", "compress_type": 3}  # Z_RLE

Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit would warn first; ours is an error


def run(context: Any) -> None:
    """Write thumbnails/small.png, medium.png, large.png, and metadata.json."""
    given = context.inputs["params"]["image"]
    with _content(given) as file, _opened(file, _promise(given)) as picture:
        facts = _facts(file, picture)
        upright = _decoded(picture)
    thumbnails = []
    for name, edge in SIZES.items():
        size = _fitted(upright.size, edge)
        data = _png(upright.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0))
        path = f"thumbnails/{name}.png"
        context.write(path, data)
        thumbnails.append({"path": path, "width": size[0], "height": size[1], "size_bytes": len(data)})
    context.write("metadata.json", json.dumps({**facts, "thumbnails": thumbnails}, indent=2) + "\n")


def _content(given: str) -> BinaryIO:
    """The bytes of the input: of a file that the runtime has fetched, or of a data URL."""
    if not (url := DATA_URL.match(given)):
        return open(given, "rb")
    try:
        return io.BytesIO(base64.b64decode(given[url.end() :], validate=True))
    except binascii.Error as exc:
        raise _wrong("not base64", f"the data URL is not base64: {exc}") from None


def _promise(given: str) -> str | None:
    """What the input says that it is, by its suffix or media type; None where it says nothing that we know."""
    url = DATA_URL.match(given)
    kind = url["kind"] if url else PurePath(given).suffix[1:]
    return next((names[0] for names in KINDS.values() if kind.lower() in names), None)


@contextmanager
def _opened(file: BinaryIO, promised: str | None) -> Iterator[Image.Image]:
    """The picture, its header read and found acceptable."""
    _refuse_huge(*_webp_size(file))
    try:
        with _fault_of_the_file():
            picture = Image.open(file, formats=[*KINDS])
            if picture.format == "PNG":  # its checksums, which decoding passes over
                picture.verify()
                file.seek(0)
                picture = Image.open(file, formats=["PNG"])
    except UnidentifiedImageError:
        known = ", ".join(names[0] for names in KINDS.values())
        raise _wrong("not an image", f"the input is no image of a kind that is read here: {known}") from None
    with picture:
        found, (width, height) = _kind(picture), picture.size
        if promised not in (None, found):
            raise _wrong(
                "another kind", f"the image says that it is {promised}, and is {found}", promised=promised, found=found
            )
        _refuse_huge(width, height)
        with _fault_of_the_file():
            animated = picture.format != JPEG_WITH_MORE and getattr(picture, "is_animated", False)
        if animated:
            raise _wrong("animated", "the image has more than one frame or page")
        yield picture


def _webp_size(file: BinaryIO) -> tuple[int, int]:
    """Of a WebP by its header, since Pillow makes room for all of it before it tells; (0, 0) for anything else."""
    head = file.read(30)
    file.seek(0)
    if len(head) < 30 or head[:4] != b"RIFF" or head[8:12] != b"WEBP":
        return 0, 0
    if head[12:16] == b"VP8X":
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    lossless = head[12:16] == b"VP8L"
    sides = int.from_bytes(head[21:25], "little") if lossless else int.from_bytes(head[26:30], "little")
    width, height = sides & 0x3FFF, sides >> (14 if lossless else 16) & 0x3FFF
    return width + lossless, height + lossless


def _refuse_huge(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        message = f"the image has {width} x {height} pixels, more than {MAX_PIXELS} together"
        raise _wrong("too large", message, width=width, height=height, limit_pixels=MAX_PIXELS)


def _kind(picture: Image.Image) -> str:
    return "jpeg" if picture.format == JPEG_WITH_MORE else KINDS[str(picture.format)][0]


def _facts(file: BinaryIO, picture: Image.Image) -> dict[str, Any]:
    """What metadata.json says of the input. Width and height are of the upright picture."""
    width, height = picture.size
    orientation = _orientation(picture)
    if orientation >= 5:
        width, height = height, width
    place = file.tell()
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    size_bytes = file.seek(0, io.SEEK_END)
    file.seek(place)
    return {
        "format": _kind(picture),
        "width": width,
        "height": height,
        "mode": picture.mode,
        "orientation": orientation,
        "size_bytes": size_bytes,
        "digest": f"sha256:{digest}",
    }


def _orientation(picture: Image.Image) -> int:
    try:
        found = picture.getexif().get(Exif.Orientation)
    except Exception:  # notes about a picture may be broken, and the picture good: viewers show it as it lies
        return 1
    return found if found in UPRIGHT else 1


def _decoded(picture: Image.Image) -> Image.Image:
    """The whole picture, upright, in plain grey, colour, or colour with transparency."""
    orientation = _orientation(picture)
    with _fault_of_the_file():
        picture.draft(None, _fitted(picture.size, 2 * SIZES["large"]))  # JPEG alone: no more than is needed
        picture.load()
        plain = _plain(picture)
    return plain.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else plain


def _plain(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bits of grey
        return picture.point(lambda value: value / 256).convert("L")
    grey = "L" if picture.mode in ("1", "L") else "RGB"
    mode = "RGBA" if picture.has_transparency_data else grey
    return picture if picture.mode == mode else picture.convert(mode)  # which would copy it


def _fitted(size: tuple[int, int], edge: int) -> tuple[int, int]:
    """`size` shrunk to a longer edge of `edge`, never enlarged, each at least 1. Whole numbers: no float rounds."""
    longer = max(size)
    if longer <= edge:
        return size
    width, height = (max(1, (side * edge * 2 + longer) // (longer * 2)) for side in size)
    return width, height


def _png(picture: Image.Image) -> bytes:
    picture.info = {}  # places, dates and colour profiles stay behind
    data = io.BytesIO()
    picture.save(data, **PNG)
    return data.getvalue()


@contextmanager
def _fault_of_the_file() -> Iterator[None]:
    """Whatever Pillow raises over a file is the file's fault, want of memory excepted."""
    try:
        yield
    except (MemoryError, UnidentifiedImageError):
        raise
    except Exception as exc:
        words = " ".join(str(exc).split())[:200] or type(exc).__name__
        raise _wrong("corrupt", f"the image is corrupt or cut short: {words}") from None


def _wrong(reason: str, message: str, **details: Any) -> InputsInvalid:
    return InputsInvalid(
        message,
        pointer="/params/image",
        hint="give one still image: a JPEG, PNG, WebP, GIF, BMP or TIFF file",
        details={"reason": reason, **details},
    )
