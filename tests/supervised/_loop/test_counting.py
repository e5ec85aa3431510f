"""The gradient of a batch in parts, and of ranks, is that of the whole, whatever a loss counts."""

import copy
import functools
import inspect
import warnings

import pytest
import ranks
import torch
from torch import nn
from torch.nn import functional as F

from trax_torch import layers as tl
from trax_torch import optimizers
from trax_torch.supervised import Loop, TrainTask

WORDS = 6
PAD = 5
N_ROWS = 7


class Loss(nn.Module):
    """A function as a module, which is what a loop takes."""

    def __init__(self, f):
        super().__init__()
        self.f = f
        n = len(inspect.signature(f).parameters)
        if n == 3:
            self.forward = self.of_three

    def forward(self, outputs, targets):
        return self.f(outputs, targets)

    def of_three(self, outputs, targets, third):
        return self.f(outputs, targets, third)


class Weighted(nn.Module):
    """Class weights in a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("importance", torch.arange(1.0, WORDS + 1).double())

    def forward(self, outputs, targets):
        return F.cross_entropy(outputs.transpose(1, 2), targets, weight=self.importance)


class WithLoss(nn.Module):
    """A model that computes its own loss, as those of transformers do: one word ahead."""

    def __init__(self):
        super().__init__()
        self.body = body()

    def forward(self, x, labels):
        logits = self.body(x)[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


class Given(nn.Module):
    """Hands a loss on."""

    def forward(self, loss):
        return loss


def body(n_out=WORDS):
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, n_out))


class Pooled(nn.Module):
    """One output a row."""

    def __init__(self, n_out=WORDS):
        super().__init__()
        self.body = body(n_out)

    def forward(self, x):
        return self.body(x).mean(1)


def ce(outputs, targets, **kwargs):
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten(), **kwargs)


def token_losses(outputs, targets):
    return F.cross_entropy(outputs.transpose(1, 2), targets, ignore_index=-100, reduction="none")


def per_sequence(outputs, targets):
    n = (targets != -100).sum(1)
    return (token_losses(outputs, targets).sum(1) / n.clamp(min=1)).mean()


def per_sequence_that_is_there(outputs, targets):
    n = (targets != -100).sum(1)
    values = token_losses(outputs, targets).sum(1) / n.clamp(min=1)
    return values.sum() / (n > 0).sum()


def own_mask(outputs, targets):
    mask = (targets != PAD).double()
    values = F.cross_entropy(outputs.transpose(1, 2), targets, reduction="none")
    return (values * mask).sum() / mask.sum()


def kept(outputs, targets, keep):
    return (token_losses(outputs, targets) * keep).sum() / (keep * (targets != -100)).sum()


def under(outputs, targets, attention):
    values = F.cross_entropy(outputs.transpose(1, 2), targets, reduction="none")
    return (values * attention).sum() / attention.sum().clamp(min=1)


def within(outputs, targets, n):
    mask = torch.arange(targets.shape[1]) < n[:, None]
    return (token_losses(outputs, targets) * mask).sum() / mask.sum()


def of_rows(outputs, targets, importance):
    return (F.cross_entropy(outputs, targets, reduction="none") * importance).sum() / (
        importance.sum()
    )


def without_nan(outputs, targets):
    there = ~targets.isnan()
    return ((outputs - targets.nan_to_num()) ** 2 * there).sum() / there.sum()


def without_minus_1(outputs, targets):
    there = (targets >= 0).double()
    values = F.binary_cross_entropy_with_logits(outputs, targets.clamp(0), reduction="none")
    return (values * there).sum() / there.sum()


def focal(outputs, targets):
    log_probs = outputs.log_softmax(-1).gather(1, targets[:, None])
    return -((1 - log_probs.exp()) ** 2 * log_probs).mean()


def ctc(outputs, targets, lengths):
    log_probs = outputs.log_softmax(-1).transpose(0, 1)
    n = torch.full((len(targets),), log_probs.shape[0])
    return F.ctc_loss(log_probs, targets, n, lengths, zero_infinity=True)


def per_positive(outputs, targets):
    return F.binary_cross_entropy_with_logits(outputs, targets, reduction="sum") / targets.sum()


def triplet(outputs, other):
    positive, negative = other.unbind(1)
    return F.triplet_margin_loss(outputs, positive, negative)


def contrastive(outputs, targets):
    return F.cross_entropy(outputs @ outputs.T, torch.arange(len(outputs)))


def dice(outputs, targets):
    p = outputs.sigmoid()
    return 1 - 2 * (p * targets).sum() / (p.sum() + targets.sum())


def correlation(outputs, targets):
    x, y = outputs - outputs.mean(), targets - targets.mean()
    return -(x * y).sum() / (x.norm() * y.norm())


def pairwise(outputs, targets):
    difference = outputs[:, None, 0] - outputs[None, :, 0]
    order = (targets[:, None, 0] - targets[None, :, 0]).sign()
    return F.softplus(-difference * order).mean()


# Batches: inputs, and what else a kind needs; `drop` has less of a row count than of another.


def words(g, drop, ignored=-100, length=6):
    x = torch.randn(N_ROWS, length, 4, generator=g, dtype=torch.float64)
    targets = torch.randint(1, PAD, (N_ROWS, length), generator=g)
    if drop:
        for row, n in enumerate((1, 6, 0, 0, 2, 5, 3)):  # where 5 parts are cut, one has nothing
            targets[row, n:] = ignored
    return x, targets


def with_mask(g, drop):
    x, targets = words(g, drop)
    keep = torch.ones(targets.shape, dtype=torch.float64)
    if drop:
        keep = (torch.rand(targets.shape, generator=g) > 0.4).double()
    return x, targets, keep


def with_attention(g, drop):
    x, targets = words(g, False)
    keep = with_mask(g, drop)[2].long()
    keep[3 : 5 if drop else 3] = 0
    return x, targets, keep


def with_lengths(g, drop):
    x, targets = words(g, False)
    n = torch.tensor([1, 6, 2, 2, 6, 1, 3]) if drop else torch.full((N_ROWS,), 6)
    return x, targets, n


def classes(g, drop, ignored=None):
    x, targets = words(g, False)
    targets = targets[:, 0].clone()
    if drop and ignored is not None:
        targets[[0, 2, 3]] = ignored
    return x, targets


def with_row_weights(g, drop):
    weights = torch.rand(N_ROWS, generator=g, dtype=torch.float64) + 0.1
    return *classes(g, drop), weights if drop else torch.ones_like(weights)


def numbers(g, drop, kind="real"):
    x, _ = words(g, False)
    y = torch.randn(N_ROWS, 3, generator=g, dtype=torch.float64)
    if kind == "bits":
        y = (y > 0.3).double()
        y[:, 0] = 1.0
    if kind == "probs":
        y = y.softmax(-1)
    if drop and kind == "nan":
        y[y > 0.2] = torch.nan
        y[2] = torch.nan
    if drop and kind == "minus 1":
        y = (y > 0).double()
        y[torch.rand(y.shape, generator=g) > 0.5] = -1.0
    elif kind == "minus 1":
        y = (y > 0).double()
    return x, y


def pairs_of_vectors(g, drop):
    x, _ = words(g, False)
    return x, torch.randn(N_ROWS, 2, WORDS, generator=g, dtype=torch.float64)


def spoken(g, drop):
    x, _ = words(g, False, length=9)
    targets = torch.randint(1, WORDS, (N_ROWS, 4), generator=g)
    lengths = torch.tensor([1, 4, 2, 4, 1, 3, 2]) if drop else torch.full((N_ROWS,), 4)
    return x, targets, lengths


SCALE = torch.arange(1.0, WORDS + 1).double()
BITS = functools.partial(numbers, kind="bits")
THREE = functools.partial(Pooled, 3)

KINDS = {
    "ignored targets": (body, lambda: Loss(lambda o, t: ce(o, t)), words),
    "ignored targets, a padding of 0": (
        body,
        lambda: Loss(lambda o, t: ce(o, t, ignore_index=0)),
        functools.partial(words, ignored=0),
    ),
    "ignored targets, a constant": (
        body,
        lambda: Loss(lambda o, t: ce(o, t, ignore_index=PAD)),
        functools.partial(words, ignored=PAD),
    ),
    "label smoothing": (body, lambda: Loss(lambda o, t: ce(o, t, label_smoothing=0.1)), words),
    "class weights in a buffer": (body, Weighted, words),
    "class weights in a partial": (
        Pooled,
        lambda: tl.Fn("Own", lambda o, t: F.cross_entropy(o, t, weight=SCALE)),
        classes,
    ),
    "ignored rows": (
        Pooled,
        lambda: Loss(lambda o, t: F.cross_entropy(o, t)),
        functools.partial(classes, ignored=-100),
    ),
    "a sum": (body, lambda: Loss(lambda o, t: ce(o, t, reduction="sum")), words),
    "a sum over words, a mean over rows": (
        body,
        lambda: Loss(lambda o, t: token_losses(o, t).sum(1).mean()),
        words,
    ),
    "a mean of means of sequences": (body, lambda: Loss(per_sequence), words),
    "a mean of means of those that are there": (
        body,
        lambda: Loss(per_sequence_that_is_there),
        words,
    ),
    "a mask made of targets": (body, lambda: Loss(own_mask), functools.partial(words, ignored=PAD)),
    "a mask and ignored targets": (body, lambda: Loss(kept), with_mask),
    "an attention mask": (body, lambda: Loss(under), with_attention),
    "lengths": (body, lambda: Loss(within), with_lengths),
    "weights of rows": (Pooled, lambda: Loss(of_rows), with_row_weights),
    "binary, positives weigh more": (
        THREE,
        lambda: nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 5.0]).double()),
        BITS,
    ),
    "many labels": (THREE, nn.MultiLabelSoftMarginLoss, BITS),
    "many labels, some unknown": (
        THREE,
        lambda: Loss(without_minus_1),
        functools.partial(numbers, kind="minus 1"),
    ),
    "by positives": (THREE, lambda: Loss(per_positive), BITS),
    "divergence": (
        THREE,
        lambda: Loss(lambda o, t: F.kl_div(o.log_softmax(-1), t, reduction="batchmean")),
        functools.partial(numbers, kind="probs"),
    ),
    "numbers, some unknown": (
        THREE,
        lambda: Loss(without_nan),
        functools.partial(numbers, kind="nan"),
    ),
    "squares": (THREE, nn.MSELoss, numbers),
    "focal": (Pooled, lambda: Loss(focal), classes),
    "ctc": (body, lambda: Loss(ctc), spoken),
    "triplets": (Pooled, lambda: Loss(triplet), pairs_of_vectors),
    "a loss in the model": (WithLoss, Given, words),
}
REFUSED = {
    "contrastive": (Pooled, lambda: Loss(contrastive), classes),
    "dice": (THREE, lambda: Loss(dice), BITS),
    "correlation": (THREE, lambda: Loss(correlation), numbers),
    "pairs of a batch": (THREE, lambda: Loss(pairwise), numbers),
}


def problem(kind, seed, even):
    """A model, its loss, a batch to look at and one to train on."""
    make, make_loss, make_batch = {**KINDS, **REFUSED}[kind]
    g = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    sample, batch = make_batch(g, drop=not even), make_batch(g, drop=True)
    return make().double(), make_loss(), sample, batch


def flat(tensors):
    return torch.cat([t.detach().flatten() for t in tensors])


def plain_gradient(model, loss, batch):
    """What PyTorch alone says of the whole batch."""
    model, loss = tl.as_layer(copy.deepcopy(model)), tl.as_layer(loss)
    value = tl.Serial(model, loss)(batch)
    value.backward()
    return value.item(), flat(p.grad for p in model.parameters())


def loop_gradient(model, loss, sample, batch, kind=Loop, **kwargs):
    """What a step of plain SGD of rate 1 says of it; and what was said on the way."""
    before = flat(model.parameters())
    task = TrainTask(iter([batch]), loss, optimizers.SGD(1.0), None, None, sample_batch=sample)
    loop = kind(model, task, random_seed=0, progress=False, device="cpu", **kwargs)
    loop.run(1)
    return loop.history.get("train", "training/loss"), before - flat(model.parameters())


def assert_alike(found, wanted):
    assert float((found - wanted).norm() / wanted.norm()) < 1e-6


@pytest.mark.parametrize("even", [True, False], ids=["even sample", "uneven sample"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_parts_are_those_of_the_whole(kind, even):
    for n_parts in (2, 3, 5):
        model, loss, sample, batch = problem(kind, 1, even)
        _, wanted = plain_gradient(model, loss, batch)

        _, found = loop_gradient(model, loss, sample, batch, n_accumulation_steps=n_parts)

        assert_alike(found, wanted)


def share_of(batch, rank):
    """Five rows, and two."""
    rows = slice(0, 5) if rank == 0 else slice(5, None)
    return tuple(item[rows] for item in batch)


def of_ranks(rank, even):
    """By kind, a rank's gradient, or how it was refused."""
    found = {}
    for kind in {**KINDS, **REFUSED}:
        model, loss, sample, batch = problem(kind, 1, even)
        try:
            found[kind] = loop_gradient(model, loss, sample, share_of(batch, rank))[1].numpy()
        except ValueError as error:
            found[kind] = str(error)
    return found


@pytest.mark.skipif(not torch.distributed.is_available(), reason="no torch.distributed")
@pytest.mark.parametrize("even", [True, False], ids=["even sample", "uneven sample"])
def test_gradients_of_ranks_are_those_of_the_whole(even, tmp_path):
    found = ranks.values(tmp_path, 2, of_ranks, even)

    for kind in KINDS:
        model, loss, _, batch = problem(kind, 1, even)
        _, wanted = plain_gradient(model, loss, batch)
        for each in found:
            assert not isinstance(each[kind], str), (kind, each[kind])
            assert_alike(torch.from_numpy(each[kind]), wanted)
    for kind in REFUSED:
        for each in found:
            assert "compares rows with each other cannot be cut" in str(each[kind])


@pytest.mark.parametrize("kind", REFUSED)
def test_a_loss_that_cannot_be_cut_is_refused(kind):
    model, loss, sample, batch = problem(kind, 1, False)

    with pytest.raises(ValueError, match="gradient of Loss .* cannot be cut: leave n_accum"):
        loop_gradient(model, loss, sample, batch, n_accumulation_steps=2)
    _, found = loop_gradient(model, loss, sample, batch)  # whole

    assert found.norm() > 0


def noisy(outputs, targets):
    return ((outputs - targets + torch.randn_like(outputs)) ** 2).mean()


def test_a_loss_that_draws_numbers_is_spoken_of():
    model, _, sample, batch = problem("squares", 0, True)

    with pytest.warns(UserWarning, match="could not be tried out for Loss .it draws random"):
        loop_gradient(model, Loss(noisy), sample, batch, n_accumulation_steps=2)


class InTraining(nn.Module):
    """Gives a loss in training alone, as detectors of torchvision do."""

    def __init__(self):
        super().__init__()
        self.body = body(3)

    def forward(self, x, y):
        return ((self.body(x).mean(1) - y) ** 2).mean() if self.training else [x]


def test_a_loss_that_eval_mode_does_not_have_is_spoken_of():
    _, _, sample, batch = problem("squares", 0, True)

    with pytest.warns(
        UserWarning, match="could not be tried out for Given .its gradient cannot be"
    ):
        loop_gradient(InTraining().double(), Given(), sample, batch, n_accumulation_steps=2)


class Watched(nn.Module):
    """Counts its calls in a buffer, and draws a random number, which counts for nothing."""

    def __init__(self):
        super().__init__()
        self.body = body()
        self.register_buffer("n_calls", torch.zeros(()))

    def forward(self, x):
        self.n_calls += 1
        torch.rand(())
        return self.body(x)


def test_trying_out_leaves_everything_as_it_was():
    torch.manual_seed(0)
    model, loss = Watched().double(), Loss(lambda o, t: ce(o, t))
    _, _, sample, batch = problem("ignored targets", 0, False)
    model.body[0].eval()
    before = copy.deepcopy(model.state_dict())
    copies, states = copy.deepcopy(sample), []
    for n_parts in (1, 2):  # nothing is tried out with 1
        task = TrainTask(iter([batch]), loss, optimizers.SGD(1.0), None, None, sample_batch=sample)
        kwargs = {"random_seed": 0, "progress": False, "device": "cpu"}
        Loop(model, task, n_accumulation_steps=n_parts, **kwargs)
        states.append(torch.get_rng_state())

    assert torch.equal(*states)
    assert all(torch.equal(x, before[k]) for k, x in model.state_dict().items())
    assert all(torch.equal(x, y) for x, y in zip(sample, copies, strict=True))
    assert all(p.grad is None for p in model.parameters())
    assert model.training
    assert not model.body[0].training


def test_what_counts_is_said_once(capsys):
    model, loss, sample, batch = problem("ignored targets", 0, True)
    loop_gradient(model, loss, sample, batch, n_accumulation_steps=2)

    said = capsys.readouterr().out

    assert said.count("Loss is a mean over items of item 1 that are not -100") == 1


def test_nothing_is_tried_out_where_nothing_is_cut():
    model, loss, sample, batch = problem("contrastive", 0, True)
    calls = []
    hook = model.register_forward_hook(lambda *_: calls.append(1))
    task = TrainTask(iter([batch]), loss, optimizers.SGD(1.0), None, None, sample_batch=sample)
    Loop(model, task, random_seed=0, progress=False, device="cpu")
    hook.remove()

    assert not calls


def test_a_sample_of_which_nothing_counts_tells_all_the_same():
    model, loss, _, batch = problem("ignored targets", 0, True)
    sample = batch[0], torch.full_like(batch[1], -100)
    _, wanted = plain_gradient(model, loss, batch)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, found = loop_gradient(model, loss, sample, batch, n_accumulation_steps=3)

    assert_alike(found, wanted)


def test_the_loss_of_parts_is_that_of_the_whole():
    model, loss, sample, batch = problem("a mask and ignored targets", 0, True)
    wanted, _ = plain_gradient(model, loss, batch)

    history, _ = loop_gradient(model, loss, sample, batch, n_accumulation_steps=3)

    assert history[0][1] == pytest.approx(wanted, rel=1e-6)


def test_a_mean_over_rows_that_ignored_targets_would_break_is_one_with_a_word(capsys):
    """A penalty of all outputs beside a cross-entropy: both are means over rows of such data."""
    model, _, sample, batch = problem("focal", 0, True)
    loss = Loss(lambda o, t: F.cross_entropy(o, t) + o.square().mean())
    _, wanted = plain_gradient(model, loss, batch)

    _, found = loop_gradient(model, loss, sample, batch, n_accumulation_steps=3)

    assert_alike(found, wanted)
    assert "a mean over rows, as long as no item 1 is -100" in capsys.readouterr().out


class Named(WithLoss):
    """Called by name, as transformers' models are."""

    def forward(self, x, labels=None):
        return {"loss": super().forward(x, labels), "logits": None}


@pytest.mark.parametrize("n_parts", [2, 3, 5])
def test_batches_with_names_count_by_them(n_parts, capsys):
    model, _, sample, batch = problem("a loss in the model", 0, True)
    _, wanted = plain_gradient(model, Given(), batch)
    named = Named().double()
    named.load_state_dict(model.state_dict())
    sample, batch = (dict(zip(("x", "labels"), each, strict=True)) for each in (sample, batch))

    _, found = loop_gradient(named, None, sample, batch, n_accumulation_steps=n_parts)

    assert_alike(found, wanted)
    assert "items of 'labels' that are not -100, but the first of each" in capsys.readouterr().out


class OwnWay(Loop):
    """Computes the loss of a dict itself."""

    def compute_loss(self, model, batch):
        return ce(model(batch["x"]), batch["labels"], ignore_index=PAD)


def test_a_loss_that_a_subclass_computes_is_counted_too():
    model, loss, sample, batch = problem("a mask made of targets", 0, True)
    _, wanted = plain_gradient(model, loss, batch)
    sample, batch = (dict(zip(("x", "labels"), each, strict=True)) for each in (sample, batch))

    _, found = loop_gradient(model, None, sample, batch, kind=OwnWay, n_accumulation_steps=3)

    assert_alike(found, wanted)


@pytest.mark.parametrize("n_parts", [1, 3])
def test_a_batch_of_which_nothing_counts_is_what_the_whole_is(n_parts):
    """A gradient of 0 where the loss sees to it, and no number where it does not."""
    model, loss, sample, batch = problem("an attention mask", 0, True)
    nothing = (*batch[:2], torch.zeros_like(batch[2]))

    history, found = loop_gradient(model, loss, sample, nothing, n_accumulation_steps=n_parts)
    assert history[0][1] == 0
    assert found.norm() == 0

    model, loss, sample, batch = problem("ignored targets", 0, True)
    nothing = batch[0], torch.full_like(batch[1], -100)
    with pytest.raises(optimizers.NonFiniteError, match="the loss is nan"):
        loop_gradient(model, loss, sample, nothing, n_accumulation_steps=n_parts)
