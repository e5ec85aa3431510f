#!/usr/bin/env bash
# tensorflow-datasets 4.9.10, as pip installs it, prepares no data set that lies in a package.
#
# It asks importlib_resources where a data set's code is, and declares that package for Python before
# 3.9 alone; it used to come with etils, which needs it no more since 1.15. So download_and_prepare of
# each of tfds's own data sets ends before the first byte is fetched. Here one of two rows, in a
# package, stands for them: nothing is downloaded.
#
# Seen:
#   as installed: ModuleNotFoundError: No module named 'importlib_resources'
#   with importlib_resources: 2 rows
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
mkdir "$place/mine" && touch "$place/mine/__init__.py"
cat > "$place/mine/two.py" <<'PY'
import tensorflow_datasets as tfds


class Two(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, _):
        return {"train": ((i, {"text": str(i)}) for i in range(2))}

    def _generate_examples(self):
        raise NotImplementedError
PY
cat > "$place/look.py" <<'PY'
import sys
import tempfile

from mine.two import Two

builder = Two(data_dir=tempfile.mkdtemp(), file_format="array_record")
try:
    builder.download_and_prepare()
    said = f"{len(builder.as_data_source('train'))} rows"
except ImportError as error:
    said = f"{type(error).__name__}: {error}"
print(sys.argv[1], said)
PY
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q tensorflow-datasets==4.9.10 etils==1.15.0 array_record
look() { "$place/venv/bin/python" "$place/look.py" "$1" 2> /dev/null | grep "^$1"; }
look "as installed:" | tee "$place/seen"
"$place/venv/bin/pip" install -q importlib_resources
look "with importlib_resources:" | tee -a "$place/seen"
diff "$place/seen" - <<'SEEN'
as installed: ModuleNotFoundError: No module named 'importlib_resources'
with importlib_resources: 2 rows
SEEN
echo "as described"
