"""The tails of a bundle's splits are models of their own, which come and go with the bundle."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from edgemux.cloud.config import ModelSettings
from edgemux.multiplexer.bundle import Bundle, Split, seal, splits_of
from edgemux.multiplexer.errors import ArtifactError, ConfigError, InputError, UnknownModel
from edgemux.multiplexer.onnx_model import OnnxModel
from edgemux.wire import oip_pb2 as oip
from edgemux.wire.codec import MODEL_DIGEST, get_parameters, make_request, read_outputs
from edgemux.wire.payload import encode, mark
from tests.cloud_stand import Context, Stand, standing
from tests.split_bundle import COARSE, DEEP, EXACT

Pictures = Callable[[int, int], tuple[NDArray[np.uint8], NDArray[np.int64]]]
TAILS = tuple(f"fashion-mnist.{name}" for name in (EXACT, COARSE, DEEP))
EVERY = ("fashion-mnist", *TAILS)


def split_of(folder: Path, name: str) -> Split:
    (split,) = (each for each in splits_of(Bundle.open(folder).manifest) if each.name == name)
    return split


def sent(folder: Path, name: str, images: NDArray[np.uint8]) -> NDArray[Any]:
    """What a head that reads the input sends."""
    split = split_of(folder, name)
    array: NDArray[Any] = OnnxModel.read(folder / split.head).run({"image": images})[0]
    return array


def packed(folder: Path, name: str, rows: NDArray[Any], model: str | None = None) -> Any:
    """A request of a tail with ``rows`` as packed bits."""
    form = f"bits{split_of(folder, name).bits}"
    request = make_request(model or f"fashion-mnist.{name}", {"sent": encode(form, rows, None)})
    mark(request.inputs[0], form)
    return request


async def answered(made: Stand, request: Any, rows: int) -> NDArray[Any]:
    response = await made.service.ModelInfer(request, Context())
    outputs = made.service.check_model(request.model_name, "").outputs
    return read_outputs(response, outputs, rows)["probabilities"]


def without(folder: Path, *names: str) -> None:
    """Seal the bundle again, with these splits left out."""
    manifest = Bundle.open(folder).manifest
    left = tuple(split for split in splits_of(manifest) if split.name not in names)
    seal(folder, msgspec.structs.replace(manifest, splits=left or msgspec.UNSET))


@pytest.fixture
def copy(split_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(split_bundle, tmp_path / "copy"))


async def test_head_and_tail_answer_as_the_whole_does(split_bundle: Path, pictures: Pictures) -> None:
    images, _ = pictures(5, 4)
    async with standing(ModelSettings(bundle=split_bundle)) as made:
        whole = await answered(made, make_request("fashion-mnist", {"image": images}), 5)
        rows = sent(split_bundle, EXACT, images)
        for request in (packed(split_bundle, EXACT, rows), make_request(f"fashion-mnist.{EXACT}", {"sent": rows})):
            assert np.allclose(await answered(made, request, 5), whole, atol=1e-6)
        coarse = await answered(made, packed(split_bundle, COARSE, sent(split_bundle, COARSE, images)), 5)
        assert np.abs(coarse - whole).max() < 0.2
        assert await made.service.well()


async def test_each_answer_says_which_tail_it_is_from(split_bundle: Path, pictures: Pictures) -> None:
    images, _ = pictures(1, 4)
    async with standing(ModelSettings(bundle=split_bundle)) as made:
        for name in (EXACT, COARSE):
            request = packed(split_bundle, name, sent(split_bundle, name, images))
            response = await made.service.ModelInfer(request, Context())
            content = (split_bundle / split_of(split_bundle, name).tail).read_bytes()
            assert get_parameters(response)[MODEL_DIGEST] == hashlib.sha256(content).hexdigest()
            assert response.model_name == f"fashion-mnist.{name}"


async def test_rows_of_several_devices_are_computed_together(split_bundle: Path, pictures: Pictures) -> None:
    images, _ = pictures(8, 5)
    rows = sent(split_bundle, EXACT, images)
    async with standing(ModelSettings(bundle=split_bundle)) as made:
        hosted = next(each for each in made.service.hosted if each.served.name == TAILS[0])
        assert hosted.served.max_batch > 1
        alone = await asyncio.gather(
            *(answered(made, packed(split_bundle, EXACT, rows[at : at + 1]), 1) for at in range(8))
        )
        together = await answered(made, packed(split_bundle, EXACT, rows), 8)
        assert np.allclose(np.concatenate(alone), together, atol=1e-6)
        assert hosted.tally.rows == 16


async def test_tails_are_described_counted_and_ready_like_any_model(split_bundle: Path, pictures: Pictures) -> None:
    images, _ = pictures(1, 4)
    async with standing(ModelSettings(bundle=split_bundle)) as made:
        assert made.repository.names == EVERY
        assert await made.index() == [(name, "1", "READY", "") for name in EVERY]
        for name in EVERY:
            assert (await made.service.ModelReady(oip.ModelReadyRequest(name=name), None)).ready
        about = made.service.model_metadata(made.service.check_model(TAILS[1], "1"))
        assert about["inputs"] == [{"name": "sent", "datatype": "UINT8", "shape": [-1, 10, 25]}]
        assert [tensor["name"] for tensor in about["outputs"]] == ["probabilities", "label"]
        assert (about["properties"]["split"], about["properties"]["bits"]) == (COARSE, "4")
        await answered(made, packed(split_bundle, COARSE, sent(split_bundle, COARSE, images)), 1)
        counted = made.metrics.registry.get_sample_value
        for name in EVERY:
            expected = 1 if name == TAILS[1] else 0
            assert counted("edgemux_cloud_requests_total", {"model": name, "outcome": "answered"}) == expected


async def test_a_tail_takes_neither_pictures_nor_rows_that_do_not_inflate(split_bundle: Path) -> None:
    async with standing(ModelSettings(bundle=split_bundle)) as made:
        pictures = make_request(TAILS[0], {"sent": [b"a picture"]})
        with pytest.raises(InputError, match="pictures are not taken"):
            await made.service.ModelInfer(pictures, Context())
        garbage = packed(split_bundle, EXACT, np.zeros((1, 10, 25), np.uint8))
        garbage.raw_input_contents[0] = b"\x02\0\0\0\xff\xff"
        with pytest.raises(InputError, match="sent: a row does not inflate"):
            await made.service.ModelInfer(garbage, Context())


async def test_values_of_more_bits_than_a_tail_has_are_refused_in_whatever_form_they_come(split_bundle: Path) -> None:
    """A tail may look them up in a table, and then the answers of all that are computed with them would be lost."""
    rows = np.full((1, 10, 25), 16, np.uint8)
    wide = make_request(TAILS[1], {"sent": encode("bits8", rows, None)})
    mark(wide.inputs[0], "bits8")
    async with standing(ModelSettings(bundle=split_bundle)) as made:
        for request in (wide, make_request(TAILS[1], {"sent": rows})):
            with pytest.raises(InputError, match="sent: holds values of more than 4 bits"):
                await made.service.ModelInfer(request, Context())
        await answered(made, make_request(TAILS[1], {"sent": rows - 1}), 1)


async def test_a_renamed_bundle_has_renamed_tails(split_bundle: Path) -> None:
    async with standing(ModelSettings(bundle=split_bundle, name="pictures")) as made:
        assert made.repository.names == ("pictures", *(f"pictures.{name}" for name in (EXACT, COARSE, DEEP)))


async def test_tails_are_unloaded_and_loaded_with_their_bundle_and_only_so(split_bundle: Path) -> None:
    async with standing(ModelSettings(bundle=split_bundle)) as made:
        for order in (made.load, made.unload):
            with pytest.raises(InputError, match="comes and goes with its bundle"):
                await order(TAILS[0])
        await made.unload("fashion-mnist")
        assert await made.index() == [(name, "1", "UNAVAILABLE", "unloaded") for name in EVERY]
        assert made.told == [(name, False) for name in EVERY]
        await made.load("fashion-mnist")
        assert await made.index() == [(name, "1", "READY", "") for name in EVERY]
        assert made.told[len(EVERY) :] == [(name, True) for name in EVERY]


async def test_a_bundle_that_is_replaced_brings_its_own_tails(copy: Path, pictures: Pictures) -> None:
    images, _ = pictures(1, 4)
    request = packed(copy, EXACT, sent(copy, EXACT, images))
    async with standing(ModelSettings(bundle=copy)) as made:
        old = next(each for each in made.service.hosted if each.served.name == TAILS[0])
        without(copy, EXACT)
        assert (await answered(made, request, 1)).shape == (1, 10)
        await made.load("fashion-mnist")
        left = (EVERY[0], *TAILS[1:])
        assert [name for name, *_ in await made.index()] == list(left)
        assert set(made.told) == {(name, True) for name in left} | {(TAILS[0], False)}
        with pytest.raises(UnknownModel):
            await answered(made, request, 1)
        while not getattr(old.engine, "draining"):  # noqa: ASYNC110, B009 - another task's doing
            await asyncio.sleep(0.001)


async def test_a_broken_tail_keeps_the_whole_bundle_as_it_was(copy: Path, pictures: Pictures) -> None:
    images, _ = pictures(1, 4)
    request = packed(copy, EXACT, sent(copy, EXACT, images))
    async with standing(ModelSettings(bundle=copy)) as made:
        (copy / "exact-tail.onnx").write_bytes(b"damaged")
        with pytest.raises(ArtifactError, match=r"exact-tail\.onnx"):
            await made.load("fashion-mnist")
        assert (await answered(made, request, 1)).shape == (1, 10)
        assert [name for name, *_ in await made.index(ready=True)] == list(EVERY)


@pytest.mark.parametrize(
    ("tail", "told"),
    [
        ("exact-head.onnx", r"exact-tail\.onnx: must turn sent into probabilities"),
        ("deep-tail.onnx", r"exact-tail\.onnx: fails on rows of zeros"),
        ("level-1.onnx", r"exact-tail\.onnx: must turn sent into probabilities"),
    ],
)
async def test_a_tail_that_does_not_fit_is_refused_by_name(copy: Path, tail: str, told: str) -> None:
    shutil.copyfile(copy / tail, copy / "exact-tail.onnx")
    seal(copy, Bundle.open(copy).manifest)
    with pytest.raises(ArtifactError, match=told):
        async with standing(ModelSettings(bundle=copy)):
            pass


async def test_a_tail_that_computes_otherwise_is_told_by_its_golden_answers(copy: Path) -> None:
    path = copy / "deep-tail.onnx"
    step = np.float32(0.125).tobytes()
    assert path.read_bytes().count(step) == 1
    path.write_bytes(path.read_bytes().replace(step, np.float32(0.01).tobytes()))
    seal(copy, Bundle.open(copy).manifest)
    with pytest.raises(ArtifactError, match=r"^deep-tail\.onnx: does not give the golden answers"):
        async with standing(ModelSettings(bundle=copy)):
            pass


async def test_a_bundle_without_golden_codes_is_served_and_watched_by_what_its_tails_say_of_zeros(copy: Path) -> None:
    manifest = Bundle.open(copy).manifest
    plain = tuple(msgspec.structs.replace(split, golden=msgspec.UNSET) for split in splits_of(manifest))
    seal(copy, msgspec.structs.replace(manifest, splits=plain))
    async with standing(ModelSettings(bundle=copy)) as made:
        assert [name for name, *_ in await made.index(ready=True)] == list(EVERY)
        assert await made.service.well()


async def test_a_tail_is_not_named_as_another_model(copy: Path) -> None:
    other = copy / "cloud.onnx"
    for models in (
        (ModelSettings(bundle=copy), ModelSettings(name=TAILS[1], onnx=other)),
        (ModelSettings(name=TAILS[1], onnx=other), ModelSettings(bundle=copy)),
    ):
        with pytest.raises(ConfigError, match=f"several are named {TAILS[1]}"):
            async with standing(*models):
                pass


async def test_a_new_bundle_whose_tail_is_named_as_another_model_is_not_taken(copy: Path, split_bundle: Path) -> None:
    without(copy, COARSE)
    models = ModelSettings(bundle=copy), ModelSettings(name=TAILS[1], onnx=split_bundle / "cloud.onnx")
    async with standing(*models) as made:
        shutil.copyfile(split_bundle / "manifest.json", copy / "manifest.json")
        with pytest.raises(ArtifactError, match="named as another model"):
            await made.load("fashion-mnist")
        assert [name for name, *_ in await made.index(ready=True)] == [EVERY[0], TAILS[0], TAILS[2], TAILS[1]]


async def test_versions_of_a_bundle_have_versions_of_its_tails(split_bundle: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        shutil.copytree(split_bundle, tmp_path / "m" / str(number))
    without(tmp_path / "m" / "1", COARSE)
    async with standing(ModelSettings(bundle=tmp_path / "m", versions="all")) as made:
        versions = {name: [each.version for each in made.service.versions(name)] for name in EVERY}
        assert versions == {EVERY[0]: ["1", "2"], TAILS[0]: ["1", "2"], TAILS[1]: ["2"], TAILS[2]: ["1", "2"]}


async def test_what_tails_answer_can_be_watched(split_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with standing(ModelSettings(bundle=split_bundle)) as made:
        engine = next(each.engine for each in made.service.hosted if each.served.name == TAILS[2])
        answer = engine.answer  # type: ignore[attr-defined]

        async def wrong(row: Any, outputs: Any) -> Any:
            return {name: 1 - value for name, value in (await answer(row, outputs)).items()}

        monkeypatch.setattr(engine, "answer", wrong)
        assert not await made.service.well()
