"""Every exercise: the stub is "not attempted", the solution passes, typical wrong answers fail."""

import hashlib
import linecache
import math
import random
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mutants import MUTANTS, SIMPLEST

from minilm import exercises
from minilm.exercises import launching
from minilm.exercises.exercise import Exercise, Verdict, cut, exercise
from minilm.exercises.trial import NotAttempted, Trial, Wrong, calls_to, guarded, show

WRITTEN = [name for name in exercises.names() if exercises.get(name).kind != "predict"]
PREDICTED = [name for name in exercises.names() if exercises.get(name).kind == "predict"]


def run_cell(source):
    """What a notebook cell defines; the names that a notebook imports are there, and its text can
    be looked up by line, as that of a cell can."""
    names = {"torch": torch, "F": F, "math": math, **launching.names()}
    place = f"<cell {hashlib.sha256(source.encode()).hexdigest()[:8]}>"
    linecache.cache[place] = (len(source), None, source.splitlines(keepends=True), place)
    exec(compile(source, place, "exec"), names)
    return names


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.allclose(a.double(), b.double(), equal_nan=True)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == pytest.approx(b) if isinstance(a, float) else a == b


@pytest.mark.parametrize("name", WRITTEN)
def test_the_stub_is_not_attempted(name, capsys):
    entry = exercises.get(name)
    assert exercises.check(name, run_cell(entry.stub)[entry.variable]) is False
    assert capsys.readouterr().out == f"… {name}: not attempted yet\n"


@pytest.mark.parametrize("name", WRITTEN)
def test_the_solution_passes(name, capsys):
    entry = exercises.get(name)
    assert exercises.check(name, run_cell(exercises.solution(name))[entry.variable]) is True
    assert re.fullmatch(rf"✓ {name}: (\d+) checks passed\n", capsys.readouterr().out)


@pytest.mark.parametrize("name", WRITTEN)
def test_verdicts_are_the_same_each_time_and_leave_the_random_state_alone(name):
    solution = exercises.get(name).function
    wrong = MUTANTS[name][0].function
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    first = [str(exercises.grade(name, answer)) for answer in (solution, wrong)]
    torch.manual_seed(1)
    second = [str(exercises.grade(name, answer)) for answer in (solution, wrong)]
    assert first == second
    torch.set_rng_state(before[0])
    exercises.grade(name, solution)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]


WRONG = [(name, mutant) for name in WRITTEN for mutant in MUTANTS[name]]
IDS = [f"{name}-{mutant.function.__name__}" for name, mutant in WRONG]


@pytest.mark.parametrize(("name", "mutant"), WRONG, ids=IDS)
def test_a_wrong_answer_fails_with_the_right_hint(name, mutant):
    verdict = exercises.grade(name, mutant.function)
    assert verdict.status == "wrong", verdict
    assert mutant.fragment in str(verdict)
    assert " at 0x" not in str(verdict) and "\n" not in str(verdict)


@pytest.mark.parametrize(("name", "mutant"), WRONG, ids=IDS)
def test_what_is_said_to_be_right_on_the_simplest_input_is(name, mutant):
    run, solution = SIMPLEST[name], exercises.get(name).function
    try:
        right = same(run(mutant.function), run(solution))
    except Exception:
        right = False
    assert right or not mutant.right_on_simplest


@pytest.mark.parametrize("name", WRITTEN)
def test_there_are_enough_wrong_answers(name):
    assert len(MUTANTS[name]) >= 3
    assert any(mutant.right_on_simplest for mutant in MUTANTS[name])


def test_no_wrong_answer_is_without_an_exercise():
    assert set(MUTANTS) == set(SIMPLEST) == set(WRITTEN)


@pytest.mark.parametrize("name", PREDICTED)
def test_a_prediction_is_right_wrong_or_not_attempted(name, capsys):
    prediction = exercises.get(name)
    assert exercises.check(name, None) is exercises.check(name, ...) is False
    assert capsys.readouterr().out == f"… {name}: not attempted yet\n" * 2
    assert run_cell(prediction.stub)["my_answer"] is None
    assert exercises.check(name, run_cell(prediction.answered)["my_answer"]) is True
    assert prediction.because in capsys.readouterr().out
    if not prediction.choices:
        assert exercises.grade(name, prediction.answer * 1.005).passed
        assert not exercises.grade(name, prediction.answer * 1.02).passed
    for wrong in ("no such answer", [], float("nan"), print):
        assert exercises.grade(name, wrong).status == "wrong"


@pytest.mark.parametrize("name", PREDICTED)
def test_every_wrong_choice_has_its_own_hint(name):
    prediction = exercises.get(name)
    hints = list(prediction.mistakes.values())
    assert len(hints) == len(set(hints)) >= 3
    if prediction.choices:
        assert set(prediction.choices) - set(prediction.mistakes) == {prediction.answer}
        assert all(key == key.strip().lower() for key in prediction.choices)
    else:
        assert prediction.otherwise
    for value, hint in prediction.mistakes.items():
        verdict = exercises.grade(name, value)
        assert verdict.status == "wrong" and verdict.hint == hint


@pytest.mark.parametrize("name", exercises.names())
def test_an_exercise_is_complete(name):
    entry = exercises.get(name)
    assert re.fullmatch(r"[a-z_]+\.[a-z_]+", name)
    assert re.fullmatch(r"\d\d_[a-z_]+", entry.notebook)
    assert entry.function.__name__.startswith("my_")
    assert 1 <= entry.minutes <= 20 and entry.difficulty in (1, 2, 3)
    assert len(entry.hints) >= 2 and len(entry.statement) > 60
    assert all(len(line) <= 100 for line in (entry.stub + entry.solution).splitlines())
    assert "# solution:" not in entry.stub + entry.solution
    assert entry.stub != entry.solution


def test_names_are_in_the_order_of_the_course():
    notebooks = [exercises.get(name).notebook for name in exercises.names()]
    assert notebooks == sorted(notebooks)
    per_notebook = {notebook: exercises.names(notebook) for notebook in notebooks}
    assert sum(per_notebook.values(), []) == exercises.names()
    for names in per_notebook.values():  # a prediction in each notebook
        assert any(exercises.get(name).kind == "predict" for name in names)


def test_an_unknown_name_is_an_error_that_helps():
    with pytest.raises(ValueError, match="did you mean 'heads.softmax'"):
        exercises.check("heads.softmx", None)
    with pytest.raises(ValueError, match="one of start.surprisal"):
        exercises.solution("?")


def test_hints_come_one_by_one(capsys):
    name = "heads.softmax"
    hints = exercises.get(name).hints
    for _ in range(len(hints) + 1):
        exercises.hint(name)
    lines = capsys.readouterr().out.splitlines()
    for n, (line, text) in enumerate(zip(lines, hints, strict=False), 1):
        assert line == f"Hint {n} of {len(hints)}: {text}"
    assert lines[-1].endswith(f'print(exercises.solution("{name}"))')
    exercises.hint(name, 2)
    assert capsys.readouterr().out == f"Hint 2 of {len(hints)}: {hints[1]}\n"
    with pytest.raises(ValueError, match=f"n: {name} has hints 1 to {len(hints)}, got 0"):
        exercises.hint(name, 0)


def test_a_console_without_the_signs_still_gets_its_line(monkeypatch):
    import io

    raw = io.BytesIO()
    console = io.TextIOWrapper(raw, encoding="cp1252", newline="\n")
    monkeypatch.setattr("sys.stdout", console)
    exercises.check("heads.softmax", 3)
    console.flush()
    line = raw.getvalue().decode("cp1252")
    assert line.startswith("? heads.softmax: 3 is not a function")


# The cutting of sources


SOURCE = '''\
def my_f(x):
    """Doc."""
    a = 1
    # given:
    # if x:
    #     a = 2
    #
    # solution:
    a = x  # why
    # end
    for i in x:
        # solution:
        a += i
        # end
        pass
    return a
'''


def test_stub_and_solution_are_cut_from_one_source():
    stub, solution = cut(SOURCE)
    assert stub == (
        'def my_f(x):\n    """Doc."""\n    a = 1\n    if x:\n        a = 2\n    \n'
        "    for i in x:\n        raise NotImplementedError\n        pass\n    return a\n"
    )
    assert solution == (
        'def my_f(x):\n    """Doc."""\n    a = 1\n    a = x  # why\n'
        "    for i in x:\n        a += i\n        pass\n    return a\n"
    )


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="one with the name 'heads.softmax' already"):

        def my_softmax(x):
            return x

        my_softmax.__module__ = "minilm.exercises.heads"
        exercise(notebook="03_attention_head", minutes=1, difficulty=1, hints=())(my_softmax)


def test_a_repair_is_attempted_once_its_code_changes():
    entry = exercises.get("batches.windows")
    given = run_cell(entry.stub)["my_windows"]
    renamed = run_cell(entry.stub.replace("    n_rows", "\n    # what is this?\n    n_rows"))
    assert exercises.grade("batches.windows", given).status == "not attempted"
    assert exercises.grade("batches.windows", renamed["my_windows"]).status == "not attempted"
    changed = run_cell(entry.stub.replace("len(ids) //", "len(ids) - 1 //"))
    assert exercises.grade("batches.windows", changed["my_windows"]).status == "wrong"


# The trial


def double(x):
    return x * 2


def a_trial(answer, **options):
    return Trial(double, answer, **options)


def wrong_call(answer, *args, **options):
    with pytest.raises(Wrong) as caught:
        a_trial(answer, **options).call(*args)
    return caught.value


def test_an_exception_becomes_a_verdict_with_the_line():
    def answer(x):
        y = x + 1
        return y / 0

    wrong = wrong_call(answer, 3)
    line = answer.__code__.co_firstlineno + 2
    message = f"double(3) raised ZeroDivisionError: division by zero in line {line} (return y / 0)"
    assert wrong.text == message and wrong.hint


def test_the_line_is_the_answers_own_where_torch_raises():
    def answer(x):
        return x @ torch.ones(7)

    text = wrong_call(answer, torch.ones(2, 3)).text
    assert text.startswith("double(a tensor (2, 3)) raised RuntimeError: ")
    assert text.endswith("(return x @ torch.ones(7))")


def test_a_wrong_number_of_parameters_is_a_verdict():
    def answer(x, y):
        return x

    assert "TypeError" in wrong_call(answer, 3).text


def test_not_implemented_is_the_stub_only_where_the_answer_says_so():
    def stub(x):
        raise NotImplementedError

    def torch_says_so(x):
        class Mine(torch.nn.Module):
            pass

        return Mine()(x)  # a module without forward

    with pytest.raises(NotAttempted):
        a_trial(stub).call(1)
    assert "NotImplementedError" in wrong_call(torch_says_so, 1).text


def test_none_is_no_result():
    assert wrong_call(lambda x: None, 1).text == "double(1) returned None"
    assert a_trial(lambda x: None).call_or_none(1) is None
    assert a_trial(lambda x: None, in_place=("x",)).call(1) is None


@pytest.mark.parametrize(
    ("value", "spoil"),
    [
        (torch.arange(3.0), lambda x: x.add_(1)),
        (torch.tensor([1.0, math.nan]), lambda x: x.nan_to_num_()),
        ([1, 2], lambda x: x.append(3) or x),
        ({"a": [1]}, lambda x: x["a"].append(2) or x),
        ((torch.zeros(2),), lambda x: x[0].add_(1)),
    ],
)
def test_an_argument_that_was_changed_is_noticed(value, spoil):
    assert a_trial(lambda x: (x, x)).call(value)
    assert "changed its argument x" in wrong_call(spoil, value).text
    assert a_trial(spoil, in_place=("x",)).call(value) is not None


def test_forbidden_operations_are_noticed_however_they_are_reached():
    x = torch.zeros(2, 2)
    softmax = torch.softmax
    ways = [
        lambda x: softmax(x, -1),
        lambda x: x.softmax(-1),
        lambda x: F.softmax(x, dim=-1),
        lambda x: torch.nn.Softmax(-1)(x),
        lambda x: torch.special.softmax(x, -1),
        lambda x: next(map(lambda row: torch.softmax(row, -1), [x])),
    ]
    for way in ways:
        assert wrong_call(way, x, forbidden=("softmax",)).text == "it calls torch's softmax"
    a_trial(lambda x: x.exp() / x.exp().sum(-1, keepdim=True), forbidden=("softmax",)).call(x)


def test_a_forbidden_call_is_noticed_even_where_the_answer_hides_its_failure():
    def answer(x):
        try:
            return torch.softmax(x, 99)
        except IndexError:
            return x

    assert "calls torch's softmax" in wrong_call(answer, torch.ones(2), forbidden=("softmax",)).text


def test_the_package_and_modules_are_noticed_and_the_profiler_comes_back():
    import sys

    from minilm.optim import warmup_cosine

    def other(frame, event, arg):
        pass

    sys.setprofile(other)
    try:
        with calls_to(("torch.optim",)) as called:
            warmup_cosine(1, steps=2, lr=1.0)
            torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        assert sys.getprofile() is other
    finally:
        sys.setprofile(None)
    assert called[0] == "minilm.optim.warmup_cosine"
    assert any(name.startswith("torch.optim") for name in called[1:])
    with calls_to(()) as called:
        torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        exercises.get("heads.softmax").function(torch.zeros(2))
    assert called == []


def test_what_only_lives_in_a_forbidden_module_is_allowed():
    solution = exercises.get("training.cross_entropy").function

    def without_gradients(logits, targets):
        with torch.no_grad():  # it is in torch.autograd, and no way to get a gradient
            return solution(logits, targets)

    assert exercises.grade("training.cross_entropy", without_gradients).passed


def test_guarded_memory_tells_of_writes_beside_it():
    values = torch.arange(6.0).view(2, 3)
    view, intact = guarded(values)
    assert torch.equal(view, values)
    view.mul_(-1)
    assert intact() and torch.equal(view, -values)
    for offset in (-1, view.numel()):
        view, intact = guarded(values)
        start = view.storage_offset()
        view.as_strided((1,), (1,), start + offset)[0] = 99
        assert not intact()


def test_close_knows_shapes_kinds_and_known_mistakes():
    want = torch.tensor([1.0, 2.0])
    trial = a_trial(double)
    trial.close(want.clone(), want, "text", "hint")
    trial.close([1.0, 2.0], want, "text", "hint")
    trial.close(want.double() + 1e-7, want, "text", "hint")
    assert trial.passed == 3
    for got, text, hint in [
        (torch.tensor([1.0, 3.0]), "text", "hint"),
        (torch.tensor([2.0, 1.0]), "text", "turned"),
        (torch.tensor([1.0, math.nan]), "text", "hint"),
        (torch.tensor([[1.0, 2.0]]), "(1, 2), expected (2,)", "hint"),
        ("1, 2", "not a tensor", "must be a tensor (2,)"),
    ]:
        with pytest.raises(Wrong) as caught:
            trial.close(got, want, "text", "hint", [(want.flip(0), "turned")])
        assert text in caught.value.text and hint in caught.value.hint
    assert trial.passed == 3


def test_a_result_of_another_kind_is_a_verdict_and_no_crash():
    for name in WRITTEN:
        for result in ("text", 3, [], (None, None), object(), torch.zeros(0)):
            verdict = exercises.grade(name, lambda *args, result=result, **options: result)
            assert verdict.status == "wrong", (name, result)
            assert "0x" not in str(verdict)


def test_what_is_not_a_function_is_said_so():
    verdict = exercises.grade("heads.softmax", torch.zeros(2))
    assert verdict.text == "a tensor (2,) is not a function" and "my_softmax" in verdict.hint
    assert exercises.grade("heads.softmax", None).status == "not attempted"


def test_interrupting_an_answer_goes_through():
    def endless(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        exercises.grade("heads.softmax", endless)


def test_show_is_short_and_the_same_each_time():
    assert show(torch.tensor(1.23456)) == "1.235"
    assert show(torch.zeros(2, 3)) == "a tensor (2, 3)"
    assert show(double) == "double"
    assert show(object()) == "object"
    assert show([object()]) == "list"
    assert show(torch.nn.Linear(1, 1)) == "Linear"
    assert show((torch.tensor(2.0), torch.zeros(2))) == "(2, a tensor (2,))"
    assert len(show(list(range(1000)))) == 70


def test_a_verdict_is_one_line():
    assert str(Verdict("a.b", "not attempted")) == "… a.b: not attempted yet"
    assert str(Verdict("a.b", "right", "3 checks passed")) == "✓ a.b: 3 checks passed"
    assert str(Verdict("a.b", "wrong", "it is 2", "try 3.")) == "✗ a.b: it is 2. Hint: try 3."
    assert isinstance(exercises.get("heads.softmax"), Exercise)


# The solutions do what the package does


def test_merging_agrees_with_the_package():
    from minilm.bpe import count_pairs, encode_bpe, merge, to_ids, train_bpe, vocabulary
    from minilm.exercises import merges, tokens

    pieces = "low lower lowest newest widest naïve".split() * 3 + ["aaaa", " low"]
    words = {to_ids(piece): pieces.count(piece) for piece in pieces}
    assert merges.my_count_pairs.function(words) == count_pairs(words)
    ids = to_ids("aaaabaa")
    pair = ids[:2]
    assert merges.my_merge.function(list(ids), pair, 300) == list(merge(ids, pair, 300))
    learned = train_bpe(pieces, 256 + 40)
    assert merges.my_choose.function(count_pairs(words)) == learned[0]
    table = vocabulary(learned)
    for piece in {*pieces, "slowest", "naïvest"}:
        found = tokens.my_encode.function(list(to_ids(piece)), learned)
        assert found == encode_bpe([piece], learned)
        assert tokens.my_decode.function(found, table) == piece


def test_a_head_agrees_with_the_package():
    from minilm.attention import AttentionHead
    from minilm.exercises import heads

    head = AttentionHead(6, 4)
    x = torch.randn(2, 5, 6)
    got = heads.my_head.function(x, head.query.weight, head.key.weight, head.value.weight)
    torch.testing.assert_close(got, head(x))
    assert not heads.my_leaks.function(head, x)
    assert heads.my_leaks.function(AttentionHead(6, 4, causal=False), x)


def test_losses_and_windows_agree_with_the_package():
    from minilm.data import TokenStream
    from minilm.exercises import batches
    from minilm.loss import next_token_loss

    ids = torch.randint(9, (3, 7))
    prompts, lengths = torch.tensor([2, 4, 7]), torch.tensor([5, 7, 7])
    inputs, targets = batches.my_targets.function(ids)
    logits = torch.randn(3, 7, 9)
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), targets, reduction="none")
    place = torch.arange(7)
    mask = (place >= prompts[:, None]) & (place < lengths[:, None])
    want = next_token_loss(logits, ids, mask)
    torch.testing.assert_close(batches.my_prompt_loss.function(losses, prompts, lengths), want)
    stream = TokenStream(torch.arange(13))
    (batch,) = stream.sequential_batches(batch_size=8, T=4)
    assert torch.equal(batches.my_windows.function(torch.arange(13), 4), batch["ids"])
    assert torch.equal(inputs, ids[:, :-1])


def test_optimizers_agree_with_the_package():
    from minilm.exercises import optimizers
    from minilm.optim import adamw_step, lion_step, warmup_cosine

    for name, steps, state, options in [
        ("adamw", adamw_step, 2, dict(step=3, eps=1e-6)),
        ("lion", lion_step, 1, {}),
    ]:
        options |= dict(lr=0.1, betas=(0.8, 0.9), weight_decay=0.2)
        mine = [torch.rand(4), torch.randn(4), *(torch.rand(4) for _ in range(state))]
        theirs = [part.clone() for part in mine]
        getattr(optimizers, f"my_{name}_step").function(*mine, **options)
        steps(*([part] for part in theirs), **options)
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b)
    for warmup in (0, 3):
        options = dict(steps=9, warmup=warmup, lr=0.5, min_lr=0.1)
        for step in range(1, 12):
            got = optimizers.my_warmup_cosine.function(step, **options)
            assert got == pytest.approx(warmup_cosine(step, **options))


def test_attention_in_tiles_agrees_with_the_package():
    from minilm import ops
    from minilm.exercises import flash, launching

    q, k, v = (launching.wavy(9, 8, seed=seed) for seed in range(3))
    out, lse = torch.empty(9, 8), torch.empty(9)
    launching.emulated(flash.my_forward.function, 1, 32, q, k, v, out, lse)
    want = ops.attention(q[None, None], k[None, None], v[None, None], causal=True)[0, 0]
    torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-5)
    Tq, Tk = 6, 10
    for window in (None, 3):
        seen = ops.visible(Tq, Tk, causal=True, window=window)
        for i in range(0, Tq, 2):
            for j in range(0, Tk, 5):
                tile = seen[i : i + 2, j : j + 5]
                want = "full" if tile.all() else "partial" if tile.any() else "empty"
                assert flash.my_tile_state.function(i, j, 2, 5, Tq, Tk, window) == want


def test_products_in_tiles_agree_with_torch():
    from minilm.exercises import launching, matmul

    a, b, bias = torch.randn(10, 12), torch.randn(12, 9), torch.randn(9)
    z, out = torch.empty(10, 9), torch.empty(10, 9)
    launching.emulated(matmul.my_epilogue.function, (2, 2), (8, 8), a, b, bias, z, out)
    torch.testing.assert_close(z, a @ b + bias)
    torch.testing.assert_close(out, F.gelu(z))
