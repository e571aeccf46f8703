"""The training loop: the same seed gives the same weights, stopped or not; and what it writes."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from pelacli.data.dataset import open_dataset
from pelacli.data.loader import loader
from pelacli.errors import PelaError, RequestError
from pelacli.models.inputs import ImageInput
from pelacli.recipe.data import Augment
from pelacli.recipe.training import Train
from pelacli.train import acceleration, checkpoint, optim
from pelacli.train import run as train_run
from pelacli.train.criterion import Criterion
from pelacli.train.loop import Objective, RunOptions, fit
from pelacli.train.run import updates

INPUTS = ImageInput((1, 8, 8), (0.5,), (0.5,), "bilinear")
PLAIN = Augment(none=True)
AUGMENT = Augment(
    scale=(0.7, 1.0), hflip=0.0, color_jitter=0.2, reprob=0.1, mixup=0.5, cutmix=0.5, smoothing=0.1
)


def train(**changed):
    return Train(**({"lr": 1e-2, "min_lr": 1e-5, "log_every": 1} | changed))


def vit(**changed):
    torch.manual_seed(0)
    shape = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
    shape |= {"in_chans": 1, "num_classes": 10, "drop_rate": 0.1, "drop_path_rate": 0.1}
    return timm.create_model("vit_tiny_patch16_224", **(shape | changed))


def digits(batch_size=32, limit=160, augment=AUGMENT, **changed):
    """Five batches an epoch."""
    dataset = open_dataset("digits", "train", inputs=INPUTS, training=True, augment=augment)
    return loader(
        dataset, batch_size=batch_size, shuffle=True, drop_last=True, augment=augment,
        num_classes=10, limit=limit, **changed,
    )  # fmt: skip


def task(module, batch, done=0.0):
    return {"task": F.cross_entropy(module(batch["inputs"]), batch["labels"])}


def run(settings, losses=task, batches=None, module=None, **changed):
    module = module or vit()
    main = changed.pop("main_metric", None)
    criterion = Criterion(larger=(main,) if main else ())
    objective = Objective(losses, changed.pop("evaluate", None), criterion)
    options = RunOptions(**({"seed": 3, "device": "cpu"} | changed))
    return module, fit(module, objective, batches or digits(), settings, options)


def same(one, other):
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def stop_at(step, number=signal.SIGTERM):
    """Progress that sends this process a signal once so many steps are done."""
    done = SimpleNamespace(steps=0)

    def advance(n=1, **fields):
        done.steps += n
        if done.steps == step and n:
            os.kill(os.getpid(), number)

    return SimpleNamespace(advance=advance, start_at=advance)


FULL = {"epochs": 3, "ema": 0.9, "clip_grad": 1.0, "warmup_epochs": 1, "accumulate": 2}


def test_the_same_seed_gives_the_same_weights_whatever_the_surroundings():
    one, _ = run(train(ema=0.9))
    torch.manual_seed(99)
    module = vit()
    torch.manual_seed(98)
    two, _ = run(train(ema=0.9), module=module, batches=digits(workers=2))
    assert same(one, two)
    other, _ = run(train(ema=0.9), seed=4)
    assert not same(one, other)


def test_every_pass_draws_its_own_random_numbers():
    drawn = []

    def losses(module, batch, done):
        drawn.append(torch.rand(1).item())
        return task(module, batch)

    run(train(epochs=2, accumulate=2), losses)
    assert len(set(drawn)) == len(drawn) == 10


@pytest.mark.parametrize("at", [1, 4, 5, 8])
def test_a_run_that_was_stopped_and_continued_gives_bitwise_the_same_weights(tmp_path, at):
    """With dropout, drop-path, augmentation, mixup, EMA, accumulation over epochs' ends."""
    evaluations = []

    def evaluate(module):
        evaluations.append(next(module.parameters()).sum().item())
        return {"accuracy": float(len(evaluations))}

    watched = {"evaluate": evaluate, "main_metric": "accuracy"}
    whole, trained = run(train(**FULL), output=tmp_path / "whole", **watched)
    expected = evaluations[:]
    evaluations.clear()
    with pytest.raises(PelaError, match=f"stopped at step {at} of 8; continue with --resume"):
        run(train(**FULL), output=tmp_path / "cut", progress=stop_at(at), **watched)
    continued, again = run(train(**FULL), output=tmp_path / "cut", resume=True, **watched)
    assert same(whole, continued)
    assert evaluations == expected
    assert again.steps == trained.steps == 8
    lines = [
        [(line["step"], line.get("losses"), line.get("lr")) for line in map(json.loads, text)]
        for text in ((tmp_path / d / "metrics.jsonl").open() for d in ("whole", "cut"))
    ]
    assert lines[0] == lines[1]
    states = [checkpoint.state(checkpoint.steps(tmp_path / d)[-1]) for d in ("whole", "cut")]
    assert states[0] == states[1]


def test_sigterm_to_a_process_leaves_a_checkpoint_that_continues_elsewhere(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys, time
        from pathlib import Path
        from types import SimpleNamespace
        sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}
        import test_loop as t

        def advance(n=1, **fields):
            print("step", flush=True)
            time.sleep(0.05)

        try:
            t.run(t.train(**t.FULL), output=Path({str(tmp_path / "cut")!r}),
                  batches=t.digits(workers=1), progress=SimpleNamespace(advance=advance))
        except t.PelaError as error:
            print(error, file=sys.stderr)
            sys.exit(error.exit_code)
        """)
    )
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        for _ in range(4):
            process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert stderr.strip().splitlines()[-1].startswith("stopped at step ")
    assert "Traceback" not in stderr
    (newest,) = checkpoint.steps(tmp_path / "cut")[-1:]
    assert 3 <= checkpoint.state(newest)["step"] < 8
    whole, _ = run(train(**FULL))
    continued, _ = run(train(**FULL), output=tmp_path / "cut", resume=True)
    assert same(whole, continued)


def test_ctrl_c_ends_the_step_and_restores_the_signal_handlers(tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(PelaError, match="stopped at step 2 of 5; nothing was saved"):
        run(train(), progress=stop_at(2, signal.SIGINT))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_run_continues_from_the_checkpoint_before_a_damaged_one(tmp_path):
    settings = train(**FULL, save_every=1)
    whole, _ = run(settings)
    with pytest.raises(PelaError, match="step 4"):
        run(settings, output=tmp_path, progress=stop_at(4))
    newest = checkpoint.steps(tmp_path)[-1] / "optimizer.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    (tmp_path / "checkpoints" / ".step-00000009").mkdir()  # as kill -9 leaves it
    continued, _ = run(settings, output=tmp_path, resume=True)
    assert same(whole, continued)
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_a_half_removed_checkpoint_is_removed_with_the_next(tmp_path):
    """A run that is killed in the middle of a removal leaves a directory that is no checkpoint."""
    for step in (1, 2, 3):
        place = checkpoint.folder(tmp_path) / f"step-{step:08d}"
        place.mkdir(parents=True)
        if step > 1:
            (place / "state.json").write_text("{}")
    checkpoint.prune(tmp_path, 2)
    left = sorted(path.name for path in checkpoint.folder(tmp_path).iterdir())
    assert left == ["step-00000002", "step-00000003"]


def test_checkpoints_are_pruned_and_the_best_is_kept(tmp_path):
    scores = iter([50.0, 70.0, 60.0])
    weights = []

    def evaluate(module):
        weights.append({k: v.clone() for k, v in module.state_dict().items()})
        return {"accuracy": next(scores)}

    _, trained = run(train(epochs=3), output=tmp_path, evaluate=evaluate, main_metric="accuracy")
    assert [p.name for p in checkpoint.steps(tmp_path)] == ["step-00000010", "step-00000015"]
    assert trained.best == {"step": 10, "value": 70.0}
    assert trained.metrics == {"accuracy": 60.0}
    (best,) = (tmp_path / "checkpoints").glob("best-*")
    assert best.name == "best-00000010"
    kept = vit()
    from safetensors.torch import load_model

    load_model(kept, str(best / "model.safetensors"))
    assert all(torch.equal(v, weights[1][k]) for k, v in kept.state_dict().items())


def test_nan_is_never_the_best_metric():
    stand = train_run.Run(4, 0, 1, 1)
    seen = []
    for value in (80.0, float("nan"), 70.0, 90.0):
        stand.step, stand.metrics = stand.step + 1, {"accuracy": value}
        seen.append(stand.improves(Criterion(("accuracy",))))
    assert seen == [True, False, False, True]
    assert stand.best == {"step": 4, "value": 90.0, "key": [90.0]}


@pytest.mark.parametrize("ema", [None, 0.9])
def test_the_best_can_be_the_result(tmp_path, ema):
    scores = iter([50.0, 70.0, 60.0, 50.0, 70.0, 60.0])
    weights = []

    def evaluate(module):
        weights.append({k: v.clone() for k, v in module.state_dict().items()})
        return {"accuracy": next(scores)}

    watched = {"evaluate": evaluate, "main_metric": "accuracy", "output": tmp_path}
    module, trained = run(train(epochs=3, ema=ema, result="best"), **watched)
    assert trained.metrics == {"accuracy": 70.0}
    assert all(torch.equal(v, weights[1][k]) for k, v in module.state_dict().items())
    module, trained = run(train(epochs=3, ema=ema), **watched)
    assert trained.metrics == {"accuracy": 60.0}
    assert all(torch.equal(v, weights[5][k]) for k, v in module.state_dict().items())


def test_a_run_that_is_not_finished_is_not_overwritten(tmp_path):
    with pytest.raises(PelaError):
        run(train(), output=tmp_path, progress=stop_at(2))
    with pytest.raises(RequestError, match=r"stopped at step 2 of 5: continue it with --resume"):
        run(train(), output=tmp_path)
    with pytest.raises(RequestError, match="started with seed 3, not 5"):
        run(train(), output=tmp_path, resume=True, seed=5)
    with pytest.raises(RequestError, match="started with batches 5, not 2"):
        run(train(), output=tmp_path, resume=True, batches=digits(batch_size=80))
    with pytest.raises(PelaError, match="cannot be continued from"):
        run(train(), output=tmp_path, resume=True, module=vit(embed_dim=32))
    run(train(), output=tmp_path, resume=True)
    run(train(steps=1), output=tmp_path)  # a finished one gives way to the next
    assert [p.name for p in checkpoint.steps(tmp_path)] == ["step-00000001"]


def test_a_loss_that_is_not_finite_stops_the_run_before_the_update(tmp_path):
    def losses(module, batch, done):
        named = task(module, batch)
        losses.calls += 1
        return named | {"feature": named["task"] * (float("nan") if losses.calls == 4 else 0.1)}

    losses.calls = 0
    with pytest.raises(PelaError) as error:
        run(train(save_every=1), losses, output=tmp_path)
    assert str(error.value).startswith("not finite at step 4: task ")
    assert "feature nan" in str(error.value)
    good = checkpoint.steps(tmp_path)[-1]
    assert f"last good checkpoint: {good};" in str(error.value)
    assert good.name == "step-00000003"


def test_infinite_weights_are_never_saved(tmp_path):
    def losses(module, batch, done):
        return {"task": sum(p.sum() for p in module.parameters()) * 10}

    settings = train(opt="sgd", lr=1e38, save_every=1, sched="none")  # a step of 1e39 is infinite
    with pytest.raises(PelaError, match=r"not finite at step 1: .*last good checkpoint: none"):
        run(settings, losses, output=tmp_path)
    assert not checkpoint.steps(tmp_path)


def test_two_half_batches_make_one_whole():
    calm = {"drop_rate": 0.0, "drop_path_rate": 0.0}
    settings = {"opt": "sgd", "lr": 0.1, "epochs": 2}
    one, first = run(train(**settings), batches=digits(32, augment=PLAIN), module=vit(**calm))
    two, second = run(
        train(**settings, accumulate=2), batches=digits(16, augment=PLAIN), module=vit(**calm)
    )
    assert first.steps == second.steps == 10
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert first.losses["task"] == pytest.approx(second.losses["task"], rel=1e-4)


def test_losses_are_summed_and_logged_by_name(tmp_path):
    def losses(module, batch, done):
        value = task(module, batch)["task"]
        return {"task": value, "feature": 2 * value.detach() + 0 * value}

    run(train(steps=4, log_every=2), losses, output=tmp_path, evaluate=lambda m: {"x": 1.0})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert [line["step"] for line in lines] == [2, 4, 4]
    for line in lines[:2]:
        assert line["losses"]["feature"] == pytest.approx(2 * line["losses"]["task"])
        assert line["loss"] == pytest.approx(sum(line["losses"].values()))
        assert line["samples_per_s"] > 0
    assert lines[0]["epoch"] == 0.4
    assert lines[2]["metrics"] == {"x": 1.0}


def test_the_learning_rate_warms_up_to_what_was_asked_and_falls_by_updates(tmp_path):
    run(train(epochs=4, warmup_epochs=1, lr=0.01, warmup_lr=0.0, min_lr=0.0), output=tmp_path)
    rates = [json.loads(line)["lr"] for line in (tmp_path / "metrics.jsonl").open()]
    assert rates[:5] == pytest.approx([0.0, 0.002, 0.004, 0.006, 0.008])  # 5 updates an epoch
    import math

    cosine = [0.005 * (1 + math.cos(math.pi * t / 20)) for t in range(5, 20)]
    assert rates[5:] == pytest.approx(cosine)


def test_average_is_the_result_and_what_is_evaluated():
    seen = []
    moving, _ = run(
        train(epochs=2, ema=0.5), evaluate=lambda m: seen.append(m) or {"accuracy": 1.0}
    )
    last, _ = run(train(epochs=2))
    assert not same(moving, last)
    assert same(seen[-1], moving)
    assert not moving.training
    # written out: n-th decay 1 − n^(−3/4), at most 0.5; the first update copies
    weights, average = [], None

    def losses(module, batch, done):
        weights.append([p.detach().clone() for p in module.parameters()])
        return task(module, batch)

    run(train(epochs=2), losses)
    weights = [*weights[1:], [p.detach() for p in last.parameters()]]
    for n, now in enumerate(weights):
        decay = min(0.5, 1 - (n + 1) ** -0.75)
        average = (
            now
            if average is None
            else [decay * a + (1 - decay) * b for a, b in zip(average, now, strict=True)]
        )
    for a, b in zip(average, moving.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_only_matrices_decay_that_are_not_listed_otherwise():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(3, 4), nn.Linear(4, 3, bias=False)
            self.norm, self.temp = nn.LayerNorm(4), nn.Parameter(torch.tensor(1.0))
            self.pos_embed = nn.Parameter(torch.zeros(1, 2, 4))
            self.own = nn.Parameter(torch.zeros(2, 2))

        def no_weight_decay(self):
            return {"own"}

    model = Model()
    made = optim.optimizer(model, train(weight_decay=0.3, betas=(0.8, 0.9)))
    names = {id(p): n for n, p in model.named_parameters()}
    decayed = {names[id(p)] for g in made.param_groups if g["weight_decay"] for p in g["params"]}
    assert decayed == {"up.weight", "down.weight"}
    assert {g["weight_decay"] for g in made.param_groups} == {0.0, 0.3}
    assert sum(len(g["params"]) for g in made.param_groups) == len(names)
    assert made.param_groups[0]["betas"] == (0.8, 0.9)


def test_layer_decay_scales_the_rates():
    settings = train(lr=1.0, layer_decay=0.5)
    made = optim.optimizer(vit(), settings)
    optim.schedule(made, settings, 10, 5)
    assert {g["lr"] for g in made.param_groups} == {1.0, 0.5, 0.25, 0.125}


def test_bf16_trains_and_keeps_weights_in_float32(monkeypatch):
    # A CPU without bf16 imitates it, which is slow and as exact.
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"bf16": True}, raising=False)
    dtypes = set()

    def losses(module, batch, done):
        output = module(batch["inputs"])
        dtypes.add(output.dtype)
        return {"task": F.cross_entropy(output, batch["labels"])}

    module, trained = run(train(epochs=2, precision="bf16"), losses)
    assert dtypes == {torch.bfloat16}
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    _, exact = run(train(epochs=2))  # and precision can change within a process
    assert trained.losses["loss"] == pytest.approx(exact.losses["loss"], rel=0.05)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_weights_stored_in_half_precision_are_trained_in_float32(stored):
    """Steps too small for half precision count."""
    settings = train(steps=3, lr=1e-6, min_lr=0.0)
    halved, _ = run(settings, module=vit().to(stored))
    exact, _ = run(settings, module=vit().to(stored).float())
    assert {p.dtype for p in halved.parameters()} == {torch.float32}
    assert same(halved, exact)
    assert not same(halved, vit().to(stored).float())


def test_fp16_without_a_gpu_trains_in_float32_and_warns(monkeypatch):
    warnings = []
    monkeypatch.setattr(acceleration, "warn_once", lambda _, text: warnings.append(text))
    module, _ = run(train(steps=2, precision="fp16"))
    [warning] = warnings
    assert warning.startswith("precision = 'fp16': fp16 is for GPUs")
    assert warning.endswith(": training in fp32")
    exact, _ = run(train(steps=2))
    for ours, theirs in zip(module.parameters(), exact.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_checkpointing_recomputes_the_same_gradients():
    one, _ = run(train(steps=2), module=vit(drop_rate=0.0, drop_path_rate=0.0))
    two, _ = run(train(steps=2, checkpointing=True), module=vit(drop_rate=0.0, drop_path_rate=0.0))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert not two.grad_checkpointing
    with pytest.raises(RequestError, match="cannot recompute"):
        run(train(checkpointing=True), module=nn.Linear(2, 2))


def test_channels_last_holds_during_training_only():
    seen = []

    def losses(module, batch, done):
        for tensor in (module.patch_embed.proj.weight, batch["inputs"]):
            seen.append(tensor.is_contiguous(memory_format=torch.channels_last))
        return task(module, batch)

    module, _ = run(
        train(steps=1, channels_last=True), losses, module=vit(in_chans=3), batches=colours()
    )
    assert seen == [True, True]
    weight = module.patch_embed.proj.weight
    assert weight.is_contiguous()
    assert not weight.is_contiguous(memory_format=torch.channels_last)


def colours():
    inputs = ImageInput((3, 8, 8), (0.5,) * 3, (0.5,) * 3, "bilinear")
    dataset = open_dataset("digits", "train", inputs=inputs, training=True, augment=PLAIN)
    return loader(dataset, batch_size=8, num_classes=10, limit=8)


def test_training_halves_the_loss():
    module = vit(drop_rate=0.0, drop_path_rate=0.0)
    _, before = run(train(steps=1), batches=digits(augment=PLAIN), module=vit())
    _, after = run(train(epochs=40), batches=digits(augment=PLAIN), module=module)
    assert after.losses["task"] < 0.5 * before.losses["task"]


def test_the_number_of_updates_follows_from_epochs_batches_and_steps():
    assert updates(train(epochs=0.5), 10) == 5
    assert updates(train(epochs=0.1), 230) == 23
    assert updates(train(epochs=3, accumulate=2), 5) == 8
    assert updates(train(epochs=3, steps=4), 5) == 4


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"opt": "adamwx"}, "opt 'adamwx': timm refuses"),
        ({"sched": "cosin"}, "sched 'cosin': timm refuses"),
        ({"sched": "plateau"}, "sched 'plateau': timm refuses"),
        ({"trackers": ["nosuch"]}, "tracker 'nosuch': "),
    ],
)
def test_names_that_no_library_knows_are_refused(changed, message):
    with pytest.raises(RequestError, match=message):
        run(train(**changed))


def test_losses_that_do_not_reach_the_model_are_refused():
    for losses in (lambda m, b, done: {}, lambda m, b, done: {"task": torch.tensor(1.0)}):
        with pytest.raises(RequestError, match="nothing to train on"):
            run(train(), losses)
