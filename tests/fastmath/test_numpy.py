"""fastmath.numpy: numpy's names, alike on arrays and on tensors."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from trax_torch.fastmath import numpy as jnp

RNG = np.random.default_rng(0)
VALUES = {
    "x": RNG.uniform(-2, 2, (2, 3, 4)),
    "p": RNG.uniform(0.1, 0.9, (2, 3, 4)),
    "y": RNG.uniform(-2, 2, (3, 4)),
    "m": RNG.uniform(-2, 2, (4, 4)),
    "w": RNG.uniform(0.5, 2, (4,)),
    "i": RNG.integers(1, 9, (2, 3)),
    "j": RNG.integers(1, 9, (2, 3)),
    "b": RNG.integers(0, 2, (2, 3)).astype(bool),
}

ONE = """
    abs absolute ceil cos cosh deg2rad exp exp2 expm1 floor log1p negative positive rad2deg rint
    sign sin sinc sinh square tan tanh trunc fabs isfinite isinf isnan signbit isneginf isposinf
    fix degrees radians arctan arcsinh real conj ravel transpose nan_to_num argwhere nonzero
    zeros_like ones_like sort argsort median flip ndim shape size copy asarray array iscomplexobj
    cumsum cumprod squeeze atleast_1d atleast_2d mean std var max min sum prod any all argmax
    argmin average ptp count_nonzero nansum nanmean amax amin logical_not diff tril triu isreal
"""
UNIT = "sqrt log log2 log10 arccos arcsin arctanh reciprocal cbrt logit"
TWO = """
    add subtract multiply divide true_divide maximum minimum fmax fmin power equal not_equal less
    less_equal greater greater_equal logical_and logical_or logical_xor arctan2 hypot logaddexp
    logaddexp2 copysign heaviside mod remainder fmod floor_divide nextafter float_power
"""
INTEGERS = """
    gcd(i,j) lcm(i,j) bitwise_and(i,j) bitwise_or(i,j) bitwise_xor(i,j) invert(i) left_shift(i,j)
    right_shift(i,j) floor_divide(i,j) mod(i,j) add(i,j) divide(i,j) exp(i) sqrt(i) mean(i)
    mean(i,axis=0) sum(i) sum(b) sum(b,axis=1) std(i) prod(i) maximum(i,j) power(i,2) equal(i,j)
    where(b,i,j) any(b,axis=0) all(b) argmax(b,axis=1) argmax(i,axis=-1) cumsum(b,axis=0)
    logical_and(b,b) invert(b) count_nonzero(b) average(i) dot(i,j.T) tanh(i) isnan(i) max(i)
    array(i) bincount(i.ravel()) digitize(i,[2,5]) unique(i) median(i) multiply(i,b)
    subtract(i,0.5)
"""
CALLS = """
    sum(x,axis=-1) sum(x,axis=(0,2),keepdims=True) sum(x,-1) sum(x,axis=()) sum(x,dtype="float64")
    mean(x,axis=-1,keepdims=True) mean(x,axis=(1,2)) max(x,axis=1) max(x,axis=(0,-1))
    min(x,axis=0) amax(x,axis=-1,keepdims=True) prod(x,axis=(0,1)) prod(x,axis=1,keepdims=True)
    any(x>1,axis=1) all(x>-9,axis=(0,1)) std(x,axis=-1,keepdims=True) var(x,axis=0,ddof=1)
    argmax(x,axis=-1) argmin(x,1) argmax(x,axis=1,keepdims=True) cumsum(x,axis=-1)
    cumprod(x,axis=0) count_nonzero(x>0,axis=1) median(x,axis=1) percentile(x,30,axis=1)
    quantile(x,0.3) percentile(x,(10,50),axis=-1) average(x,axis=-1,weights=w)
    average(x,axis=0,weights=p) ptp(x,axis=1) sort(x,axis=0) sort(x,axis=None) argsort(x,axis=1)
    add(x,1) add(1,x) subtract(2.5,x) divide(x,2) divide(1,p) maximum(x,0) maximum(0.0,x)
    minimum(1,x) power(p,2) power(2.0,x) equal(x,0) less(x,0.5) greater(0.5,x)
    logical_or(x>0,True) add(x,y) add(x,w) mod(x,1.5) floor_divide(x,0.5) arctan2(x,1.0)
    multiply(x,w) dot(y,w) dot(x,m) dot(w,w) dot(x,2.0) dot(y,m) matmul(x,m) matmul(x,w)
    matmul(y,m) vdot(y,y) inner(x,y) outer(w,w) kron(y,m) tensordot(x,y)
    tensordot(x,y,axes=((1,2),(0,1))) einsum("bij,kj->bik",x,y) einsum("...j,j->...",x,w)
    cross(y[:,:3],y[:,1:]) trace(m) trace(m,1) diagonal(x,axis1=1,axis2=2) diag(w) diag(m,1)
    diag(w,-1) where(x>0,x,0.0) where(x>0,0.0,x) where(x>0,x,-x) where(x>0,1,0) where(x>0)
    where(x>0,w,1e9) clip(x,0,1) clip(x,a_min=-1,a_max=None) clip(x,-w,w) clip(x,None,0.5)
    take(y,[0,2],axis=1) take(y,[[0],[1]],axis=0) take(y,5) take(y,[-1],axis=-1) take(y,1,axis=1)
    take(y,[9,-1],axis=0,mode="clip") take_along_axis(m,argsort(m,axis=-1),axis=-1)
    take_along_axis(y,argmax(y,axis=-1,keepdims=True),axis=-1) select([x>1,x>0],[x,2*x],-1.0)
    searchsorted(sort(w),w) searchsorted(sort(w),1.0) round(x) round(x,1) around(x,2)
    isclose(x,x+1e-9) allclose(x,x) allclose(x,x+1) array_equal(x,x) array_equal(x,y)
    diff(x,axis=1) diff(x,2) trapezoid(y) trapezoid(y,w) interp(w,sort(w),w) reshape(x,(6,4))
    reshape(x,-1) reshape(x,(2,-1)) reshape(x,x.shape[:1]+(-1,)) ravel(x) transpose(x,(1,0,2))
    transpose(x,axes=[2,1,0]) swapaxes(x,-1,-2) moveaxis(x,0,-1) moveaxis(x,(0,1),(1,0))
    squeeze(x[None]) squeeze(x[:,None],axis=1) squeeze(x[None,:,None],(0,2))
    squeeze(x[...,None],-1) expand_dims(x,0) expand_dims(x,-1) expand_dims(x,(0,2))
    expand_dims(x,(1,-1)) broadcast_to(w,(3,4)) broadcast_to(x,(5,2,3,4)) broadcast_arrays(y,w)
    flip(x,axis=1) fliplr(y) flip(x,(0,2)) flipud(y) roll(x,1) roll(x,2,axis=-1)
    roll(x,(1,1),axis=(0,1)) rot90(y) repeat(x,2) repeat(x,2,axis=1) repeat(y,[1,0,2],axis=0)
    tile(x,2) tile(w,(2,3)) tile(y,(2,1,1)) tril(m) tril(m,-1) triu(m,k=1) tril(x,k=1)
    concatenate((x,x),axis=-1) concatenate([y,m]) concatenate((x,y),axis=None) append(w,w)
    append(y,y,axis=0) append(y,1.0) concatenate([w,[1.0,2.0]]) stack([y,y],axis=1) stack((w,w))
    vstack([y,y]) hstack([y,y]) dstack((y,y)) column_stack((w,w)) vstack((w,w)) hstack((w,w))
    split(x,2,axis=-1) split(x,[1,3],axis=-1) array_split(x,2,axis=1) split(x,2) meshgrid(w,w[:2])
    meshgrid(w,w[:2],indexing="ij") pad(x,1) pad(y,((1,2),(0,3)))
    pad(y,((1,1),(0,0)),mode="constant",constant_values=2.0) pad(y,((1,2),(0,3)),"edge")
    pad(w,(2,1),mode="reflect") pad(w,(5,6),mode="symmetric") pad(w,(5,6),mode="reflect")
    pad(w,(3,9),mode="wrap") pad(y,[(0,1)],"edge") pad(y,(1,2)) array(x) array(x,dtype="float32")
    array([x[0],x[1]]) array([1.0,w[0]]) asarray(w) array(w,ndmin=3) array([[w[0],2],[3,w[1]]])
    zeros_like(x) ones_like(x,dtype="int32") full_like(x,3) empty_like(w,shape=0)
    zeros_like(i,dtype="float32") full_like(w,w[0]) full((2,2),w[0]) linalg.norm(x)
    linalg.norm(y,axis=-1) linalg.norm(y,axis=0,keepdims=True) linalg.norm(y,1)
    linalg.norm(w,ord=1) linalg.inv(m) linalg.det(m) linalg.solve(m,w) linalg.slogdet(m)
    linalg.norm(x,keepdims=True) linalg.norm(x,axis=(1,2)) linalg.matrix_power(m,3) linalg.pinv(y)
    linalg.svd(y,compute_uv=False) fft.rfft(x,axis=1) fft.fft2(x,axes=(0,1)) real(fft.ifft(x,n=8))
    nansum(x,axis=1) nanmean(x,axis=(0,1)) nan_to_num(x/0.0) convolve(w,w) vander(w) polyval(w,w)
    mean(x,axis=-1)[...,None] isscalar(x) interp(0.7,sort(w),w) insert(w,1,5.0) delete(w,1)
    histogram(w,4) cov(y) broadcast_shapes((2,1),(3,)) lexsort((w,w)) unwrap(w)
"""
MADE = """
    zeros((2,3)) zeros(3,dtype="int32") ones((2,)) ones(3,"float16") full((2,2),7) full(3,0.5)
    eye(3) eye(2,3) eye(3,k=-1) eye(2,5,2) identity(3) tri(3) tri(2,4,1) arange(5) arange(1,7,2)
    arange(0.0,1.0,0.25) arange(3,dtype="float32") linspace(0,1,5) linspace(0,1,4,endpoint=False)
    array([1,2]) array([[1.0]]) array(3) array(2.5) array(True) array([1,2],dtype="float32")
    logspace(0,2,3) empty((0,2)) asarray((1,2)) tril(ones((3,3))) concatenate(([1],[2]))
    sum([1.0,2.0]) where([True,False],[1,2],3) maximum(1,[0,2]) repeat(3,2) mean([1,2]) sqrt(2)
    power(2,3) float32(2.5) int32(7) bool_(1)
"""


def run(call, names, kind):
    """What a call of numpy's gives: with numpy, or with ours on arrays or tensors."""
    if kind == "numpy":
        return eval(call, dict(vars(np)), dict(names))
    made = dict(names)
    if kind == "tensors":
        made = {k: torch.from_numpy(v.copy()) for k, v in names.items()}
    return eval(call, dict(vars(jnp)), made)


def leaves(x):
    return [leaf for item in x for leaf in leaves(item)] if isinstance(x, (tuple, list)) else [x]


def assert_alike(ours, theirs, tolerance=1e-6):
    ours, theirs = leaves(ours), leaves(theirs)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert np.shape(a) == np.shape(b)
        assert np.asarray(a).dtype.kind == np.asarray(b).dtype.kind
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), tolerance, tolerance)


def table():
    ones = [f"{name}(x)" for name in ONE.split()]
    ones += [f"{name}(p)" for name in UNIT.split() if hasattr(np, name)]
    twos = [f"{name}(x,y)" for name in TWO.split()]
    return [*ones, *twos, *INTEGERS.split(), *CALLS.split()]


@pytest.mark.parametrize("call", table())
@pytest.mark.parametrize("kind", ["arrays", "tensors"])
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def test_a_function_of_numpy_means_the_same_on_arrays_and_on_tensors(call, kind):
    """Values, shapes and kinds of numbers are numpy's; arrays give arrays, tensors give tensors."""
    theirs = run(call, VALUES, "numpy")

    ours = run(call, VALUES, kind)

    assert_alike(ours, theirs)
    other = np.ndarray if kind == "tensors" else torch.Tensor
    assert not any(isinstance(leaf, other) for leaf in leaves(ours))


@pytest.mark.parametrize("call", MADE.split())
def test_what_is_made_of_numbers_is_numpys_in_the_default_float_type(call):
    """Only float64 that was asked for is float64; integers are numpy's."""
    theirs = run(call, {}, "numpy")

    ours = run(call, {}, "arrays")

    assert_alike(ours, theirs)
    assert np.asarray(ours).dtype != np.float64
    assert isinstance(ours, jnp.Array if np.ndim(ours) else (np.generic, jnp.Array))


GRADIENTS = """
    sum(x,axis=-1) mean(x,axis=(0,2)) max(x,axis=1) min(x,axis=0) prod(x,axis=1) std(x,axis=-1)
    exp(x) log(p) sqrt(p) tanh(x) maximum(x,0.1) minimum(x,y) where(x>0,x,2*x) clip(x,-1,1)
    dot(x,m) matmul(x,m) einsum("bij,kj->bik",x,y) tensordot(x,y) take(y,[0,2],axis=1)
    sort(x,axis=0) take_along_axis(y,argmax(y,axis=-1,keepdims=True),axis=-1)
    pad(y,((1,2),(0,3)),"edge") logaddexp(x,y) concatenate([y,m]) stack([y,y],axis=1)
    repeat(x,2,axis=1) transpose(x) diagonal(m) tril(m) divide(x,p) array([[w[0],2],[3,w[1]]])
    power(p,3) cumsum(x,axis=1) linalg.norm(y,axis=-1) average(x,axis=-1,weights=w)
    percentile(x,30,axis=1) average(x,axis=0,weights=p) full((2,2),w[0])
    select([x>1,x>0],[x,2*x],-1.0) interp(w,sort(y[0]),y[1]) trapezoid(y) squeeze(x[None])
    expand_dims(x,(0,2)) split(x,2,axis=-1)
"""


@pytest.mark.parametrize("call", GRADIENTS.split())
def test_gradients_are_those_of_differences(call):
    """Through every argument that is a tensor."""
    names = [n for n in "xpymw" if n in call.replace("maximum", "").replace("max(", "(")]
    tensors = [torch.from_numpy(VALUES[n]).requires_grad_() for n in names]

    def function(*inputs):
        outputs = eval(call, dict(vars(jnp)), dict(zip(names, inputs, strict=True)))
        return sum(o.sum() for o in leaves(outputs))

    assert torch.autograd.gradcheck(function, tensors)


# No call here rests on the last digits of a number: what is compared is of one size with it.
ROUGH = """
    sum(x,axis=-1) mean(x) max(x,axis=1) exp(x) log(p) maximum(x,0.1) where(x>0,x,0.0) matmul(x,m)
    dot(x,w) concatenate([y,m]) tanh(x) square(x) clip(x,-1,1) reshape(x,-1) add(x,1.0)
    multiply(x,w) std(x,axis=-1) tril(m) pad(x,1) take(y,[0,2],axis=1) transpose(x) linalg.norm(w)
    minimum(1.0,x)
"""


@pytest.mark.parametrize("call", ROUGH.split())
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_floats_stay_what_they_are(call, dtype):
    """A number of Python's among the arguments changes no type."""
    made = {k: torch.from_numpy(v).to(dtype) for k, v in VALUES.items() if v.dtype.kind == "f"}
    exact = eval(call, dict(vars(jnp)), {k: v.double() for k, v in made.items()})

    rough = eval(call, dict(vars(jnp)), made)

    assert rough.dtype == dtype
    torch.testing.assert_close(rough.double(), exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("call", ["zeros(2,bfloat16)", "array([1.5],dtype=bfloat16)"])
def test_bfloat16_made_of_numbers_is_a_tensor(call):
    """numpy has no such type."""
    assert eval(call, dict(vars(jnp))).dtype == jnp.bfloat16 == torch.bfloat16


COMPILED = """
    sum(x,axis=-1,keepdims=True) mean(x) where(x>0,x,0.0) maximum(0.0,x) matmul(x,m) append(w,w)
    x@tril(ones((4,4))) x+arange(4) concatenate([y,zeros((2,4))]) exp(x)/sqrt(4)
    einsum("bij,kj->bik",x,y) squeeze(x[None],0)
    take_along_axis(y,argmax(y,axis=-1,keepdims=True),axis=-1) equal(x,eye(4)[:3])
    reshape(x,x.shape[:1]+(-1,)) dot(x,m) pad(x,1) array([[w[0],2],[3,w[1]]])
    linalg.norm(y,axis=-1) full_like(x,3)*x float32(2)*x astype(x>0,float32) swapaxes(x,-1,-2)
    array([1.0,2.0,3.0,4.0])*x
"""


@pytest.mark.parametrize("call", COMPILED.split())
def test_functions_compile_whole(call):
    """As part of one graph, and to what they give without."""
    names = [n for n in "xymw" if n in call.replace("exp(", "(").replace("maximum(", "(")]
    tensors = [torch.from_numpy(VALUES[n]).float() for n in names]
    code = f"def function({','.join(names)}): return {call}"
    scope = dict(vars(jnp))
    exec(code, scope)

    compiled = torch.compile(scope["function"], backend="eager", fullgraph=True)(*tensors)

    torch.testing.assert_close(compiled, scope["function"](*tensors))


GIVES_WAY = """
    x*a a*x x+a a-x x/a a/x x@a.T a@x.T x**2*a x>a a>x x==a a==x x[a[:,0]>0] torch.cat([x,a])
    torch.where(x>0,x,a) torch.nn.functional.linear(x,a) jnp.stack([x,a]) jnp.maximum(a,x) x-a
    jnp.concatenate([a,x]) jnp.where(a>0,x,a) x.add(a) x.mul_(a) jnp.append(a,x)
    jnp.array([a[0],x[0]])
"""


@pytest.mark.parametrize("call", GIVES_WAY.split())
def test_an_array_gives_way_to_a_tensor(call):
    """In arithmetic from both sides and in torch's own functions; gradients go past it."""
    a = jnp.array([[1.0, 0.0, 2.0], [0.5, -1.0, 3.0]])
    x = torch.tensor([[0.5, 2.0, -1.0], [4.0, 0.25, 1.0]], requires_grad=True)
    theirs = eval(call, {"torch": torch, "jnp": jnp}, {"x": x * 1, "a": torch.from_numpy(a)})

    ours = eval(call, {"torch": torch, "jnp": jnp}, {"x": x * 1, "a": a})

    assert type(ours) is torch.Tensor
    assert ours.requires_grad == theirs.requires_grad
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_an_array_becomes_a_tensor_where_the_other_is(device):
    """So a mask made in a layer fits a model on any device, shapes alone among them."""
    x = torch.ones(2, 2, device=device)

    assert (x * jnp.tril(jnp.ones((2, 2)))).device == x.device
    assert jnp.where(jnp.eye(2) > 0, x, -1e9).device == x.device


def test_float64_meets_a_tensor_in_the_default_float_type_unless_that_is_float64():
    third = jnp.array([1 / 3], dtype=jnp.float64)

    assert (third * torch.ones(1)).dtype == torch.float32
    assert (third * torch.ones(1, dtype=torch.float64)).item() == 1 / 3


def test_an_array_is_numpys_in_all_else():
    """Its numbers hash, its sums are numbers, it is written to, and pickled as a plain array."""
    array = jnp.array([3, 1, 3])
    array[1] = 2

    assert set(array) == {3, 2}
    assert {2: "b", 3: "a"}[array[1]] == "b"
    assert hash(jnp.sum(array)) == hash(array.sum()) == 8
    assert type(array.sum()) is np.int64
    assert type(pickle.loads(pickle.dumps(array))) is np.ndarray
    assert isinstance(array, jnp.ndarray)
    assert not isinstance([1], jnp.ndarray)
    assert np.concatenate([array, [1]]).tolist() == [3, 2, 3, 1]
    assert np.asarray(array).tolist() == [3, 2, 3]


def test_a_number_type_is_numpys_and_torchs():
    """For comparing, for making and for asking."""
    assert jnp.float32 == np.float32 == jnp.float32
    assert np.dtype("float32") == jnp.float32 == torch.float32
    assert jnp.float32 != jnp.int32
    assert jnp.float32 != "no type"
    assert len({jnp.float32, jnp.float32, jnp.int32}) == 2
    assert jnp.zeros(2, dtype=torch.float16).dtype == np.float16
    assert torch.zeros(2, dtype=torch.int32).dtype == jnp.int32
    assert np.zeros(2, dtype=jnp.bool_).dtype == bool
    assert jnp.astype(torch.ones(1), np.int32).dtype == torch.int32
    assert jnp.float32(torch.ones(1, dtype=torch.int64)).dtype == torch.float32
    assert jnp.issubdtype(torch.bfloat16, jnp.floating)
    assert jnp.issubdtype(jnp.int32, jnp.integer)
    assert not jnp.issubdtype(np.dtype("float32"), jnp.integer)
    assert pickle.loads(pickle.dumps(jnp.bfloat16)) == torch.bfloat16
    assert repr(jnp.float32) == "float32"


@pytest.mark.parametrize(
    ("fails", "error", "says"),
    [
        (lambda: jnp.no_such_name, AttributeError, "has the names of numpy .*; 'no_such_name' is"),
        (lambda: jnp.random, AttributeError, "Draw by fastmath.random"),
        (
            lambda: jnp.digitize(torch.ones(1, requires_grad=True), [0.5]),
            TypeError,
            r"jnp.digitize is numpy's alone .* Give it x.detach\(\)",
        ),
        (
            lambda: jnp.sum(torch.ones(2, 2), axis=2),
            ValueError,
            r"An axis lies in \[-2, 2\).*got 2",
        ),
        (
            lambda: jnp.squeeze(torch.ones(2), 0),
            ValueError,
            "An axis to squeeze has length 1; axis 0",
        ),
        (
            lambda: jnp.split(torch.ones(3), 2),
            ValueError,
            "3 does not divide by 2. Use array_split",
        ),
        (lambda: jnp.pad(torch.ones(3), 1, "median"), ValueError, "got 'median'. Join it"),
        (lambda: jnp.reshape(torch.ones(3), 3, "F"), ValueError, "row-major order 'C'; got 'F'"),
    ],
)
def test_what_cannot_be_is_said(fails, error, says):
    with pytest.raises(error, match=says):
        fails()


shapes = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)).flatmap(
    lambda s: st.sampled_from([s, s[:2], s[:1]])
)


@given(
    shapes.flatmap(lambda s: arrays.arrays(np.float32, s, elements=st.floats(-9, 9, width=16))),
    st.data(),
)
@settings(max_examples=30, deadline=None)
def test_reductions_agree_for_any_shape_and_axes(x, data):
    """One axis, several, or all; with and without keepdims."""
    axes = data.draw(st.none() | st.sets(st.integers(0, x.ndim - 1)).map(tuple))
    keepdims = data.draw(st.booleans())
    for name in ("sum", "mean", "max", "min", "any", "all", "std", "prod"):
        theirs = getattr(np, name)(x, axis=axes, keepdims=keepdims)
        ours = getattr(jnp, name)(torch.from_numpy(x), axis=axes, keepdims=keepdims)

        assert tuple(ours.shape) == theirs.shape
        np.testing.assert_allclose(ours.numpy(), theirs, 1e-3, 1e-3)
