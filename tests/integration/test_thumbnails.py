"""image/thumbnail@1 on each engine: files in, the same thumbnails out, and bad images told from good ones."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.shell import Outcome, Shell, copy_checkout

REF = "image/thumbnail@1"
DOCKER = pytest.param("docker", marks=pytest.mark.docker)


@dataclass(frozen=True, slots=True)
class Studio:
    """The processor, started, and a folder of images."""

    cli: Shell

    def run(self, image: Path | None, *options: str) -> Outcome:
        given = ("--attach", f"image={image}") if image else ()
        return self.cli("localctl", "run", "--ref", REF, "--json", *given, *options)

    def outputs(self, done: Outcome) -> dict[str, bytes]:
        assert done.status == 0, done
        root = self.cli.root / "code" / ".theory" / "artifacts"
        prefix = done.document["index_path"].removesuffix("outputs.json")
        return {
            output["path"].removeprefix(prefix): (root / output["path"][1:]).read_bytes()
            for output in done.document["outputs"]
        }


def opened(engine: str, folder: Path) -> Iterator[Studio]:
    cli = Shell(copy_checkout(folder / "checkout"), home=folder, variables={"LOCAL_ENGINE": engine})
    platforms = ("--platforms", "linux/amd64") if engine == "process" else ()
    try:
        for words in (("processorctl", "build", *platforms), ("localctl", "start")):
            done = cli(*words, "--ref", REF, "--json", timeout_s=600)
            assert done.status == 0, done
        yield Studio(cli)
    finally:
        cli.close()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    yield from opened("process", tmp_path_factory.mktemp("here"))


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    yield from opened("docker", tmp_path_factory.mktemp("there"))


@pytest.fixture(scope="module", params=["process", DOCKER])
def studio(request: pytest.FixtureRequest) -> Studio:
    found: Studio = request.getfixturevalue("here" if request.param == "process" else "there")
    return found


def photo() -> Image.Image:
    """Grain and gradients: every way to compress and to resize has something to do."""
    return Image.merge("RGB", [Image.linear_gradient("L").rotate(90 * turn) for turn in range(3)]).resize((1600, 1200))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("images")
    exif = photo().getexif()
    exif[0x0112] = 6
    photo().save(folder / "turned.jpg", exif=exif)
    photo().save(folder / "photo.webp")
    photo().convert("LA").save(folder / "clear.png")
    photo().save(folder / "moves.gif", save_all=True, append_images=[photo().rotate(5)])
    photo().save(folder / "lies.png", format="JPEG")
    Image.new("1", (30_000, 30_000)).save(folder / "bomb.png")
    whole = (folder / "turned.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("no image")
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize("mode", ["mock", "real"])
def test_a_photo_in_three_thumbnails_and_metadata_out(studio: Studio, images: dict[str, Path], mode: str) -> None:
    written = studio.outputs(studio.run(images["turned.jpg"], "--mode", mode))

    assert sorted(written) == ["metadata.json", "thumbnails/large.png", "thumbnails/medium.png", "thumbnails/small.png"]
    sizes = {name: Image.open(io.BytesIO(written[f"thumbnails/{name}.png"])).size for name in ("small", "large")}
    assert sizes == {"small": (96, 128), "large": (768, 1024)}


def test_without_any_input_mock_takes_the_first_example(studio: Studio) -> None:
    assert len(studio.outputs(studio.run(None))) == 4


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("moves.gif", "animated"),
        ("lies.png", "another kind"),
        ("bomb.png", "too large"),
        ("cut.jpg", "corrupt"),
        ("text.jpg", "not an image"),
    ],
)
def test_a_bad_image_is_err_inputs_and_the_processor_goes_on(
    studio: Studio, images: dict[str, Path], name: str, reason: str
) -> None:
    done = studio.run(images[name])

    error: dict[str, Any] = done.document["error"]
    assert (done.status, error["code"], error["details"]["reason"]) == (65, "ERR_INPUTS", reason)
    assert error["details"]["pointer"] == "/params/image"
    assert done.document["partial_outputs"] == []
    assert studio.run(images["turned.jpg"]).status == 0


@pytest.mark.docker
@pytest.mark.parametrize("name", ["turned.jpg", "photo.webp", "clear.png", None])
def test_both_engines_make_the_same_bytes(
    here: Studio, there: Studio, images: dict[str, Path], name: str | None
) -> None:
    image = images[name] if name else None

    assert here.outputs(here.run(image)) == there.outputs(there.run(image))
