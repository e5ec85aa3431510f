"""Where the file of a vocabulary lies; one that lies on a server is fetched once."""

import http.client
import logging
import os
import urllib.parse
import urllib.request

from trax_torch._durable import whole_file

_log = logging.getLogger("trax_torch")

_OF_TRAX = "gs://trax-ml/vocabs/"  # where Trax looks when it is told of no folder
_SERVERS = {
    "gs://": "https://storage.googleapis.com/",  # of buckets that everybody may read
    "https://": "https://",
    "http://": "http://",
}
_LONGEST = 1000  # characters of a line; all beginnings of a subword are kept
_SECONDS = 30.0  # that a server may say nothing


def vocabulary_path(vocab_file: str, vocab_dir: str | None) -> str:
    """Returns the path of a file that is there, or has been fetched.

    Args:
      vocab_file: its name, or its whole path.
      vocab_dir: the folder it is in, also on a server; None for the present one, and if it is not
        there, for the one that Trax's vocabularies are in.

    Raises:
      FileNotFoundError: if it is not there.
    """
    path = os.path.join(os.path.expanduser(vocab_dir or ""), os.path.expanduser(vocab_file))
    if os.path.isfile(path):
        return os.path.realpath(path)
    if not vocab_dir:
        path = os.path.join(_OF_TRAX, vocab_file) if "://" not in vocab_file else vocab_file
    scheme = path[: path.find("://") + 3]
    if scheme in _SERVERS:
        return _fetched(path, _SERVERS[scheme] + path[len(scheme) :])
    raise FileNotFoundError(
        f"The vocabulary needs the file {path!r}, which is not there. Name its folder by "
        f"vocab_dir; those of Trax's own models lie at {_OF_TRAX}."
    )


def lines_of(path: str) -> list[str]:
    """Returns the lines of a vocabulary in UTF-8; nothing but a newline ends one.

    Raises:
      ValueError: if it is no such file.
    """
    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            lines = list(file)
        longest = max(map(len, lines), default=0)
        wrong = f"a line has {longest} characters" if longest > _LONGEST else ""
    except UnicodeDecodeError as error:
        lines, wrong = [], str(error)
    if wrong:
        raise ValueError(
            f"The vocabulary needs a text file with an entry a line; {path} is another kind "
            f"({wrong}). Give the file that belongs to vocab_type, or name the type it is of."
        )
    return lines


def _fetched(name: str, url: str) -> str:
    """Returns the path of a copy, which is made if there is none."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = os.path.join(cache, "trax_torch", "vocabularies")
    path = os.path.join(folder, urllib.parse.quote(name, safe=""))
    if os.path.isfile(path):
        return path
    _log.info("Fetching %s to %s", url, path)
    try:
        with urllib.request.urlopen(url, timeout=_SECONDS) as response:
            content = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise FileNotFoundError(
            f"The vocabulary needs the file {name!r}, which {url} does not give ({error}). Fetch "
            f"it where there is a network, and name its folder by vocab_dir."
        ) from error
    os.makedirs(folder, exist_ok=True)
    with whole_file(path) as file:  # so that no other process sees a part of it
        file.write(content)
    return path
