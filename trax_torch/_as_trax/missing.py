"""Names of Trax that are not here: they may be imported; used, they say what to take instead."""

from typing import Any, NoReturn

from trax_torch._version import __version__

PAGE = "docs/from_trax.md"

_BY_BLOCKS = (
    "Give the whole model to training.Loop: use_memory_efficient_trainer=True trains it block by "
    "block, 2 keeps weights and slots in host memory, too, and reversible layers save activations."
)
_INSTEAD = {  # by how an address begins; the longest one counts
    "trax.AsKeras": "A layer is a torch.nn.Module, and goes where modules go as it is.",
    "trax.trax2keras": "A layer is a torch.nn.Module, and goes where modules go as it is.",
    "trax.data": "Write a generator of batches, or take a torch DataLoader: TrainTask takes both.",
    "trax.data.inputs": "Write a generator of batches; TrainTask and EvalTask take it as it is.",
    "trax.data.tf_inputs": "Read the data with Hugging Face datasets, and yield its batches.",
    "trax.data.text_encoder": "trax.data.tokenize reads vocabulary files.",
    "trax.fastmath": "Take torch's function, or numpy's where arrays are meant.",
    "trax.jaxboard": "Loop(output_dir=...) writes for TensorBoard, Loop(loggers=...) for others.",
    "trax.layers": "Write it with tl.Fn, tl.Layer, or as a torch.nn.Module: a model takes all.",
    "trax.layers.base": "What a layer of one's own overrides is in the docstring of tl.Layer.",
    "trax.layers.research.position_encodings": "Take tl.PositionalEncoding.",
    "trax.layers.AxialPositionalEncoding": "Take tl.PositionalEncoding.",
    "trax.layers.FixedBasePositionalEncoding": "Take tl.PositionalEncoding.",
    "trax.layers.InfinitePositionalEncoding": "Take tl.PositionalEncoding.",
    "trax.layers.SinCosPositionalEncoding": "Take tl.PositionalEncoding.",
    "trax.layers.TimeBinPositionalEncoding": "Take tl.PositionalEncoding.",
    "trax.models": "Build it of layers, or take models.TransformerLM or models.Transformer.",
    "trax.models.beam_search": "Take trax.supervised.decoding.beam_search.",
    "trax.optimizers": "TrainTask takes any optimizer of torch.optim, too.",
    "trax.optimizers.ReversibleSerialTrainer": _BY_BLOCKS,
    "trax.optimizers.trainer": _BY_BLOCKS,
    "trax.rl": "Take a library for reinforcement learning on PyTorch; this is supervised learning.",
    "trax.rl_trainer": "Take a library for reinforcement learning on PyTorch.",
    "trax.supervised": "training.Loop trains, measures, saves and goes on.",
    "trax.tf_numpy": "Take numpy, or trax.fastmath.numpy.",
    "trax.trainer": "Write a script with training.Loop; settings by gin are not read.",
}


class MissingNameError(NotImplementedError, AttributeError):
    """A program uses a name of Trax that is not in this library."""


class Missing:
    """Stands for a name of Trax that is not here; any use of it raises `MissingNameError`.

    Args:
      address: the name, with its module, such as 'trax.models.HourglassLM'.
    """

    def __init__(self, address: str):
        self.__dict__.update(address=address, __name__=address.rpartition(".")[2])

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise MissingNameError(text_of(self.__dict__["address"]))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # of Python's own questions, such as where a name comes from
            raise AttributeError(name)
        self._refuse()

    __call__ = __getitem__ = __setattr__ = __iter__ = __len__ = __contains__ = _refuse
    __mro_entries__ = __instancecheck__ = __subclasscheck__ = __enter__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = __int__ = __float__ = __index__ = _refuse

    def __repr__(self) -> str:
        return f"<{self.__dict__['address']}, which is not in trax_torch>"

    def __reduce__(self) -> tuple[Any, ...]:
        return Missing, (self.__dict__["address"],)


def text_of(address: str) -> str:
    """Returns what an error says of a name of Trax that is not here."""
    return (
        f"The program uses {address}, which trax_torch {__version__} does not have. "
        f"{_instead(address)} {PAGE} lists what is there, and what differs."
    )


def _instead(address: str) -> str:
    fitting = [p for p in _INSTEAD if address == p or address.startswith(p + ".")]
    return _INSTEAD[max(fitting, key=len)] if fitting else "Leave it out."
