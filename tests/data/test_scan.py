import json
from dataclasses import replace
from pathlib import Path

import pytest
from image_folders import write_images

from malformed import image_bytes, make_malformed, picture
from phiscale.data.scan import Finding, ScanReport, scan
from phiscale.data.sources import open_source
from phiscale.errors import DataError


def kinds(report: ScanReport) -> set[str]:
    return {finding.kind for finding in report.findings}


def only(report: ScanReport, kind: str) -> Finding:
    found = [finding for finding in report.findings if finding.kind == kind]
    assert len(found) == 1, f"{len(found)} of {kind}"
    return found[0]


def test_a_sound_folder(tmp_path: Path) -> None:
    source = open_source(write_images(tmp_path, {"a": 15, "b": 15}, size=(24, 20)))
    calls: list[tuple[int, int]] = []
    report = scan(source, progress=lambda done, total: calls.append((done, total)))
    assert report.findings == ()
    assert report.images == 30
    assert report.counts == {"train": {"a": 12, "b": 12}, "val": {"a": 3, "b": 3}}
    assert report.sizes is not None
    assert (report.sizes.median_height, report.sizes.median_width) == (20, 24)
    assert report.decoded_bytes == 30 * 24 * 20 * 3
    assert not report.grey
    assert calls[-1] == (30, 30)
    assert report.usable(source) == source


def test_malformed_files_become_findings(tmp_path: Path) -> None:
    write_images(tmp_path, {"good": 5})
    files = make_malformed(tmp_path / "strange")
    source = open_source(tmp_path)
    report = scan(source, workers=2)
    bad = {f"strange/{path.name}" for path in files if path.name.startswith("bad_")}
    odd = {f"strange/{path.name}" for path in files if path.name.startswith("odd_")}
    assert bad <= report.unusable
    assert not odd & report.unusable
    assert {"unreadable", "truncated", "oversized", "zero_byte", "wrong_extension"} <= kinds(report)
    assert {"cmyk", "palette", "sixteen_bit", "alpha", "animated", "exif_rotated", "grey"} <= kinds(report)
    clean = report.usable(source)
    assert len(clean) == len(source) - len(report.unusable)
    assert scan(clean).unusable == frozenset()
    assert all(finding.message.isprintable() for finding in report.findings)
    assert json.loads(json.dumps(report.to_dict()))["usable"] == len(clean)


def test_traits_name_the_right_files(tmp_path: Path) -> None:
    write_images(tmp_path, {"a": 3, "b": 3})
    make_malformed(tmp_path / "a")
    report = scan(open_source(tmp_path), near_duplicates=False)

    def names(kind: str) -> set[str]:
        return {Path(image_id).name for image_id in only(report, kind).ids}

    assert names("cmyk") == {"odd_cmyk.jpg", "odd_cmyk.tif"}
    assert names("animated") == {"odd_animated.gif", "odd_animated.png", "odd_animated.webp", "odd_pages.tif"}
    assert names("exif_rotated") == {f"odd_rotated_{value}.jpg" for value in range(2, 9)}
    assert {"odd_i16.png", "odd_i16.tif", "odd_i16.pgm", "odd_i32.tif", "odd_float.tif"} <= names(
        "sixteen_bit"
    )
    wrong = {f.message: set(f.ids) for f in report.findings if f.kind == "wrong_extension"}
    assert wrong == {
        "named .jpg, but the content is PNG": {"a/odd_png_named.jpg"},
        "named .png, but the content is JPEG": {"a/odd_jpeg_named.png"},
    }


def test_sizes_are_those_of_the_upright_image(tmp_path: Path) -> None:
    make_malformed(tmp_path / "made")
    content = (tmp_path / "made" / "odd_rotated_6.jpg").read_bytes()
    for name in ("a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(content)
    sizes = scan(open_source(tmp_path / "images")).sizes
    assert sizes is not None
    assert (sizes.median_height, sizes.median_width) == (48, 40)


def test_leaks_and_conflicts(tmp_path: Path) -> None:
    write_images(tmp_path / "train", {"a": 10, "b": 10})
    write_images(tmp_path / "val", {"a": 1, "b": 1}, salt="val")
    leaked, conflict, twice = picture(60, 50, 90), picture(60, 50, 91), picture(60, 50, 92)
    leaked.save(tmp_path / "train/a/x.png")
    leaked.save(tmp_path / "val/a/x.bmp")
    conflict.save(tmp_path / "train/a/y.png")
    conflict.save(tmp_path / "train/b/y.png")
    twice.save(tmp_path / "train/b/z.png")
    (tmp_path / "train/b/near.jpg").write_bytes(image_bytes(twice, "JPEG", quality=90))
    source = open_source(tmp_path)
    report = scan(source)
    assert kinds(report) == {"duplicate_leak", "duplicate_conflict", "near_duplicate"}
    assert only(report, "duplicate_leak").ids == ("train/a/x.png", "val/a/x.bmp")
    assert "labels: a, b" in only(report, "duplicate_conflict").message
    assert set(only(report, "near_duplicate").ids) == {"train/b/near.jpg", "train/b/z.png"}
    assert [f.severity for f in report.findings] == ["warning", "warning", "note"]
    assert report.unusable == frozenset()
    assert "near_duplicate" not in kinds(scan(source, near_duplicates=False))


def test_classes(tmp_path: Path) -> None:
    write_images(tmp_path, {"many": 50, "few": 4})
    (tmp_path / "none").mkdir()
    (tmp_path / "many" / "notes.txt").write_text("x")
    report = scan(open_source(tmp_path, val_fraction=0))
    assert kinds(report) == {"imbalance", "few_images", "empty_class", "ignored_files"}
    assert "many has 50 train images, few has 4" in only(report, "imbalance").message
    assert "none" in only(report, "empty_class").message


def test_a_class_without_a_usable_image(tmp_path: Path) -> None:
    write_images(tmp_path, {"a": 12, "b": 2})
    for path in (tmp_path / "b").iterdir():
        path.write_bytes(b"")
    source = open_source(tmp_path, val_fraction=0)
    report = scan(source)
    assert "class b has no usable image in train" in only(report, "empty_class").message
    assert report.counts == {"train": {"a": 12, "b": 0}}


def test_nothing_usable_is_an_error(tmp_path: Path) -> None:
    write_images(tmp_path, {"a": 2, "b": 2})
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"x")
    source = open_source(tmp_path)
    report = scan(source)
    assert report.sizes is None
    with pytest.raises(DataError, match="none of the 4 images"):
        report.usable(source)


def test_oversized_is_told_by_the_header(tmp_path: Path) -> None:
    source = open_source(write_images(tmp_path, {"a": 2, "b": 2}, size=(50, 40)))
    report = scan(source, max_pixels=1999)
    assert kinds(report) >= {"oversized"}
    assert len(report.unusable) == 4


def test_grey_sources_are_recognised(tmp_path: Path) -> None:
    for number in range(4):
        path = tmp_path / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        picture(seed=number).convert("L").save(path)
    assert scan(open_source(tmp_path)).grey


def test_the_number_of_threads_changes_nothing(tmp_path: Path) -> None:
    write_images(tmp_path, {"a": 6, "b": 6})
    make_malformed(tmp_path / "a")
    source = open_source(tmp_path)
    assert scan(source, workers=1) == scan(source, workers=4)
    less = replace(source, records=())
    assert scan(less).images == 0
