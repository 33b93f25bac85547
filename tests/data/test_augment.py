import statistics
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from malformed import image_bytes, picture
from phiscale.data.augment import Augment, TrainTransform
from phiscale.data.decode import decode
from phiscale.data.transforms import EvalTransform
from phiscale.errors import RecipeError
from phiscale.preprocess import Preprocess

NOTHING = Augment(hflip=0)
EVERYTHING = Augment(policy="randaugment", crop_scale=(0.3, 1), pad_crop=3, hflip=0.5, erasing=1.0)


def outcomes(augment: Augment, *, channels: int = 3, number: int = 60) -> set[bytes]:
    transform = TrainTransform(Preprocess.for_size(24, channels=channels), augment)
    return {transform(picture(24, 24), seed=seed).numpy().tobytes() for seed in range(number)}


@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
def test_without_augmentation_training_sees_what_evaluation_sees(resize: Any) -> None:
    preprocess = Preprocess(size=(24, 32), resize=resize)
    image = picture(50, 40)
    assert torch.equal(TrainTransform(preprocess, NOTHING)(image, seed=3), EvalTransform(preprocess)(image))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "augment",
    [
        Augment(policy="randaugment", num_ops=4, magnitude=30),
        Augment(policy="autoaugment"),
        Augment(policy="trivial"),
        Augment(crop_scale=(0.1, 1)),
        Augment(erasing=0.5),
        Augment(pad_crop=4),
        EVERYTHING,
    ],
)
def test_the_seed_decides_and_the_global_generator_stays(augment: Augment, channels: int) -> None:
    transform = TrainTransform(Preprocess.for_size(24, channels=channels), augment)
    image = picture(40, 30)
    state = torch.get_rng_state()
    first = [transform(image, seed=seed) for seed in range(20)]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002 - to show that it is not used
    second = [transform(image, seed=seed) for seed in range(20)]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(a.shape == (channels, 24, 24) and a.dtype == torch.uint8 for a in first)
    assert len({a.numpy().tobytes() for a in first}) > 1


def test_without_a_seed_results_vary_with_torchs_generator() -> None:
    transform = TrainTransform(Preprocess.for_size(24), EVERYTHING)
    torch.manual_seed(0)
    first, second = transform(picture()), transform(picture())
    torch.manual_seed(0)
    assert torch.equal(transform(picture()), first)
    assert not torch.equal(first, second)


def test_flip() -> None:
    assert len(outcomes(Augment(hflip=0.5))) == 2
    (mirrored,) = outcomes(Augment(hflip=1))
    expected = np.asarray(picture(24, 24)).transpose(2, 0, 1)[:, :, ::-1]
    assert mirrored == expected.tobytes()


def test_shift_moves_the_picture_and_repeats_its_border() -> None:
    found = outcomes(Augment(pad_crop=1, hflip=0), number=200)
    image = np.asarray(picture(24, 24)).transpose(2, 0, 1)
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="edge")
    expected = {padded[:, y : y + 24, x : x + 24].tobytes() for y in range(3) for x in range(3)}
    assert found == expected


def test_a_shift_wider_than_the_image_is_harmless() -> None:
    transform = TrainTransform(Preprocess.for_size(8), Augment(pad_crop=100))
    assert transform(picture(8, 8), seed=1).shape == (3, 8, 8)


def test_random_crop_keeps_the_share_of_the_area() -> None:
    # A picture whose values are its columns: the width of a crop can be read off it.
    columns = np.tile(np.arange(200, dtype=np.uint8), (200, 1))
    transform = TrainTransform(
        Preprocess(size=(50, 50), mean=(0.5,), std=(0.5,)), Augment(crop_scale=(0.2, 0.3), hflip=0)
    )
    widths = []
    for seed in range(100):
        tensor = transform(Image.fromarray(columns), seed=seed)
        widths.append(int(tensor.max()) - int(tensor.min()))
    assert min(widths) > 200 * (0.2 * 3 / 4) ** 0.5 * 0.9
    assert max(widths) < 200 * (0.3 * 4 / 3) ** 0.5 * 1.1


def test_erasing_puts_in_the_mean() -> None:
    preprocess = Preprocess.for_size(24)
    transform = TrainTransform(preprocess, Augment(hflip=0, erasing=1))
    tensor = transform(Image.new("RGB", (24, 24)), seed=1)
    mean = torch.tensor([round(255 * value) for value in preprocess.mean], dtype=torch.uint8)
    erased = (tensor == mean[:, None, None]).all(dim=0)
    assert 0 < erased.sum() < 24 * 24


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "augment",
    [
        Augment(crop_scale=(0.08, 1)),
        Augment(crop_scale=(0.35, 1), policy="trivial", erasing=0.5),
        Augment(pad_crop=3),
        NOTHING,
    ],
)
def test_files_go_the_way_of_decoded_images(augment: Augment, channels: int) -> None:
    pytest.importorskip("simplejpeg")
    transform = TrainTransform(Preprocess.for_size(32, channels=channels), augment)
    differences = []
    for size in ((60, 41), (500, 375), (300, 811)):
        file = image_bytes(picture(*size), "JPEG", quality=90)
        for seed in range(12):
            fast, slow = transform.from_file(file, seed=seed), transform(decode(file), seed=seed)
            assert fast is not None
            assert fast.shape == slow.shape
            differences.append(float((fast.int() - slow.int()).abs().float().mean()))
            # Erasing comes last: that it hit the same pixels says that all was drawn alike.
            if augment.erasing and channels == 3:
                mean = torch.tensor([round(255 * v) for v in transform.preprocess.mean])[:, None, None]
                assert torch.equal((fast == mean).all(0), (slow == mean).all(0))
    # Some operations of a policy, such as solarizing, make far more of a difference than there was.
    assert (max if augment.policy == "none" else statistics.median)(differences) < 1


def test_what_is_no_jpeg_is_left_to_be_decoded() -> None:
    cut_off = image_bytes(picture(), "JPEG")[:-300]
    for augment in (NOTHING, EVERYTHING):
        transform = TrainTransform(Preprocess.for_size(24), augment)
        assert transform.from_file(image_bytes(picture(), "PNG"), seed=1) is None
        assert transform.from_file(cut_off, seed=1) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"policy": "augmix"}, "policy must be one of none, randaugment"),
        ({"magnitude": 31}, "magnitude must be an integer from 0 to 30"),
        ({"num_ops": 0}, "num_ops must be an integer"),
        ({"num_ops": True}, "num_ops must be an integer"),
        ({"pad_crop": 1.5}, "pad_crop must be an integer"),
        ({"hflip": 1.1}, "hflip is a probability"),
        ({"erasing": float("nan")}, "erasing is a probability"),
        ({"crop_scale": (0, 1)}, "crop_scale must be two shares"),
        ({"crop_scale": (0.9, 0.5)}, "crop_scale must be two shares"),
        ({"crop_scale": 0.5}, "crop_scale must be two shares"),
    ],
)
def test_wrong_values(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Augment(**fields)


def test_lists_from_yaml_become_tuples() -> None:
    assert Augment(crop_scale=[0.5, 1]) == Augment(crop_scale=(0.5, 1.0))  # type: ignore[arg-type]
