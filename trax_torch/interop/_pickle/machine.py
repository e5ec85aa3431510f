"""An interpreter for pickles that runs nothing in them.

It moves values about; what they mean, `Rules` say: those of Trax's files in `records`, those of
plain data in `plain_data`. Nothing is imported, and nothing is called but the rules. Opcodes are
counted, so that time and memory grow with the file and never faster.
"""

import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from trax_torch.interop._pickle import records
from trax_torch.interop._pickle.records import refuse, require


class Rules(Protocol):
    """What the parts of a pickle stand for; whatever is not expected is refused.

    Attributes:
      max_marks: how deep groups may nest.
      advice: what to do about a pickle that is too long.
    """

    max_marks: int
    advice: str

    @property
    def more_actions(self) -> Mapping[int, Callable[["Machine"], object]]:
        """What to do at opcodes that the machine does not know, or not in this way."""
        ...

    def text(self, view: memoryview) -> str:
        """Returns the text of a view of the pickle."""
        ...

    def data(self, view: memoryview, mutable: bool) -> Any:
        """Returns what stands for bytes, or for a bytearray."""

    def group(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """Returns what stands for a tuple."""
        ...

    def name(self, module: str, name: str) -> Any:
        """Returns what stands for a name."""

    def append(self, target: Any, values: tuple[Any, ...]) -> None:
        """Appends to what should be a list."""

    def set_items(self, target: Any, items: tuple[Any, ...]) -> None:
        """Adds key, value, key, value, ... to what should be a dict."""

    def reduce(self, target: Any, args: Any) -> Any:
        """Returns what a call of `target` stands for."""

    def new(self, target: Any, args: Any) -> Any:
        """Returns what a new object of class `target` stands for."""

    def build(self, target: Any, state: Any) -> None:
        """Gives an object its state."""


class Parsed(NamedTuple):
    """What a pickle holds, and with how many opcodes it says so."""

    value: Any
    n_opcodes: int


def load(data: bytes | bytearray, max_opcodes: int, rules: Rules | None = None) -> Parsed:
    """Returns what a pickle holds.

    The result may share parts, or contain itself: walk it with a bound.

    Args:
      data: a pickle of protocol 2 to 5.
      max_opcodes: how many opcodes it may have.
      rules: what its parts stand for; by default as in Trax's files: dicts, lists, tuples, text,
        numbers, and records.

    Raises:
      UnsafeCheckpointError: at the first thing that the rules do not expect.
    """
    machine = Machine(data, max_opcodes, records.TraxRules() if rules is None else rules)
    return Parsed(machine.run(), machine.n_opcodes)


class Machine:
    """The stack machine of a pickle, with its memo."""

    def __init__(self, data: bytes | bytearray, max_opcodes: int, rules: Rules):
        self.n_opcodes = 0
        self._rules = rules
        self._actions = {**_ACTIONS, **rules.more_actions}
        self._max_opcodes = max_opcodes
        self._data = memoryview(data).toreadonly()
        self._at = 0
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: list[Any] = []  # picklers number what they remember 0, 1, 2, ...

    def run(self) -> Any:
        """Returns the object that the pickle describes."""
        require(self.unsigned(1) == _PROTO and 2 <= self.unsigned(1) <= 5, "no pickle")
        data, end, actions = self._data, len(self._data), self._actions
        while True:
            if self._at == end:
                refuse("a pickle without an end")
            code = data[self._at]
            self._at += 1
            if code == _STOP:
                break
            self.n_opcodes += 1
            if self.n_opcodes > self._max_opcodes:
                refuse(f"a pickle of more than {self._max_opcodes} opcodes{self._rules.advice}")
            action = actions.get(code)
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
        return self._rules.text(self.view(n_bytes))

    def data(self, n_bytes: int, mutable: bool = False) -> Any:
        """Returns the next bytes of the pickle, which stand for themselves."""
        return self._rules.data(self.view(n_bytes), mutable)

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
        require(len(self._marks) < self._rules.max_marks, "groups nested too deep")
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

    def group(self, values: tuple[Any, ...]) -> None:
        """Puts a tuple on the stack."""
        self.push(self._rules.group(values))

    def name(self, module: Any, name: Any) -> None:
        """Puts on the stack what stands for a name."""
        require(isinstance(module, str) and isinstance(name, str), "a name that is no text")
        self.push(self._rules.name(module, name))

    def append(self, values: tuple[Any, ...]) -> None:
        """Appends to the list on the stack."""
        self._rules.append(self.peek(), values)

    def set_items(self, items: tuple[Any, ...]) -> None:
        """Adds to the dict on the stack."""
        target = self.peek()
        require(len(items) % 2 == 0, "a key without a value")
        self._rules.set_items(target, items)

    def reduce(self) -> None:
        """Makes what a call of a name stands for."""
        self.push(self._rules.reduce(*self.pops(2)))

    def new(self) -> None:
        """Makes what a new object of a class stands for."""
        self.push(self._rules.new(*self.pops(2)))

    def build(self) -> None:
        """Gives the object on the stack its state."""
        target, state = self.pops(2)
        self._rules.build(target, state)
        self.push(target)


_PROTO, _STOP = 0x80, ord(".")

_ACTIONS: dict[int, Callable[[Machine], object]] = {
    0x95: Machine.frame,
    ord("("): Machine.mark,
    0x94: Machine.memoize,
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
    ord("C"): lambda m: m.push(m.data(m.unsigned(1))),
    ord("B"): lambda m: m.push(m.data(m.unsigned(4))),
    0x8E: lambda m: m.push(m.data(m.unsigned(8))),
    0x96: lambda m: m.push(m.data(m.unsigned(8), mutable=True)),
    ord("]"): lambda m: m.push([]),
    ord("}"): lambda m: m.push({}),
    ord(")"): lambda m: m.group(()),
    0x85: lambda m: m.group(m.pops(1)),
    0x86: lambda m: m.group(m.pops(2)),
    0x87: lambda m: m.group(m.pops(3)),
    ord("t"): lambda m: m.group(m.since_mark()),
    ord("a"): lambda m: m.append(m.pops(1)),
    ord("e"): lambda m: m.append(m.since_mark()),
    ord("s"): lambda m: m.set_items(m.pops(2)),
    ord("u"): lambda m: m.set_items(m.since_mark()),
    ord("c"): lambda m: m.name(m.line(), m.line()),
    0x93: lambda m: m.name(*m.pops(2)),
    ord("R"): Machine.reduce,
    0x81: Machine.new,
    ord("b"): Machine.build,
}
