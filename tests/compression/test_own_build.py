"""From two ONNX files and inputs to a bundle whose every promise is kept: pictures, vectors, sequences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemux.multiplexer.bundle import MANIFEST, Bundle, Tensor
from edgemux.multiplexer.chain import Chain, Golden
from edgemux.multiplexer.errors import ConfigError
from edgemux.multiplexer.gates import Gates
from edgemux.multiplexer.onnx_model import OnnxModel

ROWS, FEATURES, CLASSES = 600, 12, 3
QUICK = "[gates]\nsteps = 150\n[pack]\nrepeats = 2\n"


@pytest.fixture(autouse=True)
def _needs_torch(torch: Any) -> None:
    """The toolchain's environment only."""


def save(path: Path, nodes: Sequence[Any], shape: Sequence[Any], kind: str = "FLOAT", **weights: Any) -> None:
    """A graph ``x`` -> ``y``."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", getattr(TensorProto, kind), list(shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))


def node(op: str, *names: str, **attributes: Any) -> Any:
    """An operator whose last name is its output."""
    from onnx import helper

    return helper.make_node(op, list(names[:-1]), [names[-1]], **attributes)


def task(seed: int = 0, classes: int = CLASSES, rows: int = ROWS) -> tuple[Any, Any, Any]:
    """Gaussian clouds: inputs [n, FEATURES], labels, and the centres, of which the best classifier is made."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, FEATURES))
    labels = rng.integers(0, classes, rows)
    return (centres[labels] + rng.normal(size=(rows, FEATURES))).astype(np.float32), labels, centres


def classifier(path: Path, centres: Any, seen: int = FEATURES, kind: str = "FLOAT") -> None:
    """Of the first ``seen`` features: x . centre - |centre|^2 / 2 is the exact log-odds of unit Gaussians."""
    known = np.where(np.arange(FEATURES) < seen, centres, 0.0)
    nodes = [node("Cast", "x", "f", to=1), node("Gemm", "f", "w", "b", "y")]
    weights = {"w": known.T.astype(np.float32), "b": (-(known**2).sum(1) / 2).astype(np.float32)}
    save(path, nodes, ["n", FEATURES], kind, **weights)


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    """A folder with two models, arrays and a recipe for them."""
    x, labels, centres = task()
    classifier(tmp_path / "big.onnx", centres)
    classifier(tmp_path / "small.onnx", centres, seen=6)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", labels)
    np.savez(tmp_path / "data.npz", x=x, y=labels)
    recipe(tmp_path, "x.npy")
    return tmp_path


def recipe(folder: Path, inputs: str, more: str = "") -> None:
    (folder / "own.toml").write_text(
        f'models = {{ device = "small.onnx", cloud = "big.onnx" }}\ninputs.path = "{inputs}"\n{more}\n{QUICK}'
    )


def built(folder: Path) -> tuple[Bundle, list[str]]:
    """The bundle of ``own.toml``, after every check that the servers make at start; and what was said."""
    from edgemux.compression.build import build

    said: list[str] = []
    bundle = Bundle.open(build(folder / "own.toml", folder / "bundle", work=folder / "work", tell=said.append))
    manifest, golden = bundle.manifest, Golden(bundle)
    (tensor,) = manifest.inputs
    width = len(manifest.classes)
    chain = Chain([OnnxModel(bundle.read(level.files[-1]), level.name) for level in manifest.levels], [tensor.name])
    golden.check("level1", "level1.onnx", width, chain.answer)
    cloud = OnnxModel(bundle.read("cloud.onnx"), "cloud.onnx")
    assert cloud.inputs == (tensor.name,)
    golden.check("cloud", "cloud.onnx", width, lambda inputs: cloud.run(inputs)[0])
    Gates(bundle).check(golden, manifest)
    text = (bundle.folder / MANIFEST).read_text()
    assert str(folder) not in text and str(Path.home()) not in text
    return bundle, said


def test_an_unlabelled_array_gives_a_bundle_that_agrees_with_its_cloud(vectors: Path) -> None:
    bundle, said = built(vectors)
    manifest = bundle.manifest
    assert (manifest.name, manifest.preprocessing, manifest.samples, said) == ("own", None, None, [])
    assert manifest.inputs == (Tensor("x", "FP32", (-1, FEATURES)),)
    assert manifest.cloud.accuracy == 1.0 and manifest.levels[0].accuracy < 1.0
    assert manifest.provenance.measured["labelled"] == 0.0
    assert "agreement" in manifest.provenance.data
    certificate = manifest.certificate
    assert certificate is not None and certificate.n == int(0.3 * ROWS)
    assert 0.2 < certificate.levels[0].kept < 1.0
    assert certificate.levels[0].upper_bound <= 0.05


def test_what_is_certified_holds_on_inputs_that_were_never_seen(vectors: Path) -> None:
    bundle, _ = built(vectors)
    fresh = task(rows=4000)[0]
    device, cloud = (OnnxModel(bundle.read(name), name) for name in ("level1.onnx", "cloud.onnx"))
    gates, price = Gates(bundle), bundle.manifest.multiplexer.defer[0]
    before = gates.before({"x": fresh})
    small, big = device.run({"x": fresh})[0], cloud.run({"x": fresh})[0]
    after = np.concatenate([gates.after(small[i : i + 1], 1, before[i : i + 1]) for i in range(len(fresh))])
    kept = after[:, -1] - after[:, 0] <= price
    assert (kept & (small.argmax(1) != big.argmax(1))).mean() < 0.06


def test_labels_come_from_an_archive_or_from_a_file_and_may_be_set_aside(vectors: Path) -> None:
    recipe(vectors, "data.npz")
    first, _ = built(vectors)
    assert first.manifest.samples is not None
    arrays = first.arrays(first.manifest.samples)
    assert arrays["images"].shape == (180, FEATURES) and arrays["labels"].shape == (180,)
    recipe(vectors, "x.npy", 'inputs.labels = "y.npy"')
    second, _ = built(vectors)
    recipe(vectors, "data.npz", 'inputs.labels = "none"')
    third, _ = built(vectors)
    accuracies = [bundle.manifest.cloud.accuracy for bundle in (first, second, third)]
    assert accuracies[0] == accuracies[1] < accuracies[2] == 1.0


def test_the_same_build_twice_is_done_once_and_gives_the_same_files(vectors: Path) -> None:
    first, _ = built(vectors)
    again, _ = built(vectors)
    assert first.manifest.files == again.manifest.files


def test_a_cloud_that_is_worse_than_the_device_is_never_asked(vectors: Path) -> None:
    (vectors / "small.onnx").rename(vectors / "other.onnx")
    (vectors / "big.onnx").rename(vectors / "small.onnx")
    (vectors / "other.onnx").rename(vectors / "big.onnx")
    recipe(vectors, "data.npz")
    bundle, said = built(vectors)
    gates = bundle.manifest.multiplexer
    assert (gates.defer, gates.offload_first) == ((2.0,), 2.0)
    assert len(said) == 1 and "the cloud is right less often" in said[0]
    # They differ far more often than alpha, so nothing is stated.
    assert bundle.manifest.certificate is None
    assert "right less often" in bundle.manifest.provenance.verdicts["router"]


def test_models_that_always_agree_stay_on_the_device_and_that_is_certified(vectors: Path) -> None:
    (vectors / "small.onnx").write_bytes((vectors / "big.onnx").read_bytes())
    bundle, said = built(vectors)
    assert bundle.manifest.multiplexer.defer == (2.0,)
    assert bundle.manifest.certificate is not None and bundle.manifest.certificate.levels[0].kept == 1.0
    assert said and "agree" in said[0]


def test_models_that_hardly_ever_agree_send_everything_to_the_cloud(vectors: Path) -> None:
    _, _, centres = task()
    classifier(vectors / "small.onnx", centres[[1, 2, 0]])  # never the cloud's answer, whatever the input
    bundle, said = built(vectors)
    certificate = bundle.manifest.certificate
    assert certificate is not None and certificate.levels[0].upper_bound <= 0.05
    assert certificate.levels[0].kept < 0.05
    assert bundle.manifest.multiplexer.defer != (-2.0,) or "every input goes to the cloud" in said[0]


def test_many_classes_are_routed_by_the_largest_few(tmp_path: Path) -> None:
    x, _, centres = task(classes=100)
    classifier(tmp_path / "big.onnx", centres)
    classifier(tmp_path / "small.onnx", centres, seen=10)
    np.save(tmp_path / "x.npy", x.astype(np.float64))
    recipe(tmp_path, "x.npy", "certify.alpha = [0.2]")
    bundle, _ = built(tmp_path)
    assert len(bundle.manifest.classes) == 100
    assert bundle.size(("post_gate.onnx",)) < 10_000


def test_whole_numbers_are_taken_where_the_models_take_them(tmp_path: Path) -> None:
    x, _, centres = task()
    classifier(tmp_path / "big.onnx", centres, kind="INT64")
    classifier(tmp_path / "small.onnx", centres, seen=6, kind="INT64")
    np.save(tmp_path / "x.npy", np.rint(3 * x).astype(np.int16))
    recipe(tmp_path, "x.npy")
    assert built(tmp_path)[0].manifest.inputs[0].datatype == "INT64"


def test_sequences_of_words_and_of_vectors_are_inputs_like_any_other(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    table = rng.normal(size=(40, CLASSES)).astype(np.float32)
    nodes = [node("Gather", "table", "x", "e"), node("ReduceMean", "e", "y", axes=[1], keepdims=0)]
    save(tmp_path / "big.onnx", nodes, ["n", "time"], "INT64", table=30 * table)
    rough = np.where(np.abs(table) > 0.7, table, 0).astype(np.float32)
    save(tmp_path / "small.onnx", nodes, ["n", 16], "INT64", table=30 * rough)
    np.save(tmp_path / "words.npy", rng.integers(0, 40, (ROWS, 16)))
    recipe(tmp_path, "words.npy")
    assert built(tmp_path)[0].manifest.inputs[0].shape == (-1, 16)

    steps = [node("ReduceMean", "x", "e", axes=[1], keepdims=0), node("MatMul", "e", "w", "y")]
    weight = rng.normal(size=(5, CLASSES)).astype(np.float32)
    save(tmp_path / "big.onnx", steps, ["n", "time", 5], w=30 * weight)
    save(tmp_path / "small.onnx", steps, ["n", "time", 5], w=30 * np.where(np.abs(weight) > 0.3, weight, 0))
    np.save(tmp_path / "series.npy", rng.normal(size=(ROWS, 30, 5)).astype(np.float32))
    recipe(tmp_path, "series.npy")
    assert built(tmp_path)[0].manifest.inputs[0].shape == (-1, 30, 5)


def pictures(folder: Path, count: int, mode: str = "RGB", suffix: str = ".png") -> tuple[Any, Any]:
    """Files in folders named by the channel, or half, that is brighter; returns all pixels and labels in that order."""
    from PIL import Image

    rng = np.random.default_rng(2)
    names = ("blue", "green", "red")
    pixels, labels = [], []
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for at in range(count // 3):
            picture = rng.normal(100, 60, (10, 8, 3))
            picture[..., 2 - number] += 12
            one = np.clip(picture, 0, 255).astype(np.uint8)
            Image.fromarray(one).save(folder / name / f"{at:03}{suffix}")
            pixels.append(one)
            labels.append(number)
    (folder / "blue" / "notes.txt").write_text("no picture")
    return np.stack(pixels), np.array(labels)


def colour_models(folder: Path, layout: str = "NCHW") -> None:
    """Logits by the mean of each channel, blue first; the device looks at the upper rows only."""
    axes = [2, 3] if layout == "NCHW" else [1, 2]
    shape = ["n", 3, 10, 8] if layout == "NCHW" else [1, 10, 8, 3]
    turned = np.eye(3, dtype=np.float32)[::-1]
    means = [node("ReduceMean", "seen", "m", axes=axes, keepdims=0), node("MatMul", "m", "w", "y")]
    save(folder / "big.onnx", [node("Identity", "x", "seen"), *means], shape, w=60 * turned)
    rows = {"from": np.array([0]), "to": np.array([3]), "along": np.array([axes[0]])}
    save(
        folder / "small.onnx", [node("Slice", "x", "from", "to", "along", "seen"), *means], shape, w=60 * turned, **rows
    )


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_pictures_in_folders_named_by_class_are_decoded_as_the_servers_do(tmp_path: Path, layout: str) -> None:
    pixels, labels = pictures(tmp_path / "pictures", 240)
    colour_models(tmp_path, layout)
    recipe(tmp_path, "pictures")
    manifest = built(tmp_path)[0].manifest
    assert manifest.classes == ("blue", "green", "red")
    assert manifest.inputs[0].shape == (-1, 10, 8, 3) and manifest.inputs[0].datatype == "UINT8"
    assert manifest.preprocessing is not None and manifest.preprocessing.mode == "RGB"
    assert manifest.cloud.accuracy > manifest.levels[0].accuracy > 0.4
    cloud = OnnxModel.read(tmp_path / "bundle" / "cloud.onnx")
    assert (cloud.run({"image": pixels})[0].argmax(1) == labels).mean() > 0.8


def test_pictures_in_an_array_and_in_no_class_at_all_are_taken_too(tmp_path: Path) -> None:
    pixels, labels = pictures(tmp_path / "folders", 240)
    colour_models(tmp_path)
    np.savez(tmp_path / "data.npz", pictures=pixels, labels=labels)
    how = "preprocessing = { mean = [0.485, 0.456, 0.406], std = [0.229, 0.224, 0.225] }"
    recipe(tmp_path, "data.npz", how)
    labelled = built(tmp_path)[0].manifest
    assert labelled.preprocessing is not None and labelled.provenance.measured["labelled"] == 1.0
    loose = tmp_path / "loose"
    loose.mkdir()
    for path in sorted((tmp_path / "folders").rglob("*.png")):
        path.rename(loose / f"{path.parent.name}-{path.name}")
    recipe(tmp_path, "loose", how)
    manifest = built(tmp_path)[0].manifest
    assert manifest.provenance.measured["labelled"] == 0.0 and manifest.classes == ("0", "1", "2")


def test_values_are_normalised_as_the_recipe_says(tmp_path: Path) -> None:
    from edgemux.compression.own import entry, given, plan, wrap

    save(tmp_path / "m.onnx", [node("Flatten", "x", "y")], ["n", 3, 2, 2])
    how = plan.Picture(scale=1 / 255, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    model = given.read(tmp_path / "m.onnx")
    made = entry.preprocessing(how, model)
    x = np.random.default_rng(0).integers(0, 256, (4, 2, 2, 3), dtype=np.uint8)
    wrapped = wrap.wrap(model, entry.picture_entry(how, made, model), x)
    found = OnnxModel(wrapped.raw().SerializeToString(), "raw").run({"image": x})[0]
    expected = (x / 255 - how.mean) / np.array(how.std)
    assert np.allclose(found, expected.transpose(0, 3, 1, 2).reshape(4, -1), atol=1e-5)


def test_a_row_of_grey_pixels_is_a_picture_when_its_size_is_told(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    weight = rng.normal(size=(20, CLASSES)).astype(np.float32)
    save(tmp_path / "big.onnx", [node("MatMul", "x", "w", "y")], ["n", 20], w=weight)
    save(tmp_path / "small.onnx", [node("MatMul", "x", "w", "y")], ["n", 20], w=np.round(weight))
    np.save(tmp_path / "x.npy", rng.integers(0, 256, (ROWS, 4, 5, 1), dtype=np.uint8))
    recipe(tmp_path, "x.npy", "preprocessing = { height = 4, width = 5 }")
    assert built(tmp_path)[0].manifest.inputs[0].shape == (-1, 4, 5)


WRONG: list[tuple[str, str]] = [
    ("absent.npy", "absent.npy: not there"),
    ("own.toml", "own.toml: not a folder of pictures, an array"),
    ("nan.npy", "row 7 holds NaN"),
    ("few.npy", r"100 are too few: alpha 0.05 and delta 0.1 need at least 150, of which 45 back the certificate"),
    ("names.npy", "numbers are needed"),
    ("wide.npy", r"small.onnx: takes x FP32 \[-1, 12\], a row of the inputs is \[13\]"),
    ("pickle.npy", "not a file of one plain array"),
    ("two.npz", "it holds a, b"),
    ("bent.npz", "not an archive of plain arrays"),
    ("empty", "holds no .png"),
    ("folder", r"small.onnx: takes x FP32 \[-1, 12\]; set height and width"),
]


@pytest.mark.parametrize(("inputs", "reason"), WRONG)
def test_inputs_that_cannot_be_used_are_refused_in_one_line(vectors: Path, inputs: str, reason: str) -> None:
    x = np.load(vectors / "x.npy")
    spoilt = x.copy()
    spoilt[7, 3] = np.nan
    np.save(vectors / "nan.npy", spoilt)
    np.save(vectors / "few.npy", x[:100])
    np.save(vectors / "names.npy", np.array(["a"] * ROWS))
    np.save(vectors / "wide.npy", np.concatenate([x, x[:, :1]], axis=1))
    np.save(vectors / "pickle.npy", np.array([{}] * ROWS), allow_pickle=True)
    np.savez(vectors / "two.npz", a=x, b=x)
    np.savez_compressed(vectors / "bent.npz", x=x)
    bent = bytearray((vectors / "bent.npz").read_bytes())
    bent[300:4000:97] = bytes(len(range(300, 4000, 97)))
    (vectors / "bent.npz").write_bytes(bent)
    for name in ("empty", "folder"):
        (vectors / name).mkdir()
    for at in range(200):
        (vectors / "folder" / f"{at}.png").write_bytes(b"any picture")
    recipe(vectors, inputs)
    with pytest.raises(ConfigError, match=reason) as caught:
        built(vectors)
    assert "\n" not in str(caught.value) and str(vectors) not in str(caught.value)
    assert not (vectors / "bundle").exists()


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    pictures(tmp_path / "pictures", 240)
    colour_models(tmp_path)
    (tmp_path / "pictures" / "red" / "005.png").write_bytes(b"cut off")
    recipe(tmp_path, "pictures")
    with pytest.raises(ConfigError, match=r"^inputs: pictures/red/005.png: not a JPEG, PNG, WEBP picture"):
        built(tmp_path)


def test_labels_that_no_class_has_are_refused(vectors: Path) -> None:
    labels = np.load(vectors / "y.npy")
    labels[11] = CLASSES
    np.save(vectors / "y.npy", labels)
    recipe(vectors, "x.npy", 'inputs.labels = "y.npy"')
    with pytest.raises(ConfigError, match="labels: 3 in row 11, the models answer classes 0 to 2"):
        built(vectors)
    np.save(vectors / "y.npy", labels[:-1])
    with pytest.raises(ConfigError, match=f"labels: y.npy: {ROWS} whole numbers are needed"):
        built(vectors)


def test_models_that_do_not_fit_each_other_are_refused_by_name(vectors: Path) -> None:
    _, _, more = task(classes=5)
    classifier(vectors / "big.onnx", more)
    with pytest.raises(ConfigError, match=r"^big\.onnx: answers 5 classes, small\.onnx answers 3"):
        built(vectors)
    classifier(vectors / "big.onnx", more, kind="DOUBLE")
    with pytest.raises(ConfigError, match=r"^big\.onnx: takes FP64, small\.onnx takes FP32"):
        built(vectors)


def test_a_model_that_answers_nan_is_refused_by_name(vectors: Path) -> None:
    nodes = [node("Log", "x", "e"), node("MatMul", "e", "w", "y")]
    save(vectors / "big.onnx", nodes, ["n", FEATURES], w=np.ones((FEATURES, CLASSES), np.float32))
    with pytest.raises(ConfigError, match=r"^big\.onnx: answers NaN or infinity to \d+ of 240 inputs"):
        built(vectors)


def test_fewer_folders_than_classes_need_a_list_of_all(tmp_path: Path) -> None:
    pictures(tmp_path / "pictures", 240)
    colour_models(tmp_path)
    (tmp_path / "pictures" / "red").rename(tmp_path / "apart")
    recipe(tmp_path, "pictures")
    with pytest.raises(ConfigError, match=r"inputs: 2 classes, the models answer 3; name all in `\$.inputs.classes`"):
        built(tmp_path)
    recipe(tmp_path, "pictures", 'inputs.classes = ["blue", "green", "red"]')
    assert built(tmp_path)[0].manifest.classes == ("blue", "green", "red")


def test_a_folder_that_no_class_is_called_is_refused(tmp_path: Path) -> None:
    pictures(tmp_path / "pictures", 240)
    colour_models(tmp_path)
    recipe(tmp_path, "pictures", 'inputs.classes = ["blue", "green", "rot"]')
    with pytest.raises(ConfigError, match="folder 'red' is not among"):
        built(tmp_path)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ("inputs.lables = 1", "lables"),
        ("certify.alpha = [5e-324]", "alpha"),
        ("certify.alpha = [0.1, 0.2]", "alpha"),
        ('name = "../etc"', "name"),
    ],
)
def test_a_wrong_key_is_refused_by_name(vectors: Path, more: str, named: str) -> None:
    recipe(vectors, "x.npy", more)
    with pytest.raises(ConfigError, match=named):
        built(vectors)


def test_a_place_below_a_file_is_refused_before_any_work(vectors: Path) -> None:
    from edgemux.compression.pack import check_target

    with pytest.raises(ConfigError, match="no folder can be made in"):
        check_target(vectors / "x.npy" / "b")


def test_options_make_the_same_bundle_as_a_recipe(vectors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from edgemux.cli.main import run

    paths = [str(vectors / name) for name in ("small.onnx", "big.onnx", "data.npz")]
    options = [word for pair in zip(("--edge", "--cloud", "--inputs"), paths, strict=True) for word in pair]
    places = ["--out", str(vectors / "b"), "--work", str(vectors / "work")]
    assert run(["build", *options, "--name", "mine", "--version", "7", "--alpha", "0.1", "--quick", *places]) == 0
    manifest = Bundle.open(vectors / "b").manifest
    assert (manifest.name, manifest.version) == ("mine", "7")
    assert manifest.certificate is not None and manifest.certificate.alpha == (0.1,)
    assert str(vectors) not in (vectors / "b" / MANIFEST).read_text()
    capsys.readouterr()
    assert run(["build", *options[:4], *places]) == 2
    assert run(["build", *options, "--alpha", "1.5", *places]) == 2
    assert run(["build", str(vectors / "own.toml"), *options]) == 2
    assert run(["build"]) == 2
    said = capsys.readouterr().err
    assert "--inputs is needed too" in said and "alpha" in said and "either RECIPE.toml or --edge" in said
