"""Layers one by one: with arrays, with functions of one's own, with weights of one's own."""

import numpy as np
import trax
from trax import fastmath, shapes
from trax import layers as tl
from trax.fastmath import numpy as jnp
from trax.shapes import ShapeDtype, signature

x = np.array([[-2, -1, 0, 1, 2], [-20, -10, 0, 10, 20]])

relu = tl.Relu()
rectified = relu(x)

concat = tl.Concatenate()
side_by_side = concat([x, x * 10])
below = tl.Concatenate(n_items=3, axis=0)([x, x, x])
mixed = tl.Concatenate()([np.array([-10, -20, -30]), np.array([-10, -20, -30]) / -10])

layer_norm = tl.LayerNorm()
as_floats = x.astype(np.float32)
layer_norm.init(signature(as_floats))
normed = layer_norm(as_floats)

relu_of_norm = tl.Serial(tl.LayerNorm(), tl.Relu())
relu_of_norm.init(shapes.signature(as_floats))
in_series = relu_of_norm(as_floats)

times_100 = tl.Fn("Times100", lambda x: x * 100.0)
branch = tl.Branch(tl.Relu(), times_100)
branch.init(signature(x))
y0, y1 = branch(x)


def Gcd():
    def f(x0, x1):
        return jnp.gcd(x0, x1)

    return tl.Fn("Gcd", f)


divisors = Gcd()((np.arange(1, 11), np.arange(11, 21)))


def SumAndMax():
    def f(x0, x1):
        return x0 + x1, jnp.maximum(x0, x1)

    return tl.Fn("SumAndMax", f, n_out=2)


sums, largest = SumAndMax()([np.array([1, 2, 3]), np.array([10, -20, 30])])


def Flatten(n_axes_to_keep=1):
    def f(x):
        return jnp.reshape(x, (*x.shape[:n_axes_to_keep], -1))

    return tl.Fn(f"Flatten_keep{n_axes_to_keep}", f)


flat = Flatten(2)(np.arange(24).reshape(1, 2, 3, 4))


class Parabola(tl.Layer):
    """y = a x^2 + b x + c, elementwise."""

    def init_weights_and_state(self, input_signature):
        k1, k2, k3 = fastmath.random.split(self.rng, 3)
        self.weights = tuple(
            fastmath.random.normal(k, input_signature.shape[-1:]) for k in (k1, k2, k3)
        )

    def forward(self, x):
        a, b, c = self.weights
        return a * x**2 + b * x + c


parabola = Parabola()
parabola.init(ShapeDtype((2, 5)), rng=fastmath.random.get_prng(0))
a, b, c = (np.asarray(w) for w in parabola.weights)
curved = parabola(as_floats)
by_hand = a * as_floats**2 + b * as_floats + c

model = tl.Serial(tl.LayerNorm(), tl.Relu(), times_100, tl.Dense(n_units=2), tl.LogSoftmax())
model.init(signature(as_floats))
log_probs = model(as_floats)
names = [layer.name for layer in model.sublayers]
print(trax.__name__, names, model.n_in, model.n_out, log_probs)
