"""Export: the graph equals the network, and the check finds one that does not.

Run: pytest tests/test_export.py (pytest -m slow for the real ONNX files)
"""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from onenet import export, load
from onenet.boxes import clip_to_images
from onenet.config.compose import compose
from onenet.errors import UserError
from onenet.inference import check, formats
from onenet.inference.check import Verdict, clipped, compare, count_differences, inputs_of
from onenet.inference.detector import TrainedDetector
from onenet.inference.graph import graph_of
from onenet.inference.latency import measure
from onenet.structures import Detections
from tests.conftest import make_annotations, random_boxes, seeded
from tests.trained import CLASSES, finished_run, random_network, with_changed_weight

SIZE_HW = (64, 96)


def detector_with(*overrides: str) -> TrainedDetector:
    config = compose(["debug=tiny", *overrides])
    return TrainedDetector(random_network(config), config, CLASSES, "0123456789", "cpu")


def picture(size_hw=SIZE_HW, seed: int = 0) -> torch.Tensor:
    shape = (1, 3, *size_hw)
    return torch.randint(0, 256, shape, generator=seeded(seed), dtype=torch.uint8)


def agree(detector: TrainedDetector, outputs, images: torch.Tensor) -> int:
    """Checks that both detect the same, in the same order. Returns how many detections."""
    size_hw = tuple(images.shape[2:])
    with torch.inference_mode():
        expected = detector.top_detections(detector.network, images, size_hw)
    actual = clipped(outputs, size_hw)
    torch.testing.assert_close(actual.boxes_xyxy, expected.boxes_xyxy, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(actual.scores, expected.scores, rtol=1e-5, atol=1e-6)
    assert torch.equal(actual.labels, expected.labels)
    return len(expected.scores)


# --- the graph ---


@pytest.mark.parametrize("neck", ["fpn", "deconv", "deconv_dcn"])
@pytest.mark.parametrize("rest", [(), ("heads=3",), ("detector=centernet",)], ids=str)
def test_the_graph_detects_what_the_network_detects(neck, rest):
    detector = detector_with(f"neck={neck}", *rest)
    graph = graph_of(detector)
    with torch.no_grad():
        assert agree(detector, graph(picture()), picture()) > 20
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in graph.modules())


def test_an_empty_box_has_score_0():
    detector = detector_with()
    torch.nn.init.constant_(detector.network.head.box_conv.bias, -100.0)
    with torch.no_grad():
        boxes, scores, _ = graph_of(detector)(picture())
    assert boxes.shape == (1, 100, 4)
    assert not scores.any()
    assert len(clipped((boxes, scores, scores.long()), SIZE_HW).scores) == 0


def test_a_detector_that_reads_more_than_pixels_is_refused():
    detector = detector_with("detector=sparse_rcnn", "data.crowd=drop")
    with pytest.raises(UserError, match="detector=sparse_rcnn"):
        graph_of(detector)


# --- the check ---


def some_detections(count: int, seed: int = 0) -> Detections:
    generator = seeded(seed)
    scores = torch.rand(count, generator=generator).sort(descending=True).values
    labels = torch.randint(3, (count,), generator=generator)
    return Detections(random_boxes(count, (500, 700), generator), scores, labels)


def verdict_of(expected: Detections, actual: Detections) -> Verdict:
    verdict = Verdict(images=1)
    count_differences(verdict, expected, actual)
    return verdict


def test_detections_in_another_order_are_the_same():
    one = some_detections(50)
    order = torch.randperm(50, generator=seeded())
    other = Detections(one.boxes_xyxy[order], one.scores[order], one.labels[order])
    verdict = verdict_of(one, other)
    assert (verdict.unmatched, verdict.problems) == (0, [])
    assert verdict.differences == {"box": 0, "score": 0}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda d: Detections(d.boxes_xyxy + 0.2, d.scores, d.labels), "a box differs by 0.2"),
        (lambda d: Detections(d.boxes_xyxy, d.scores + 0.01, d.labels), "a score differs by 0.01"),
        (lambda d: Detections(d.boxes_xyxy + 30, d.scores, d.labels), "without a counterpart"),
        (lambda d: Detections(d.boxes_xyxy, d.scores, d.labels + 1), "without a counterpart"),
        (
            lambda d: Detections(d.boxes_xyxy[:5], d.scores[:5], d.labels[:5]),
            "without a counterpart",
        ),
        (lambda d: Detections(d.boxes_xyxy * torch.nan, d.scores, d.labels), "without"),
    ],
)
def test_what_differs_is_a_problem(change, problem):
    one = some_detections(10)
    assert problem in "; ".join(verdict_of(one, change(one)).problems)


def test_a_tie_at_the_end_of_the_top_100_is_no_problem():
    scores = torch.tensor([0.9, 0.5, 0.5])
    boxes, labels = random_boxes(3, (50, 50), seeded()), torch.zeros(3, dtype=torch.int64)
    everything = Detections(boxes, scores, labels)
    one, other = (
        Detections(boxes[rows], everything.scores[rows], labels[rows]) for rows in ([0, 1], [0, 2])
    )
    assert verdict_of(one, other).problems == []


def test_no_image_is_a_problem():
    assert Verdict().problems == ["no image could be compared"]


@pytest.mark.parametrize(("change", "passes"), [(0.0, True), (1.0, False)])
def test_one_changed_weight_fails_the_check(change, passes):
    detector = detector_with()
    broken = with_changed_weight(random_network(detector.config), "head.box_conv.bias", change)
    other = TrainedDetector(broken, detector.config, CLASSES, "x", "cpu")
    graph = graph_of(other)
    pixels = [np.random.default_rng(n).integers(0, 256, (60, 80, 3), np.uint8) for n in range(3)]
    boxes = [[(n, (10, 10, 40, 50))] for n in range(3)]
    annotations = make_annotations([(60, 80)] * 3, boxes, classes=5)
    with torch.no_grad():
        verdict = compare(detector, graph, inputs_of(pixels, detector.size, SIZE_HW), annotations)
    assert (verdict.problems == []) == passes
    assert verdict.images == 3
    assert verdict.ap.keys() == {"AP", "AP_nms"}
    assert "fewer than 50 images: the check is weak" in verdict.lines()


def test_an_ap_that_differs_is_a_problem():
    verdict = Verdict(images=1, ap={"AP": (50.0, 50.1), "AP_nms": (None, None)})
    assert verdict.problems == ["AP is 50.1, not 50.0"]
    assert Verdict(images=1, ap={"AP": (None, 1.0)}).problems == ["AP is 1.0, not None"]


@pytest.mark.parametrize("original_hw", [(60, 80), (200, 100), (30, 300), (64, 96)])
def test_an_image_is_shrunk_to_fit_the_graph(original_hw):
    pixels = np.zeros((*original_hw, 3), np.uint8)
    detector = detector_with()
    (fixed,) = inputs_of([pixels], detector.size, SIZE_HW)
    (free,) = inputs_of([pixels], detector.size, None)
    assert fixed.images.shape == (1, 3, *SIZE_HW)
    assert all(side <= most for side, most in zip(fixed.size_hw, SIZE_HW, strict=True))
    if all(side <= most for side, most in zip(free.size_hw, SIZE_HW, strict=True)):
        assert fixed.size_hw == free.size_hw
    assert fixed.is_shrunk == (fixed.size_hw != free.size_hw)
    assert not free.is_shrunk


def test_boxes_are_clipped_to_the_image_without_its_padding():
    boxes = torch.tensor([[[0.0, 0, 90, 60], [85, 0, 95, 10]]])
    detections = clipped((boxes, torch.tensor([[0.5, 0.4]]), torch.tensor([[1, 2]])), (50, 80))
    assert detections.boxes_xyxy.tolist() == [[0, 0, 80, 50]]
    torch.testing.assert_close(detections.boxes_xyxy, clip_to_images(boxes[:, :1], [(50, 80)])[0])


# --- the command ---


def command(*arguments) -> int:
    return export.main([*map(str, arguments)])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def no_latency(monkeypatch):
    monkeypatch.setattr(export, "measure", lambda *_: {"network": [1.0, 2.0]})


@pytest.mark.usefixtures("no_latency")
def test_weights_are_exported_with_a_card_and_a_verdict(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert command(run.path, "--format", "safetensors", "--out", out) == 0
    assert {f.name for f in out.iterdir()} == {
        *("model.safetensors", "config.json", "README.md", "check_safetensors.json")
    }
    verdict = json.loads((out / "check_safetensors.json").read_text())
    assert verdict["images"] == 8
    assert verdict["differences"] == {"box": 0, "score": 0}
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n")
    assert f"run `{run.id}`" in card
    assert "only" not in capsys.readouterr().err
    assert load(out).id == run.id
    assert [f.name for f in tmp_path.iterdir()] == ["out"]


@pytest.mark.usefixtures("no_latency")
def test_an_export_that_detects_something_else_is_not_kept(run, tmp_path, monkeypatch, capsys):
    def corrupted(_, folder):
        other = load(run.path)
        with_changed_weight(other.network, "head.box_conv.bias", 1.0)
        write(other, folder)

    write = formats.write_safetensors
    monkeypatch.setattr(formats, "write_safetensors", corrupted)
    assert command(run.path, "--format", "safetensors", "--out", tmp_path / "out") == 1
    assert "FAILED: a box differs" in capsys.readouterr().out
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("0123456789", "--format", "onnx"), "no run 0123456789"),
        (("RUN", "--format", "onnx", "--size", 16, 64), "--size 32 64"),
        (("RUN", "--format", "onnx", "--size", 50, 64), "multiples of 32"),
        (("RUN", "--format", "safetensors", "--size", 64, 64), "no meaning"),
        (("RUN", "--format", "safetensors", "--images", "nothing.jpg"), "no file nothing.jpg"),
        (("RUN", "--format", "safetensors", "--out", "/dev/null/x"), "cannot be written"),
    ],
    ids=str,
)
def test_invalid_input_is_named_and_nothing_is_written(run, tmp_path, capsys, arguments, why):
    words = [run.path if word == "RUN" else word for word in arguments]
    out = [] if "--out" in words else ["--out", tmp_path / "out"]
    assert command(*words, *out, "--runs", run.path.parent) == 2
    assert why in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == []


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'onenet\[export\]'"):
        formats.check_packages("onnx")
    formats.check_packages("safetensors")


# --- real files ---


@pytest.mark.slow
@pytest.mark.parametrize("neck", ["fpn", "deconv_dcn"])
def test_an_onnx_file_of_any_size_detects_the_same(neck, tmp_path):
    detector = detector_with(f"neck={neck}")
    file = tmp_path / "model.onnx"
    formats.write_onnx(detector, file, SIZE_HW, dynamic=True)
    run = formats.open_onnx(file, threads=1)
    for size_hw in (SIZE_HW, (128, 64)):
        assert agree(detector, run(picture(size_hw)), picture(size_hw)) > 20


@pytest.mark.slow
def test_the_command_exports_onnx_for_others(run, tmp_path, capsys):
    """Without our code: by ONNX Runtime alone, as its documentation does."""
    import onnxruntime

    assert command(run.path, "--format", "onnx", "--size", 64, 64, "--out", tmp_path / "o") == 0
    output = capsys.readouterr().out
    assert "export + NMS" in output
    session = onnxruntime.InferenceSession(tmp_path / "o" / "model.onnx")
    (given,) = session.get_inputs()
    assert (given.name, given.shape, given.type) == ("images", [1, 3, 64, 64], "tensor(uint8)")
    assert [o.name for o in session.get_outputs()] == ["boxes", "scores", "labels"]
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["run"] == run.id
    assert json.loads(metadata["classes"]) == CLASSES.names
    outputs = session.run(None, {"images": picture((64, 64)).numpy()})
    agree(load(run.path), [*map(torch.from_numpy, outputs)], picture((64, 64)))


@pytest.mark.slow
def test_one_changed_weight_in_the_file_is_seen(run, tmp_path, monkeypatch, capsys):
    import onnx

    def corrupted(*arguments):
        write(*arguments)
        model = onnx.load(arguments[1])
        (bias,) = (i for i in model.graph.initializer if i.name.endswith("box_conv.bias"))
        values = onnx.numpy_helper.to_array(bias) + np.float32([1, 0, 0, 0])
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
        onnx.save(model, arguments[1])

    write = formats.write_onnx
    monkeypatch.setattr(formats, "write_onnx", corrupted)
    assert command(run.path, "--format", "onnx", "--out", tmp_path / "out") == 1
    assert "FAILED" in capsys.readouterr().out
    assert [*tmp_path.iterdir()] == []


@pytest.mark.slow
def test_a_torch_export_detects_the_same_and_its_images_may_be_named(run, tmp_path, monkeypatch):
    Image.fromarray(np.zeros((70, 50, 3), np.uint8)).save(tmp_path / "a.png")
    monkeypatch.setattr(check, "FEW_IMAGES", 1)
    words = ("--format", "torch", "--images", tmp_path / "a.png", "--out", tmp_path / "out")
    assert command(run.path, *words) == 0
    program = formats.open_torch(tmp_path / "out" / "model.pt2")
    agree(load(run.path), program(picture()), picture())


def test_latency_is_measured_for_each_way(monkeypatch):
    monkeypatch.setattr("onenet.inference.latency.SECONDS", 0.0)
    monkeypatch.setattr("onenet.inference.latency.LEAST_CALLS", 2)
    detector = detector_with()
    graph = graph_of(detector)
    times = measure(detector, graph, picture())
    names = ["network", "network + NMS", "export", "export + NMS", "NMS of 10", "NMS of 100"]
    assert [*times] == names
    assert all(0 < p50 <= p99 for p50, p99 in times.values())
