"""Where a data set is, and which library reads it."""

import glob
import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trax_torch._extras import needed
from trax_torch.data._data_sets.rows import Examples

# What the hub of Hugging Face calls data sets of tfds: the repository, and the configuration.
_ON_HUB = {
    "cnn_dailymail": ("abisee/cnn_dailymail", "3.0.0"),
    "fashion_mnist": ("zalando-datasets/fashion_mnist", None),
    "glue": ("nyu-mll/glue", None),
    "imdb_reviews": ("stanfordnlp/imdb", None),
    "mnist": ("ylecun/mnist", None),
    "squad": ("rajpurkar/squad", None),
    "wmt14_translate": ("wmt/wmt14", None),
}


@dataclass(frozen=True)
class DataSet:
    """What a library has read.

    Attributes:
      name: that it was asked for by.
      splits: examples, dicts, by the names of splits.
      supervised: the features that are input and target, where the data set says so.
    """

    name: str
    splits: Mapping[str, Examples]
    supervised: tuple[str, str] | None = None

    def split(self, names: Sequence[str]) -> Examples:
        """Returns the first of some splits that is there.

        Raises:
          ValueError: if none is.
        """
        for name in names:
            if name in self.splits:
                return self.splits[name]
        raise ValueError(
            f"{self.name} needs a split {' or '.join(names)}; it has {', '.join(self.splits)}. "
            f"Hold out a part of train for evals: eval_holdout_size=0.1."
        )


def opened(name: str, data_dir: str | None) -> DataSet:
    """Returns a data set.

    A folder of that name, below `data_dir` if that is given, is read by Hugging Face's `datasets`:
    one that `save_to_disk` wrote, or one of files (JSON lines, CSV, Parquet, text, ...) named by
    their splits. Else `tensorflow_datasets` is asked, where it is installed, and then `datasets`,
    by the name that the hub has for it.

    Raises:
      ImportError: if neither library is installed, or not the one that wrote the folder.
      FileNotFoundError: if none has it.
      ValueError: if it is a problem of tensor2tensor's.
    """
    if name.startswith("t2t_"):
        raise ValueError(
            f"A data set needs to be one of tfds or of Hugging Face, or a folder; got {name!r}, a "
            f"problem of tensor2tensor's. Give its data set's own name."
        )
    folder = os.path.join(os.path.expanduser(data_dir or ""), name)
    is_of_tfds = bool(_written_by_tfds(folder))
    if os.path.isdir(folder) and not is_of_tfds:
        return _of_folder(name, folder)
    if is_of_tfds or importlib.util.find_spec("tensorflow_datasets"):
        found = _of_tfds(name, data_dir)
        if found is not None:
            return found
    return _of_hub(name, data_dir)


def _written_by_tfds(folder: str) -> list[str]:
    below = glob.escape(folder)
    return glob.glob(f"{below}/*/features.json") + glob.glob(f"{below}/*/*/features.json")


def _of_folder(name: str, folder: str) -> DataSet:
    library = needed("datasets", "TFDS", extra="data")
    is_one = os.path.exists(os.path.join(folder, "state.json"))
    if is_one or os.path.exists(os.path.join(folder, "dataset_dict.json")):
        read = library.load_from_disk(folder)
        return DataSet(name, {"train": read} if is_one else read)
    return DataSet(name, library.load_dataset(folder))


def _of_hub(name: str, data_dir: str | None) -> DataSet:
    library = needed("datasets", "TFDS", extra="data")
    short, _, named = name.partition("/")
    path, config = _ON_HUB.get(short, (name, None))
    if short in _ON_HUB:
        config = named or config
    cache_dir = None if data_dir is None else os.path.expanduser(data_dir)
    try:
        return DataSet(name, library.load_dataset(path, config, cache_dir=cache_dir))
    except OSError as error:
        raise FileNotFoundError(
            f"TFDS needs the data set {name!r}, and Hugging Face's datasets has no {path!r} "
            f"({error}). Where there is a network, write load_dataset({path!r}).save_to_disk("
            f"'FOLDER/{name}'), and give data_dir='FOLDER'."
        ) from error


def _of_tfds(name: str, data_dir: str | None) -> DataSet | None:
    """Returns a data set that tfds has, which is prepared if it is not yet; else None."""
    library: Any = needed("tensorflow_datasets", "TFDS", extra="tfds")
    try:
        builder = library.builder(name, data_dir=data_dir)
    except library.core.DatasetNotFoundError:
        return None
    if not builder.is_prepared():
        builder = library.builder(name, data_dir=data_dir, file_format="array_record")
        builder.download_and_prepare()
    try:
        splits = builder.as_data_source()
    except NotImplementedError as error:
        raise ValueError(
            f"TFDS needs {name} in a format that is read by an index; {builder.data_path} is in "
            f"another ({error}). Prepare it again: tfds.builder({name!r}, "
            f"file_format='array_record').download_and_prepare()."
        ) from error
    keys = builder.info.supervised_keys
    return DataSet(name, splits, None if keys is None else (keys[0], keys[1]))
