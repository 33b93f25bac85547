import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from image_folders import write_images
from torch import Tensor

from malformed import picture
from phiscale.data.augment import Augment, TrainTransform
from phiscale.data.loading import Batches, EpochSampler, ImageDataset, Share, make_loader
from phiscale.data.sources import ImageSource, open_source
from phiscale.data.transforms import EvalTransform
from phiscale.errors import DataError
from phiscale.preprocess import Preprocess

PREPROCESS = Preprocess.for_size(16)
TRAIN = TrainTransform(
    PREPROCESS, Augment(policy="randaugment", pad_crop=2, crop_scale=(0.5, 1), erasing=0.5)
)
EVAL = EvalTransform(PREPROCESS)


@pytest.fixture
def source(tmp_path: Path) -> ImageSource:
    return open_source(write_images(tmp_path / "images", {"a": 11, "b": 10}), val_fraction=0)


def epochs(
    source: ImageSource, which: tuple[int, ...] = (0, 1), **options: Any
) -> list[tuple[Tensor, Tensor]]:
    """All batches of some epochs."""
    settings: dict[str, Any] = {"batch_size": 4, "shuffle": True, "seed": 3, **options}
    loader = make_loader(source, source.records, settings.pop("transform", TRAIN), **settings)
    batches = []
    for epoch in which:
        loader.batch_sampler.sampler.set_epoch(epoch)  # type: ignore[union-attr]
        batches += [(images.clone(), labels.clone()) for images, labels in loader]
    return batches


def same(a: list[tuple[Tensor, Tensor]], b: list[tuple[Tensor, Tensor]]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x[0], y[0]) and torch.equal(x[1], y[1]) for x, y in zip(a, b, strict=True)
    )


def test_batches(source: ImageSource) -> None:
    batches = epochs(source, (0,), shuffle=False, transform=EVAL)
    assert [len(labels) for _, labels in batches] == [4, 4, 4, 4, 4, 1]
    images, labels = batches[0]
    assert images.dtype == torch.uint8
    assert labels.dtype == torch.int64
    assert images.shape == (4, 3, 16, 16)
    assert torch.cat([labels for _, labels in batches]).tolist() == [0] * 11 + [1] * 10
    assert torch.equal(images[2], EVAL(source.read(source.records[2])))


def test_workers_change_nothing(source: ImageSource) -> None:
    expected = epochs(source)
    assert same(expected, epochs(source, workers=1))
    assert same(expected, epochs(source, workers=2))


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_a_cache_changes_nothing(source: ImageSource, tmp_path: Path, cache: str) -> None:
    expected = epochs(source)
    assert same(expected, epochs(source, cache=cache, cache_dir=tmp_path / "cache"))
    assert same(expected, epochs(source, cache=cache, cache_dir=tmp_path / "cache", workers=2))


def test_a_resumed_run_sees_the_same_epoch(source: ImageSource) -> None:
    three = epochs(source, (0, 1, 2))
    assert same(three[-5:], epochs(source, (2,)))


def test_epochs_and_seeds_differ(source: ImageSource) -> None:
    first, second = epochs(source, (0,)), epochs(source, (1,))
    assert not same(first, second)
    assert not same(first, epochs(source, (0,), seed=4))
    # The same image looks different in another epoch, also without shuffling.
    assert not same(epochs(source, (0,), shuffle=False), epochs(source, (1,), shuffle=False))


@pytest.mark.parametrize("workers", [0, 1])
def test_the_global_generator_is_neither_read_nor_moved(source: ImageSource, workers: int) -> None:
    torch.manual_seed(1)
    expected = epochs(source, workers=workers)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert same(expected, epochs(source, workers=workers))
    assert torch.equal(torch.get_rng_state(), state)


def test_every_image_once_per_epoch() -> None:
    sampler = EpochSampler(100, shuffle=True, seed=1)
    first = list(sampler)
    assert sorted(index for _, index in first) == list(range(100))
    assert first == list(sampler)
    sampler.set_epoch(5)
    assert {epoch for epoch, _ in sampler} == {5}
    assert [index for _, index in sampler] != [index for _, index in first]


@pytest.mark.parametrize(
    ("number", "batch_size", "options", "expected"),
    [
        (9, 4, {}, [4, 5]),
        (10, 4, {}, [4, 4, 2]),
        (8, 4, {}, [4, 4]),
        (9, 4, {"drop_last": True}, [4, 4]),
        (3, 4, {"drop_last": True}, [3]),
        (3, 4, {}, [3]),
        (1, 4, {}, [1]),
        (9, 4, {"shuffle": False}, [4, 4, 1]),
        (2, 1, {}, [1, 1]),
    ],
)
def test_the_last_batch(
    source: ImageSource, number: int, batch_size: int, options: dict[str, Any], expected: list[int]
) -> None:
    settings = {"shuffle": True, **options}
    loader = make_loader(source, source.records[:number], EVAL, batch_size=batch_size, **settings)
    assert [len(labels) for _, labels in loader] == expected
    assert len(loader) == len(expected)


def damage(source: ImageSource, *positions: int) -> None:
    for position in positions:
        path = source.path(source.records[position])
        assert path is not None
        path.unlink() if position % 2 else path.write_bytes(b"damaged")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_breaks_is_replaced_and_noted(
    source: ImageSource, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    loader = make_loader(source, source.records, TRAIN, batch_size=4, shuffle=True, seed=1, workers=workers)
    damage(source, 3, 4)
    with caplog.at_level(logging.WARNING):
        first = [(images.clone(), labels.clone()) for images, labels in loader]
        second = list(loader)
    assert sum(len(labels) for _, labels in first) == 21
    assert same(first, second)
    assert loader.dataset.failed == tuple(source.records[i].id for i in (3, 4))  # type: ignore[attr-defined]
    if workers == 0:  # workers log in their own processes
        messages = [record.message for record in caplog.records]
        assert len(messages) == 2
        assert any(
            f"{source.records[3].id}: there is no such file or folder; another image" in m for m in messages
        )


def test_replacements_do_not_depend_on_workers(source: ImageSource) -> None:
    damage(source, 3, 4, 9)
    assert same(epochs(source), epochs(source, workers=2))


@pytest.mark.parametrize("workers", [0, 2])
def test_raise_stops_with_one_line(source: ImageSource, workers: int) -> None:
    damage(source, 6)
    with pytest.raises(DataError, match=f"{source.records[6].id}: the content is not an image") as error:
        epochs(source, workers=workers, on_error="raise")
    assert "\n" not in str(error.value)


def test_when_everything_is_gone(source: ImageSource) -> None:
    damage(source, *range(len(source)))
    with pytest.raises(DataError, match="images cannot be read any more"):
        epochs(source)


def test_an_image_that_was_broken_when_the_cache_was_made(source: ImageSource) -> None:
    damage(source, 4)
    loader = make_loader(source, source.records, EVAL, batch_size=4, shuffle=False, cache="memory")
    assert sum(len(labels) for _, labels in loader) == 21
    assert loader.dataset.failed == (source.records[4].id,)  # type: ignore[attr-defined]


def test_an_index_alone_is_epoch_zero(source: ImageSource) -> None:
    dataset = ImageDataset(source, source.records, TRAIN, seed=1)
    assert torch.equal(dataset[2][0], dataset[0, 2][0])
    assert not torch.equal(dataset[1, 2][0], dataset[0, 2][0])


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_is_gone_on_with_where_it_stopped(
    source: ImageSource, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = epochs(source)
    loader = make_loader(source, source.records, TRAIN, batch_size=4, shuffle=True, seed=3, workers=workers)
    asked: list[Any] = []
    real = ImageDataset.__getitems__

    def watched(self: ImageDataset, keys: Any) -> Any:
        asked.extend(keys)
        return real(self, keys)

    monkeypatch.setattr(ImageDataset, "__getitems__", watched)
    loader.batch_sampler.skip(3)  # type: ignore[union-attr]
    rest = [(images.clone(), labels.clone()) for images, labels in loader]
    assert len(loader) == 5
    assert same(rest, whole[3:5])
    assert len(asked) == (9 if workers == 0 else 0)  # workers ask in their own processes
    loader.batch_sampler.sampler.set_epoch(1)  # type: ignore[union-attr]
    assert same(list(loader), whole[5:])


@pytest.fixture
def photographs(tmp_path: Path) -> ImageSource:
    """JPEGs so large that training decodes them at reduced size."""
    for number in range(9):
        path = tmp_path / "photographs" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(300, 220, seed=number).save(path)
    return open_source(tmp_path / "photographs", val_fraction=0)


def test_jpegs_are_a_function_of_seed_epoch_and_index(photographs: ImageSource) -> None:
    batches = epochs(photographs)
    assert same(batches, epochs(photographs, workers=2))
    assert same(batches[2:], epochs(photographs, (1,)))


def test_exact_decoding_is_what_a_cache_gives(photographs: ImageSource) -> None:
    pytest.importorskip("simplejpeg")
    exact, fast = epochs(photographs, exact_decode=True), epochs(photographs)
    assert same(exact, epochs(photographs, cache="memory"))
    assert not same(exact, fast)
    for (one, labels), (other, others) in zip(exact, fast, strict=True):
        assert torch.equal(labels, others)
        assert one.shape == other.shape
    # What is measured is exact.
    measured = epochs(photographs, transform=EVAL, shuffle=False)
    assert same(measured, epochs(photographs, transform=EVAL, shuffle=False, exact_decode=True))


def test_a_jpeg_that_breaks_is_replaced_and_noted(photographs: ImageSource) -> None:
    path = photographs.path(photographs.records[2])
    assert path is not None
    path.write_bytes(path.read_bytes()[:-900])
    dataset = ImageDataset(photographs, photographs.records, TRAIN)
    assert not torch.equal(dataset[2][0], dataset[3][0])
    assert dataset.failed == (photographs.records[2].id,)


def test_wrong_arguments(source: ImageSource) -> None:
    with pytest.raises(DataError, match="there are no images to load"):
        make_loader(source, (), EVAL, batch_size=4, shuffle=False)
    with pytest.raises(DataError, match="batch_size must be an integer of at least 1, got 0"):
        make_loader(source, source.records, EVAL, batch_size=0, shuffle=False)
    with pytest.raises(DataError, match="workers must be an integer of at least 0"):
        make_loader(source, source.records, EVAL, batch_size=1, shuffle=False, workers=-1)
    loader = make_loader(source, source.records, EVAL, batch_size=4, shuffle=False, cache="memory")
    with pytest.raises(DataError, match="the cache holds 21 images, not the 2"):
        ImageDataset(source, source.records[:2], EVAL, loader.dataset.cache)  # type: ignore[attr-defined]


def test_images_of_every_mode(tmp_path: Path) -> None:
    for number, mode in enumerate(("RGB", "L", "P", "RGBA", "CMYK", "1")):
        path = tmp_path / "ab"[number % 2] / f"{number}.tif"
        path.parent.mkdir(exist_ok=True)
        picture(seed=number).convert(mode).save(path)
    source = open_source(tmp_path, val_fraction=0)
    (images, labels), *_ = epochs(source, (0,), batch_size=6)
    assert images.shape == (6, 3, 16, 16)
    assert sorted(labels.tolist()) == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("size", "batch_size", "shuffle", "drop_last"),
    [
        (23, 5, True, True),
        (21, 5, True, False),
        (23, 5, False, False),
        (21, 5, False, False),
        (5, 8, True, True),
    ],
)
def test_shares_make_up_the_batches(
    count: int, size: int, batch_size: int, shuffle: bool, drop_last: bool
) -> None:
    def batches(share: Share | None) -> Batches:
        sampler = EpochSampler(size, shuffle=shuffle, seed=3)
        sampler.set_epoch(2)
        return Batches(sampler, batch_size, drop_last=drop_last, share=share)

    whole = list(batches(None))
    shares = [batches(Share(rank=rank, count=count)) for rank in range(count)]
    parts = [list(share) for share in shares]
    assert [len(share) for share in shares] == [len(part) for part in parts]
    assert [shares[0].total(number) for number in range(len(whole))] == [len(batch) for batch in whole]
    for number, batch in enumerate(whole):
        pieces = [part[number] for part in parts if number < len(part)]
        assert [key for piece in pieces for key in piece] == batch
        assert all(pieces)
    if shuffle:
        sizes = [len(piece) for part in parts for piece in part[:-1]]
        assert not sizes or max(sizes) - min(sizes) <= 1
