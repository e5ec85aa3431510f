"""Trax itself, decoding for bench_decoding.py, in a Python of its own that has Trax and JAX.

Reads a request, a line of JSON, and answers with another. First comes the model: its sizes and a
file of weights. Then prompts: one that is the start symbol alone goes on with a stream that is
under way and compiled, so that what Trax compiles anew in each call is not counted; others are
calls of their own. So are beams, which Trax cannot do otherwise.
"""

import importlib.machinery
import json
import sys
import types

LIBRARIES = ("tensorflow", "tensorflow_datasets", "tensorflow_text", "t5")


class StandIn(types.ModuleType):
    """Of libraries that Trax imports for its data alone, which decoding does without."""

    __path__ = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        is_class = name[:1].isupper()  # such as tf.TensorShape
        value = type(name, (), {}) if is_class else StandIn(f"{self.__name__}.{name}")
        setattr(self, name, value)
        return value

    def __call__(self, *args, **kwargs):
        return args[0] if len(args) == 1 and callable(args[0]) else self


class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in LIBRARIES:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return StandIn(spec.name)

    def exec_module(self, module):
        pass


def build(request):
    """Returns a function that makes a model in predict mode for a batch size."""
    import jax
    import numpy as np
    from trax import layers as tl
    from trax import models, shapes

    shape = request["shape"]
    activation = {"relu": tl.Relu, "gelu_new": tl.FastGelu}[shape["activation"]]
    arrays = np.load(request["weights"])
    leaves = [arrays[f"arr_{i}"] for i in range(len(arrays.files))]

    def make(batch):
        model = models.TransformerLM(
            *(shape[name] for name in ("vocab", "d_model", "d_ff", "n_layers", "n_heads")),
            max_len=shape["max_len"],
            dropout=0.0,
            mode="predict",
            ff_activation=activation,
        )
        model.init(shapes.ShapeDtype((batch, 1), np.int32))
        structure = jax.tree_util.tree_structure(model.weights)
        model.weights = jax.tree_util.tree_unflatten(structure, leaves)
        return model, model.state

    return make


class Rival:
    def __init__(self, make):
        self.make, self.models, self.streams = make, {}, {}

    def run(self, prompt, n_tokens, n_beams):
        import numpy as np
        from trax.supervised import decoding

        batch = len(prompt)
        if batch not in self.models:
            self.models[batch] = self.make(batch)
        model, fresh = self.models[batch]
        inputs = np.array(prompt)[:, 1:] if len(prompt[0]) > 1 else None
        if n_beams > 1:
            model.state = fresh
            found = decoding.beam_search(
                model, inputs, batch, n_beams=n_beams, eos_id=-1, max_length=n_tokens
            )
            return [[np.asarray(beam)[row] for beam, _ in found] for row in range(batch)]
        settings = {"batch_size": batch, "temperature": 0.0}
        if inputs is not None:
            model.state = fresh
            tokens = decoding.autoregressive_sample(
                model, inputs, eos_id=-1, max_length=n_tokens, **settings
            )
            return np.asarray(tokens)[:, None]
        if batch not in self.streams:
            other, _ = self.make(batch)
            self.streams[batch] = decoding.autoregressive_sample_stream(other, **settings)
        tokens = [np.asarray(next(self.streams[batch])) for _ in range(n_tokens)]
        return np.stack(tokens, axis=1).reshape(batch, 1, n_tokens)


def main():
    sys.meta_path.insert(0, Finder())
    rival = None
    for text in sys.stdin:
        request = json.loads(text)
        if "shape" in request:
            rival, answer = Rival(build(request)), "ready"
        else:
            found = rival.run(request["prompt"], request["n_tokens"], request["n_beams"])
            answer = [[[int(t) for t in beam] for beam in row] for row in found]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
