"""What URLs of the IIIF Image API 3.0 mean, and which are refused."""

from __future__ import annotations

import pytest

from diinn_fast.serve.iiif import BadRequestError, Service, parse, parse_region, parse_size

SERVICE = Service(width=300, height=200, max_scale=64, max_area=1 << 22)
WHOLE = (0, 0, 300, 200)


@pytest.mark.parametrize(
    ("text", "region"),
    [
        ("full", WHOLE),
        ("square", (50, 0, 200, 200)),
        ("10,20,30,40", (10, 20, 30, 40)),
        ("250,150,100,100", (250, 150, 50, 50)),  # cut at the border
        ("pct:10,10,50,25.5", (30, 20, 150, 51)),
    ],
)
def test_regions(text: str, region: tuple[int, int, int, int]) -> None:
    assert parse_region(SERVICE, text) == region


@pytest.mark.parametrize(
    "text",
    ["300,0,1,1", "0,0,0,5", "-1,0,5,5", "1,2,3", "0,0,5,5,", "pct:-1,0,5,5", "pct:0,0,0,0", "all"],
)
def test_regions_that_are_refused(text: str) -> None:
    with pytest.raises(BadRequestError):
        parse_region(SERVICE, text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("max", (300, 200)),
        ("^max", (2508, 1672)),  # the largest area that is answered
        ("150,", (150, 100)),
        (",50", (75, 50)),
        ("^900,", (900, 600)),
        ("^,800", (1200, 800)),
        ("pct:50", (150, 100)),
        ("^pct:250", (750, 500)),
        ("100,100", (100, 100)),
        ("^700,300", (700, 300)),
        ("!100,100", (100, 66)),
        ("!900,900", (300, 200)),  # as large as possible without enlarging
        ("^!900,900", (900, 600)),
    ],
)
def test_sizes(text: str, size: tuple[int, int]) -> None:
    assert parse_size(SERVICE, WHOLE, text) == size


@pytest.mark.parametrize(
    "text",
    [
        "301,",  # enlarges without ^
        ",201",
        "pct:101",
        "301,200",
        "0,",
        "0,0",
        "pct:0",
        "^19201,1",  # more than 64 times
        "^4000,4000",  # more pixels than an answer may have
        "^999999999,",
        "9999999999,",
        "",
        "full",
        "^",
        "!0,0",
        "1e9,",
    ],
)
def test_sizes_that_are_refused(text: str) -> None:
    with pytest.raises(BadRequestError):
        parse_size(SERVICE, WHOLE, text)


def test_the_canonical_form_says_the_same_in_one_way() -> None:
    def canonical(*words: str) -> str:
        return parse(SERVICE, *words).path(SERVICE)

    assert canonical("0,0,300,200", "pct:50", "360", "default.png") == "full/150,100/0/default.png"
    assert canonical("full", "300,", "!90", "gray.jpg") == "full/max/!90/gray.jpg"
    assert canonical("full", "^600,", "0", "color.webp") == "full/^600,400/0/color.webp"
    again = canonical("5,6,70,80", "^!200,200", "180", "bicubic.png")
    assert canonical(*again.split("/")) == again


@pytest.mark.parametrize(
    ("rotation", "quality_format"),
    [("45", "default.jpg"), ("!!0", "default.jpg"), ("0", "default.gif"), ("0", "best.jpg")],
)
def test_words_that_are_refused(rotation: str, quality_format: str) -> None:
    with pytest.raises(BadRequestError):
        parse(SERVICE, "full", "max", rotation, quality_format)


def test_an_answer_longer_than_its_format_holds_is_refused() -> None:
    long = Service(width=60000, height=10, max_scale=64, max_area=1 << 22)
    assert parse(long, "full", "max", "90", "default.jpg").size == (60000, 10)
    for size, form in (("max", "webp"), ("^65501,11", "jpg")):
        assert parse(long, "full", size, "0", "default.png").size[0] >= 60000
        with pytest.raises(BadRequestError, match="take png"):
            parse(long, "full", size, "0", f"default.{form}")


def test_info_says_what_is_offered() -> None:
    info = Service(19200, 12800, 1, 1 << 22).info("http://host/iiif/coffee@64")
    assert (info["width"], info["height"], info["profile"]) == (19200, 12800, "level2")
    assert info["tiles"][0]["scaleFactors"] == [1, 2, 4, 8, 16, 32, 64, 128]
    assert "sizeUpscaling" not in info["extraFeatures"]
    assert "sizeUpscaling" in SERVICE.info("u")["extraFeatures"]
