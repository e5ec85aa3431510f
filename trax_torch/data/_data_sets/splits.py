"""Which rows of a data set are for training, and which are for evals."""

from trax_torch.data._data_sets.opening import DataSet
from trax_torch.data._data_sets.rows import Examples, part

_MNLI = ("validation_matched", "validation_mismatched")


def train_examples(data: DataSet, eval_holdout_size: float, share: tuple[int, int]) -> Examples:
    """Returns a host's share of the rows of `train` that are not held out.

    Args:
      data: the data set.
      eval_holdout_size: the part of `train`, from 0 to less than 1, that is held out at its end.
      share: the host's number, and how many there are.

    Raises:
      ValueError: if there are none.
    """
    host, n_hosts = share
    if not 0 <= host < n_hosts:
        raise ValueError(
            f"host_id needs to be one of n_hosts={n_hosts}, from 0 on; got {host}. Leave both out "
            f"for this process's own among those that torchrun started."
        )
    train = data.split(["train"])
    n = len(train) - _n_held_out(len(train), eval_holdout_size)
    start, stop = (int(n * (h / n_hosts)) for h in (host, host + 1))
    if start == stop:
        raise ValueError(
            f"Each of {n_hosts} hosts needs a training example; {data.name} has {n} that are not "
            f"held out, and host {host} gets none. Hold out less, or take fewer hosts."
        )
    return part(train, start, stop)


def eval_examples(data: DataSet, eval_holdout_size: float, use_alt_eval: bool) -> Examples:
    """Returns the rows that are held out; else `validation`; else `test`.

    Args:
      data, eval_holdout_size: see `train_examples`.
      use_alt_eval: whether, of glue/mnli's two, the mismatched ones are taken.

    Raises:
      ValueError: if there are none.
    """
    if eval_holdout_size:
        train = data.split(["train"])
        return part(train, len(train) - _n_held_out(len(train), eval_holdout_size), len(train))
    if data.name == "glue/mnli":
        return data.split([_MNLI[use_alt_eval]])
    return data.split(["validation", "test"])


def _n_held_out(n: int, eval_holdout_size: float) -> int:
    n_held_out = int(n * eval_holdout_size)
    if not 0 <= eval_holdout_size < 1 or (eval_holdout_size and not n_held_out):
        raise ValueError(
            f"eval_holdout_size needs to be a part of the {n} training examples, from 0 to less "
            f"than 1, of an example or more; got {eval_holdout_size}. Give 0.1 for a tenth, say."
        )
    return n_held_out
