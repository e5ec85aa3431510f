"""The Layer protocol: a thin skin over `torch.nn.Module`.

A layer says how many tensors it takes and gives, when its weights are made, and how they are laid
out in Trax's order. It computes nothing of its own; what it is made of lies in `_protocol`.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from trax_torch import _nest, _seeds, shapes
from trax_torch.layers import _protocol
from trax_torch.layers._predict import HasPlace, NoMemory, Predicting, foreign_caches, modules_in
from trax_torch.layers._protocol import LayerError, Mode, ShapePass, expect_tensors

__all__ = [
    "Fn",
    "Layer",
    "LayerError",
    "Mode",
    "PureLayer",
    "Wrapped",
    "as_layer",
    "call",
    "expect_tensors",
]

MODES = ("train", "eval", "predict")

# How a layer calls another: without the outermost call's care for numpy and error messages.
call = nn.Module.__call__


class Layer(_protocol.InTraxOrder, _protocol.OwnGradient, _protocol.Summarized, HasPlace):  # pyright: ignore[reportIncompatibleMethodOverride]
    """A module that says how many tensors it takes and gives; base class of all layers.

    `n_in` tensors come in and `n_out` go out: one travels bare, several as a tuple, none as `()`.
    `layer((a, b))` is the call for `n_in == 2`.

    A subclass overrides `forward(x)`, and makes its weights in one of two ways:

    - Trax's: override `init_weights_and_state(input_signature)` and assign `self.weights` and
      `self.state`, each a tensor or a nest of tensors. They become parameters and buffers, are made
      once the input's shape is known (`layer.init(signature)`), and `forward` reads them back.
    - PyTorch's: register `nn.Parameter`s, buffers and submodules in `__init__`.

    A built layer is called with tensors as any module. Called with numpy arrays, it converts them
    (float64 to torch's default float type), runs without gradients, and answers numpy.

    Args:
      n_in: number of inputs.
      n_out: number of outputs.
      name: what it prints as; the class's name by default.
      sublayers_to_print: what to print instead of the sublayers.

    Example:
      >>> class Scale(Layer):
      ...     def init_weights_and_state(self, input_signature):
      ...         self.weights = torch.full(input_signature.shape[-1:], 2.0)
      ...     def forward(self, x):
      ...         return x * self.weights
      >>> layer = Scale()
      >>> weights, state = layer.init(shapes.ShapeDtype((1, 3)))
      >>> layer(np.ones((1, 3)))
      array([[2., 2., 2.]], dtype=float32)

    Source: Trax `layers/base.py::Layer`. There the mode is fixed when a layer is built; here
      `train()`, `eval()` and `predict()` change it.
    """

    def __init__(
        self, n_in: int = 1, n_out: int = 1, name: str | None = None, sublayers_to_print: Any = None
    ):
        super().__init__()
        self._n_in = n_in
        self._n_out = n_out
        self._name = name or type(self).__name__
        self._sublayers_to_print = sublayers_to_print
        self._order = ()
        self._pass: ShapePass | None = None  # the pass of shapes under way, if any
        self._init_cached = False
        self._caller = _protocol.creation_site()
        self._init_hook: Any = None
        self._await_init()

    # What a subclass overrides.

    def forward(self, x: Any, /) -> Any:
        """Returns the layer's outputs for its inputs, both packed as the class says."""
        raise TypeError(f"{self._name} has no forward(x); a layer must override it.")

    def init_weights_and_state(self, input_signature: Any) -> None:
        """Assigns `self.weights` and `self.state` for inputs of the given signature.

        `self.rng` is the generator to draw from.
        """

    # What a user calls.

    def __call__(self, x: Any = (), weights: Any = None, state: Any = None, rng: Any = None) -> Any:
        """Returns the outputs for `x`.

        Args:
          x: inputs, packed as the class says; tensors, or numpy arrays to get numpy back.
          weights: a tree to use for this call instead of the layer's own.
          state: likewise. Where weights or state are given, the call changes nothing in the layer.
          rng: a seed or a generator for this call's random numbers.

        Raises:
          LayerError: if anything goes wrong inside, with the layer where it did, and the cause.
        """
        if rng is not None and weights is None and state is None:
            with _protocol.keyed(self, rng):
                return self(x)
        if weights is not None or state is not None:
            weights = self.weights if weights is None else weights
            state = self.state if state is None else state
            return self.pure_fn(x, weights, state, rng)[0]
        if torch.compiler.is_compiling():
            return super().__call__(x)
        if _nest.has_foreign(x):
            return _protocol.in_arrays(self, x)
        try:
            return super().__call__(x)
        except Exception as error:
            if isinstance(error, LayerError) or _protocol.passes_through(error):
                raise
            raise _protocol.explain(self, x, error) from error

    def init(
        self,
        input_signature: Any,
        rng: Any = None,
        use_cache: bool = False,
    ) -> tuple[Any, Any]:
        """Makes new random weights, and new state, for inputs of a given signature.

        Shapes flow through the layers inside, and each makes its weights when they reach it; what
        wants numbers is run on zeros. Parameters whose shape does not change keep their identity.

        Args:
          input_signature: a `ShapeDtype` or a tuple of them; arrays and tensors stand for theirs.
            None where no layer needs one.
          rng: a seed, a generator or a key; by default torch's default generator decides.
          use_cache: if True, a layer that this call has initialized before answers
            `(GET_WEIGHTS_FROM_CACHE, GET_STATE_FROM_CACHE)`, as Trax's combinators want.

        Returns:
          `(weights, state)`.

        Raises:
          LayerError: if the layer cannot take inputs of this signature.
        """
        if self._init_cached and use_cache:
            return _protocol.GET_WEIGHTS_FROM_CACHE, _protocol.GET_STATE_FROM_CACHE
        self._init_cached = use_cache
        if self._pass is not None:  # called by a layer that initializes its sublayers by hand
            self._pass.make(self, input_signature)
        else:
            seed = _seeds.ambient_seed() if rng is None else _seeds.as_seed(rng)
            with ShapePass(self, _seeds.generator(seed, "init")) as shape_pass:
                shape_pass.make(self, input_signature)
        return self.weights, self.state

    def init_missing(self, input_signature: Any, rng: Any) -> None:
        """Makes weights for those sublayers alone that have none yet; arguments are `init`'s."""
        generator = _seeds.generator(_seeds.as_seed(rng), "init")
        with ShapePass(self, generator, renew=False) as shape_pass:
            shape_pass.make(self, input_signature)

    @property
    def is_initialized(self) -> bool:
        """Whether this layer, and all in it, have their weights."""
        return all(
            m._init_hook is None if isinstance(m, Layer) else True for m in self.modules()
        ) and not any(nn.parameter.is_lazy(p) for p in self.parameters())

    def output_signature(self, input_signature: Any) -> Any:
        """Returns the signature of the outputs for inputs of a signature; computes nothing."""
        with ShapePass(self, None) as shape_pass:
            return shapes.signature(shape_pass.run(self, input_signature))

    def weights_and_state_signature(self, input_signature: Any) -> tuple[Any, Any]:
        """Returns the signatures of the weights and state that `init` would make."""
        twin = copy.deepcopy(self)
        weights, state = twin.init(input_signature, rng=0)
        return _protocol.map_tree(shapes.signature, weights), _protocol.map_tree(
            shapes.signature, state
        )

    def pure_fn(
        self, x: Any, weights: Any, state: Any, rng: Any = None, use_cache: bool = False
    ) -> tuple[Any, Any]:
        """Returns `(outputs, new_state)` for given weights and state, and changes nothing.

        Gradients flow to `weights`; `torch.func.grad` works on it. `use_cache` is Trax's and has
        no effect here, where the layer itself marks what is shared.

        Args:
          x: inputs.
          weights: a tree in Trax's order, such as `layer.weights`.
          state: likewise, such as `layer.state`.
          rng: a seed or a generator for random numbers; None draws from the default generator.
        """
        return _protocol.pure_call(self, x, weights, state, rng)

    def predict(self, batch_size: int | None = None, max_length: int | None = None) -> Predicting:
        """Returns a context in which the layer predicts, with an empty memory of the past.

        In predict mode a model is called with the next positions of a sequence and remembers those
        before. The weights are the same, not a copy; after the `with` block all is as it was.

        Args:
          batch_size: number of sequences; None takes it from the first call.
          max_length: how many positions the memory holds; None leaves it to each layer. A position
            beyond is refused before anything is written.

        Returns:
          A context manager, which gives the layer itself. Entered again, it goes on where it was.

        Raises:
          RuntimeError: from the context, if it is entered in its own block, or left before another
            one that was entered after it.
        """
        return Predicting(self, batch_size, max_length)

    def init_cache(self, batch_size: int | None = None, max_length: int | None = None) -> None:
        """Enters predict mode, this layer alone; a layer that remembers makes its memory here."""
        self._memory = NoMemory() if self._place.is_lent else nn.Module()

    def reset_cache(self) -> None:
        """Forgets the past, in this layer and all in it; every position is free again."""
        for memory in self._memories():
            memory.reset()
        for module in foreign_caches(self):
            module.reset_cache()

    def reorder_cache(self, parents: torch.Tensor) -> None:
        """Lets row r go on from the past of row `parents[r]`, here and in all layers inside.

        Args:
          parents: integers (batch,).
        """
        for memory in self._memories():
            memory.reorder(parents)
        for module in foreign_caches(self):
            module.reorder_cache(parents)

    def _memories(self) -> Iterator[Any]:
        for module in modules_in(self):
            memory = module._memory if isinstance(module, Layer) else None
            if hasattr(memory, "reset"):
                yield memory

    def init_from_file(
        self, file_name: str, weights_only: bool = False, input_signature: Any = None
    ) -> tuple[Any, Any]:
        """Fills weights, and state unless `weights_only`, from a file or a checkpoint.

        Nothing in the file is run. A layer that was never initialized takes its shapes from the
        file; one that was keeps its own, and a file that does not fit changes nothing.

        Args:
          file_name: path of a safetensors file that `save_to_file` or `trax_torch.export` wrote;
            or, ending in `.pkl.gz`, of a file or a checkpoint that Trax wrote; or the place of a
            run's checkpoint, 'run' or 'run/lowest_loss', as `trax_torch.load_weights` takes it.
          weights_only: leaves the state as it is; a file without state is refused otherwise.
          input_signature: initializes the layer first; by default only what the file holds is set.

        Returns:
          `(weights, state)`.

        Raises:
          FileNotFoundError: if there is no such file or checkpoint.
          CheckpointError: if the file is damaged, or holds another model (an `IndexError` too),
            with the first differences.
          ValueError: if only `init` can make the layer's weights, and there are none yet.
        """
        if input_signature is not None:
            self.init(input_signature)
        _protocol.load_file(self, file_name, weights_only)
        return self.weights, self.state

    def save_to_file(
        self, file_name: str, weights_only: bool = False, input_signature: Any = None
    ) -> None:
        """Writes weights, and state unless `weights_only`, to a safetensors file of any name.

        It is whole or not there. `init_from_file` reads it, also where it is called `.pkl.gz`.

        `input_signature` is Trax's and is kept in the file's header for people to read.
        """
        _protocol.save_file(self, file_name, weights_only, input_signature)

    @property
    def name(self) -> str:
        """The layer's name."""
        return self._name

    @property
    def n_in(self) -> int:
        """How many tensors it takes."""
        return self._n_in

    @property
    def n_out(self) -> int:
        """How many tensors it gives."""
        return self._n_out

    @property
    def mode(self) -> Mode:
        """`'train'`, `'eval'` or `'predict'`: what the layer does now."""
        if self._memory is not None:
            return "predict"
        return "train" if self.training else "eval"

    @property
    def rng(self) -> torch.Generator:
        """The generator to draw from: the initial weights' in `init`, else the device's default.

        `Loop` keys the default generators to (seed, step, rank), so what is drawn from them in a
        step is drawn again when that step is run again.
        """
        if self._pass is not None and self._pass.rng is not None:
            return self._pass.rng
        device = _protocol.device_of(self)
        if device.type == "cuda":
            return torch.cuda.default_generators[device.index or 0]
        return torch.default_generator

    @rng.setter
    def rng(self, value: Any) -> None:
        raise AttributeError(
            "A layer's rng is set per call: layer(x, rng=...) or init(..., rng=...)."
        )

    def __repr__(self) -> str:
        n_in = f"_in{self.n_in}" if self.n_in != 1 else ""
        n_out = f"_out{self.n_out}" if self.n_out != 1 else ""
        name = f"{self._name}{n_in}{n_out}"
        inner = self.sublayers if self._sublayers_to_print is None else self._sublayers_to_print
        if not inner:
            return name
        lines = "\n".join(str(x) for x in inner if str(x)).replace("\n", "\n  ")
        return f"{name}[\n  {lines}\n]"

    # How layers of this package are made.

    def _set_mode(self, mode: Mode, max_length: int | None = None) -> None:
        """Puts a layer being built in `mode`; `max_length` is for its memory in predict mode."""
        if mode not in MODES:
            raise ValueError(f"A mode is one of {', '.join(map(repr, MODES))}; got {mode!r}.")
        self.training = mode == "train"
        if mode == "predict":
            self.init_cache(None, max_length)

    def _await_init(self) -> None:
        """Notes that weights are to be made; calling the layer before that is an error."""
        if self._makes_weights() and self._init_hook is None:
            self._init_hook = self.register_forward_pre_hook(_when_reached)

    def _makes_weights(self) -> bool:
        return type(self).init_weights_and_state is not Layer.init_weights_and_state

    def _init_here(self, input_signature: Any) -> None:
        """Makes the weights in the midst of a pass of shapes."""
        assert self._pass is not None
        self._pass.bring_back(self)
        with torch.device("cpu"):  # whence they go to where parameters are born; see `adopt`
            self._pass.init(self, input_signature)
        self._settle()
        self._pass.made(self)

    def _settle(self) -> None:
        """Notes that the weights are there; the layer can be called from now on."""
        if self._init_hook is not None:
            self._init_hook.remove()
            self._init_hook = None


class PureLayer(Layer):
    """A layer without weights that applies a function to its inputs as they are packed.

    Args:
      forward_fn: a function of one argument: the inputs, packed as `Layer` says.
      n_in: number of inputs.
      n_out: number of outputs.
      name: what it prints as.

    Example:
      >>> PureLayer(lambda xs: xs[0] - xs[1], n_in=2, name='Minus')((np.float32(3), np.float32(1)))
      array(2., dtype=float32)

    Source: Trax `layers/base.py::PureLayer`.
    """

    def __init__(
        self,
        forward_fn: Callable[[Any], Any],
        n_in: int = 1,
        n_out: int = 1,
        name: str = "PureLayer",
    ):
        super().__init__(n_in, n_out, name)
        self._forward_fn = forward_fn

    @property
    def fn(self) -> Callable[..., Any] | None:
        """The function that was given to `Fn`, of one argument for each input; else None."""
        return self._forward_fn.f if isinstance(self._forward_fn, _protocol.Spread) else None

    def forward(self, x: Any) -> Any:
        """Returns `forward_fn(x)`."""
        _protocol.check_n_in(x, self._n_in)
        return _protocol.without_arrays(self._forward_fn(x), x)


def Fn(name: str, f: Callable[..., Any], n_out: int = 1) -> PureLayer:
    """Returns a layer without weights that applies `f` to its inputs, one argument each.

    Args:
      name: what it prints as.
      f: a function of positional arguments; their number is the layer's `n_in`. It returns one
        tensor, or a tuple of `n_out`. What else it takes, `functools.partial` gives it by name.
      n_out: number of outputs.

    Raises:
      ValueError: if `f` has default or variable arguments, which leave `n_in` open.

    Example:
      >>> Fn('SumAndMax', lambda a, b: (a + b, torch.maximum(a, b)), n_out=2)
      SumAndMax_in2_out2

    Source: Trax `layers/base.py::Fn`.
    """
    n_in = _protocol.n_arguments(name, f)
    return PureLayer(_protocol.Spread(f), n_in=n_in, n_out=n_out, name=name)


def as_layer(
    module: nn.Module, n_in: int | None = None, n_out: int = 1, name: str | None = None
) -> Layer:
    """Returns any module as a layer; one that is a layer already is returned as it is.

    Args:
      module: takes its inputs as positional arguments.
      n_in: number of inputs; by default the number of required positional parameters of
        `module.forward`, at least 1.
      n_out: number of outputs.
      name: what it prints as; the module's class name by default.

    Raises:
      TypeError: if `module` is no `nn.Module`.

    Example:
      >>> as_layer(nn.CrossEntropyLoss()), as_layer(nn.Linear(2, 3))
      (CrossEntropyLoss_in2, Linear)
    """
    if isinstance(module, Layer):
        return module
    if not isinstance(module, nn.Module):
        raise TypeError(_protocol.not_a_module(module))
    return Wrapped(module, n_in, n_out, name)


class Wrapped(Layer):
    """A foreign module in the Layer protocol; made by `as_layer`."""

    def __init__(self, module: nn.Module, n_in: int | None, n_out: int, name: str | None):
        n_in = _protocol.n_required(module) if n_in is None else n_in
        super().__init__(n_in, n_out, name or type(module).__name__, sublayers_to_print=())
        self.module = module
        self.training = module.training
        self._is_elementwise = type(module) in _protocol.ELEMENTWISE

    def _identity(self) -> int:
        return id(self.module)

    def forward(self, x: Any) -> Any:
        """Returns what the module returns for `x`, spread over its positional arguments."""
        if self._n_in == 1:
            return self.module(x)
        _protocol.check_n_in(x, self._n_in)
        if self._is_elementwise:
            _protocol.refuse_if_expanded(*x)
        return self.module(*x)


def _when_reached(layer: Layer, args: tuple[Any, ...]) -> None:
    """Forward pre-hook of a layer without weights: makes them in `init`, elsewhere complains."""
    if layer._pass is None or layer._pass.rng is None:
        raise ValueError(
            f"{layer._name} has no weights yet. Initialize the model, model.init(signature), or "
            f"load its weights, before it is called."
        )
    layer._init_here(shapes.signature(args[0]) if args else None)
