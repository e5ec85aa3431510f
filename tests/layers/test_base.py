"""The Layer protocol."""

import copy
import functools
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from trax_torch import layers as tl
from trax_torch._errors import CheckpointError
from trax_torch.shapes import ShapeDtype


class Affine(tl.Layer):
    """A layer in Trax's tongue."""

    def init_weights_and_state(self, input_signature):
        d = input_signature.shape[-1]
        self.weights = (torch.randn(d, d, generator=self.rng), torch.zeros(d))
        self.state = torch.tensor(0)

    def forward(self, x):
        w, b = self.weights
        self.state = self.state + 1
        return x @ w + b


class Mixed(tl.Layer):
    """A layer in PyTorch's tongue, made of a torch module and a layer."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.second = tl.Dense(2)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.second(self.first(x)) * self.scale


def test_a_layer_in_the_tongue_of_trax_has_parameters_and_buffers():
    layer = Affine()
    layer.init(ShapeDtype((1, 3)), rng=0)

    y = layer(torch.ones(2, 3))
    y.sum().backward()

    assert sorted(layer.state_dict()) == ["s", "w0", "w1"]
    assert layer.w0.grad is not None
    assert layer.state.item() == 1


def test_a_layer_in_the_tongue_of_pytorch_initializes_the_layers_inside():
    layer = Mixed()
    before = layer.first.weight.clone()

    layer.init(ShapeDtype((5, 3)))

    assert layer(torch.ones(5, 3)).shape == (5, 2)
    assert torch.equal(layer.first.weight, before)
    assert [tuple(w.shape) for w in layer.weights] == [(), (4, 3), (4,), (2, 4), (2,)]


def test_calling_an_uninitialized_layer_is_an_error_that_says_so():
    with pytest.raises(tl.LayerError, match=r"Dense_3 has no weights yet. Initialize the model"):
        tl.Serial(tl.Relu(), tl.Dense(3))(torch.ones(1, 2))


def test_a_layer_without_weights_needs_no_initialization():
    assert tl.Relu()(np.array([-1.0, 2.0])).tolist() == [0.0, 2.0]


def test_the_same_seed_gives_the_same_weights_and_another_others():
    """init draws from its rng alone, and leaves torch's own stream alone."""
    sig = ShapeDtype((1, 4))
    torch.manual_seed(1)
    expected = torch.rand(1)

    torch.manual_seed(1)
    (a, _), _ = tl.Dense(4).init(sig, rng=3)
    (b, _), _ = tl.Dense(4).init(sig, rng=3)
    (c, _), _ = tl.Dense(4).init(sig, rng=4)

    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(torch.rand(1), expected)


def test_without_a_seed_torchs_generator_decides():
    sig = ShapeDtype((1, 4))
    torch.manual_seed(1)
    (a, _), _ = tl.Dense(4).init(sig)
    torch.manual_seed(1)
    (b, _), _ = tl.Dense(4).init(sig)
    (c, _), _ = tl.Dense(4).init(sig)

    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_initializing_again_keeps_the_identity_of_parameters():
    """An optimizer bound before goes on working."""
    layer = tl.Dense(4)
    layer.init(ShapeDtype((1, 4)), rng=0)
    parameter, old = layer.weight, layer.weight.clone()

    layer.init(ShapeDtype((1, 4)), rng=1)

    assert layer.weight is parameter
    assert not torch.equal(old, layer.weight)
    layer.init(ShapeDtype((1, 5)), rng=1)
    assert layer.weight.shape == (4, 5)


def test_init_missing_leaves_what_has_weights_alone():
    body = tl.Dense(4)
    body.init(ShapeDtype((1, 3)), rng=0)
    old = body.weight.clone()
    model = tl.Serial(body, tl.Dense(2))
    assert not model.is_initialized

    model.init_missing(ShapeDtype((1, 3)), rng=1)

    assert model.is_initialized
    assert torch.equal(body.weight, old)


def test_torch_lazy_modules_are_initialized_too():
    model = tl.Serial(nn.LazyLinear(3), tl.Dense(2))
    assert not model.is_initialized

    model.init(ShapeDtype((4, 5)))

    assert model.is_initialized
    assert model(torch.ones(4, 5)).shape == (4, 2)


def test_a_shared_layer_has_its_weights_once():
    """Where an instance occurs again, a marker stands for its weights; gradients add up."""
    shared = tl.Dense(3)
    model = tl.Serial(shared, tl.Relu(), shared)
    weights, state = model.init(ShapeDtype((1, 3)))

    assert weights[2] is tl.GET_WEIGHTS_FROM_CACHE
    assert state[2] is tl.GET_STATE_FROM_CACHE
    assert len(list(model.parameters())) == len(model.state_dict()) == 2
    assert len(tl.flatten_weights_and_state(weights, state)[0]) == 2
    model.weights = model.weights
    assert model.sublayers[0] is model.sublayers[2]


def test_weights_set_on_a_layer_without_any_make_its_parameters():
    donor, heir = tl.Serial(tl.Dense(3), tl.Dense(2)), tl.Serial(tl.Dense(3), tl.Dense(2))
    donor.init(ShapeDtype((1, 4)))

    heir.weights = donor.weights

    x = torch.ones(2, 4)
    assert torch.equal(heir(x), donor(x))
    assert heir.sublayers[0].weight is not donor.sublayers[0].weight


@pytest.mark.parametrize(
    ("tree", "match"),
    [
        (((), ()), "wants (w, b); the tree brings 0"),
        (((torch.zeros(4, 3), torch.zeros(3)),), "has 2 sublayers, so its weights are a tuple"),
        (
            ((torch.zeros(5, 3), torch.zeros(3)), (torch.zeros(3, 2), torch.zeros(2))),
            "Dense_3.weight has shape (3, 4); got (3, 5)",
        ),
    ],
)
def test_a_tree_that_does_not_fit_is_refused_and_fills_nothing(tree, match):
    import re

    model = tl.Serial(tl.Dense(3), tl.Dense(2))
    model.init(ShapeDtype((1, 4)))
    before = copy.deepcopy(model.state_dict())

    with pytest.raises(ValueError, match=re.escape(match)):
        model.weights = tree

    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_numpy_comes_in_and_numpy_goes_out():
    """Arrays in any packing are answered by arrays, without gradients."""
    model = tl.Serial(tl.Dup(), tl.Parallel(tl.Dense(2), None))
    model.init(ShapeDtype((1, 3)))

    outputs = model(np.ones((4, 3)))

    assert [type(y) for y in outputs] == [np.ndarray, np.ndarray]
    assert outputs[1].dtype == np.float32
    same = model(torch.ones(4, 3))
    assert same[0].requires_grad
    assert np.array_equal(outputs[0], same[0].detach().numpy())


def test_a_layer_is_at_home_among_torch_modules():
    """nn.Sequential, functional_call, state_dict and torch.compile take layers."""
    layer = tl.Dense(3)
    layer.init(ShapeDtype((1, 2)))
    model = nn.Sequential(nn.Linear(2, 2), layer, nn.ReLU())

    x = torch.ones(1, 2)
    compiled = torch.compile(model, backend="eager", fullgraph=True)

    assert torch.equal(model(x), compiled(x))
    assert "1.weight" in model.state_dict()
    y = torch.func.functional_call(model, {"1.weight": torch.zeros(3, 2)}, (x,))
    assert torch.equal(y, torch.relu(layer.bias).expand(1, 3))


def test_an_error_names_the_layer_and_where_it_was_created():
    """The innermost layer, its file and line, its input's shapes, and the cause."""
    model = tl.Serial(tl.Dense(3), tl.Serial(tl.Fn("Boom", lambda x: x @ x)))
    model.sublayers[0].init(ShapeDtype((2, 4)))

    with pytest.raises(tl.LayerError) as caught:
        model(torch.ones(2, 4))

    error = caught.value
    assert error.layer_name == "Boom"
    assert "(in Serial > Serial > Boom)" in str(error)
    assert f"tests/layers/test_base.py, line {error.caller[1]}" in str(error)
    assert "ShapeDtype{shape:(2, 3), dtype:float32}" in str(error)
    assert isinstance(error.__cause__, RuntimeError)
    assert "RuntimeError: mat1 and mat2" in str(error)


def test_an_error_inside_a_torch_module_names_the_layer_within():
    model = nn.Sequential(nn.ReLU(), tl.Dense(3))
    model[1].init(ShapeDtype((2, 4)))

    with pytest.raises(tl.LayerError, match="Dense_3"):
        model(torch.ones(2, 5))


def test_running_out_of_memory_stays_what_it_is():
    def fail(x):
        raise torch.OutOfMemoryError("no more")

    with pytest.raises(torch.OutOfMemoryError):
        tl.Fn("Fail", fail)(torch.ones(1))


def test_a_layer_prints_as_in_trax():
    model = tl.Serial(
        tl.Embedding(8, 4), tl.Residual(tl.LayerNorm(), tl.Dense(4)), tl.Select([0, 0])
    )

    assert str(model) == "\n".join(
        [
            "Serial_out2[",
            "  Embedding_8_4",
            "  Serial[",
            "    Branch_out2[",
            "      None",
            "      Serial[",
            "        LayerNorm",
            "        Dense_4",
            "      ]",
            "    ]",
            "    Add_in2",
            "  ]",
            "  Select[0,0]_out2",
            "]",
        ]
    )


def test_as_layer_counts_the_inputs_that_a_module_needs():
    cases = [(nn.Linear(2, 2), 1), (nn.CrossEntropyLoss(), 2), (nn.Sequential(nn.ReLU()), 1)]
    for module, n_in in cases:
        assert tl.as_layer(module).n_in == n_in
    layer = tl.as_layer(nn.CrossEntropyLoss(), name="Loss")
    assert str(layer) == "Loss_in2"
    assert tl.as_layer(layer) is layer
    logits, targets = torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64)
    assert layer((logits, targets)).item() == pytest.approx(np.log(4))
    with pytest.raises(ValueError, match="2 inputs are needed as one tuple; got Tensor"):
        try:
            layer(logits)
        except tl.LayerError as error:
            raise error.__cause__ from None
    with pytest.raises(TypeError, match=r"use layers.Fn\('Name', f\)"):
        tl.as_layer(lambda x: x)


def test_fn_counts_the_arguments_of_methods():
    class Doubler:
        def double(self, x):
            return 2 * x

        def __call__(self, x, y):
            return x + y

    assert tl.Fn("Double", Doubler().double)(np.float32(2)) == 4
    assert tl.Fn("Sum", Doubler()).n_in == 2


def test_fn_counts_the_arguments_that_are_left_open():
    """What is given by name, or has a value and can be given by name alone, is no input."""

    def hinge(better, worse, margin=0.25):
        return worse - better + margin

    def scaled(x, *, scale=3.0):
        return x * scale

    half = functools.partial(hinge, margin=0.5)
    assert tl.Fn("Hinge", half).n_in == 2
    assert tl.Fn("Hinge", half)((np.float32(3), np.float32(1))) == -1.5
    assert tl.Fn("Hinge", functools.partial(half, np.float32(3)))(np.float32(1)) == -1.5
    assert tl.Fn("Hinge", functools.partial(half, margin=1.0))((np.float32(3), np.float32(1))) == -1
    assert tl.Fn("Scaled", scaled)(np.float32(2)) == 6
    assert tl.Fn("Scaled", functools.partial(scaled, scale=5.0))(np.float32(2)) == 10


def test_fn_refuses_functions_that_leave_its_inputs_open():
    partial = functools.partial
    for f in (
        *(lambda x, y=1: x, lambda *xs: xs, lambda **kw: kw, lambda x, *, y: x, torch.relu),
        *(partial(lambda x, y=1, z=2: x, z=3), partial(lambda x, y: x, x=1), partial(torch.relu)),
    ):
        with pytest.raises(ValueError, match="plain positional arguments"):
            tl.Fn("F", f)


def test_pure_fn_uses_what_it_is_given_and_changes_nothing():
    layer = Affine()
    weights, state = layer.init(ShapeDtype((1, 2)), rng=0)
    other = (torch.eye(2), torch.ones(2))

    y, new_state = layer.pure_fn(torch.ones(1, 2), other, state)

    assert y.tolist() == [[2.0, 2.0]]
    assert new_state.item() == 1
    assert layer.state.item() == 0
    assert torch.equal(layer.weights[0], weights[0])
    assert torch.equal(layer(torch.ones(1, 2), weights=other), y)


def test_pure_fn_lets_gradients_flow_to_the_weights_given():
    """torch.func.grad works on it, in Trax's order and shape."""
    model = tl.Serial(tl.Dense(3), tl.Relu(), tl.Dense(1))
    weights, state = model.init(ShapeDtype((1, 2)), rng=0)
    detached = tuple(tuple(t.detach() for t in w) for w in weights)

    def loss(w):
        return model.pure_fn(torch.ones(4, 2), w, state)[0].sum()

    grads = torch.func.grad(loss)(detached)
    model(torch.ones(4, 2)).sum().backward()

    assert torch.equal(grads[0][0], model.sublayers[0].weight.grad.t())
    assert grads[1] == ()


def test_pure_fn_leaves_a_layer_with_two_parents_alone():
    """Its weights stand under two names; both are swapped, and put back."""
    shared = tl.Embedding(5, 3)
    model = tl.Serial(
        tl.Parallel(tl.Serial(shared, tl.LayerNorm()), tl.Serial(shared, tl.Relu())), tl.Add()
    )
    ids = (torch.tensor([[1, 2]]),) * 2
    weights, state = model.init(ids, rng=0)
    parameter, before = shared.weight, shared.weight.clone()
    zeros = tl.unflatten_weights_and_state(
        [w * 0 for w in tl.flatten_weights_and_state(weights, ())[0]], (), (weights, ())
    )[0]

    outputs, _ = model.pure_fn(ids, zeros, state)
    assert not outputs.any()
    detached = tl.unflatten_weights_and_state(
        [w.detach() for w in tl.flatten_weights_and_state(weights, ())[0]], (), (weights, ())
    )[0]
    torch.func.grad(lambda w: model.pure_fn(ids, w, state)[0].sum())(detached)

    assert shared.weight is parameter
    assert torch.equal(shared.weight, before)


def test_a_seed_for_a_call_keeps_the_state_that_the_call_makes():
    layer = Affine()
    layer.init(ShapeDtype((1, 2)), rng=0)
    layer(torch.ones(1, 2), rng=5)

    assert layer.state.item() == 1


def test_dropout_takes_its_rate_from_the_state_it_is_given():
    layer = tl.Dropout(0.5)
    x = torch.ones(100)

    assert torch.equal(layer(x, state=torch.tensor(0.0)), x)
    assert layer.state.item() == 0.5


def test_a_layer_with_statistics_takes_weights_alone_or_all_from_a_file(tmp_path):
    """BatchNorm that was never initialized begins its statistics, or takes the file's."""
    path = str(tmp_path / "bn.safetensors")

    def make():
        return tl.Serial(tl.Dense(4), tl.BatchNorm(axis=0))

    model = make()
    model.init(ShapeDtype((2, 3)), rng=0)
    model(torch.randn(8, 3))
    model.eval()
    model.save_to_file(path)
    full, weights_only, by_tree = make(), make(), make()
    full.init_from_file(path)
    weights_only.init_from_file(path, weights_only=True)
    by_tree.weights = model.weights

    x = torch.randn(2, 3)
    assert torch.equal(full.eval()(x), model(x))
    assert torch.equal(weights_only.eval()(x), by_tree.eval()(x))
    with pytest.raises(ValueError, match=r"running_mean has shape \(1, 4\); got \(7,\)"):
        model.state = ((), (torch.zeros(7), torch.zeros(7), torch.tensor(0)))


def test_a_foreign_module_used_twice_has_its_weights_once():
    linear = nn.Linear(3, 3)
    model = tl.Serial(linear, linear)

    assert model.weights[1] is tl.GET_WEIGHTS_FROM_CACHE
    assert len(tl.flatten_weights_and_state(model.weights, ())[0]) == 2


def test_weights_for_a_layer_that_has_none_to_fill_are_refused():
    class Block(tl.Layer):
        def __init__(self):
            super().__init__()
            self.inner = tl.Dense(3)

        def forward(self, x):
            return self.inner(x)

    with pytest.raises(ValueError, match="Block wants weights of 0 tensors; the tree brings 2"):
        Block().weights = (torch.zeros(2, 3), torch.zeros(3))


def test_types_are_promoted_where_they_meet():
    """bfloat16 weights meet float32 values, and integers meet both."""
    model = tl.Serial(tl.Embedding(10, 4, use_bfloat16=True), tl.Dense(3))
    model.init(ShapeDtype((1, 2), np.int32), rng=0)
    assert model(torch.tensor([[1, 2]])).dtype == torch.float32
    half = tl.Dense(3, use_bfloat16=True)
    half.init(ShapeDtype((1, 4)), rng=0)
    assert half(torch.ones(1, 4)).dtype == torch.float32
    assert half(torch.ones(1, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert tl.Mean()(np.array([1, 2])) == 1.5


def test_a_seed_given_to_a_call_rules_its_random_numbers():
    layer = tl.Dropout(0.5)
    x = torch.ones(100)

    first, second, third = layer(x, rng=1), layer(x, rng=1), layer(x, rng=2)

    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_keys_stand_for_seeds_wherever_a_seed_may():
    """Code written for Trax draws them as arrays of two integers."""
    key, other = np.array([0, 42], np.uint32), np.array([0, 43], np.uint32)
    one, two, three = tl.Dense(3), tl.Dense(3), tl.Dense(3)
    for layer, rng in ((one, key), (two, key.copy()), (three, other)):
        layer.init(ShapeDtype((1, 2)), rng=rng)
    dropout, x = tl.Dropout(0.5), torch.ones(100)

    assert torch.equal(one.weights[0], two.weights[0])
    assert not torch.equal(one.weights[0], three.weights[0])
    assert torch.equal(dropout(x, rng=key), dropout(x, rng=key))
    assert not torch.equal(dropout(x, rng=key), dropout(x, rng=other))
    assert torch.equal(dropout.pure_fn(x, (), dropout.state, key)[0], dropout(x, rng=key))


def test_signatures_are_found_without_computing():
    model = tl.Serial(tl.Embedding(10, 4), tl.Dense(2))
    sig = ShapeDtype((3, 5), np.int32)

    weights, _state = model.weights_and_state_signature(sig)
    assert not model.is_initialized
    model.init(sig)

    assert model.output_signature(sig) == ShapeDtype((3, 5, 2))
    assert weights == (ShapeDtype((10, 4)), (ShapeDtype((4, 2)), ShapeDtype((2,))))
    assert not any(p.is_meta for p in model.parameters())


def test_an_error_in_init_leaves_the_layer_whole():
    model = tl.Serial(tl.Dense(4), tl.Split(3))
    with pytest.raises(tl.LayerError, match="Split needs an axis that 3 divides"):
        model.init(ShapeDtype((1, 2)))

    assert not any(p.is_meta for p in model.parameters())


def test_a_mode_that_does_not_exist_is_refused():
    for make in (tl.Dropout, tl.ShiftRight, tl.PositionalEncoding, tl.DotProductCausalAttention):
        with pytest.raises(ValueError, match="'train', 'eval', 'predict'; got 'test'"):
            make(mode="test")


def test_modes_change_and_come_back():
    model = tl.Serial(tl.Dropout(0.5), tl.ShiftRight())
    dropout, shift = model.sublayers

    assert dropout.mode == "train"
    model.eval()
    assert dropout.mode == "eval"
    model.train()
    with model.predict(1, 4):
        assert [dropout.mode, shift.mode] == ["predict", "predict"]
        assert not dropout.training
    assert [dropout.mode, shift.mode] == ["train", "train"]
    assert tl.ShiftRight(mode="predict").mode == "predict"


def test_copies_and_pickles_compute_the_same():
    model = tl.Serial(tl.Dense(3), tl.LayerNorm(), tl.Dropout(0.1), tl.Select([0, 0]), tl.Add())
    model.init(ShapeDtype((1, 3)))
    model.eval()
    x = torch.ones(2, 3)

    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), model(x))
        assert str(twin) == str(model)
    fresh = copy.deepcopy(tl.Dense(2))
    fresh.init(ShapeDtype((1, 3)))
    assert fresh(x).shape == (2, 2)


def test_a_file_holds_weights_and_state(tmp_path):
    path = tmp_path / "layer.safetensors"
    layer = Affine()
    layer.init(ShapeDtype((1, 3)))
    layer(torch.ones(1, 3))
    layer.save_to_file(str(path))

    same, only_weights, fresh = Affine(), Affine(), tl.Serial(Affine())
    same.init_from_file(str(path), input_signature=ShapeDtype((1, 3)))
    only_weights.init_from_file(str(path), weights_only=True, input_signature=ShapeDtype((1, 3)))

    assert torch.equal(same.weights[0], layer.weights[0])
    assert [same.state.item(), only_weights.state.item()] == [1, 0]
    assert [p.name for p in tmp_path.iterdir()] == ["layer.safetensors"]
    with pytest.raises(IndexError, match="holds another model: 0.s is not in the file; 0.w0 is"):
        fresh.init_from_file(str(path), input_signature=ShapeDtype((1, 3)))


def test_a_layer_without_weights_takes_them_from_a_file(tmp_path):
    path = str(tmp_path / "model.safetensors")
    model = tl.Serial(tl.Dense(3), tl.LayerNorm(), tl.Dense(2, use_bias=False))
    model.init(ShapeDtype((1, 4)))
    model.save_to_file(path)

    heir = tl.Serial(tl.Dense(3), tl.LayerNorm(), tl.Dense(2, use_bias=False))
    heir.init_from_file(path)

    x = torch.ones(2, 4)
    assert torch.equal(heir(x), model(x))


def test_a_damaged_or_missing_file_changes_nothing(tmp_path):
    path = tmp_path / "model.safetensors"
    model = tl.Dense(3)
    model.init(ShapeDtype((1, 4)))
    model.save_to_file(str(path))
    before = model.weight.clone()
    path.write_bytes(path.read_bytes()[:-5])

    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        model.init_from_file(str(path))
    with pytest.raises(FileNotFoundError):
        model.init_from_file(str(tmp_path / "nothing"))

    assert torch.equal(model.weight, before)
    with pytest.raises(ValueError, match="nothing to save"):
        tl.Relu().save_to_file(str(path))


def test_unflattening_counts_its_items():
    with pytest.raises(ValueError, match="has 2 places, but 1 items"):
        tl.unflatten_weights_and_state([1], [], (((0, 0), ()), ()))
    assert tl.unflatten_weights_and_state([1, 2], [], ((0, (0, ())), ()))[0] == (1, (2, ()))


def test_what_a_function_computes_by_numpy_goes_on_as_a_tensor():
    """A mask, say, which wants no gradient; the next layers know tensors alone."""

    def mask(x, ids):
        return x, np.reshape(np.asarray(ids) != 0, (1, 3)) + np.zeros((2, 1))

    model = tl.Serial(tl.Fn("Mask", mask, n_out=2), tl.Multiply(), tl.Dense(2))
    ids, x = torch.tensor([[1, 0, 2]]), torch.ones(2, 3, requires_grad=True)
    model.init((x, ids))

    model((x, ids)).sum().backward()

    assert x.grad[:, 1].tolist() == [0.0, 0.0]
    assert (x.grad[:, [0, 2]] != 0).all()
    assert tl.Fn("Mask", mask, n_out=2)((np.ones((2, 3)), np.ones(3)))[1].dtype == np.float32
