"""`edgemux lab` as a command: its JSON, its exit codes, one line for wrong use; saved logits, or two graphs."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

from edgemux.cli.main import run

ROWS, WIDTH, CLASSES = 240, 6, 4
FIGURES = {"auc", "auc_interval", "oracle_gap_closed", "accuracy_at", "ece", "ms"}


def lab(*arguments: Any) -> tuple[int, str, str]:
    """Exit code, stdout and stderr; a warning is an error."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        code = run(["lab", *map(str, arguments)])
    return code, out.getvalue(), err.getvalue()


def refused(*arguments: Any) -> str:
    """The one line that a wrong use gets."""
    code, out, err = lab(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1), (code, err)
    return err.strip().removeprefix("edgemux: ")


def pair(rows: int = ROWS) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, CLASSES, rows)
    truth, noise = 3.0 * np.eye(CLASSES)[labels], generator.normal(size=(2, rows, CLASSES))
    edge, cloud = truth + 1.6 * noise[0], truth + 0.5 * noise[1]
    return {"edge_logits": edge.astype(np.float32), "cloud_logits": cloud.astype(np.float32), "labels": labels}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lab") / "logits.npz"
    np.savez(path, **pair(), names=np.array(["a", "b"]), more=np.array([{}], object))  # type: ignore[arg-type]
    return path


@pytest.fixture(scope="module")
def found(saved: Path) -> dict[str, Any]:
    code, out, err = lab("--data", saved, "--json", "--out", saved.with_suffix(".html"))
    assert (code, err) == (0, "")
    made: dict[str, Any] = json.loads(out)
    return made


def test_the_json_has_every_figure_that_is_promised_and_each_is_sane(found: dict[str, Any], saved: Path) -> None:
    assert {"routers", "oracle", "random", "certificate", "chosen"} <= set(found)
    assert {"alpha", "delta", "n", "threshold", "offload"} <= set(found["certificate"])
    assert found["chosen"] in found["routers"]
    for name, router in found["routers"].items():
        assert set(router) >= FIGURES, name
        assert set(router["accuracy_at"]) == {"0.1", "0.2", "0.3"}
        assert all(0.0 <= value <= 1.0 for value in router["accuracy_at"].values())
        assert router["auc_interval"][0] <= router["auc"] <= router["auc_interval"][1], name
    assert saved.with_suffix(".html").read_text().count("<svg") == 5


def test_the_same_seed_finds_the_same_but_for_times(found: dict[str, Any], saved: Path) -> None:
    again = json.loads(lab("--data", saved, "--json", "--out", saved.with_suffix(".html"))[1])
    for study in (found, again):
        for router in study["routers"].values():
            router["ms"] = 0.0
    assert again == found


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("", "give either --data, or all of --edge, --cloud and --inputs"),
        ("--edge a.onnx", "give either --data, or all of --edge, --cloud and --inputs"),
        ("--data no-such.npz", "no-such.npz: no such file"),
        ("--data .", "not a plain file"),
        ("--data {saved} --labels y.npy", "give either --data"),
        ("--data {saved} --alpha 0", "--alpha: must be between 0 and 1"),
        ("--data {saved} --alpha nan", "--alpha: must be between 0 and 1"),
        ("--data {saved} --alpha 5e-324", "--alpha: must be at least 1e-09"),
        ("--data {saved} --certify truth", "--certify: 'truth' is neither cloud nor labels"),
        ("--data {saved} --edge-ms 1 --cloud-ms nan", "--cloud-ms: must be a finite time"),
        ("--data {saved} --edge-ms 1", "--edge-ms and --cloud-ms are needed both"),
        ("--data {saved} --seed 18446744073709551616", "--seed"),
        ("--data {saved} --out no/such/folder.html", "--out: no/such/folder.html is not a file in a folder"),
        ("--data {saved} --out .", "--out: . is not a file in a folder"),
    ],
)
def test_wrong_options_get_one_line_before_anything_is_read(saved: Path, arguments: str, reason: str) -> None:
    assert reason in refused(*arguments.format(saved=saved).split(), "--json")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"cloud_logits": np.zeros((ROWS, 3))}, "cloud_logits: has the shape"),
        ({"edge_logits": np.full((ROWS, CLASSES), np.nan)}, "edge_logits: row 0 holds a value that is not finite"),
        ({"labels": np.full(ROWS, CLASSES)}, "labels: row 0 is 4, not one of 0 to 3"),
        ({"edge_logits": np.zeros((0, 4)), "cloud_logits": np.zeros((0, 4)), "labels": np.zeros(0, int)}, "rows: 0"),
        ({"inputs": np.zeros((ROWS, 0))}, "inputs: has the shape"),
        ({"labels": np.array([{}], object)}, "labels: holds object"),
    ],
)
def test_bad_data_gets_one_line_that_names_the_array(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    np.savez(tmp_path / "a.npz", **(pair() | change))
    assert reason in refused("--data", tmp_path / "a.npz", "--json", "--out", tmp_path / "a.html")


def test_a_report_that_cannot_be_written_is_one_line_too(saved: Path) -> None:
    assert "--out: /dev/full cannot be written" in refused("--data", saved, "--out", "/dev/full", "--json")


def test_logits_as_large_as_their_type_allows_make_no_warning(tmp_path: Path) -> None:
    arrays = pair()
    for name, most in (("edge_logits", 1.7e308), ("cloud_logits", 3e38)):
        arrays[name] = np.where(arrays[name] > 1.0, most, -most).astype(np.float64 if most > 1e39 else np.float32)
    arrays["inputs"] = np.where(arrays["edge_logits"] > 0, 1e300, -1e300)
    np.savez(tmp_path / "a.npz", **arrays)
    code, out, err = lab("--data", tmp_path / "a.npz", "--json", "--out", tmp_path / "a.html")
    assert (code, err) == (0, "")
    assert "pre-gate" in json.loads(out)["routers"]
    assert "nan" not in (tmp_path / "a.html").read_text()


def test_a_device_that_defers_nothing_closes_no_oracle_gap_even_with_a_worse_cloud(tmp_path: Path) -> None:
    arrays = pair()
    arrays["edge_logits"], arrays["cloud_logits"] = arrays["cloud_logits"], np.zeros_like(arrays["cloud_logits"])
    np.savez(tmp_path / "a.npz", **arrays)
    code, out, _ = lab("--data", tmp_path / "a.npz", "--json", "--out", tmp_path / "a.html")
    study = json.loads(out)
    assert (code, study["chosen"]) == (0, "device-only")
    assert study["routers"]["device-only"]["oracle_gap_closed"] is None
    assert study["routers"]["max-softmax"]["oracle_gap_closed"] <= 1.0


def test_an_archive_that_claims_more_rows_than_it_holds_is_refused_at_once(tmp_path: Path) -> None:
    header = io.BytesIO()
    shape = {"descr": "<f4", "fortran_order": False, "shape": (10**13, 2)}
    np.lib.format.write_array_header_1_0(header, shape)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("edge_logits.npy", "cloud_logits.npy"):
            archive.writestr(name, header.getvalue() + bytes(4000))
    assert refused("--data", tmp_path / "a.npz") == "edge_logits: the file is damaged or ends early"


def linear(path: Path, weights: Any, batch: Any = "n", softmax: bool = False) -> Path:
    """A graph ``x`` [batch, WIDTH] -> logits or probabilities."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes = [helper.make_node("MatMul", ["x", "w"], ["z"])]
    nodes.append(helper.make_node("Softmax" if softmax else "Identity", ["z"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(weights, np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


@pytest.fixture
def models(tmp_path: Path) -> list[Any]:
    """Options for two good models, and inputs of numpy's own type."""
    generator = np.random.default_rng(1)
    weights, x = generator.normal(size=(WIDTH, CLASSES)), generator.normal(size=(ROWS, WIDTH))
    np.save(tmp_path / "x.npy", x.astype(">f8"))
    np.save(tmp_path / "y.npy", (x @ weights).argmax(axis=1))
    edge = linear(tmp_path / "edge.onnx", weights + 0.6 * generator.normal(size=weights.shape), batch=1)
    cloud = linear(tmp_path / "cloud.onnx", weights, softmax=True)
    return ["--edge", edge, "--cloud", cloud, "--inputs", tmp_path / "x.npy", "--out", tmp_path / "r.html", "--json"]


def test_two_graphs_are_run_whatever_their_batch_and_the_inputs_precision(
    models: list[Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, out, err = lab(*models, "--labels", tmp_path / "y.npy")
    assert (code, err) == (0, "")
    study = json.loads(out)
    assert study["cloud_accuracy"] == 1.0
    assert 0.5 < study["device_accuracy"] < 1.0
    assert "pre-gate" in study["routers"]
    assert capfd.readouterr().err == ""  # the library writes past Python


def test_a_model_of_several_outputs_is_asked_for_its_probabilities(models: list[Any], tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    graph = onnx.load(str(tmp_path / "cloud.onnx"))
    graph.graph.node.append(helper.make_node("Identity", ["y"], ["probabilities"]))
    del graph.graph.output[:]
    for name in ("w", "probabilities"):
        graph.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    onnx.save(graph, str(tmp_path / "two.onnx"))
    code, out, err = lab(*models, "--cloud", tmp_path / "two.onnx", "--labels", tmp_path / "y.npy")
    assert (code, err) == (0, "")
    assert json.loads(out)["cloud_accuracy"] == 1.0


def test_graphs_and_inputs_that_do_not_fit_get_one_line_that_names_the_file(models: list[Any], tmp_path: Path) -> None:
    other = linear(tmp_path / "other.onnx", np.ones((WIDTH, CLASSES + 1)))
    eight = linear(tmp_path / "eight.onnx", np.ones((WIDTH, CLASSES)), batch=8)
    endless = linear(tmp_path / "endless.onnx", np.full((WIDTH, CLASSES), np.inf))
    np.save(tmp_path / "short.npy", np.zeros(ROWS - 1, int))
    holed = np.load(tmp_path / "x.npy")
    holed[5, 2] = np.nan
    np.save(tmp_path / "holed.npy", holed)
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    for change, reason in (
        (["--cloud", other], "cloud: answers with 5 classes, the edge model with 4"),
        (["--cloud", eight], "eight.onnx takes tensor(float) [8, 6], not float32 [1, 6]"),
        (["--cloud", endless], "endless.onnx: row 0 holds a value that is not finite"),
        (["--cloud", tmp_path / "junk.onnx"], "junk.onnx: "),
        (["--cloud", tmp_path], "not a plain file"),
        (["--inputs", tmp_path / "holed.npy"], "inputs: row 5 holds a value that is not finite"),
        (["--labels", tmp_path / "short.npy"], "labels: has the shape [239], not [240]"),
        (["--certify", "labels"], "--certify: labels are wanted, and there are none"),
    ):
        assert reason in refused(*models, *change)
