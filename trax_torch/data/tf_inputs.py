"""Texts and data sets, at the address that they have in Trax; nothing here needs TensorFlow."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from trax_torch import _distributed
from trax_torch.data._data_sets import (
    DataSet,
    Rows,
    as_numpy,
    eval_examples,
    fields,
    opened,
    train_examples,
)
from trax_torch.data._pipeline import (
    Examples,
    Key,
    Map,
    Serial,
    Shuffle,
    Stage,
    as_keys,
    each,
    named,
    with_items,
)
from trax_torch.data._vocabularies import Tokenizer

__all__ = ["TFDS", "Tokenize", "data_streams", "detokenize", "tokenize", "vocab_size"]


def tokenize(
    stream: Iterable[Any],
    keys: Sequence[Key] | Key | None = None,
    vocab_type: str = "subword",
    vocab_file: str | None = None,
    vocab_dir: str | None = None,
    n_reserved_ids: int = 0,
) -> Iterator[Any]:
    """Returns examples with arrays of ids in the place of texts.

    Types of vocabulary:

    - `"char"`: the bytes of UTF-8; no file.
    - `"subword"`: a vocabulary file of tensor2tensor's. Escapes spell what it does not hold, so
      every text has its ids, and they give it back.
    - `"sentencepiece"`: a model file of that library (extra `data`).
    - `"bert"`, `"bert-lowercase"`: a file of word pieces, cut by Hugging Face's `tokenizers` (extra
      `data`); `[CLS]` and `[SEP]` are not added.

    Args:
      stream: texts, or tuples, lists or dicts of them. Bytes are read as UTF-8, without what is
        none.
      keys: which places of a tuple, or keys of a dict, hold texts; None for all.
      vocab_type: see above.
      vocab_file: its name, or whole path.
      vocab_dir: the folder that it is in; one on a server, `gs://`, `https://`, is asked once, and
        the file kept in the user's cache. None for the present folder, then for the one where
        Trax keeps its vocabularies, `gs://trax-ml/vocabs/`.
      n_reserved_ids: what is added to each id, so that 0 to n_reserved_ids - 1 are free, for
        padding, say.

    Returns:
      An iterator of what came: an int64 array of shape (length,) for a text, tuples for tuples and
      lists, dicts for dicts. It keeps its place as the stream does.

    Raises:
      ValueError: if there is no such type, key or number of ids, or no file is named.
      FileNotFoundError: if the vocabulary's file is not there.
      ImportError: if a library is not installed.
      TypeError: when an example has no text at a key.

    Example:
      >>> list(tokenize(["Hi", "é"], vocab_type="char"))
      [array([ 72, 105]), array([195, 169])]
      >>> next(tokenize([("Hi", 1)], keys=[0], vocab_type="char", n_reserved_ids=2))
      (array([ 74, 107]), 1)

    Source: Trax `data/tf_inputs.py::tokenize`, for which no ids are an array of floats.
    """
    return Tokenize(keys, vocab_type, vocab_file, vocab_dir, n_reserved_ids)(stream)


def Tokenize(
    keys: Sequence[Key] | Key | None = None,
    vocab_type: str = "subword",
    vocab_file: str | None = None,
    vocab_dir: str | None = None,
    n_reserved_ids: int = 0,
) -> Stage:
    """Returns the stage of a pipeline that is `tokenize`.

    Args:
      keys, vocab_type, vocab_file, vocab_dir, n_reserved_ids: see `tokenize`.

    Raises:
      ValueError, FileNotFoundError, ImportError: as `tokenize` does, when the stage is made.

    Example:
      >>> stage = Tokenize(keys=["text"], vocab_type="char")
      >>> next(stage([{"text": "Hi", "label": 1}]))
      {'text': array([ 72, 105]), 'label': 1}

    Source: Trax `data/tf_inputs.py::Tokenize`.
    """
    chosen = as_keys(keys)
    to_ids = Tokenizer(vocab_type, vocab_file, vocab_dir, n_reserved_ids)
    name = named("Tokenize", keys=chosen, vocab_type=vocab_type, vocab_file=vocab_file)
    return each(name, functools.partial(with_items, "Tokenize", fn=to_ids.ids_of, keys=chosen))


def detokenize(
    x: Any,
    vocab_type: str = "subword",
    vocab_file: str | None = None,
    vocab_dir: str | None = None,
    n_reserved_ids: int = 0,
) -> str:
    """Returns the text of ids, the other way of `tokenize`.

    Texts come back as they were from `"char"` and `"subword"`; from the others up to spaces and
    what their libraries make alike. Reserved ids stand for nothing. An id outside the vocabulary
    stands for nothing in `"subword"`, for an unknown piece in `"sentencepiece"`, whose text ends
    at the first end of sequence; elsewhere it is refused.

    Args:
      x: integers, of shape (length,): a list, an array or a tensor.
      vocab_type, vocab_file, vocab_dir, n_reserved_ids: as they were for `tokenize`.

    Raises:
      ValueError: as `tokenize` does; if x is no row; for an id that is outside.
      TypeError: if x is not of integers.
      FileNotFoundError, ImportError: as `tokenize` does.

    Example:
      >>> detokenize([74, 107, 0], vocab_type="char", n_reserved_ids=2)
      'Hi'

    Source: Trax `data/tf_inputs.py::detokenize`, which fails at a reserved id for all but
      `"subword"`, and reads the file each time.
    """
    return Tokenizer(vocab_type, vocab_file, vocab_dir, n_reserved_ids).text_of(x)


def vocab_size(
    vocab_type: str = "subword",
    vocab_file: str | None = None,
    vocab_dir: str | None = None,
    n_reserved_ids: int = 0,
) -> int:
    """Returns how many ids there are, reserved ones included: what a model must tell apart.

    Args:
      vocab_type, vocab_file, vocab_dir, n_reserved_ids: see `tokenize`.

    Raises:
      ValueError, FileNotFoundError, ImportError: as `tokenize` does.

    Example:
      >>> vocab_size("char", n_reserved_ids=2)
      258

    Source: Trax `data/tf_inputs.py::vocab_size`.
    """
    return Tokenizer(vocab_type, vocab_file, vocab_dir, n_reserved_ids).n_ids


def TFDS(
    dataset_name: str,
    data_dir: str | None = None,
    tfds_preprocess_fn: Callable[[Any], Any] | None = None,
    keys: Sequence[str] | None = None,
    train: bool = True,
    use_alt_eval: bool = False,
    shuffle_train: bool = True,
    host_id: int | None = None,
    n_hosts: int | None = None,
    eval_holdout_size: float = 0,
) -> Stage:
    """Begins a pipeline with the examples of a data set, again and again.

    They are read by Hugging Face's `datasets` (extra `data`), or by `tensorflow_datasets` where
    that is installed (extra `tfds`); neither needs TensorFlow. A run that is resumed goes to its
    place without a look at what comes before.

    Args:
      dataset_name: of a folder that `datasets` wrote or can read (JSON lines, CSV, Parquet, text:
        files that are called after their splits), or as tfds calls it, as `'glue/mnli'`, or as the
        hub of Hugging Face does, as `'stanfordnlp/imdb'`.
      data_dir: where that folder is; or where the library keeps data.
      tfds_preprocess_fn: from a dataset of dicts to another, before keys are chosen: of Hugging
        Face's `Dataset`, which has `map` and `filter`; of a sequence, for tfds.
      keys: features of the data set, in the order in which an example has them; also those within
        a feature that is a dict.
      train: whether it is the split `train`, or one for evals: what is held out; else
        `validation`; else `test`.
      use_alt_eval: whether, of glue/mnli's two, it is the mismatched one.
      shuffle_train: whether each pass through `train` has an order of its own; see `Examples`.
      host_id, n_hosts: which part of how many of `train` is this process's; None for its own among
        those that torchrun started. With `share_of`, which has all draw alike, give n_hosts=1.
      eval_holdout_size: the part of `train`, from 0 to less than 1, that is held out at its end.

    Returns:
      A function without arguments that returns an iterator of tuples, which keeps its place. Texts
      are bytes, as in Trax, numbers and images numpy.

    Raises:
      ImportError: if no library is installed that could read it; says what to install.
      FileNotFoundError: if none has it.
      ValueError: if the data set has no such split or key, or no rows are left.

    Source: Trax `data/tf_inputs.py::TFDS`, where TensorFlow shuffles files, not examples.
    """
    data = opened(dataset_name, data_dir)
    if train:
        rank, size = _distributed.launched()
        share = (rank if host_id is None else host_id, n_hosts or size)
        examples = train_examples(data, eval_holdout_size, share)
    else:
        examples = eval_examples(data, eval_holdout_size, use_alt_eval)
    if tfds_preprocess_fn is not None:
        examples = tfds_preprocess_fn(examples)
    if keys is None:
        raise ValueError(
            f"TFDS needs the features that make an example; got keys=None, and {dataset_name} has "
            f"{list(examples[0])}. Name them in their order: keys=('text', 'label'), say."
        )
    choose = functools.partial(fields, keys=[keys] if isinstance(keys, str) else list(keys))
    choose(examples[0])  # a key that is not there is told of now
    return Examples(Rows(examples, 0, len(examples), choose), shuffle=train and shuffle_train)


def data_streams(
    dataset_name: str,
    data_dir: str | None = None,
    preprocess_fn: Callable[[Any, bool], Any] | None = None,
    bare_preprocess_fn: Callable[[Any, bool], Any] | None = None,
    shuffle_buffer_size: int = 1024,
    eval_holdout_size: float = 0,
    input_name: str | None = None,
    target_name: str | None = None,
) -> tuple[Stage, Stage]:
    """Returns functions for streams of a data set's training and eval examples, without end.

    Args:
      dataset_name, data_dir, eval_holdout_size: see `TFDS`.
      preprocess_fn: from `(stream, is_training)`, with a stream of `(features, targets)`, to
        another of these; features are a dict.
      bare_preprocess_fn: likewise, of features alone, before that.
      shuffle_buffer_size: of the buffer that examples are shuffled in at the end.
      input_name, target_name: of the features that are given; None for those that the data set
        itself calls input and target, if it does.

    Returns:
      Two functions without arguments; each returns an iterator of `(input, target)`, or of
      `(input, target, mask)` where features have a `'mask'`. It keeps its place.

    Raises:
      ImportError, FileNotFoundError, ValueError: as `TFDS` does, and if a feature is not named.

    Source: Trax `data/tf_inputs.py::data_streams`, whose functions take data sets of TensorFlow's.
    """
    data = opened(dataset_name, data_dir)
    names = _named_features(data, input_name, target_name)
    shares = (
        train_examples(data, eval_holdout_size, (0, 1)),
        eval_examples(data, eval_holdout_size, use_alt_eval=False),
    )
    streams = []
    for examples, is_training in zip(shares, (True, False), strict=True):
        rows = Rows(examples, 0, len(examples), as_numpy)
        stages: list[Any] = [Examples(rows, shuffle=is_training)]
        if bare_preprocess_fn is not None:
            stages.append(functools.partial(_told_whether, bare_preprocess_fn, is_training))
        stages.append(Map(functools.partial(_with_target, names[1])))
        if preprocess_fn is not None:
            stages.append(functools.partial(_told_whether, preprocess_fn, is_training))
        stages += [Map(functools.partial(_item, names[0])), Shuffle(shuffle_buffer_size)]
        streams.append(Serial(*stages))
    return streams[0], streams[1]


def _named_features(
    data: DataSet, input_name: str | None, target_name: str | None
) -> tuple[str, str]:
    own = data.supervised or (None, None)
    names = [given or told for given, told in zip((input_name, target_name), own, strict=True)]
    if names[0] is None or names[1] is None:
        raise ValueError(
            f"data_streams needs to know input and target; got input_name={input_name!r}, "
            f"target_name={target_name!r}, and {data.name} has {list(data.split(['train'])[0])} "
            f"and does not say. Name both."
        )
    return names[0], names[1]


def _told_whether(fn: Callable[[Any, bool], Any], is_training: bool, stream: Any) -> Any:
    return fn(stream, is_training)


def _with_target(name: str, features: Any) -> tuple[Any, Any]:
    return features, fields(features, [name])[0]


def _item(name: str, example: tuple[Any, Any]) -> tuple[Any, ...]:
    features, target = example
    item = (fields(features, [name])[0], target)
    return (*item, features["mask"]) if "mask" in features else item
