"""Data sets by their names, read by the libraries that have them.

`opening` finds the library and the files, `splits` says which rows are for training, `rows` gives
what Trax gives: tuples of numpy, texts as bytes. `tf_inputs` calls it.
"""

from trax_torch.data._data_sets.opening import DataSet, opened
from trax_torch.data._data_sets.rows import Rows, as_numpy, fields
from trax_torch.data._data_sets.splits import eval_examples, train_examples

__all__ = ["DataSet", "Rows", "as_numpy", "eval_examples", "fields", "opened", "train_examples"]
