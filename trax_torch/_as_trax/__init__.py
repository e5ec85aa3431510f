"""The name `trax` for a process: `import trax`, and what is imported from it, is this library.

`finder` answers imports, `modules` are what it gives, `addresses` knows what stands for what,
`missing` is what is not here, `ways` is where Trax's code differs from its documentation, and
`tensor_methods` is what tensors have of numpy's. For `trax_torch.as_trax` alone.
"""

from trax_torch._as_trax.finder import install

__all__ = ["install"]
