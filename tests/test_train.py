"""The loop: gradients, schedule, rows, objectives, precision, limits."""

import json
import math
import sys
import types

import numpy as np
import pytest
import torch

from minilm.data import TokenStream
from minilm.evaluate import batch_loss
from minilm.feed import Feed
from minilm.model import MiniLM, ModelConfig
from minilm.optim import AdamW, warmup_cosine
from minilm.pairs import pair_batch
from minilm.precision import LossScaler
from minilm.run import Run, make_optimizer, pick_device
from minilm.tokenizer import Tokenizer
from minilm.train import fix_steps, train
from minilm.trainconfig import TrainConfig

SIZES = {"vocab_size": 40, "context_length": 8, "d_model": 16, "n_layers": 1, "n_heads": 2}


def make_model(seed: int = 0, **changes) -> MiniLM:
    torch.manual_seed(seed)
    return MiniLM(ModelConfig(**(SIZES | {"position": "rope"} | changes)))


def make_stream(n: int = 400, n_bytes: int | None = 1200) -> TokenStream:
    """A learnable stream: each id is the one before plus one or two."""
    steps = np.random.default_rng(0).integers(1, 3, n)
    return TokenStream(np.cumsum(steps) % 40, n_bytes, 40)


def test_rows_say_what_happened():
    config = TrainConfig(steps=6, batch_size=4, lr=1e-2, min_lr=1e-3, warmup=2)
    stream = make_stream()
    rows = train(make_model(), stream, config, valid=make_stream(100, 300))
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["tokens"] for row in rows] == [32 * k for k in range(1, 7)]
    for row in rows:
        lr = warmup_cosine(row["step"], steps=6, warmup=2, lr=1e-2, min_lr=1e-3)
        assert row["lr"] == lr and row["tokens_per_second"] > 0 and row["grad_norm"] > 0
        per_byte = row["loss"] / math.log(2) * len(stream) / stream.n_bytes
        assert row["bits_per_byte"] == pytest.approx(per_byte)
    assert "valid_loss" in rows[-1] and "valid_loss" not in rows[-2]


def test_a_step_is_the_loop_of_the_lesson():
    """Run.step against the loop written out with torch's own optimizer."""
    config = TrainConfig(steps=5, batch_size=4, lr=1e-2, warmup=1, clip=0.5, weight_decay=0.1)
    stream = make_stream()
    ours, theirs = make_model(), make_model()
    rows = train(ours, stream, config)
    groups = [
        {"params": [p for p in theirs.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in theirs.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95))
    for step in range(1, 6):
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine(step, steps=5, warmup=1, lr=1e-2, min_lr=0.0)
        optimizer.zero_grad()
        loss = theirs.loss(stream.batch_at(step - 1, 4, 8, seed=0)["ids"])
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        optimizer.step()
        assert rows[step - 1]["loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert rows[step - 1]["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def gradients(accumulation: int, batch: dict, weigh: bool = True) -> dict[str, torch.Tensor]:
    model = make_model().double()
    config = TrainConfig(steps=1, batch_size=4, accumulation=accumulation, clip=None)
    run = Run(model, [batch], config, None, None)
    if weigh:
        run._backward(batch)
    else:  # the mistake: every part counts the same
        for k in range(accumulation):
            part = {n: t.chunk(accumulation)[k] for n, t in batch.items()}
            (model.loss(part["ids"], part["mask"]) / accumulation).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def test_accumulation_equals_the_large_batch_with_unequal_target_counts():
    ids = torch.randint(0, 40, (4, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(4, 9, dtype=torch.bool)
    for row, n in enumerate((8, 1, 0, 3)):
        mask[row, 1 : n + 1] = True
    batch = {"ids": ids, "mask": mask}
    whole = gradients(1, batch)
    for parts in (2, 4):
        for name, grad in gradients(parts, batch).items():
            torch.testing.assert_close(grad, whole[name], rtol=1e-12, atol=1e-14)
    wrong = gradients(2, batch, weigh=False)
    assert any(not torch.allclose(wrong[n], whole[n], rtol=1e-3) for n in whole)  # control


def test_one_batch_can_be_learned_by_heart():
    batch = {"ids": torch.randint(0, 40, (2, 9), generator=torch.Generator().manual_seed(1))}
    config = TrainConfig(steps=120, batch_size=2, lr=1e-2, weight_decay=0.0)
    rows = train(make_model(d_model=32), [batch], config)
    assert rows[0]["loss"] > 3 and rows[-1]["loss"] < 0.1
    assert rows[0]["bits_per_byte"] is None  # the bytes behind a plain batch are not known


@pytest.mark.parametrize("optimizer, lr", [("adamw", 1e-2), ("lion", 2e-3), ("sgd", 0.3)])
def test_every_optimizer_learns(optimizer, lr):
    config = TrainConfig(steps=80, batch_size=8, lr=lr, optimizer=optimizer, weight_decay=0.01)
    rows = train(make_model(), make_stream(), config)
    first, last = (sum(r["loss"] for r in part) / 5 for part in (rows[:5], rows[-5:]))
    assert last < first - 1.0


def test_the_masked_objective_learns_and_hides_what_it_asks_for():
    tok = Tokenizer.train(["abcdefgh" * 40], 258, special_tokens=("<|endoftext|>", "<|mask|>"))
    stream = TokenStream.from_texts(["abcdefgh" * 40], tok)
    torch.manual_seed(0)
    model = MiniLM(ModelConfig(**(SIZES | {"vocab_size": 258, "causal": False})))
    config = TrainConfig(
        steps=150, batch_size=8, lr=1e-2, objective="masked", mask_p=0.2, weight_decay=0.0
    )
    feed = Feed(stream, config, model.config, tok)
    batch = feed.batch(1)
    hidden = batch["ids"] == tok.special_tokens["<|mask|>"]
    assert hidden.any() and bool((batch["mask"] | ~hidden).all())
    assert batch["ids"].shape == (8, 8)  # no shift, so T and not T + 1
    again = feed.batch(1)
    assert all(torch.equal(batch[n], again[n]) for n in batch)  # a function of the step
    rows = train(model, stream, config, tok=tok)
    late = sum(row["loss"] for row in rows[-20:]) / 20
    assert (
        late < 1.5 < math.log(8) < rows[0]["loss"]
    )  # eight letters, told apart by their neighbours
    assert rows[0]["bits_per_byte"] is None


def masked_setup(**changes):
    model = make_model(causal=False)
    config = TrainConfig(steps=3, batch_size=2, objective="masked", mask_id=39, **changes)
    return model, config


def test_the_masked_objective_is_validated_in_one_way_and_without_bits_per_byte():
    model, config = masked_setup(seed=5)
    valid = make_stream(100)
    feed = Feed(make_stream(), config, model.config)
    ids = [list(map(torch.Tensor.tolist, b.values())) for b in feed.validation(valid)]
    other = Feed(make_stream(), masked_setup(seed=6)[1], model.config)
    assert ids == [list(map(torch.Tensor.tolist, b.values())) for b in other.validation(valid)]
    rows = train(model, make_stream(), config, valid=valid)
    assert 0 < rows[-1]["valid_loss"] < 6 and rows[-1]["valid_bits_per_byte"] is None


def test_each_step_and_seed_has_its_own_corruption():
    batch = make_stream().batch_at(0, 2, 8)
    model, config = masked_setup(seed=1, mask_p=0.5)
    feed = Feed([batch], config, model.config)
    masks = [feed.batch(step)["mask"] for step in (1, 2)]
    masks.append(Feed([batch], masked_setup(seed=2, mask_p=0.5)[1], model.config).batch(1)["mask"])
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert not torch.equal(masks[i], masks[j])


def test_given_batches_come_in_order_and_again():
    batches = [make_stream().batch_at(step, 2, 8) for step in range(3)]
    config = TrainConfig(steps=9)
    feed, late = (Feed(batches, config, make_model().config) for _ in range(2))
    assert [feed.batch(step) is batches[(step - 1) % 3] for step in range(1, 8)] == [True] * 7
    assert late.batch(6) is batches[2]


def test_padding_is_neither_hidden_from_nor_asked_of_a_masked_model():
    model, config = masked_setup(mask_p=1.0)
    batch = pair_batch([([1, 2], [3]), ([4], [5, 6, 7, 8, 9])], 8, pad_id=0)
    made = Feed([batch], config, model.config).batch(1)
    real = batch["segments"][:, :8] >= 0
    assert torch.equal(made["mask"], real) and torch.equal(made["segments"] >= 0, real)
    loss = batch_loss(model, made)
    made["ids"] = torch.where(real, made["ids"], 17)  # other padding changes nothing
    torch.testing.assert_close(batch_loss(model, made), loss)


def test_a_float16_step_that_overflows_is_skipped_and_said_so():
    model = make_model()
    before = [p.clone() for p in model.parameters()]
    config = TrainConfig(steps=2, batch_size=2, dtype="float16")  # the last step has min_lr = 0
    run = Run(model, make_stream(), config, None, None)
    run.start()
    run.scaler.scale = 2.0**60
    assert run.step(1)["grad_norm"] is None and run.scaler.scale == 2.0**59
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    run.scaler.scale = 2.0**10
    assert run.step(1)["grad_norm"] > 0  # control: without the overflow it is taken
    assert not all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits_follow_float32(dtype):
    config = {"steps": 30, "batch_size": 8, "lr": 1e-2}
    full = train(make_model(), make_stream(), TrainConfig(**config))
    half = train(make_model(), make_stream(), TrainConfig(**config, dtype=dtype))
    assert half[0]["loss"] != full[0]["loss"]  # it did run in another precision
    assert half[-1]["loss"] == pytest.approx(full[-1]["loss"], abs=0.1)
    assert half[0]["grad_norm"] == pytest.approx(full[0]["grad_norm"], rel=0.1)  # unscaled


def test_loss_scaling_saves_gradients_that_float16_cannot_hold():
    gradient = 1e-8
    assert torch.tensor(gradient).half().item() == 0  # lost
    scale = LossScaler().scale
    saved = torch.tensor(gradient * scale).half().float() / scale
    assert saved.item() == pytest.approx(gradient, rel=1e-3)


def test_the_loss_scaler_halves_skips_and_doubles():
    scaler = LossScaler(scale=8.0, patience=2)
    assert not scaler.update(math.inf) and scaler.scale == 4.0
    assert scaler.update(1.0) and scaler.scale == 4.0
    assert scaler.update(1.0) and scaler.scale == 8.0
    other = LossScaler()
    other.restore(json.loads(json.dumps(scaler.to_dict())))
    assert other.to_dict() == scaler.to_dict()
    with pytest.raises(FloatingPointError, match="even without loss scaling"):
        for _ in range(9):
            scaler.update(math.nan)


def test_a_loss_that_is_not_finite_stops_with_the_step():
    model = make_model()

    def poison(model, row):
        if row["step"] == 3:
            model.final_norm.weight.data.fill_(math.nan)

    with pytest.raises(FloatingPointError, match=r"nan at step 4.*learning rate.*losses before"):
        train(model, make_stream(), TrainConfig(steps=9, batch_size=2), callback=poison)


def test_the_callback_sees_gradients():
    seen = []

    def look(model, row):
        seen.append((row["step"], model.head_weight.grad.abs().sum().item() > 0))

    train(
        make_model(), make_stream(), TrainConfig(steps=4, batch_size=2, log_every=2), callback=look
    )
    assert seen == [(2, True), (4, True)]


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """A clock that stands still but for what is known to take time: clock[0] is now, in seconds."""
    module, now = sys.modules["minilm.train"], [1000.0]

    def lasting(seconds, work):
        def slow(*args, **options):
            result = work(*args, **options)
            now[0] += seconds(result)
            return result

        return slow

    monkeypatch.setattr(module, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(Run, "step", lasting(lambda row: 0.1, Run.step))
    monkeypatch.setattr(Run, "save", lasting(lambda _: 0.15, Run.save))
    validation = lasting(lambda result: 0.005 * result.tokens, module.evaluate)
    monkeypatch.setattr(module, "evaluate", validation)
    return now


@pytest.mark.parametrize("changes", [{}, {"eval_every": 20}, {"eval_every": 50, "save_every": 5}])
def test_minutes_count_everything(clock, tmp_path, changes):
    """60 s from `started`: 5 s are over, a step takes 0.1 s, a validation 1.5 s, saving 0.15 s."""
    started = clock[0] - 5
    config = TrainConfig(minutes=1.0, batch_size=2, **changes)
    model, valid = make_model(), make_stream(301)
    rows = train(model, make_stream(), config, valid=valid, out=tmp_path, started=started)
    assert 60 * 0.85 < clock[0] - started < 60 * 0.97  # 5 % in hand, of which rounding takes some
    assert rows[-1]["lr"] == 0.0 and "valid_loss" in rows[-1]  # the schedule ran to its end


def test_minutes_are_turned_into_steps_without_training(clock):
    model, stream = make_model(), make_stream()
    before = [p.clone() for p in model.parameters()]
    config = fix_steps(model, stream, TrainConfig(minutes=0.5, batch_size=2))
    assert config.minutes is None and 250 < config.steps < 300
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    batches = [stream.batch_at(0, 2, 8)] * 3  # 16 targets each
    fewer = fix_steps(model, batches, TrainConfig(minutes=0.5), valid=batches * 40)
    assert config.steps - fewer.steps == pytest.approx(40 * 3 * 16 * 0.005 / 0.1, abs=5)
    with pytest.raises(ValueError, match="over before the first step"):
        fix_steps(model, stream, TrainConfig(minutes=0.5), started=clock[0] - 30)


@pytest.mark.parametrize("length", [{"steps": 1}, {"minutes": 0.05}])
def test_the_number_of_threads_is_as_before(clock, length):
    seen = set()
    config = TrainConfig(**length, batch_size=2, threads=1)
    torch.set_num_threads(2)
    rows = train(
        make_model(),
        make_stream(),
        config,
        callback=lambda *_: seen.add(torch.get_num_threads()),
    )
    assert rows and seen == {1} and torch.get_num_threads() == 2


def test_what_does_not_fit_together_is_refused(tmp_path):
    stream = make_stream()
    cases = [
        (make_model(), TrainConfig(steps=1, objective="masked"), "causal=False"),
        (make_model(causal=False), TrainConfig(steps=1), "causal=True"),
        (make_model(causal=False), TrainConfig(steps=1, objective="masked"), "mask_id"),
        (make_model(vocab_size=30), TrainConfig(steps=1), "40 tokens, the model only 30"),
        (make_model(position="learned"), TrainConfig(steps=1, context_length=9), "learned 8"),
    ]
    for model, config, message in cases:
        with pytest.raises(ValueError, match=message):
            train(model, stream, config)
    with pytest.raises(ValueError, match="iterator ended"):
        train(make_model(), iter([stream.batch_at(0, 2, 8)]), TrainConfig(steps=2, batch_size=2))
    config = TrainConfig(steps=2, batch_size=2)
    train(make_model(), stream, config, out=tmp_path / "run")
    with pytest.raises(ValueError, match="holds a run"):
        train(make_model(), stream, config, out=tmp_path / "run")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"steps": 0}, "steps: must be"),
        ({"steps": 3, "minutes": 1.0}, "give one"),
        ({"lr": -1.0}, "lr: must be"),
        ({"lr": 1e-3, "min_lr": 1e-2}, "min_lr: must be at most"),
        ({"batch_size": 2, "accumulation": 3}, "accumulation: must be at most batch_size = 2"),
        ({"optimizer": "adam"}, "'adamw' or 'lion' or 'sgd'"),
        ({"dtype": "int8"}, "dtype: must be"),
        ({"objective": "prefix"}, "objective: must be"),
        ({"device": "tpu"}, "device: must be"),
        ({"betas": (0.9, 1.0)}, "betas: must be"),
        ({"mask_p": 0.0}, "mask_p: must be"),
        ({"backend": "jax"}, "backend: got 'jax', allowed are 'torch', 'numba'"),
        ({"steps": 5, "warmup": 6}, "warmup: must be at most steps"),
    ],
)
def test_a_bad_config_names_the_field(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**changes)


def test_the_config_survives_json():
    config = TrainConfig(steps=3, betas=(0.8, 0.9), warmup=2)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ValueError, match="'speed'"):
        TrainConfig.from_dict({"speed": 1})


def test_devices_and_optimizers_are_found_by_name():
    assert pick_device("cpu") == torch.device("cpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="'cuda' is not available"):
            pick_device("cuda")
    optimizer = make_optimizer(make_model(), TrainConfig(steps=1))
    assert isinstance(optimizer, AdamW)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.0]
