"""An interpreter for the pickles that Trax writes, and for nothing else.

It knows the opcodes that occur there. A name stands for a plain record of `_records`: nothing is
imported, nothing of the file's choice is called, nothing but text is hashed. Arrays stay views of
the data, and opcodes are counted, so that time and memory grow with the file and never faster.
"""

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from trax_torch.interop import _records
from trax_torch.interop._records import is_tuple, refuse, require

_MAX_MARKS = 100


class Parsed(NamedTuple):
    """What a pickle holds, and with how many opcodes it says so."""

    value: Any
    n_opcodes: int


def load(data: bytes | bytearray, max_opcodes: int) -> Parsed:
    """Returns what a pickle holds: dicts, lists, tuples, text, numbers, and records.

    The result may share parts, or contain itself: walk it with a bound.

    Args:
      data: a pickle of protocol 2 to 5.
      max_opcodes: how many opcodes it may have.

    Raises:
      UnsafeCheckpointError: at the first thing that a pickle of Trax's does not hold.
    """
    machine = _Machine(data, max_opcodes)
    return Parsed(machine.run(), machine.n_opcodes)


class _Machine:
    """The stack machine of a pickle, with its memo."""

    def __init__(self, data: bytes | bytearray, max_opcodes: int):
        self.n_opcodes = 0
        self._max_opcodes = max_opcodes
        self._data = memoryview(data).toreadonly()
        self._at = 0
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: list[Any] = []  # picklers number what they remember 0, 1, 2, ...

    def run(self) -> Any:
        """Returns the object that the pickle describes."""
        require(self.unsigned(1) == _PROTO and 2 <= self.unsigned(1) <= 5, "no pickle of Trax's")
        data, end = self._data, len(self._data)
        while True:
            if self._at == end:
                refuse("a pickle without an end")
            code = data[self._at]
            self._at += 1
            if code == _STOP:
                break
            self.n_opcodes += 1
            if self.n_opcodes > self._max_opcodes:
                refuse(f"a pickle of more than {self._max_opcodes} opcodes")
            action = _ACTIONS.get(code)
            if action is None:
                refuse(f"the pickle opcode 0x{code:02x}")
            action(self)
        value = self.pop()
        ended = not self._stack and not self._marks and self._at == end
        require(ended, "something after a pickle's end")
        return value

    def view(self, n_bytes: int) -> memoryview:
        """Returns a view of the next bytes of the pickle."""
        view = self._data[self._at : self._at + n_bytes]
        require(len(view) == n_bytes, "a pickle that ends within an opcode")
        self._at += n_bytes
        return view

    def unsigned(self, n_bytes: int) -> int:
        """Returns the next little-endian number of the pickle."""
        return int.from_bytes(self.view(n_bytes), "little")

    def signed(self, n_bytes: int) -> int:
        """Returns the next little-endian number of the pickle, which may be negative."""
        require(n_bytes <= 8, "an integer of more than 64 bits")
        return int.from_bytes(self.view(n_bytes), "little", signed=True)

    def text(self, n_bytes: int) -> str:
        """Returns the next text of the pickle."""
        try:
            return str(self.view(n_bytes), "utf-8")
        except UnicodeDecodeError:
            refuse("text that is not UTF-8")

    def line(self) -> str:
        """Returns the rest of the line, one of a name's two lines."""
        end = bytes(self._data[self._at : self._at + 256]).find(b"\n")
        require(end >= 0, "a name without an end")
        return self.text(end + 1)[:-1]

    def push(self, value: Any) -> None:
        """Puts a value on the stack."""
        self._stack.append(value)

    def pop(self) -> Any:
        """Takes the last value from the stack, down to the last mark."""
        require(len(self._stack) > (self._marks[-1] if self._marks else 0), "an empty stack")
        return self._stack.pop()

    def pops(self, n_values: int) -> tuple[Any, ...]:
        """Takes the last values from the stack."""
        return tuple([self.pop() for _ in range(n_values)][::-1])

    def peek(self) -> Any:
        """Returns the last value and leaves it on the stack."""
        require(len(self._stack) > (self._marks[-1] if self._marks else 0), "an empty stack")
        return self._stack[-1]

    def mark(self) -> None:
        """Begins a group of values."""
        require(len(self._marks) < _MAX_MARKS, "groups nested too deep")
        self._marks.append(len(self._stack))

    def since_mark(self) -> tuple[Any, ...]:
        """Takes the values of the last group from the stack."""
        require(self._marks != [], "a group without a beginning")
        start = self._marks.pop()
        values = tuple(self._stack[start:])
        del self._stack[start:]
        return values

    def put(self, index: int) -> None:
        """Remembers the last value under the next number, which must be `index`."""
        require(index == len(self._memo), "values remembered out of order")
        self._memo.append(self.peek())

    def memoize(self) -> None:
        """Remembers the last value under the next number."""
        self.put(len(self._memo))

    def get(self, index: int) -> None:
        """Puts a remembered value on the stack."""
        require(index < len(self._memo), "a value that was never remembered")
        self._stack.append(self._memo[index])

    def frame(self) -> None:
        """Passes by a frame's length, which a reader of whole files need not know."""
        self.unsigned(8)

    def name(self, module: Any, name: Any) -> None:
        """Puts the record on the stack that stands for a name."""
        require(isinstance(module, str) and isinstance(name, str), "a name that is no text")
        if (module, name) not in _records.NAMES:
            refuse(f"the name {f'{module}.{name}'[:80]!r}")
        self.push(_records.NAMES[module, name])

    def append(self, values: tuple[Any, ...]) -> None:
        """Appends to the list on the stack."""
        target = self.peek()
        require(isinstance(target, list), "values for what is no list")
        target.extend(values)

    def set_items(self, items: tuple[Any, ...]) -> None:
        """Adds to the dict on the stack; keys are text."""
        target = self.peek()
        require(isinstance(target, dict) and len(items) % 2 == 0, "items for what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            require(isinstance(key, str), "a dict with a key that is no text")
            require(key not in target, "a dict with a key twice")
            target[key] = value

    def reduce(self) -> None:
        """Makes what a known name makes of its arguments."""
        name, args = self.pops(2)
        require(
            isinstance(name, _records.Name) and name.reduce is not None,
            "a call of what is not called",
        )
        require(isinstance(args, tuple), "a call without a tuple of arguments")
        self.push(name.reduce(args))

    def new(self) -> None:
        """Makes an empty record of a known class."""
        name, args = self.pops(2)
        require(
            isinstance(name, _records.Name) and name.new is not None,
            "an object of what is no class",
        )
        require(is_tuple(args, 0), "an object made with arguments")
        self.push(name.new())

    def build(self) -> None:
        """Gives the record on the stack its state."""
        target, state = self.pops(2)
        require(isinstance(target, _records.RECORDS), "a state for no object")
        target.build(state)
        self.push(target)


_PROTO, _STOP = 0x80, ord(".")

_ACTIONS: dict[int, Callable[[_Machine], None]] = {
    0x95: _Machine.frame,
    ord("("): _Machine.mark,
    0x94: _Machine.memoize,
    ord("q"): lambda m: m.put(m.unsigned(1)),
    ord("r"): lambda m: m.put(m.unsigned(4)),
    ord("h"): lambda m: m.get(m.unsigned(1)),
    ord("j"): lambda m: m.get(m.unsigned(4)),
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("K"): lambda m: m.push(m.unsigned(1)),
    ord("M"): lambda m: m.push(m.unsigned(2)),
    ord("J"): lambda m: m.push(m.signed(4)),
    0x8A: lambda m: m.push(m.signed(m.unsigned(1))),
    ord("G"): lambda m: m.push(struct.unpack(">d", m.view(8))[0]),
    0x8C: lambda m: m.push(m.text(m.unsigned(1))),
    ord("X"): lambda m: m.push(m.text(m.unsigned(4))),
    ord("C"): lambda m: m.push(m.view(m.unsigned(1))),
    ord("B"): lambda m: m.push(m.view(m.unsigned(4))),
    0x8E: lambda m: m.push(m.view(m.unsigned(8))),
    0x96: lambda m: m.push(m.view(m.unsigned(8))),
    ord("]"): lambda m: m.push([]),
    ord("}"): lambda m: m.push({}),
    ord(")"): lambda m: m.push(()),
    0x85: lambda m: m.push(m.pops(1)),
    0x86: lambda m: m.push(m.pops(2)),
    0x87: lambda m: m.push(m.pops(3)),
    ord("t"): lambda m: m.push(m.since_mark()),
    ord("a"): lambda m: m.append(m.pops(1)),
    ord("e"): lambda m: m.append(m.since_mark()),
    ord("s"): lambda m: m.set_items(m.pops(2)),
    ord("u"): lambda m: m.set_items(m.since_mark()),
    ord("c"): lambda m: m.name(m.line(), m.line()),
    0x93: lambda m: m.name(*m.pops(2)),
    ord("R"): _Machine.reduce,
    0x81: _Machine.new,
    ord("b"): _Machine.build,
}
