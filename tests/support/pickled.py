"""A pickle's way to a file and back, and classes of which tests pickle objects."""

import collections
import dataclasses

from trax_torch.supervised.training import pickle_to_file, unpickle_from_file

PROTOCOLS = [2, 3, 4, 5]
MARKER = "marker-of-a-file-that-ran"


def read(data, **arguments):
    with open("model.pkl", "wb") as f:
        f.write(data)
    return unpickle_from_file("model.pkl", **arguments)


def there_and_back(obj, gzip=False, **arguments):
    pickle_to_file(obj, "model.pkl", gzip)
    return unpickle_from_file("model.pkl", gzip, **arguments)


@dataclasses.dataclass
class Plain:
    x: object
    y: object = None


class Slots:
    __slots__ = ("__dict__", "_x", "y")

    def __init__(self, x):
        self._x, self.z = x, x

    def __eq__(self, other):
        return (self._x, self.z) == (other._x, other.z)

    __hash__ = None


class ByClass(Plain):
    def __reduce__(self):
        return ByClass, (self.x,), {"y": self.y}


class ByState(Plain):
    def __getstate__(self):
        return [self.x]

    def __setstate__(self, state):
        self.x, self.y = state[0], None


Pair = collections.namedtuple("Pair", "x y")


class Names(list):
    pass


class Sizes(dict):
    pass


class Outer:
    class Inner(Plain):
        pass


X = {"a": [1, (2, 3)], "w": (1.5, None)}
