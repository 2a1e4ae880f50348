"""The training loop learns, is reproducible, resumes bit for bit, and stops before a bad step.

Run: pytest tests/test_loop.py (also -m slow: every conflict policy and the Hungarian assigner)
"""

import copy
import shutil

import pytest
import torch
from torch import nan, nn

from onenet import assigners, build
from onenet.config.compose import compose
from onenet.config.schema import Config
from onenet.data.augment import Augmentation
from onenet.data.loading import DetectionDataset, training_batches
from onenet.data.sizes import ImageSize
from onenet.data.sources import open_split
from onenet.evaluation.coco_metrics import Scorer
from onenet.evaluation.predict import predict
from onenet.losses import DetectionLoss, LossWeights
from onenet.ops import tiled_argmin
from onenet.runs.evaluations import requested_evaluation
from onenet.runs.folder import RunFolder
from onenet.structures import Matches
from onenet.system.context import RunContext
from onenet.system.signals import Preempted
from onenet.training import checkpoint
from onenet.training.loop import Hooks, Progress, TrainingState, train
from onenet.training.optim import Schedule
from tests.conftest import Pictures, make_annotations

LOGGED = {
    "step", "loss", "loss_cls", "loss_l1", "loss_giou", "objects", "conflicts", "lr", "grad_norm"
}  # fmt: skip


class Run:
    """A run in memory, assembled as in onenet.job but without folders."""

    def __init__(self, *overrides: str, source=None):
        if not overrides or overrides[0] != "debug=overfit":
            overrides = ("debug=tiny", "neck.channels=8", "precision=float32", *overrides)
        self.config: Config = compose(list(overrides))
        self.source = source or open_split(self.config.data, "train")
        self.model = build.detector(self.config, len(self.source.annotations.category_ids))
        self.optimizer = build.optimizer(self.config, self.model)
        self.loss = build.loss(self.config, self.model)
        self.progress = Progress()
        self.lines: list[dict] = []
        self.saved_at: list[int] = []

    def train(self, until: int | None = None, **hooks) -> "Run":
        """Runs the remaining steps, or those up to `until` as if stopped there."""
        c = self.config
        dataset = build.training_set(c, self.source)
        defaults = {"log": self.lines.append, "log_every": c.log_every}
        defaults["save"] = lambda: self.saved_at.append(self.progress.step)
        train(
            self.model,
            self.loss,
            training_batches(dataset, c.batch, self.progress.step, until or c.steps),
            build.schedule(c),
            TrainingState(self.optimizer, self.progress),
            RunContext("cpu", build.precision(c.precision, "cpu")),
            Hooks(**(defaults | hooks)),
            clip=c.optim.clip,
        )
        return self

    def state(self) -> dict:
        return copy.deepcopy({"model": self.model.state_dict(), **self.optimizer.state_dict()})

    def score(self) -> dict:
        spec = requested_evaluation(self.config)
        dataset = build.evaluation_set(self.config, self.source, spec)
        batch = self.config.eval.batch
        predictions, _ = predict(self.model, dataset, batch=batch, peaks=spec.peaks)
        return Scorer(self.source.annotations).score(predictions).metrics


def load(folder: RunFolder, run: Run) -> Progress:
    return checkpoint.load(checkpoint.find(folder, "id"), run.model, run.optimizer, "cpu")


def assert_equal(one, other) -> None:
    """Bitwise, also in dictionaries and lists."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    else:
        assert one == other


def weights(model: nn.Module) -> dict:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


# --- it learns ---


@pytest.mark.parametrize(("short", "searched"), [(64, False), (512, True)])
def test_training_matches_by_what_stands_in_assigners(short, searched, monkeypatch):
    """An edit of `min_cost` changes training, with few pairs and with tiled search."""
    pair_counts = []

    def last_slots(cost, output, targets, conflict="keep"):
        """Each object gets its own slot in the lower right corner, at any cost."""
        slots = output.boxes_xyxy.shape[1]
        pair_counts.append(slots * sum(len(target.gt_labels) for target in targets))
        return [
            Matches(slots - 1 - torch.arange(n), torch.arange(n), torch.tensor(0))
            for n in (len(target.gt_labels) for target in targets)
        ]

    one_step = ("steps=1", f"size.short={short}", "augment.flip=0")
    plain = Run(*one_step).train()
    monkeypatch.setattr(assigners, "min_cost", last_slots)
    changed = Run(*one_step).train()
    assert [pairs > tiled_argmin.FEW_PAIRS for pairs in pair_counts] == [searched]
    (before,), (after,) = plain.lines, changed.lines
    assert before["objects"] == after["objects"] > 0
    assert after["loss_l1"] > 1.2 * before["loss_l1"]


def test_one_image_is_learnt_by_heart():
    run = Run("debug=overfit").train()
    metrics = run.score()
    assert metrics["AP"] > 90
    assert metrics["duplicates_per_object"] < 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("heads=3",),
        ("assigner=hungarian",),
        ("assigner.conflict=next_best",),
        ("assigner.conflict=drop",),
        ("neck=deconv",),
        ("neck=deconv_dcn",),
        ("reference=released", "augment.crop=0"),
        ("precision=bf16",),
    ],
    ids=" ".join,
)
def test_one_image_is_learnt_by_heart_in_every_way(overrides):
    assert Run("debug=overfit", *overrides).train().score()["AP"] > 90


@pytest.mark.parametrize("heads", [1, 3])
def test_the_loss_falls(heads):
    run = Run(f"heads={heads}", "steps=30", "data.limit=2", "lr=0.001", "augment.flip=0").train()
    losses = [line["loss"] for line in run.lines]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_batch_normalisation_is_trained_even_if_the_model_comes_from_an_evaluation():
    run = Run()
    run.model.eval()
    run.train()
    counters = [b for name, b in run.model.named_buffers() if "num_batches" in name]
    assert {int(counter) for counter in counters} == {run.config.steps}


def test_bfloat16_changes_the_network_alone():
    dtypes = []

    class Watching(DetectionLoss):
        def match(self, output, targets):
            with torch.autocast("cpu", enabled=False):
                cost = self.matching_cost(output, 0, targets[0])
            dtypes.append((output.class_logits.dtype, output.boxes_xyxy.dtype, cost.dtype))
            return super().match(output, targets)

    def trained(precision: str) -> Run:
        run = Run("steps=2", f"precision={precision}", "lr=0.0001")
        run.loss = Watching(**vars(run.loss))
        return run.train()

    one, half = trained("float32"), trained("bf16")
    assert dtypes[0] == (torch.float32,) * 3
    assert dtypes[-1] == (torch.float32,) * 3
    assert {p.dtype for p in half.model.parameters()} == {torch.float32}
    assert half.lines[0]["loss"] != one.lines[0]["loss"]
    assert half.lines[0]["loss"] == pytest.approx(one.lines[0]["loss"], rel=0.03)


# --- it is reproducible ---


def test_the_same_seed_gives_the_same_weights():
    one, again, other = Run(), Run(), Run("seed=1")
    assert_equal(one.model.state_dict(), again.model.state_dict())
    assert not torch.equal(one.model.head.class_conv.weight, other.model.head.class_conv.weight)
    assert_equal(one.train().state(), again.train().state())
    assert one.lines == again.lines


def test_other_uses_of_the_random_generator_do_not_matter():
    """Initialisation, order and augmentation depend only on the seed."""
    expected = Run().train().state()
    torch.rand(17)
    run = Run()
    torch.manual_seed(99)
    assert_equal(run.train().state(), expected)


# --- it resumes ---


@pytest.mark.parametrize("stop", [1, 4])
@pytest.mark.parametrize("overrides", [(), ("heads=2", "assigner=hungarian")], ids=str)
def test_a_resumed_run_equals_one_that_ran_straight_through(tmp_path, stop, overrides):
    overrides = (*overrides, "optim.warmup=2", "optim.tail=0.5")
    straight = Run(*overrides).train()

    folder = RunFolder(tmp_path)
    first = Run(*overrides).train(until=stop)
    assert first.progress.step == stop
    checkpoint.save(folder, "id", first.model, first.optimizer, first.progress)

    second = Run(*overrides)
    torch.manual_seed(5)
    for parameter in second.model.parameters():
        parameter.data.normal_()  # must all be overwritten
    second.progress = load(folder, second)
    assert second.progress == first.progress
    assert_equal(second.state(), first.state())
    second.train()

    assert_equal(second.state(), straight.state())
    assert first.lines + second.lines == straight.lines
    assert [line["step"] for line in first.lines + second.lines] == [1, 2, 3, 4, 5, 6]
    for name in ("step", "objects", "conflicts", "bad_images"):
        assert getattr(second.progress, name) == getattr(straight.progress, name)
    assert second.progress.seconds > first.progress.seconds


def test_a_finished_run_has_nothing_left_to_do():
    run = Run().train()
    before = run.state()
    run.train()
    assert_equal(run.state(), before)
    assert len(run.lines) == run.config.steps


# --- it stops on request and before a bad step ---


def test_a_run_that_is_asked_to_stop_saves_its_step_and_goes_on_as_if_nothing_was(tmp_path):
    straight, run = Run().train(), Run()
    folder = RunFolder(tmp_path)

    def save() -> None:
        checkpoint.save(folder, "id", run.model, run.optimizer, run.progress)

    with pytest.raises(Preempted, match="after step 3"):
        run.train(stop=lambda: run.progress.step == 3, save=save)
    again = Run()
    again.progress = load(folder, again)
    assert again.progress.step == 3
    assert_equal(again.train().state(), straight.state())


def test_a_loss_that_is_not_finite_names_the_step_and_leaves_the_weights_alone():
    run = Run().train(until=2)
    before = run.state()
    broken = LossWeights(cls=nan, l1=5, giou=2)
    run.loss = type(run.loss)(run.loss.matching_cost, run.loss.matcher, broken)
    with pytest.raises(FloatingPointError, match="loss is not finite at step 3: loss_cls nan"):
        run.train()
    assert_equal(weights(run.model), {n: before["model"][n] for n in weights(run.model)})
    assert_equal(run.optimizer.state_dict()["state"], before["state"])
    assert run.progress.step == 2


def test_a_gradient_that_is_not_finite_names_the_step_and_leaves_the_weights_alone():
    run = Run().train(until=1)
    before = weights(run.model)
    run.model.head.box_conv.weight.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(FloatingPointError, match="gradient is not finite at step 2"):
        run.train()
    assert_equal(weights(run.model), before)
    assert run.progress.step == 1


def test_predictions_that_are_not_finite_stop_the_run():
    run = Run()
    run.model.head.class_conv.bias.data[:] = nan
    with pytest.raises(FloatingPointError, match="matching cost 'cls' is not finite"):
        run.train()
    assert run.progress.step == 0


# --- clipping, logging, saving ---


class OneWeight(nn.Module):
    """A model with a known gradient: the loss is 30 times its weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images, sizes_hw):
        return 30 * self.weight.sum()


def steps_of_one_weight(clip: float | None, steps: int = 3):
    """The optimiser's gradients, the log, the progress."""
    model, gradients, lines = OneWeight(), [], []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    optimizer.register_step_pre_hook(lambda *_: gradients.append(model.weight.grad.item()))
    source = Pictures(make_annotations([(32, 32)] * 2, [[], []]))
    dataset = DetectionDataset(source, ImageSize(32, 1.0))
    counts = {"objects": torch.tensor(4), "conflicts": torch.tensor(1)}

    class Itself:
        """The output is the loss."""

        names = ("loss_cls",)

        def __call__(self, outputs, targets, num_objects, lap):
            return outputs, {"loss_cls": outputs.detach(), **counts}

    progress = Progress()
    train(
        model,
        Itself(),
        training_batches(dataset, 1, 0, steps),
        Schedule(1.0, steps, warmup=2),
        TrainingState(optimizer, progress),
        RunContext(),
        Hooks(log=lines.append, log_every=2),
        clip=clip,
    )
    return gradients, lines, progress


def test_gradients_are_clipped_to_the_norm_asked_for():
    assert steps_of_one_weight(clip=None)[0] == [30, 30, 30]
    assert steps_of_one_weight(clip=100.0)[0] == [30, 30, 30]
    clipped, lines, _ = steps_of_one_weight(clip=0.5)
    assert clipped == pytest.approx([0.5] * 3, rel=1e-4)
    assert lines[0]["grad_norm"] == 30  # the norm before clipping


def test_a_line_is_logged_every_few_steps_and_at_the_last():
    _, lines, progress = steps_of_one_weight(clip=None, steps=5)
    assert [line["step"] for line in lines] == [2, 4, 5]
    assert [line["lr"] for line in lines] == pytest.approx([0.505, 1, 0.1])  # 7/9 of 5 steps: 3.9
    assert (progress.objects, progress.conflicts) == (20, 5)


def test_a_line_of_the_log_holds_plain_numbers_that_add_up():
    run = Run("heads=2").train()
    assert [line["step"] for line in run.lines] == [1, 2, 3, 4, 5, 6]
    for line in run.lines:
        assert set(line) == LOGGED
        assert all(type(value) in (int, float) for value in line.values())
        parts = line["loss_cls"] + line["loss_l1"] + line["loss_giou"]
        assert line["loss"] == pytest.approx(parts, rel=1e-5)
        assert line["lr"] == pytest.approx(build.schedule(run.config).at(line["step"]))
    assert run.progress.objects == sum(line["objects"] for line in run.lines)
    assert run.progress.conflicts == sum(line["conflicts"] for line in run.lines)


def test_it_saves_when_due_and_at_the_end():
    run = Run()
    run.train(save_due=lambda: run.progress.step % 4 == 0)
    assert run.saved_at == [4, 6]


# --- images without objects ---


@pytest.mark.parametrize("counts", [(0, 2), (0, 0)], ids=["one image", "the whole batch"])
@pytest.mark.parametrize("assigner", ["min_cost", "hungarian"])
def test_images_without_objects_are_trained_on(counts, assigner):
    boxes = [(2, 3, 30, 40), (20, 10, 50, 44)]
    objects = [[(label, boxes[label]) for label in range(count)] for count in counts]
    source = Pictures(make_annotations([(64, 64)] * 2, objects))
    run = Run(f"assigner={assigner}", "heads=2", "steps=2", "data.shapes.train_images=2",
              source=source)  # fmt: skip
    before = weights(run.model)
    run.train()
    assert [line["objects"] for line in run.lines] == [2 * sum(counts)] * 2
    assert all(line["loss_cls"] > 0 for line in run.lines)
    assert all((line["loss_giou"] > 0) == (sum(counts) > 0) for line in run.lines)
    after = weights(run.model)
    assert not torch.equal(before["head.class_conv.weight"], after["head.class_conv.weight"])


def test_the_training_set_takes_its_sizes_and_seed_from_the_config():
    config = compose(["debug=tiny", "size.short=48", "size.ratio=1.25", "seed=3", "augment.flip=1"])
    dataset = build.training_set(config, open_split(config.data, "train"))
    assert dataset.size == ImageSize(48, 1.25)
    assert dataset.seed == 3
    assert dataset.augmentation == Augmentation(1.0, 0.8125)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.timeout(2400)  # the compiler takes minutes on busy cores; half without vector code
def test_a_compiled_run_learns_the_same_and_its_checkpoint_is_any_runs(tmp_path):
    straight, run = (Run("heads=2", "steps=2") for _ in range(2))
    straight.train()
    run.model.compile(dynamic=True, options={"cpp.simdlen": 1})
    run.train()
    assert len(run.lines) == 2
    for one, other in zip(run.lines, straight.lines, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=0.02)
    checkpoint.save(RunFolder(tmp_path), "id", run.model, run.optimizer, run.progress)
    load(RunFolder(tmp_path), Run("heads=2", "steps=2"))
