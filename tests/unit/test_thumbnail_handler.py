"""The handler of image/thumbnail@1: what it makes of good images, and what it says of bad ones."""

import base64
import importlib.util
import io
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image
from processor_runtime.handler import InputsInvalid

from apps.processors import registry
from apps.processors.reference import ProcessorRef
from tests.shell import PROJECT

HANDLER = PROJECT / "code/processors/image/thumbnail/1/handler.py"
NAMES = ("small", "medium", "large")


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("thumbnail_handler", HANDLER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


handler = _load()


class Context:
    """What the runtime would give the handler."""

    def __init__(self, image: str) -> None:
        self.inputs, self.mode = {"schema": "v1", "params": {"image": image}}, "mock"
        self.written: dict[str, bytes] = {}

    def write(self, path: str, content: bytes | str) -> None:
        self.written[path] = content.encode() if isinstance(content, str) else content


def run(image: str | Path) -> dict[str, bytes]:
    context = Context(str(image))
    handler.run(context)
    return context.written


def metadata(written: dict[str, bytes]) -> dict[str, Any]:
    return dict(json.loads(written["metadata.json"]))


def thumbnail(written: dict[str, bytes], name: str) -> Image.Image:
    return Image.open(io.BytesIO(written[f"thumbnails/{name}.png"]), formats=["PNG"])


def photo(width: int = 1600, height: int = 1200) -> Image.Image:
    """Soft colours, as a photo has them, with a red corner at the top left."""
    picture = Image.merge("RGB", [Image.linear_gradient("L").rotate(90 * turn) for turn in range(3)])
    picture = picture.resize((width, height))
    picture.paste((255, 0, 0), (0, 0, width // 4, height // 4))
    return picture


def refusal(image: str | Path) -> dict[str, Any]:
    with pytest.raises(InputsInvalid) as caught:
        run(image)
    failure = caught.value.failure()
    assert failure.code == "ERR_INPUTS"
    assert failure.details["pointer"] == "/params/image"
    assert failure.hint
    return {"message": failure.message, **failure.details}


# Good images


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "webp", "gif", "bmp", "tiff", "tif"])
def test_each_kind_gives_three_thumbnails_and_metadata(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"photo.{suffix}"
    photo().save(file)

    written = run(file)

    assert list(written) == [*(f"thumbnails/{name}.png" for name in NAMES), "metadata.json"]
    assert [thumbnail(written, name).size for name in NAMES] == [(128, 96), (512, 384), (1024, 768)]
    said = metadata(written)
    assert (said["width"], said["height"], said["size_bytes"]) == (1600, 1200, file.stat().st_size)
    assert [each["size_bytes"] for each in said["thumbnails"]] == [
        len(written[f"thumbnails/{name}.png"]) for name in NAMES
    ]


def test_metadata_in_full(tmp_path: Path) -> None:
    file = tmp_path / "photo.png"
    Image.new("L", (300, 100), 7).save(file)

    said = metadata(run(file))

    sizes = [each.pop("size_bytes") for each in said["thumbnails"]]
    assert min(sizes) > 0
    assert said.pop("digest").startswith("sha256:")
    assert said == {
        "format": "png",
        "width": 300,
        "height": 100,
        "mode": "L",
        "orientation": 1,
        "size_bytes": file.stat().st_size,
        "thumbnails": [
            {"path": "thumbnails/small.png", "width": 128, "height": 43},
            {"path": "thumbnails/medium.png", "width": 300, "height": 100},
            {"path": "thumbnails/large.png", "width": 300, "height": 100},
        ],
    }


def test_the_first_example_of_the_registry_works_by_itself() -> None:
    spec = registry.load(PROJECT, ProcessorRef("image", "thumbnail", 1))

    written = run(spec.inputs["examples"][0]["params"]["image"])

    assert sorted(written) == sorted(rule["path"] for rule in spec.document["outputs"])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_as_its_exif_says(tmp_path: Path, orientation: int) -> None:
    upright = photo(400, 200)
    inverse = {5: 5, 6: 8, 7: 7, 8: 6}.get(orientation, orientation)
    lying = upright.transpose(handler.UPRIGHT[inverse]) if inverse in handler.UPRIGHT else upright
    exif = lying.getexif()
    exif[0x0112] = orientation
    lying.save(tmp_path / "photo.png", exif=exif)

    written = run(tmp_path / "photo.png")

    assert (metadata(written)["width"], metadata(written)["orientation"]) == (400, orientation)
    shown = thumbnail(written, "medium")
    assert shown.size == (400, 200)
    assert shown.getpixel((10, 10)) == (255, 0, 0)
    assert shown.getpixel((390, 190)) != (255, 0, 0)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_does_not_stop_a_good_photo(tmp_path: Path) -> None:
    photo().save(tmp_path / "photo.jpg", exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff" + b"\x12\x01" * 9)

    assert metadata(run(tmp_path / "photo.jpg"))["orientation"] == 1


@pytest.mark.parametrize(
    ("mode", "shown"), [("1", "L"), ("L", "L"), ("LA", "RGBA"), ("P", "RGB"), ("RGBA", "RGBA"), ("I;16", "L")]
)
def test_each_way_to_keep_pixels_becomes_a_plain_one(tmp_path: Path, mode: str, shown: str) -> None:
    photo().convert("L" if mode == "I;16" else "RGB").convert(mode).save(tmp_path / "photo.png")

    written = run(tmp_path / "photo.png")

    assert (metadata(written)["mode"], thumbnail(written, "small").mode) == (mode, shown)


def test_a_printers_colours_become_a_screens(tmp_path: Path) -> None:
    photo().convert("CMYK").save(tmp_path / "photo.jpg")

    assert thumbnail(run(tmp_path / "photo.jpg"), "small").mode == "RGB"


def test_a_phones_photo_with_more_behind_it_is_a_photo(tmp_path: Path) -> None:
    photo().save(tmp_path / "photo.jpg", format="MPO", save_all=True, append_images=[photo(64, 48)])

    assert metadata(run(tmp_path / "photo.jpg"))["format"] == "jpeg"


def test_a_line_of_pixels_keeps_one_pixel(tmp_path: Path) -> None:
    Image.new("RGB", (5000, 1)).save(tmp_path / "line.png")

    assert thumbnail(run(tmp_path / "line.png"), "small").size == (128, 1)


def test_thumbnails_tell_neither_place_nor_profile(tmp_path: Path) -> None:
    picture = photo()
    exif = picture.getexif()
    exif[0x010E] = "a secret garden"
    picture.save(tmp_path / "photo.png", exif=exif, icc_profile=b"a profile", dpi=(300, 300))

    written = run(tmp_path / "photo.png")

    assert {chunk for chunk in (b"eXIf", b"iCCP", b"pHYs") if chunk in written["thumbnails/large.png"]} == set()


def test_the_same_image_gives_the_same_bytes(tmp_path: Path) -> None:
    photo().save(tmp_path / "photo.jpg")
    data = base64.b64encode((tmp_path / "photo.jpg").read_bytes()).decode()

    assert run(tmp_path / "photo.jpg") == run(f"data:image/jpeg;base64,{data}")


# Bad ones


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tiff"])
def test_moving_images_and_many_pages_are_refused(tmp_path: Path, suffix: str) -> None:
    photo().save(tmp_path / f"moves.{suffix}", save_all=True, append_images=[photo().rotate(10)])

    assert refusal(tmp_path / f"moves.{suffix}") == {
        "message": "the image has more than one frame or page",
        "pointer": "/params/image",
        "reason": "animated",
    }


def test_a_decompression_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    Image.new("1", (30_000, 30_000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 200_000

    assert refusal(tmp_path / "bomb.png") == {
        "message": "the image has 30000 x 30000 pixels, more than 50000000 together",
        "pointer": "/params/image",
        "reason": "too large",
        "width": 30_000,
        "height": 30_000,
        "limit_pixels": 50_000_000,
    }


WEBP_BOMBS = {  # 16383 x 16383 pixels in each of the format's three ways
    "VP8L": b"\x2f" + (16382 | 16382 << 14).to_bytes(4, "little"),
    "VP8X": bytes(4) + (16382).to_bytes(3, "little") * 2,
    "VP8 ": bytes(3) + b"\x9d\x01\x2a" + (16383).to_bytes(2, "little") * 2,
}


@pytest.mark.parametrize("chunk", WEBP_BOMBS)
def test_a_webp_bomb_is_refused_before_room_is_made_for_it(tmp_path: Path, chunk: str) -> None:
    body = b"WEBP" + chunk.encode() + (20).to_bytes(4, "little") + WEBP_BOMBS[chunk].ljust(20, b"\0")
    (tmp_path / "bomb.webp").write_bytes(b"RIFF" + len(body).to_bytes(4, "little") + body)

    found = refusal(tmp_path / "bomb.webp")

    assert (found["reason"], found["width"], found["height"]) == ("too large", 16383, 16383)


@pytest.mark.parametrize("lossless", [True, False])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_webps_header_says_what_it_is(tmp_path: Path, mode: str, lossless: bool) -> None:
    photo(123, 45).convert(mode).save(tmp_path / "photo.webp", lossless=lossless)

    with (tmp_path / "photo.webp").open("rb") as file:
        assert handler._webp_size(file) == (123, 45)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tiff"])
@pytest.mark.filterwarnings("ignore:Truncated File Read", "ignore:Corrupt EXIF data")
def test_wherever_it_is_cut_an_image_is_refused(tmp_path: Path, suffix: str) -> None:
    photo(160, 120).save(tmp_path / f"whole.{suffix}")
    whole = (tmp_path / f"whole.{suffix}").read_bytes()
    for kept in {0, 1, 10, 20, 40, *range(60, len(whole) - 200, len(whole) // 20)}:
        (tmp_path / f"cut.{suffix}").write_bytes(whole[:kept])

        assert refusal(tmp_path / f"cut.{suffix}")["reason"] in ("corrupt", "not an image"), kept


def _png_with_a_wrong_bit(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def _jpeg_of_noise(data: bytes) -> bytes:
    return data[:700] + bytes(255 - byte for byte in data[700:])


@pytest.mark.parametrize(("suffix", "spoil"), [("png", _png_with_a_wrong_bit), ("jpg", _jpeg_of_noise)])
def test_a_corrupt_image_is_refused(tmp_path: Path, suffix: str, spoil: Callable[[bytes], bytes]) -> None:
    file = tmp_path / f"photo.{suffix}"
    photo().save(file)
    file.write_bytes(spoil(file.read_bytes()))

    assert refusal(file)["reason"] == "corrupt"


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7", bytes(4096)]
)
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "photo.png").write_bytes(content)

    found = refusal(tmp_path / "photo.png")

    assert found["reason"] == "not an image"
    assert found["message"] == "the input is no image of a kind that is read here: bmp, gif, jpeg, png, tiff, webp"


def test_an_image_that_lies_about_its_kind_is_refused(tmp_path: Path) -> None:
    photo().save(tmp_path / "photo.png", format="JPEG")
    data = base64.b64encode((tmp_path / "photo.png").read_bytes()).decode()

    for image in (str(tmp_path / "photo.png"), f"data:image/PNG;base64,{data}"):
        assert refusal(image) == {
            "message": "the image says that it is png, and is jpeg",
            "pointer": "/params/image",
            "reason": "another kind",
            "promised": "png",
            "found": "jpeg",
        }


def test_a_file_without_a_suffix_says_nothing_and_is_taken(tmp_path: Path) -> None:
    photo().save(tmp_path / "photo", format="WEBP")

    assert metadata(run(tmp_path / "photo"))["format"] == "webp"


def test_a_data_url_that_is_not_base64_is_refused() -> None:
    assert refusal("data:image/png;base64,a")["reason"] == "not base64"


def test_want_of_memory_is_not_the_images_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo().save(tmp_path / "photo.png")

    def starve(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(handler, "_plain", starve)

    with pytest.raises(MemoryError):
        run(tmp_path / "photo.png")
