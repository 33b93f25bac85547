import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from malformed import picture
from phiscale.data.sizes import fit_size
from phiscale.data.transforms import EvalTransform, Normalize, normalize, to_tensor
from phiscale.errors import ShapeError
from phiscale.preprocess import Interpolation, Preprocess, ResizeMode


def noise(width: int, height: int, channels: int = 3) -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    shape = (height, width) if channels == 1 else (height, width, channels)
    return Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))


def torchvision_transform(resize: int, crop: int, interpolation: str = "bicubic") -> v2.Compose:
    return v2.Compose(
        [v2.Resize(resize, InterpolationMode(interpolation)), v2.CenterCrop(crop), v2.PILToTensor()]
    )


@settings(max_examples=30, deadline=None)
@given(width=st.integers(1, 400), height=st.integers(1, 400))
def test_crop_equals_torchvision_at_the_authors_setting(width: int, height: int) -> None:
    if max(width, height) / min(width, height) > 300:
        return  # there the whole resized image is not computed, see below
    image = noise(width, height)
    assert torch.equal(EvalTransform(Preprocess.for_size(224))(image), torchvision_transform(256, 224)(image))


@pytest.mark.parametrize("size", [240, 260, 300, 380, 456, 528, 600, 32, 64])
@pytest.mark.parametrize("shape", [(500, 375), (375, 500), (333, 333)])
def test_crop_equals_torchvision_at_every_size(size: int, shape: tuple[int, int]) -> None:
    preprocess = Preprocess.for_size(size)
    assert preprocess.resize_size[0] == (size + 32 if size >= 96 else size)
    expected = torchvision_transform(preprocess.resize_size[0], size)(noise(*shape))
    assert torch.equal(EvalTransform(preprocess)(noise(*shape)), expected)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("channels", [1, 3])
def test_interpolations_equal_torchvision(interpolation: Interpolation, channels: int) -> None:
    preprocess = Preprocess(
        interpolation=interpolation, mean=(0.5,) * channels, std=(0.5,) * channels, size=(224, 224)
    )
    image = noise(301, 257, channels)
    expected = torchvision_transform(256, 224, interpolation)(image)
    assert torch.equal(EvalTransform(preprocess)(image), expected)


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    fraction=st.floats(0.3, 1),
    mode=st.sampled_from(["crop", "squash", "pad"]),
)
def test_every_mode_gives_the_size(
    width: int, height: int, size: tuple[int, int], fraction: float, mode: ResizeMode
) -> None:
    preprocess = Preprocess(size=size, resize=mode, crop_fraction=fraction)
    assert EvalTransform(preprocess)(noise(width, height)).shape == (3, *size)


def test_crop_of_another_shape_covers_it() -> None:
    preprocess = Preprocess(size=(20, 40), crop_fraction=1.0)
    # Twice as wide as high, like the target: the whole image is kept.
    image = noise(80, 40)
    assert fit_size(image, preprocess).tobytes() == image.resize((40, 20), Image.Resampling.BICUBIC).tobytes()
    # Square: full width, the middle half of the height.
    image = noise(40, 40)
    assert fit_size(image, preprocess).tobytes() == image.crop((0, 10, 40, 30)).tobytes()


def test_pad_centres_the_image_on_the_background() -> None:
    preprocess = Preprocess(size=(40, 40), resize="pad", background=(10, 20, 30))
    image = noise(40, 20)
    result = fit_size(image, preprocess)
    assert result.crop((0, 10, 40, 30)).tobytes() == image.tobytes()
    assert {result.getpixel((x, y)) for x in (0, 39) for y in (0, 9, 30, 39)} == {(10, 20, 30)}


def test_squash_shows_the_whole_image() -> None:
    preprocess = Preprocess(size=(32, 32), resize="squash", crop_fraction=0.5)
    image = noise(100, 50)
    assert fit_size(image, preprocess).tobytes() == image.resize((32, 32), Image.Resampling.BICUBIC).tobytes()


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1), (2, 9000)])
def test_extreme_shapes_do_not_fill_the_memory(shape: tuple[int, int]) -> None:
    image = Image.new("RGB", shape, (50, 100, 150))
    tensor = EvalTransform(Preprocess.for_size(224))(image)
    assert set(tensor.flatten().tolist()) == {50, 100, 150}


def test_the_transform_decodes() -> None:
    image = Image.new("RGBA", (30, 20), (0, 0, 0, 0))
    preprocess = Preprocess(size=(8, 8), background=(7, 8, 9))
    assert EvalTransform(preprocess)(image)[:, 0, 0].tolist() == [7, 8, 9]


def test_to_tensor_copies() -> None:
    for pixels in (np.zeros((4, 5), np.uint8), np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5, 1), np.uint8)):
        tensor = to_tensor(pixels)
        pixels[:] = 9
        assert tensor.sum() == 0
        assert tensor.shape[1:] == (4, 5)


def test_normalize_equals_torchvision() -> None:
    preprocess = Preprocess.for_size(32)
    batch = torch.stack([EvalTransform(preprocess)(picture(seed=seed)) for seed in range(3)])
    theirs = v2.Normalize(preprocess.mean, preprocess.std)(v2.ToDtype(torch.float32, scale=True)(batch))
    torch.testing.assert_close(normalize(batch, preprocess), theirs, rtol=0, atol=1e-6)
    module = Normalize(preprocess)
    assert torch.equal(module(batch), normalize(batch, preprocess))
    assert module.state_dict() == {}


def test_normalize_checks_the_shape() -> None:
    with pytest.raises(ShapeError, match=r"expected a batch \(N, 3, height, width\), got \(2, 1, 8, 8\)"):
        normalize(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), Preprocess())
    with pytest.raises(ShapeError, match="expected a batch"):
        normalize(torch.zeros(3, 8, 8, dtype=torch.uint8), Preprocess())
