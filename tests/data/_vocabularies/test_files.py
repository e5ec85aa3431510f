"""Vocabulary files on a server: the real one of this test's, on loopback."""

import functools
import http.server
import os
import threading

import pytest
import vocabularies
from packages import needed

from trax_torch.data import vocab_size
from trax_torch.data._vocabularies import files


class _Handler(http.server.SimpleHTTPRequestHandler):
    asked: list[str]

    def log_request(self, *args):
        self.asked.append(self.path)

    def log_error(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves `server/trax-ml/vocabs/small.subword` as the bucket of Trax; notes what is asked."""
    folder = tmp_path / "server/trax-ml/vocabs"
    folder.mkdir(parents=True)
    vocabularies.subword_file(folder)
    handler = type("Handler", (_Handler,), {"asked": []})
    serve = functools.partial(handler, directory=str(tmp_path / "server"))
    there = http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve)
    thread = threading.Thread(target=there.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    url = f"http://127.0.0.1:{there.server_port}/"
    monkeypatch.setitem(files._SERVERS, "gs://", url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    yield url, handler.asked
    there.shutdown()
    thread.join()
    there.server_close()


@pytest.mark.parametrize("named", ["no folder", "bucket", "url", "whole"])
def test_a_file_on_a_server_is_asked_for_once(server, tmp_path, named):
    """A bucket's, any server's, or that of Trax if no folder is named; it is cached then."""
    url, asked = server
    settings = {
        "no folder": {"vocab_file": "small.subword"},
        "bucket": {"vocab_file": "small.subword", "vocab_dir": "gs://trax-ml/vocabs"},
        "url": {"vocab_file": "small.subword", "vocab_dir": f"{url}trax-ml/vocabs/"},
        "whole": {"vocab_file": f"{url}trax-ml/vocabs/small.subword"},
    }[named]

    sizes = [vocab_size(**settings) for _ in range(2)]

    assert sizes == [len(vocabularies.SMALL)] * 2
    assert asked == ["/trax-ml/vocabs/small.subword"]
    assert len(os.listdir(tmp_path / "cache/trax_torch/vocabularies")) == 1


def test_a_file_in_the_present_folder_is_not_asked_for(server, tmp_path):
    vocabularies.subword_file(tmp_path, vocabularies.ESCAPES)

    assert vocab_size(vocab_file="small.subword") == len(vocabularies.ESCAPES)
    assert server[1] == []


def test_a_file_that_no_server_gives_is_told_of(server, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"'gs://trax-ml/vocabs/no.subword', which http.*404.*vocab_dir"
    ):
        vocab_size(vocab_file="no.subword")
    with pytest.raises(FileNotFoundError, match=r"'s3://a/b', which is not there. Name its folder"):
        vocab_size(vocab_file="b", vocab_dir="s3://a")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("content", "said"), [(b"\xff\x00\n", "can't decode byte"), (b"[" + b"1," * 600, "1201 char")]
)
@pytest.mark.parametrize("vocab_type", ["subword", "bert"])
def test_a_file_of_another_kind_is_refused(tmp_path, vocab_type, content, said):
    """Before a line as long as a whole file is cut into all of its beginnings."""
    if vocab_type == "bert":
        needed("tokenizers")
    (tmp_path / "other").write_bytes(content)

    with pytest.raises(ValueError, match=rf"an entry a line; .*other is .*{said}.*Give the file"):
        vocab_size(vocab_type, "other", str(tmp_path))


def test_a_file_of_which_a_part_came_is_none(server, tmp_path, monkeypatch):
    """And the next one who asks has it whole."""

    def send_half(self, source, outputfile):
        outputfile.write(source.read()[:20])

    with monkeypatch.context() as patch:
        patch.setattr(http.server.SimpleHTTPRequestHandler, "copyfile", send_half)
        with pytest.raises(FileNotFoundError, match="does not give .*Fetch it"):
            vocab_size(vocab_file="small.subword")

    assert vocab_size(vocab_file="small.subword") == len(vocabularies.SMALL)
