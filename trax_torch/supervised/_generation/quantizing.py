"""Models with rounded weights: which layers take part, and what they become."""

import copy
from typing import Any

from trax_torch.layers import base, core
from trax_torch.layers._protocol import has_hooks
from trax_torch.supervised._generation import groups, int8_products, native
from trax_torch.supervised._generation.int4 import Int4Dense
from trax_torch.supervised._generation.int8 import Int8Dense

_KINDS: dict[str, tuple[Any, Any]] = {  # with weights of 8 bits, and of 4
    "float": (Int8Dense, Int4Dense),
    "int8": (int8_products.Int8ProductDense, int8_products.Int4ProductDense),
}
_GROUP_SIZE = 64
DENSE = (core.Dense, *_KINDS["float"], *_KINDS["int8"])  # all that do what a Dense does


def quantized(
    model: base.Layer, activations: str = "float", bits: int = 8, group_size: int | None = None
) -> base.Layer:
    """Returns a copy of a model with rounded weights in each `Dense`; see `decoding.quantize`.

    Those that are more than a Dense, by their class or by hooks, are copied as they are.
    """
    if activations not in _KINDS:
        raise ValueError(f"activations is 'float' or 'int8'; got {activations!r}.")
    size = _checked_size(bits, group_size, activations)
    if activations == "int8" and (why_not := native.why_not()):
        raise ValueError(
            f"activations='int8' needs a C++ compiler, as torch.compile does on a CPU; {why_not}. "
            f"Or take activations='float'."
        )
    of_8_bits, of_4_bits = _KINDS[activations]
    swapped: dict[int, Any] = {}
    for path, m in model.named_modules():
        if type(m) is not core.Dense:
            continue
        if m.weight is None:
            raise ValueError(
                f"{m.name} ({path or 'the model'}) has no weights yet to make integers of. "
                f"Initialize the model, model.init(signature), or load its weights, before."
            )
        n_bad = int((~m.weight.isfinite()).sum())
        if n_bad:
            raise ValueError(
                f"Integers are made of finite weights; {m.name} ({path or 'the model'}) has "
                f"{n_bad} that are not. Go back to a checkpoint without them."
            )
        if not has_hooks(m) and m.weight.numel():
            has_groups = size and m.weight.shape[1] % size == 0
            swapped[id(m)] = of_4_bits(m, size) if has_groups else of_8_bits(m)
    if not swapped:
        raise ValueError(
            f"Weights of {bits} bits are for tl.Dense layers themselves, without hooks; "
            f"{model.name} has none. Remove its hooks, build it with tl.Dense, or decode it as it "
            f"is."
        )
    if size and not any(isinstance(m, Int4Dense) for m in swapped.values()):
        raise ValueError(
            f"Weights of 4 bits are in groups of {size} inputs; no tl.Dense of {model.name} has a "
            f"multiple of that. Take a smaller group_size, or bits=8."
        )
    return copy.deepcopy(model, swapped)


def _checked_size(bits: int, group_size: int | None, activations: str) -> int:
    """Returns how large groups are, 0 where there are none; refuses what does not go together."""
    if bits not in (4, 8):
        raise ValueError(f"bits is 4 or 8; got {bits!r}.")
    if bits == 8:
        if group_size is not None:
            raise ValueError(
                f"group_size is for bits=4, where weights share a scale by groups; got "
                f"group_size={group_size!r} with bits=8. Leave it out, or take bits=4."
            )
        return 0
    sizes = groups.SIZES if activations == "float" else int8_products.GROUP_SIZES
    if group_size is None:
        return _GROUP_SIZE
    if group_size not in sizes:
        raise ValueError(
            f"group_size is one of {sizes} with activations={activations!r}; got {group_size!r}."
        )
    return group_size
