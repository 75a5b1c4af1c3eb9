"""Pictures: whatever a shop uploads becomes an upright square, or a counted error."""

from __future__ import annotations

import io
import zlib
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datamodules.pictures import PictureError, decode_picture, plain_jpeg_size, upright_size
from datamodules.transforms import Fit, Jitter, Letterbox, crops_to_squares, picture_to_square


def _bytes(image: Image.Image, codec: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, codec, **options)
    return buffer.getvalue()


def _square(data: bytes, size_px: int = 32, rng: Random | None = None) -> tuple[np.ndarray, Letterbox]:
    out = np.full((size_px, size_px, 3), 7, np.uint8)
    return out, picture_to_square(data, out, Jitter() if rng else None, rng)


def _two_tone(size: tuple[int, int] = (60, 30)) -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", size, (200, 0, 0))
    image.paste((0, 0, 200), (size[0] // 2, 0, *size))
    return image


@pytest.mark.parametrize("codec", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_wide_picture_lies_on_white_with_its_aspect_ratio(codec: str) -> None:
    out, box = _square(_bytes(_two_tone(), codec))
    assert (out[:8] == 255).all()
    assert (out[24:] == 255).all()
    assert (box.left_px, box.top_px) == (0, 8)
    assert np.abs(out[16, 4].astype(int) - (200, 0, 0)).max() < 12
    assert np.abs(out[16, 28].astype(int) - (0, 0, 200)).max() < 12
    assert box.boxes(np.array([[0, 0, 60, 30], [30, 0, 90, 30]])).tolist() == [[0, 8, 32, 24], [16, 8, 32, 24]]


@pytest.mark.parametrize(
    "image",
    [
        _two_tone().convert("P"),
        _two_tone().convert("CMYK"),
        _two_tone().convert("RGBA"),
        _two_tone().convert("YCbCr"),
    ],
    ids=lambda image: image.mode,
)
def test_every_colour_mode_keeps_its_colours(image: Image.Image) -> None:
    codec = "JPEG" if image.mode in ("CMYK", "YCbCr") else "PNG"
    out, _ = _square(_bytes(image, codec))
    assert np.abs(out[16, 4].astype(int) - (200, 0, 0)).max() < 12


def test_transparency_becomes_white_and_sixteen_bits_become_eight() -> None:
    clear = Image.new("RGBA", (8, 8), (10, 200, 10, 0))
    assert (_square(_bytes(clear))[0] == 255).all()
    palette = Image.new("RGB", (8, 8), (10, 200, 10)).quantize(4)
    assert (_square(_bytes(palette, transparency=palette.getpixel((0, 0))))[0] == 255).all()
    deep = Image.fromarray(np.full((8, 8), 128 * 257, np.uint16))
    assert (_square(_bytes(deep))[0] == 128).all()


def test_exif_rotation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the first row is the right side
    data = _bytes(_two_tone(), "JPEG", exif=exif)
    assert plain_jpeg_size(data) is None
    assert decode_picture(data)[1:] == (30, 60)
    out, _ = _square(data)
    assert np.abs(out[4, 16].astype(int) - (200, 0, 0)).max() < 12


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = _bytes(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert _square(data)[0][16, 16].tolist() == [255, 0, 0]


def test_the_fast_jpeg_path_gives_pillows_pixels() -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (9, 9, 3)).astype(np.uint8)).resize((32, 32), Image.Resampling.BICUBIC)
    for options in ({}, {"progressive": True}, {"subsampling": 0, "quality": 95}):
        data = _bytes(image, "JPEG", **options)
        assert plain_jpeg_size(data) == (32, 32)
        assert np.abs(_square(data)[0].astype(int) - np.asarray(decode_picture(data).image)).max() <= 2


def test_a_large_jpeg_is_decoded_small_but_not_too_small() -> None:
    data = _bytes(_two_tone((1600, 800)), "JPEG")
    assert max(decode_picture(data, needed_px=180).image.size) == 200
    assert max(decode_picture(data, needed_px=300).image.size) == 400
    assert max(decode_picture(data, needed_px=5000).image.size) == 1600
    assert _square(data)[1].boxes(np.array([[0, 0, 1600, 800]])).tolist() == [[0, 8, 32, 24]]


def test_too_many_pixels_are_refused_before_decoding() -> None:
    header = bytearray(_bytes(Image.new("L", (1, 1))))
    for size_px in (10_000, 100_000):  # claims 100 megapixels, and what Pillow itself calls a bomb
        header[16:24] = size_px.to_bytes(4, "big") * 2
        header[29:33] = zlib.crc32(bytes(header[12:29])).to_bytes(4, "big")
        with pytest.raises(PictureError) as caught:
            decode_picture(bytes(header))
        assert caught.value.reason == "picture_too_large"


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_bytes_give_a_picture_or_a_picture_error(data: st.DataObject) -> None:
    whole = bytearray(_bytes(_two_tone(), data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "WEBP"]))))
    for _ in range(data.draw(st.integers(0, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    problem = None
    try:
        _square(cut)
    except PictureError as error:
        problem = error
    assert problem is None or problem.reason in ("undecodable_picture", "picture_too_large")
    assert "\n" not in str(problem)


def test_half_a_jpeg_is_undecodable() -> None:
    data = _bytes(_two_tone((200, 200)), "JPEG")
    for cut in (0, 2, 100, len(data) // 2, len(data) - 2):
        with pytest.raises(PictureError):
            _square(data[:cut])


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 90), height=st.integers(1, 90), seed=st.integers(0, 1000))
def test_jitter_is_seeded_light_and_never_mirrors(width: int, height: int, seed: int) -> None:
    data = _bytes(_two_tone((width, height)))
    out, box = _square(data, rng=Random(seed))
    again, _ = _square(data, rng=Random(seed))
    assert (out == again).all()
    left, top, right, bottom = box.boxes(np.array([[0, 0, width, height]]))[0]
    assert max(right - left, bottom - top) >= 0.8 * 32, "most of the picture stays in view"
    if width >= 20 and height >= 20:
        seen = out[int(top) : int(bottom), int(left) : int(right)].astype(int)
        assert seen[:, 0, 0].mean() > seen[:, 0, 2].mean(), "left stays left"
        assert seen[:, -1, 2].mean() > seen[:, -1, 0].mean()


def test_different_seeds_give_different_views() -> None:
    data = _bytes(_two_tone((50, 50)))
    assert len({_square(data, rng=Random(seed))[0].tobytes() for seed in range(8)}) > 4


def _fitted(data: bytes, fit: Fit, size_px: int = 32, rng: Random | None = None) -> tuple[np.ndarray, Letterbox]:
    out = np.full((size_px, size_px, 3), 7, np.uint8)
    return out, picture_to_square(data, out, Jitter() if rng else None, rng, fit)


def _smooth(size: tuple[int, int]) -> Image.Image:
    """Something with detail that resampling keeps."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    waves = [127 + 100 * np.sin(x / (7 + c)) * np.cos(y / (9 - c)) for c in range(3)]
    return Image.fromarray(np.stack(waves, -1).astype(np.uint8))


@pytest.mark.parametrize("resize", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(97, 60), (60, 97), (33, 32), (64, 64), (20, 31)])
def test_what_weights_of_open_clip_know_is_what_open_clip_gives(
    resize: str, interpolation: str, size: tuple[int, int]
) -> None:
    from open_clip import image_transform
    from torchvision.transforms import Compose

    transform = image_transform(32, is_train=False, resize_mode=resize, interpolation=interpolation)
    pixels = Compose(transform.transforms[:-1])(_smooth(size))  # without the normalisation, which the model does
    expected = (pixels.permute(1, 2, 0).numpy() * 255).round()
    out, _ = _fitted(_bytes(_smooth(size)), Fit(resize, interpolation))
    assert np.abs(out - expected).max() <= 2


def test_a_crop_lies_in_the_middle_in_evaluation_and_anywhere_in_training() -> None:
    data = _bytes(_two_tone((96, 32)))
    middle, box = _fitted(data, Fit("shortest"))
    assert (middle[:, :15, 0] > 150).all()
    assert (middle[:, 17:, 2] > 150).all()
    assert (box.scale_x, box.left_px, box.top_px) == (1.0, -32, 0)
    red = {int((_fitted(data, Fit("shortest"), rng=Random(seed))[0][..., 0] > 150).sum()) for seed in range(20)}
    assert min(red) == 0
    assert max(red) == 32 * 32
    assert len(red) > 5


def test_a_picture_of_one_line_is_cropped_without_filling_the_memory() -> None:
    out, box = _fitted(_bytes(Image.new("RGB", (20_000, 1), (0, 200, 0))), Fit("shortest"))
    assert (out == (0, 200, 0)).all()
    assert box.boxes(np.array([[9_999.5, 0, 10_000.5, 1]])).tolist() == [[0, 0, 32, 32]]


# ---- crops -------------------------------------------------------------------------------------------------------


def _crops(data: bytes, boxes: list, size_px: int = 32, **options: object) -> np.ndarray:
    out = np.full((len(boxes), size_px, size_px, 3), 7, np.uint8)
    crops_to_squares(data, np.array(boxes, np.float32), out, **options)  # type: ignore[arg-type]
    return out


def _noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 9, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize("fit", [Fit(), Fit("shortest"), Fit("squash", "bicubic")])
def test_a_crop_is_what_a_picture_of_its_pixels_would_be(fit: Fit) -> None:
    image = _noise((100, 60))
    boxes = [(10, 5, 40, 55), (0, 0, 100, 60), (63, 20, 100, 33)]
    found = _crops(_bytes(image), [np.divide(box, (100, 60, 100, 60)) for box in boxes], fit=fit)
    for crop, box in zip(found, boxes, strict=True):
        alone = np.empty((32, 32, 3), np.uint8)
        picture_to_square(_bytes(image.crop(box)), alone, fit=fit)
        assert (crop == alone).all()


def test_a_margin_is_a_share_of_the_longer_side_and_ends_with_the_picture() -> None:
    image = _noise((100, 60))
    (found,) = _crops(_bytes(image), [(0.1, 0.5, 0.5, 0.9)], margin=0.25)  # 40 × 24 px at (10, 30): 10 px more
    alone, _ = _square(_bytes(image.crop((0, 20, 60, 60))))
    assert (found == alone).all()


def test_small_crops_are_taken_from_the_full_resolution() -> None:
    image = _noise((1600, 1200))
    data = _bytes(image, "JPEG", quality=95)
    boxes = [(0.5, 0.5, 0.52, 0.52), (0.0, 0.0, 1.0, 1.0)]
    small, whole = _crops(data, boxes)
    exact, _ = _square(_bytes(decode_picture(data).image.crop((800, 600, 832, 624))))
    assert (small == exact).all()
    assert np.abs(whole.astype(int) - _square(data)[0]).mean() < 3, "decoded larger than it would be alone"
    assert (_crops(data, boxes[1:])[0] == _square(data)[0]).all()


def test_crops_follow_the_upright_picture() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = _bytes(_two_tone(), "JPEG", exif=exif)
    assert upright_size(data) == (30, 60)
    upper, lower = _crops(data, [(0, 0, 1, 0.4), (0, 0.6, 1, 1)])
    assert np.abs(upper[16, 16].astype(int) - (200, 0, 0)).max() < 12
    assert np.abs(lower[16, 16].astype(int) - (0, 0, 200)).max() < 12
    for other in (_bytes(_two_tone(), "PNG"), _bytes(_two_tone(), "JPEG")):
        assert upright_size(other) == (60, 30)
    with pytest.raises(PictureError, match="cannot identify"):
        upright_size(b"nothing")


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    corner=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
    side=st.tuples(st.floats(1e-4, 1), st.floats(1e-4, 1)),
    margin=st.floats(0, 1),
    resize=st.sampled_from(["longest", "shortest", "squash"]),
)
def test_any_box_can_be_cropped(
    size: tuple[int, int], corner: tuple[float, float], side: tuple[float, float], margin: float, resize: str
) -> None:
    opposite = [min(1.0, a + b) for a, b in zip(corner, side, strict=True)]
    (found,) = _crops(_bytes(Image.new("RGB", size, (90,) * 3)), [(*corner, *opposite)], 16, margin=margin,
                      fit=Fit(resize))  # fmt: skip
    assert set(np.unique(found)) <= {90, 255}
    assert (found == 90).any()
