"""Images for training: where they are found, what is refused, which crops a step has, and packs."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diinn_fast.data import (
    CropSampler,
    decode_all,
    degrade,
    find_images,
    list_photos,
    load_photos,
    make_pairs,
    write_pack,
)
from diinn_fast.data.crops import texture
from diinn_fast.errors import DataError
from tests.helpers.train_small import make_photos


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "photos")


@pytest.fixture
def pixels(photos: Path, tmp_path: Path) -> Any:
    return decode_all(list_photos(photos), 1, 1 << 30, tmp_path / "cache")


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


# -- finding ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "train", "valid"),
    [
        (["b.png", "a.JPG", "notes.txt"], ["a.JPG", "b.png"], ["a.JPG", "b.png"]),
        (  # unpacked from the DIV2K site
            [
                "DIV2K_train_HR/0001.png",
                "DIV2K_valid_HR/0801.png",
                "DIV2K_valid_LR_bicubic/X2/0801x2.png",
            ],
            ["DIV2K_train_HR/0001.png"],
            ["DIV2K_valid_HR/0801.png"],
        ),
        (
            ["DIV2K/DIV2K_train_HR/0800.png"],
            ["DIV2K/DIV2K_train_HR/0800.png"],
            ["DIV2K/DIV2K_train_HR/0800.png"],
        ),
        (  # the official code: 0001 to 0900 in one folder
            [
                "DIV2K/DIV2K_train_HR/0800.png",
                "DIV2K/DIV2K_train_HR/0801.png",
                "DIV2K/DIV2K_train_HR/0900.png",
            ],
            ["DIV2K/DIV2K_train_HR/0800.png"],
            ["DIV2K/DIV2K_train_HR/0801.png", "DIV2K/DIV2K_train_HR/0900.png"],
        ),
        (
            ["HR/baby.png", "LR_bicubic/X2/babyx2.png"],
            ["HR/baby.png"],
            ["HR/baby.png"],
        ),  # EDSR's benchmark.tar
        (["GTmod12/baby.png", "LRbicx2/baby.png"], ["GTmod12/baby.png"], ["GTmod12/baby.png"]),
        (  # SelfExSR
            [
                "image_SRF_2/img_001_SRF_2_HR.png",
                "image_SRF_4/img_001_SRF_4_HR.png",
                "image_SRF_4/img_001_SRF_4_LR.png",
            ],
            ["image_SRF_4/img_001_SRF_4_HR.png"],
            ["image_SRF_4/img_001_SRF_4_HR.png"],
        ),
    ],
)
def test_layouts(files: list[str], train: list[str], valid: list[str], tmp_path: Path) -> None:
    touch(tmp_path, *files)
    assert find_images(tmp_path) == [tmp_path / name for name in train]
    assert find_images(tmp_path, "valid") == [tmp_path / name for name in valid]


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images in"):
        find_images(tmp_path)
    with pytest.raises(DataError, match="not a folder"):
        find_images(tmp_path / "nowhere")


# -- decoding --------------------------------------------------------------------------------------


def test_all_kinds_of_8_bit_images_become_rgb(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    Image.fromarray(rgb[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(rgb).convert("RGBA").save(tmp_path / "alpha.png")
    images = load_photos(tmp_path)
    assert list(images) == ["a.png", "alpha.png", "grey.png"]
    assert np.array_equal(images["a.png"].permute(1, 2, 0), rgb) and torch.equal(
        images["a.png"], images["alpha.png"]
    )
    assert np.array_equal(images["grey.png"], np.broadcast_to(rgb[..., 0], (3, 9, 7)))


@pytest.mark.parametrize("suffix", ["bmp", "gif", "jp2", "avif", "heic"])
def test_photos_are_found_and_read_in_every_format_of_images(suffix: str, tmp_path: Path) -> None:
    rgb = np.full((20, 30, 3), 90, np.uint8)
    image = Image.fromarray(rgb)
    if suffix == "heic":
        pytest.importorskip("pillow_heif").from_pillow(image).save(tmp_path / "photo.heic")
    else:
        image.save(tmp_path / f"photo.{suffix}")
    (photo,) = load_photos(tmp_path).values()
    assert photo.shape == (3, 20, 30)
    assert (photo.int() - 90).abs().max() <= 3


def test_a_file_of_numbers_is_no_photo(tmp_path: Path) -> None:
    np.save(tmp_path / "numbers.npy", np.zeros((9, 9, 3), np.uint8))
    (tmp_path / "numbers.npy").rename(tmp_path / "photo.png")
    with pytest.raises(DataError, match=r"photo\.png holds .*convert it"):
        load_photos(tmp_path)


def test_bad_images_are_named_all_together(photos: Path, tmp_path: Path) -> None:
    (photos / "broken.png").write_bytes((photos / "0.png").read_bytes()[:3000])
    with pytest.raises(DataError, match=r"broken\.png cannot be decoded"):
        decode_all(list_photos(photos), 1, 1 << 30, tmp_path)
    Image.new("RGB", (40, 300)).save(photos / "narrow.png")
    Image.fromarray(np.zeros((200, 200), np.uint16)).save(photos / "deep.png")
    (photos / "text.png").write_text("no image")
    with pytest.raises(DataError) as caught:
        decode_all(list_photos(photos), 100, 1 << 30, tmp_path)
    for part in (
        "deep.png has more than 8 bits",
        "narrow.png is 40x300 pixels: at least 100",
        "text.png cannot be",
    ):
        assert part in str(caught.value)
    assert "and 1 more" not in str(caught.value)
    (photos / "text2.png").write_text("no image")
    with pytest.raises(DataError, match="; and 1 more"):
        decode_all(list_photos(photos), 100, 1 << 30, tmp_path)


def test_photos_beyond_the_memory_come_from_a_file_made_once(
    photos: Path, pixels: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "mapped"
    for _ in range(2):
        mapped = decode_all(list_photos(photos), 1, 1000, cache)
        assert all(np.array_equal(a, b) for a, b in zip(mapped, pixels, strict=True))
        assert not mapped[0].flags.writeable
        assert len(list(cache.iterdir())) == 1
        # The second time it is there.
        monkeypatch.setattr("diinn_fast.data.store.decode_photo", None)
    monkeypatch.undo()
    Image.new("RGB", (130, 130)).save(photos / "0.png")  # another photo of this name
    assert decode_all(list_photos(photos), 1, 1000, cache)[0].shape == (130, 130, 3)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(DataError, match=r"choose another folder with --data\.cache"):
        decode_all(list_photos(photos), 1, 1000, tmp_path / "full")


# -- degrading and cropping ------------------------------------------------------------------------


def test_degrade_is_pillows_antialiased_bicubic() -> None:
    hr = torch.rand(3, 37, 50)
    lr = degrade(hr, (12, 17))
    pil = Image.fromarray((hr.permute(1, 2, 0).numpy() * 255 + 0.5).astype(np.uint8))
    want = np.asarray(pil.resize((17, 12), Image.Resampling.BICUBIC)).astype(np.float32) / 255
    assert np.abs(lr.permute(1, 2, 0).numpy() - want).max() < 2.5 / 255
    assert ((lr * 255).round() - lr * 255).abs().max() < 1e-4


def codes(image: torch.Tensor) -> torch.Tensor:
    """One number per colour of uint8 ``[..., 3]``."""
    return (image.long() * torch.tensor([65536, 256, 1])).sum(-1)


def test_pairs_are_the_crop_its_degradation_and_its_pixels(pixels: Any) -> None:
    sampler = CropSampler(pixels, lr_size=12, batch=3, groups=4, samples=50, seed=1)
    for crops in sampler.step(7):
        pairs = make_pairs(crops)
        side = pairs.size[0]
        assert (
            12 <= side <= 48
            and crops.hr.shape == (3, 3, side, side)
            and pairs.lr.shape == (3, 3, 12, 12)
        )
        assert torch.equal(pairs.lr, degrade(crops.hr.float() / 255, (12, 12)))
        # Each pixel once.
        assert len(set(codes(torch.cat([pairs.yx[0], pairs.yx[0, :, :1]], -1)).tolist())) == 50
        for hr, yx, rgb in zip(crops.hr, pairs.yx, pairs.target, strict=True):
            assert torch.equal((rgb * 255).round(), hr[:, yx[:, 0], yx[:, 1]].T.float())


def test_a_crop_is_a_square_of_a_photo_flipped_or_transposed(pixels: Any) -> None:
    photo = pixels[0]
    photo[..., 0] = np.arange(photo.shape[0])[:, None] % 256  # red and green say where a pixel was
    photo[..., 1] = np.arange(photo.shape[1])[None] % 256
    seen = set()
    for step in range(60):
        [crops] = CropSampler([photo], lr_size=5, batch=1, scales=[2]).step(step)
        crop = crops.hr[0].permute(1, 2, 0).numpy()
        y = int(crop[..., 0].min())
        x = int(crop[..., 1].min())
        square = photo[y : y + 10, x : x + 10]
        ways = [np.rot90(s, k) for s in (square, square.transpose(1, 0, 2)) for k in range(4)]
        [way] = [n for n, turned in enumerate(ways) if np.array_equal(turned, crop)]
        seen.add(way)
    assert len(seen) == 8


def test_the_papers_steps_have_every_scale(pixels: Any) -> None:
    groups = CropSampler(pixels, lr_size=12, batch=2, scales=(2, 3, 4)).step(0)
    assert [group.hr.shape[-1] for group in groups] == [24, 36, 48] and all(
        group.yx is None for group in groups
    )
    pairs = make_pairs(groups[2])
    assert torch.equal((pairs.target * 255).round().byte(), groups[2].hr)


def test_crops_depend_on_seed_and_step_alone_however_many_ranks_there_are(pixels: Any) -> None:
    def step(n: Any, seed: int = 0, rank: int = 0, ranks: int = 1) -> Any:
        sampler = CropSampler(
            pixels, lr_size=12, batch=4, groups=2, samples=9, candidates=2, seed=seed
        )
        return sampler.step(n, rank, ranks)

    whole = step(5)
    for a, b in zip(whole, step(5), strict=True):
        assert torch.equal(a.hr, b.hr) and torch.equal(a.yx, b.yx)
    for other in (step(6), step(5, seed=1)):
        assert not torch.equal(whole[0].yx, other[0].yx)
    for n, group in enumerate(whole):
        parts = [step(5, rank=rank, ranks=4)[n] for rank in range(4)]
        assert torch.equal(torch.cat([part.hr for part in parts]), group.hr)
        assert torch.equal(torch.cat([part.yx for part in parts]), group.yx)


def test_more_candidates_have_more_texture(pixels: Any) -> None:
    half = pixels[0].copy()
    half[:, :90] = 128  # smooth, as skies are
    means = []
    for candidates in (1, 4):
        sampler = CropSampler([half], lr_size=8, batch=40, scales=[2], candidates=candidates)
        means.append(
            np.mean([texture(crop.permute(1, 2, 0).numpy()) for crop in sampler.step(0)[0].hr])
        )
    assert means[1] > 1.5 * means[0]


# -- packs -----------------------------------------------------------------------------------------


def test_a_pack_keeps_its_size_and_is_read_like_a_folder(photos: Path, tmp_path: Path) -> None:
    large = tmp_path / "large.tar"
    small = tmp_path / "small.tar"
    size = write_pack(photos, large, 1 << 20)
    assert size == large.stat().st_size
    originals = load_photos(photos)
    packed = load_photos(large)
    assert len(packed) == len(originals)
    for a, b in zip(originals.values(), packed.values(), strict=True):
        assert a.shape == b.shape and (a.float() - b.float()).abs().mean() < 6
    assert write_pack(photos, small, size * 2 // 3) <= size * 2 // 3
    reduced = load_photos(small)
    assert all(
        b.shape[1] < a.shape[1] for a, b in zip(originals.values(), reduced.values(), strict=True)
    )
    assert write_pack(large, tmp_path / "again.tar", 1 << 20) > 0  # a pack can be packed again


def test_packs_that_cannot_be_are_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="do not fit"):
        write_pack(photos, tmp_path / "x.tar", 9000)
    with pytest.raises(DataError, match=r"\.tar file"):
        write_pack(photos, tmp_path / "x.zip", 1 << 20)
    (tmp_path / "y.tar").write_bytes(b"nothing" * 300)
    with pytest.raises(DataError, match="cannot be read"):
        list_photos(tmp_path / "y.tar")
    with tarfile.open(tmp_path / "z.tar", "w"):
        pass
    with pytest.raises(DataError, match="holds no images"):
        list_photos(tmp_path / "z.tar")
