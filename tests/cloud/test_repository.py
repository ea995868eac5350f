"""Models that come, go and are replaced while others are answered."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemux.cloud.config import ModelSettings
from edgemux.multiplexer.errors import ArtifactError, ConfigError, InputError, UnknownModel
from edgemux.wire import oip_pb2 as oip
from edgemux.wire.codec import make_request
from tests.cloud_stand import Context, Stand, standing


def write(path: Path, add: float, rows: Any = "N") -> Path:
    """A graph that adds ``add`` to what it is given, FP32 [N, 2]."""
    from onnx import TensorProto, helper, save

    path.parent.mkdir(parents=True, exist_ok=True)
    constant = helper.make_tensor("add", TensorProto.FLOAT, [1], [add])
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [rows, 2]) for name in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "add"], ["y"])], "add", tensors[:1], tensors[1:], [constant]
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


Make = Callable[..., contextlib.AbstractAsyncContextManager[Stand]]


@pytest.fixture
def stand() -> Make:
    return standing


async def test_several_models_answer_each_under_its_name(stand: Make, tmp_path: Path, tiny_bundle: Path) -> None:
    models = [ModelSettings(onnx=write(tmp_path / f"{name}.onnx", add)) for name, add in (("one", 1), ("two", 2))]
    async with stand(*models, ModelSettings(bundle=tiny_bundle, name="pictures")) as made:
        assert [await made.ask("one"), await made.ask("two")] == [1, 2]
        assert [name for name, *_ in await made.index()] == ["one", "two", "pictures"]
        assert await made.service.well()
        counted = made.metrics.registry.get_sample_value
        for name in ("one", "two"):
            assert counted("edgemux_cloud_requests_total", {"model": name, "outcome": "answered"}) == 1
        assert made.service.status()["models"]["one/1"]["worker"] == "inline"


async def test_two_models_of_one_name_are_refused(stand: Make, tmp_path: Path) -> None:
    file = write(tmp_path / "m.onnx", 1)
    with pytest.raises(ConfigError, match="several are named m"):
        async with stand(ModelSettings(onnx=file), ModelSettings(onnx=file)):
            pass


async def test_versions_of_a_folder_are_served_side_by_side_and_the_last_is_the_default(
    stand: Make, tmp_path: Path
) -> None:
    for number in (1, 2, 10):
        write(tmp_path / "m" / str(number) / "model.onnx", number)
    async with stand(ModelSettings(name="m", onnx=tmp_path / "m", versions="all")) as made:
        assert [await made.ask("m", version) for version in ("1", "2", "10", "")] == [1, 2, 10, 10]
        assert made.service.model_metadata(made.service.check_model("m", ""))["versions"] == ["1", "2", "10"]
        with pytest.raises(UnknownModel, match="only versions 1, 2, 10 are here"):
            await made.ask("m", "3")


async def test_a_new_version_is_served_once_it_is_asked_for_and_the_old_one_is_closed(
    stand: Make, tmp_path: Path
) -> None:
    write(tmp_path / "m" / "1" / "model.onnx", 1)
    async with stand(ModelSettings(name="m", onnx=tmp_path / "m")) as made:
        old = made.service.hosted[0]
        write(tmp_path / "m" / "2" / "model.onnx", 2)
        assert await made.ask("m") == 1
        await made.load("m")
        assert await made.ask("m") == 2
        assert await made.index() == [("m", "2", "READY", "")]
        while not getattr(old.engine, "draining"):  # noqa: ASYNC110, B009 - another task's doing
            await asyncio.sleep(0.001)


async def test_a_request_that_is_inside_is_answered_by_the_version_that_took_it(stand: Make, tmp_path: Path) -> None:
    write(tmp_path / "m" / "1" / "model.onnx", 1)
    async with stand(ModelSettings(name="m", onnx=tmp_path / "m")) as made:
        (old,) = made.service.hosted
        old.inside += 1
        await made.unload("m")
        answer = await old.engine.infer(
            {"x": np.zeros((1, 2), np.float32)}, ["y"], asyncio.get_running_loop().time() + 9
        )
        assert answer.outputs["y"][0, 0] == 1
        old.inside -= 1


async def test_a_broken_new_version_leaves_the_old_and_the_index_says_why(stand: Make, tmp_path: Path) -> None:
    write(tmp_path / "m" / "1" / "model.onnx", 1)
    async with stand(ModelSettings(name="m", onnx=tmp_path / "m")) as made:
        (tmp_path / "m" / "2").mkdir()
        (tmp_path / "m" / "2" / "model.onnx").write_bytes(b"no model")
        with pytest.raises(ArtifactError, match=r"^model\.onnx: "):
            await made.load("m")
        assert await made.ask("m") == 1
        ready, broken = await made.index()
        assert ready == ("m", "1", "READY", "")
        assert broken[:3] == ("m", "2", "UNAVAILABLE")
        assert broken[3].startswith("model.onnx: ")
        assert await made.index(ready=True) == [ready]
        write(tmp_path / "m" / "2" / "model.onnx", 2)
        await made.load("m")
        assert await made.index() == [("m", "2", "READY", "")]
        assert made.told == [("m", True)]


async def test_an_unloaded_model_is_not_there_until_it_is_loaded_again(stand: Make, tmp_path: Path) -> None:
    async with stand(ModelSettings(onnx=write(tmp_path / "m.onnx", 1))) as made:
        for _ in range(2):
            await made.unload("m")
            with pytest.raises(UnknownModel):
                await made.ask("m")
            assert await made.index() == [("m", "1", "UNAVAILABLE", "unloaded")]
            await made.load("m")
            assert await made.ask("m") == 1
        assert made.told == [("m", False), ("m", True)] * 2
        counted = made.metrics.registry.get_sample_value
        assert counted("edgemux_cloud_requests_total", {"model": "m", "outcome": "answered"}) == 2


async def test_orders_for_what_is_not_configured_or_cannot_be_obeyed_are_refused(stand: Make, tmp_path: Path) -> None:
    async with stand(ModelSettings(onnx=write(tmp_path / "m.onnx", 1))) as made:
        for order in (made.load, made.unload):
            with pytest.raises(UnknownModel, match=r"^model_name: "):
                await order("other")
        request = oip.RepositoryModelLoadRequest(model_name="m")
        request.parameters["config"].string_param = "{}"
        with pytest.raises(InputError, match=r"^parameters: "):
            await made.repository.RepositoryModelLoad(request, None)


async def test_what_changes_on_the_disk_is_loaded_by_itself_where_that_is_wished(stand: Make, tmp_path: Path) -> None:
    write(tmp_path / "m" / "1" / "model.onnx", 1)
    async with stand(ModelSettings(name="m", onnx=tmp_path / "m"), reload_s=0.01) as made:
        write(tmp_path / "new" / "model.onnx", 2)
        shutil.move(tmp_path / "new", tmp_path / "m" / "2")
        while await made.ask("m") != 2:  # noqa: ASYNC110 - another task's doing
            await asyncio.sleep(0.01)


async def test_a_graph_without_a_batch_is_served_as_it_is(stand: Make, tmp_path: Path) -> None:
    async with stand(ModelSettings(onnx=write(tmp_path / "m.onnx", 3, rows=1))) as made:
        assert await made.ask("m") == 3
        config = (await made.service.ModelConfig(oip.ModelConfigRequest(name="m"), None)).config
        assert config.max_batch_size == 0
        assert list(config.input[0].dims) == [1, 2]


async def test_the_configuration_is_told_as_triton_tells_it(stand: Make, tmp_path: Path) -> None:
    async with stand(ModelSettings(onnx=write(tmp_path / "m.onnx", 1), max_batch=8)) as made:
        config = (await made.service.ModelConfig(oip.ModelConfigRequest(name="m"), None)).config
        assert (config.name, config.max_batch_size, config.backend) == ("m", 8, "onnxruntime")
        (tensor,) = config.input
        assert (tensor.name, oip.DataType.Name(tensor.data_type), list(tensor.dims)) == ("x", "TYPE_FP32", [2])
        batching = config.dynamic_batching
        assert (batching.priority_levels, batching.default_priority_level) == (3, 2)
        assert batching.default_queue_policy.max_queue_size == 256
        with pytest.raises(UnknownModel):
            await made.service.ModelConfig(oip.ModelConfigRequest(name="n"), None)


async def test_the_statistics_count_exactly(stand: Make, tmp_path: Path) -> None:
    async with stand(ModelSettings(onnx=write(tmp_path / "m.onnx", 1))) as made:
        await asyncio.gather(*(made.ask("m") for _ in range(3)))
        await made.ask("m")
        with pytest.raises(InputError):
            await made.service.ModelInfer(make_request("m", {"z": np.zeros((1, 2), np.float32)}), Context())
        (statistics,) = (await made.service.ModelStatistics(oip.ModelStatisticsRequest(), None)).model_stats
        stats = statistics.inference_stats
        # How many run together is for the measured times to say.
        batches = {each.batch_size: each.compute_infer.count for each in statistics.batch_stats}
        assert (statistics.name, statistics.inference_count) == ("m", 4)
        assert statistics.execution_count == sum(batches.values())
        assert sum(size * count for size, count in batches.items()) == 4
        assert (stats.success.count, stats.fail.count, stats.queue.count) == (4, 1, 4)
        assert stats.success.ns > stats.compute_infer.ns > 0
        assert statistics.last_inference > 1_700_000_000_000
        with pytest.raises(UnknownModel):
            await made.service.ModelStatistics(oip.ModelStatisticsRequest(name="n"), None)


async def test_settings_of_log_and_trace_can_be_read_but_not_changed(stand: Make, tmp_path: Path) -> None:
    async with stand(ModelSettings(onnx=write(tmp_path / "m.onnx", 1))) as made:
        log = await made.service.LogSettings(oip.LogSettingsRequest(), None)
        assert log.settings["log_error"].bool_param is True
        trace = await made.service.TraceSetting(oip.TraceSettingRequest(), None)
        assert list(trace.settings["trace_level"].value) == ["OFF"]
        wish = oip.TraceSettingRequest()
        wish.settings["trace_level"].value.append("TIMESTAMPS")
        with pytest.raises(InputError):
            await made.service.TraceSetting(wish, None)
        louder = oip.LogSettingsRequest()
        louder.settings["log_verbose_level"].uint32_param = 1
        with pytest.raises(InputError):
            await made.service.LogSettings(louder, None)
