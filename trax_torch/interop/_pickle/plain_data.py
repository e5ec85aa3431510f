"""What the parts of a pickle of plain data stand for: values of Python and numpy, and no more.

A class or function is called only if the caller named it, and no name of the file's is looked up
anywhere but in tables. No key is hashed before it is known to be small, and no part can be copied
over and over.
"""

import math
import types
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

import numpy as np

from trax_torch._errors import CheckpointError
from trax_torch.interop._pickle import arrays
from trax_torch.interop._pickle.machine import Machine
from trax_torch.interop._pickle.records import is_tuple, refuse, require, sizes_of

_TYPE_CODES = {code for code in arrays.TYPES if code != arrays.BFLOAT16} | {"c8", "c16"}
_MAX_KEY_DEPTH = 8
_MAX_SAME_HASH = 64
_MAX_BYTES = 1 << 47  # of one array; keeps its strides far from overflow
# Few of these, or none that a file could know, have one hash; integers, up to 64 bits.
_RARELY_COLLIDE = (str, bytes, bool, int, float, types.NoneType)

Address = tuple[str, str]  # module and qualified name


class _Name:
    """What Python or numpy pickles by name.

    Args:
      call: makes the value that a call stands for.
      factory: for defaultdicts.
    """

    def __init__(
        self,
        call: "Callable[[PlainRules, tuple[Any, ...]], Any] | None" = None,
        factory: Callable[[], Any] | None = None,
    ):
        self.call = call
        self.factory = factory


class _Args(tuple[Any, ...]):
    """A tuple that holds names: arguments of a call, never a value."""


class PlainRules:
    """Plain data, numpy's arrays, and objects of the classes that the caller names.

    Args:
      n_bytes: the length of the pickle.
      allowed: classes and functions that may be called, by module and name.
    """

    max_marks = 1000  # as deep as Python writes
    advice = "; if you trust the file, read it with a larger max_bytes"

    def __init__(self, n_bytes: int, allowed: Mapping[Address, Any]):
        self._allowed = allowed
        self._allowed_ids = {id(item) for item in self._allowed.values()}
        self._copies_left = 2 * n_bytes  # an array of protocol 2 is copied twice
        self._key_visits_left = 1000 + 16 * n_bytes
        self._hashes: dict[int, tuple[Any, Counter[int]]] = {}  # of the keys of a set or dict
        self._unfilled: dict[int, Any] = {}
        self.more_actions: dict[int, Callable[[Machine], object]] = {
            0x8A: lambda m: m.push(int.from_bytes(m.view(m.unsigned(1)), "little", signed=True)),
            0x8B: lambda m: refuse("an integer of more than 2040 bits"),
            0x8D: lambda m: m.push(m.text(m.unsigned(8))),
            ord("0"): lambda m: m.pops(1),
            ord("1"): lambda m: m.since_mark(),
            0x8F: lambda m: m.push(set()),
            0x90: self._add,
            0x91: lambda m: m.push(frozenset(self.checked_keys(m.since_mark()))),
            0x92: lambda m: m.push(self.new(*m.pops(3))),
        }

    def check_result(self, value: Any) -> Any:
        """Returns what the whole pickle stands for, if it is a value with nothing left open."""
        self._check_values((value,))
        require(
            not any(isinstance(item, np.ndarray) for item in self._unfilled.values()),
            "an array without contents",
        )
        return value

    def text(self, view: memoryview) -> str:
        """Returns UTF-8 as text; lone surrogates, which file names may have, stay."""
        try:
            return str(view, "utf-8", "surrogatepass")
        except UnicodeDecodeError:
            refuse("text that is not UTF-8")

    def data(self, view: memoryview, mutable: bool) -> bytes | bytearray:
        """Returns bytes as they are."""
        return bytearray(view) if mutable else bytes(view)

    def group(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """Returns a tuple, marked if it holds names."""
        for value in values:
            if type(value) is _Name or type(value) is _Args:
                return _Args(values)
        return values

    def name(self, module: str, name: str) -> Any:
        """Returns what stands for a name, or what the caller allowed under it."""
        found = _NAMES.get((module, name), self._allowed.get((module, name)))
        if found is None:
            _refuse_name(module, name)
        return found

    def append(self, target: Any, values: tuple[Any, ...]) -> None:
        """Appends to a list, or to an object of an allowed class of lists."""
        self._check_values(values)
        if type(target) is list:
            target.extend(values)
        else:
            require(
                isinstance(target, list) and self._is_made(target), "values for what is no list"
            )
            self._run(type(target), target.extend, values)

    def set_items(self, target: Any, items: tuple[Any, ...]) -> None:
        """Adds to a dict, or to an object of an allowed class of dicts; no key comes twice."""
        self._check_values(items)
        plain = type(target) in (dict, OrderedDict, defaultdict)
        require(
            plain or (isinstance(target, dict) and self._is_made(target)),
            "items for what is no dict",
        )
        for key, value in zip(self.checked_keys(items[::2], target), items[1::2], strict=True):
            if plain:
                require(key not in target, "a dict with a key twice")
                target[key] = value
            else:
                self._run(type(target), target.__setitem__, key, value)

    def reduce(self, target: Any, args: Any) -> Any:
        """Makes what a known name makes of its arguments, or calls what the caller allowed."""
        require(isinstance(args, tuple), "a call without a tuple of arguments")
        if type(target) is _Name and target.call is not None:
            return target.call(self, args)
        require(self.is_allowed(target), "a call of what is not called")
        self._check_values((args,))
        call: Any = target
        return self._run(call, call, *args)

    def new(self, target: Any, args: Any, keywords: Any = None) -> Any:
        """Makes an object of an allowed class, whose `__init__` is not called."""
        require(
            isinstance(target, type) and self.is_allowed(target), "an object of what is no class"
        )
        require(isinstance(args, tuple), "an object made without a tuple of arguments")
        named: Any = {} if keywords is None else keywords
        kind: Any = target
        require(type(named) is dict and _has_text_keys(named), "arguments without names")
        self._check_values((args,))
        return self._run(kind, kind.__new__, kind, *args, **dict(named))

    def build(self, target: Any, state: Any) -> None:
        """Gives an array, a numpy type, or an object of an allowed class its state."""
        if isinstance(target, (np.ndarray, np.dtype)):
            require(self._unfilled.pop(id(target), None) is target, "an array or a type made twice")
            if isinstance(target, np.ndarray):
                _fill_array(self, target, state)
            else:
                _fill_type(target, state)
            return
        plain = type(target) is OrderedDict  # a state_dict of torch's has an attribute
        require(plain or self._is_made(target), "a state for what has none")
        self._check_values((state,))
        set_state = getattr(type(target), "__setstate__", None)
        if set_state is not None:
            self._run(type(target), set_state, target, state)
            return
        state, slots = state if is_tuple(state, 2) else (state, None)
        for fields in (state, slots):
            known = fields is None or (type(fields) is dict and _has_text_keys(fields))
            require(known, "a state in an unknown form")
        if state:
            self._run(type(target), lambda: vars(target).update(state))
        for name, value in (slots or {}).items():
            require(name in _slots_of(type(target)), "a state with what is no slot of the class")
            self._run(type(target), object.__setattr__, target, name, value)

    def is_allowed(self, target: Any) -> bool:
        """Tells whether this is a class or function that the caller named."""
        return id(target) in self._allowed_ids

    def _is_made(self, target: Any) -> bool:
        return id(type(target)) in self._allowed_ids

    def _run(self, allowed: Any, function: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
        """Calls what the caller allowed; its errors become ours, with its name."""
        try:
            return function(*args, **keywords)
        except Exception as error:
            raise CheckpointError(
                f"{allowed.__qualname__} cannot be made from what it holds: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _check_values(self, values: tuple[Any, ...]) -> None:
        for value in values:
            if type(value) in (_Name, _Args):
                refuse("a class or function of Python's or numpy's as a value")

    def checked_keys(self, keys: tuple[Any, ...], target: Any = None) -> tuple[Any, ...]:
        """Returns keys that are quickly hashed and compared, with those that `target` has."""
        counts: Counter[int] | None = None
        for key in keys:
            kind = type(key)
            if kind is str:
                continue
            self._visit_key(key, 0)
            if kind in _RARELY_COLLIDE and (kind is not int or key.bit_length() <= 64):
                continue
            # Hashes of numbers are no secret: a file can have thousands of keys with one hash.
            if counts is None:
                counts = Counter()
                if target is not None:
                    _, counts = self._hashes.setdefault(id(target), (target, counts))
            key_hash = self._run(kind, hash, key)
            counts[key_hash] += 1
            require(counts[key_hash] <= _MAX_SAME_HASH, "keys that are made to collide")
        return keys

    def _visit_key(self, key: Any, depth: int) -> None:
        self._key_visits_left -= 1
        require(self._key_visits_left >= 0, "keys that are too large")
        if type(key) in (tuple, frozenset):
            require(depth < _MAX_KEY_DEPTH, f"a key nested more than {_MAX_KEY_DEPTH} deep")
            for item in key:
                self._visit_key(item, depth + 1)
        elif type(key) not in (*_RARELY_COLLIDE, complex):
            known = isinstance(key, np.generic) or self._is_made(key) or self.is_allowed(key)
            require(known, f"a {type(key).__name__} as a key")

    def _add(self, machine: Machine) -> None:
        values = machine.since_mark()
        target = machine.peek()
        require(type(target) is set, "values for what is no set")
        n_before = len(target)
        target.update(self.checked_keys(values, target))
        require(len(target) == n_before + len(values), "a set with an item twice")

    def pay(self, n_bytes: int) -> None:
        """Refuses what would be copied far more often than the file is long."""
        self._copies_left -= n_bytes
        require(self._copies_left >= 0, "the same parts over and over")

    def unfilled(self, made: Any) -> Any:
        """Returns a new array or numpy type, whose state may come, once."""
        self._unfilled[id(made)] = made
        return made

    def check_contents(self, dtype: Any, shape: Any, data: Any) -> None:
        """Refuses contents that are not of this numpy type and shape, or copied too often."""
        require(isinstance(dtype, np.dtype), "an array without a numpy type")
        require(type(data) in (bytes, bytearray), "an array without plain bytes")
        sizes = sizes_of(shape)
        plausible = math.prod(max(size, 1) for size in sizes) * dtype.itemsize <= _MAX_BYTES
        require(plausible, "an array of a shape that no array can have")
        needed = math.prod(sizes) * dtype.itemsize
        require(len(data) == needed, f"an array of {len(data)} bytes where {needed} are needed")
        self.pay(len(data))
        odd = dtype.kind == "b" and len(data) and np.frombuffer(data, np.uint8).max() > 1
        require(not odd, "an array of booleans with other values than 0 and 1")


def _fill_array(rules: PlainRules, array: np.ndarray[Any, Any], state: Any) -> None:
    plain = is_tuple(state, 5) and type(state[0]) is int and state[0] == 1
    require(plain and type(state[3]) in (bool, int), "an array's state in an unknown form")
    _, shape, dtype, fortran_order, data = state
    require(type(data) is bytes, "an array without plain bytes")
    rules.check_contents(dtype, shape, data)
    state = (1, shape, dtype, bool(fortran_order), data)
    setstate: Any = array.__setstate__  # its stub wants numpy's own booleans
    setstate(state)


def _fill_type(dtype: np.dtype[Any], state: Any) -> None:
    plain = is_tuple(state, 8) and type(state[1]) is str and state[1] in ("<", ">", "|", "=")
    numbers = plain and all(x is None or type(x) is int for x in (state[0], *state[2:]))
    known = numbers and (state[0], *state[2:]) == (3, None, None, None, -1, -1, 0)
    require(known, "a numpy type in an unknown form")
    dtype.__setstate__(state)  # type: ignore[attr-defined]  # not in its stub


def _slots_of(kind: type) -> set[str]:
    found = (vars(base).items() for base in kind.__mro__)
    return {k for items in found for k, v in items if isinstance(v, types.MemberDescriptorType)}


def _has_text_keys(fields: dict[Any, Any]) -> bool:
    return all(type(key) is str for key in fields)


def by_address(allow: Callable[..., Any] | Iterable[Callable[..., Any]]) -> dict[Address, Any]:
    """Returns classes and functions by the module and name that a pickle has of them.

    Raises:
      TypeError: if there is something else.
    """
    found: dict[Address, Any] = {}
    for item in [allow] if callable(allow) else allow:
        module, name = (getattr(item, key, None) for key in ("__module__", "__qualname__"))
        if not callable(item) or not isinstance(module, str) or not isinstance(name, str):
            raise TypeError(
                f"allow takes classes and functions; got {item!r}. Give the class itself, not its "
                f"name or an object."
            )
        found[module, name] = item
        if module.startswith("trax_torch."):  # what has Trax's address here, stands for Trax's
            found[module.replace("trax_torch", "trax", 1), name] = item
    return found


def _refuse_name(module: str, name: str) -> NoReturn:
    if (module, name) == ("ml_dtypes", arrays.BFLOAT16):
        refuse("an array of bfloat16, which numpy does not have; it can be written as float32")
    shown = name if all(part.isidentifier() for part in name.split(".")) else "ThatClass"
    refuse(
        f"the name {f'{module}.{name}'[:80]!r}, which is no plain data. If you know what it does, "
        f"and may be called with all that this file says, pass it: allow=[{shown[:80]}]"
    )


# What calls of names stand for.


def _complex(rules: PlainRules, args: tuple[Any, ...]) -> complex:
    require(len(args) == 2 and all(type(x) is float for x in args), "an odd complex number")
    return complex(*args)


def _bytes(rules: PlainRules, args: tuple[Any, ...]) -> bytes:
    require(args == (), "bytes in an unknown form")  # protocol 2 has no bytes as a call
    return b""


def _encode(rules: PlainRules, args: tuple[Any, ...]) -> bytes:
    """Makes bytes as protocol 2 has them: of text with a character for each."""
    plain = len(args) == 2 and all(type(x) is str for x in args) and args[1] == "latin1"
    require(plain, "bytes in an unknown form")
    rules.pay(len(args[0]))
    try:
        result: bytes = args[0].encode("latin1")
        return result
    except UnicodeEncodeError:
        refuse("bytes in an unknown form")


def _bytearray(rules: PlainRules, args: tuple[Any, ...]) -> bytearray:
    require(args == () or (len(args) == 1 and type(args[0]) is bytes), "an odd bytearray")
    rules.pay(sum(map(len, args)))
    return bytearray(*args)


def _items(rules: PlainRules, args: tuple[Any, ...]) -> tuple[Any, ...]:
    require(args == () or (len(args) == 1 and type(args[0]) is list), "an odd set")
    rules.pay(sum(map(len, args)))
    return rules.checked_keys(tuple(*args))


def _set(rules: PlainRules, args: tuple[Any, ...]) -> set[Any]:
    return set(_items(rules, args))


def _frozenset(rules: PlainRules, args: tuple[Any, ...]) -> frozenset[Any]:
    return frozenset(_items(rules, args))


def _ordered_dict(rules: PlainRules, args: tuple[Any, ...]) -> OrderedDict[Any, Any]:
    require(args == (), "an OrderedDict in an unknown form")
    return OrderedDict()


def _defaultdict(rules: PlainRules, args: tuple[Any, ...]) -> defaultdict[Any, Any]:
    require(len(args) <= 1, "a defaultdict in an unknown form")
    factory: Any = args[0] if args else None
    if type(factory) is _Name and factory.factory is not None:
        return defaultdict(factory.factory)
    made: Any = factory
    known = made is None or rules.is_allowed(made)
    require(known, "a defaultdict of something else than lists, dicts, sets or numbers")
    return defaultdict(made)


def _dtype(rules: PlainRules, args: tuple[Any, ...]) -> np.dtype[Any]:
    plain = len(args) == 3 and type(args[0]) is str
    require(plain and all(type(x) in (bool, int) for x in args[1:]), "a numpy type in an odd form")
    if args[0] not in _TYPE_CODES:
        refuse(f"a numpy array of type {args[0][:40]!r}; only numbers and booleans are read")
    result: np.dtype[Any] = rules.unfilled(np.dtype(args[0], False, True))
    return result


def _new_array(rules: PlainRules, args: tuple[Any, ...]) -> np.ndarray[Any, Any]:
    plain = len(args) == 3 and args[0] is _NDARRAY and is_tuple(args[1], 1)
    require(plain and type(args[1][0]) is int and args[1][0] == 0, "an array made in an odd way")
    result: np.ndarray[Any, Any] = rules.unfilled(np.empty(0, np.int8))
    return result


def _array(rules: PlainRules, args: tuple[Any, ...]) -> np.ndarray[Any, Any]:
    """Makes an array on given bytes; it can be written to if these can."""
    plain = 4 <= len(args) <= 5 and type(args[3]) is str and args[3] in ("C", "F", "K")
    require(plain and (len(args) == 5) == (args[3] == "K"), "an array made in an odd way")
    data, dtype, shape, order = args[:4]
    rules.check_contents(dtype, shape, data)
    array = np.frombuffer(data, dtype) if len(data) else np.empty(0, dtype)
    array = array.reshape(shape, order="F" if order == "F" else "C")
    if order != "K":
        return array
    axes = args[4]
    plain = isinstance(axes, tuple) and all(type(axis) is int for axis in axes)
    require(plain and sorted(axes) == list(range(len(shape))), "an array of unknown order")
    return array.transpose(axes)


def _jax_array(rules: PlainRules, args: tuple[Any, ...]) -> np.ndarray[Any, Any]:
    plain = len(args) == 4 and args[0] is _RECONSTRUCT and isinstance(args[1], tuple)
    require(plain, "a JAX array made in an odd way")
    array = _new_array(rules, args[1])
    rules.build(array, args[2])
    return array


def _scalar(rules: PlainRules, args: tuple[Any, ...]) -> np.generic:
    require(len(args) == 2, "a numpy scalar in an odd form")
    dtype, data = args
    rules.check_contents(dtype, (), data)
    result: np.generic = np.frombuffer(data, dtype)[0]
    return result


_NDARRAY = _Name()
_RECONSTRUCT = _Name(_new_array)
_FROM_BUFFER = _Name(_array)
_SCALAR = _Name(_scalar)
_JAX_ARRAY = _Name(_jax_array)

_BUILTINS = {
    "complex": _Name(_complex),
    "bytes": _Name(_bytes),
    "bytearray": _Name(_bytearray),
    "set": _Name(_set, set),
    "frozenset": _Name(_frozenset),
    "list": _Name(factory=list),
    "dict": _Name(factory=dict),
    "int": _Name(factory=int),
    "float": _Name(factory=float),
}

_NAMES: dict[Address, Any] = {
    **{("builtins", name): item for name, item in _BUILTINS.items()},
    **{("__builtin__", name): item for name, item in _BUILTINS.items()},  # under protocol 2
    **{("torch", str(t).removeprefix("torch.")): t for t in arrays.TYPES.values()},
    ("_codecs", "encode"): _Name(_encode),
    ("collections", "OrderedDict"): _Name(_ordered_dict),
    ("collections", "defaultdict"): _Name(_defaultdict),
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Name(_dtype),
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy.core.numeric", "_frombuffer"): _FROM_BUFFER,
    ("numpy._core.numeric", "_frombuffer"): _FROM_BUFFER,
    ("numpy.core.multiarray", "scalar"): _SCALAR,
    ("numpy._core.multiarray", "scalar"): _SCALAR,
    ("jax._src.array", "_reconstruct_array"): _JAX_ARRAY,
    ("jax._src.device_array", "reconstruct_device_array"): _JAX_ARRAY,
}
