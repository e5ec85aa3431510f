"""What the parts of Trax's pickles stand for here: plain records, and rules for making them.

A record takes the state that Trax, numpy or JAX would give the real object, checks that it is of
the one form they write, and keeps what is needed of it.
"""

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import torch

from trax_torch._errors import UnsafeCheckpointError
from trax_torch.interop._pickle import arrays
from trax_torch.interop._pickle.gzip_stream import Budget


def require(condition: bool, what: str) -> None:
    """Raises UnsafeCheckpointError, the file holding `what`, unless the condition is met."""
    if not condition:
        refuse(what)


def refuse(what: str) -> NoReturn:
    """Raises UnsafeCheckpointError, the file holding `what`."""
    raise UnsafeCheckpointError(f"it holds {what}")


def is_tuple(value: Any, length: int) -> bool:
    """Tells whether `value` is a tuple of this length."""
    return isinstance(value, tuple) and len(value) == length


class Array:
    """An array that is a view of the pickle until it is taken."""

    def __init__(self) -> None:
        self._filling: tuple[memoryview, str, tuple[int, ...], bool] | None = None

    def build(self, state: Any) -> None:
        """Takes what numpy's `ndarray.__setstate__` takes: (1, shape, dtype, order, bytes)."""
        require(is_tuple(state, 5) and state[0] == 1, "an array's state in an unknown form")
        _, shape, dtype, fortran_order, data = state
        require(isinstance(fortran_order, (bool, int)), "an array of unknown memory order")
        self.fill(shape, dtype, bool(fortran_order), data)

    def fill(self, shape: Any, dtype: Any, fortran_order: bool, data: Any) -> None:
        """Sets the contents, which must have as many bytes as shape and type say."""
        require(self._filling is None, "an array that is filled twice")
        require(isinstance(data, memoryview), "an array without plain bytes")
        require(isinstance(dtype, Dtype), "an array without a numpy type")
        needed = arrays.n_bytes_of(dtype.code, sizes_of(shape))
        require(len(data) == needed, f"an array of {len(data)} bytes where {needed} are needed")
        self._filling = (data, dtype.code, shape, fortran_order)

    def take(self, budget: Budget) -> torch.Tensor:
        """Returns a tensor that shares nothing; the budget pays for it."""
        if self._filling is None:
            refuse("an array without contents")
        budget.take(len(self._filling[0]))
        return arrays.to_tensor(*self._filling)


class Dtype:
    """A numpy type; `code` is a key of `arrays.TYPES`."""

    def __init__(self, code: str):
        self.code = code

    def build(self, state: Any) -> None:
        """Takes numpy's (version, byte order, ...); all else must be as for plain numbers."""
        require(is_tuple(state, 8) and isinstance(state[1], str), "a type in an unknown form")
        require(state[0] == 3 and state[2:] == (None, None, None, -1, -1, 0), "a type with fields")
        arrays.check_type(self.code, state[1])


class Signature:
    """A `trax.shapes.ShapeDtype`."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.dtype: torch.dtype = torch.float32

    def build(self, state: Any) -> None:
        """Takes (None, {'shape': ..., 'dtype': ...}), the state of an object with slots."""
        require(is_tuple(state, 2) and state[0] is None, "a ShapeDtype in an unknown form")
        fields = state[1]
        require(
            isinstance(fields, dict) and fields.keys() == {"shape", "dtype"}, "an odd ShapeDtype"
        )
        require(isinstance(fields["dtype"], Dtype), "a ShapeDtype without a numpy type")
        self.shape = sizes_of(fields["shape"])
        arrays.n_bytes_of("b1", self.shape)
        self.dtype = arrays.TYPES[fields["dtype"].code]


class History:
    """A `trax.supervised.history.History`, as the older format has it."""

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {}

    def build(self, state: Any) -> None:
        """Takes the object's `__dict__`."""
        require(isinstance(state, dict), "a History in an unknown form")
        self.fields = state


RECORDS = (Array, Dtype, Signature, History)


class Name:
    """A name that a pickle may ask for, and what may be done with it."""

    def __init__(
        self,
        reduce: Callable[[tuple[Any, ...]], Any] | None = None,
        new: Callable[[], Any] | None = None,
    ):
        self.reduce = reduce
        self.new = new


def sizes_of(shape: Any) -> tuple[int, ...]:
    """Returns a shape if it is a tuple of sizes that an array may have."""
    short = isinstance(shape, tuple) and len(shape) <= arrays.MAX_DIMS
    plain = short and all(type(size) is int and size >= 0 for size in shape)
    require(plain, "a shape that is no tuple of sizes")
    result: tuple[int, ...] = shape
    return result


def _reconstruct(args: tuple[Any, ...]) -> Array:
    plain = len(args) == 3 and args[0] is _NDARRAY and is_tuple(args[1], 1) and args[1][0] == 0
    require(plain, "an array made in an unknown way")
    return Array()


def _from_buffer(args: tuple[Any, ...]) -> Array:
    require(len(args) == 4 and isinstance(args[3], str), "an array made in an unknown way")
    data, dtype, shape, order = args
    require(order in ("C", "F"), "an array of unknown memory order")
    array = Array()
    array.fill(shape, dtype, order == "F", data)
    return array


def _jax_array(args: tuple[Any, ...]) -> Array:
    plain = len(args) == 4 and args[0] is _RECONSTRUCT and isinstance(args[1], tuple)
    require(plain, "a JAX array made in an unknown way")
    array = _reconstruct(args[1])
    array.build(args[2])
    return array


def _scalar(args: tuple[Any, ...]) -> Array:
    require(len(args) == 2, "a numpy scalar in an unknown form")
    array = Array()
    array.fill((), args[0], False, args[1])
    return array


def _dtype(args: tuple[Any, ...]) -> Dtype:
    flags = len(args) == 3 and all(isinstance(x, (bool, int)) for x in args[1:])
    require(flags and isinstance(args[0], (str, Dtype)), "a numpy type in an unknown form")
    if isinstance(args[0], Dtype):
        return args[0]
    return Dtype(arrays.check_type(args[0], ""))


def _defaultdict(args: tuple[Any, ...]) -> dict[str, Any]:
    require(len(args) == 1 and args[0] is _LIST, "a defaultdict of something else than lists")
    return {}


_RECONSTRUCT = Name(reduce=_reconstruct)
_FROM_BUFFER = Name(reduce=_from_buffer)
_SCALAR = Name(reduce=_scalar)
_JAX_ARRAY = Name(reduce=_jax_array)
_NDARRAY, _LIST = Name(), Name()

NAMES: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy.core.numeric", "_frombuffer"): _FROM_BUFFER,  # numpy's own way under protocol 5
    ("numpy._core.numeric", "_frombuffer"): _FROM_BUFFER,
    ("numpy.core.multiarray", "scalar"): _SCALAR,
    ("numpy._core.multiarray", "scalar"): _SCALAR,
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): Name(reduce=_dtype),
    ("collections", "defaultdict"): Name(reduce=_defaultdict),
    ("builtins", "list"): _LIST,
    ("trax.supervised.history", "History"): Name(new=History),
    ("trax.shapes", "ShapeDtype"): Name(new=Signature),
    ("jax._src.array", "_reconstruct_array"): _JAX_ARRAY,
    ("jax._src.device_array", "reconstruct_device_array"): _JAX_ARRAY,
    ("ml_dtypes", "bfloat16"): Dtype(arrays.BFLOAT16),
    # ShapeDtype keeps a type as the caller gave it, and its default is np.float32.
    ("numpy", "float32"): Dtype("f4"),
    ("numpy", "float64"): Dtype("f8"),
    ("numpy", "int32"): Dtype("i4"),
    ("numpy", "int64"): Dtype("i8"),
    ("numpy", "uint8"): Dtype("u1"),
}


class TraxRules:
    """What Trax's files hold: dicts with text for keys, lists, tuples, text, numbers, records."""

    max_marks = 100
    advice = ""
    more_actions: Mapping[int, Callable[[Any], object]] = {}

    def text(self, view: memoryview) -> str:
        """Returns UTF-8 as text."""
        try:
            return str(view, "utf-8")
        except UnicodeDecodeError:
            refuse("text that is not UTF-8")

    def data(self, view: memoryview, mutable: bool) -> memoryview:
        """Returns the view: the contents of arrays are taken from it when they are wanted."""
        return view

    def group(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """Returns a tuple as it is."""
        return values

    def name(self, module: str, name: str) -> Any:
        """Returns the record, or the rule, that stands for a name."""
        if (module, name) not in NAMES:
            refuse(f"the name {f'{module}.{name}'[:80]!r}")
        return NAMES[module, name]

    def append(self, target: Any, values: tuple[Any, ...]) -> None:
        """Appends to a list."""
        require(isinstance(target, list), "values for what is no list")
        target.extend(values)

    def set_items(self, target: Any, items: tuple[Any, ...]) -> None:
        """Adds to a dict; keys are text."""
        require(isinstance(target, dict), "items for what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            require(isinstance(key, str), "a dict with a key that is no text")
            require(key not in target, "a dict with a key twice")
            target[key] = value

    def reduce(self, target: Any, args: Any) -> Any:
        """Makes what a known name makes of its arguments."""
        reduce = target.reduce if isinstance(target, Name) else None
        require(reduce is not None, "a call of what is not called")
        require(isinstance(args, tuple), "a call without a tuple of arguments")
        assert reduce is not None  # or it was refused
        return reduce(args)

    def new(self, target: Any, args: Any) -> Any:
        """Makes an empty record of a known class."""
        new = target.new if isinstance(target, Name) else None
        require(new is not None, "an object of what is no class")
        require(is_tuple(args, 0), "an object made with arguments")
        assert new is not None  # or it was refused
        return new()

    def build(self, target: Any, state: Any) -> None:
        """Gives a record its state."""
        require(isinstance(target, RECORDS), "a state for no object")
        target.build(state)
