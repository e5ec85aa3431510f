"""A megabyte of text by a subword vocabulary, against a search over all lengths.

    python benchmarks/bench_tokenize.py [--vocab-file PATH] [--repeats N]

The rival cuts as the rules are told: of a word, the longest piece that is a subword, from the
longest in the vocabulary down, and keeps what it found for words that come again, as Trax does.
First it is shown that the ids are the same. Texts are Python's own documentation, and as much of
one word, of escapes, and of a script without spaces. Without a file the vocabulary is made of the
documentation: its frequent words and beginnings of words.
"""

import argparse
import collections
import json
import statistics
import time
from pydoc_data import topics

from trax_torch.data._vocabularies import words
from trax_torch.data._vocabularies.subword import SubwordVocabulary

N = 10**6
ENGLISH = ("".join(topics.topics.values()) * 3)[:N]
TEXTS = {
    "English": ENGLISH,
    "one word": "a" * N,
    "escapes": "\\_" * (N // 2),
    "no spaces": "\u65e5\u672c\u8a9e" * (N // 9),
}


def made_vocabulary(n=8000):
    counts = collections.Counter()
    for run in words.split(ENGLISH):
        written = run.replace("\\", "\\\\").replace("_", "\\u").replace("\n", "\\10;") + "_"
        counts.update(written[:end] for end in range(2, len(written) + 1) if end <= 16)
    letters = sorted(set(ENGLISH) | set("\\_u;0123456789"))
    return ["<pad>", "<EOS>", *(piece for piece, _ in counts.most_common(n)), *letters]


class Rival:
    def __init__(self, subwords):
        self.ids = {subword: i for i, subword in enumerate(subwords) if subword}
        self.longest = max(map(len, subwords))
        self.alphabet = set("".join(subwords)) | set("\\_u;0123456789")
        self.found = {}

    def encode(self, text):
        ids = []
        for run in words.split(text):
            if run not in self.found:
                self.found[run] = self.cut(run)
            ids += self.found[run]
        return ids

    def cut(self, run):
        run = run.replace("\\", "\\\\").replace("_", "\\u")
        known = self.alphabet - {"\n"}
        rest = "".join(c if c in known else f"\\{ord(c)};" for c in run) + "_"
        ids, start = [], 0
        while start < len(rest):
            end = min(len(rest), start + self.longest)
            while rest[start:end] not in self.ids:
                end -= 1
            ids.append(self.ids[rest[start:end]])
            start = end
        return ids


def seconds(make, text):
    """Returns what a new tokenizer takes of this process for a text, and the ids."""
    tokenizer = make()
    start = time.process_time()
    ids = tokenizer.encode(text)
    return time.process_time() - start, ids


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--vocab-file", help="of tensor2tensor's")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    subwords = made_vocabulary()
    if args.vocab_file:
        subwords = SubwordVocabulary.from_file(args.vocab_file)._subwords

    rows = {}
    for name, text in TEXTS.items():
        ours, rival = [], []
        for _ in range(args.repeats):
            took, ids = seconds(lambda: SubwordVocabulary(subwords, "here"), text)
            ours.append(took)
            took, expected = seconds(lambda: Rival(subwords), text)
            rival.append(took)
            assert ids == expected, name
        rows[name] = {
            "megabytes": len(text.encode()) / 1e6,
            "ids": len(ids),
            "seconds": statistics.quantiles(ours, n=4),
            "rival": statistics.quantiles(rival, n=4),
        }

    print(f"{len(subwords)} subwords, the longest of {max(map(len, subwords))} characters")
    print(f"{'text':>10} {'MB':>5} {'ids':>8} {'seconds, quartiles':>22} {'rival':>22}")
    for name, row in rows.items():
        told = [" ".join(f"{x:6.2f}" for x in row[key]) for key in ("seconds", "rival")]
        print(f"{name:>10} {row['megabytes']:5.2f} {row['ids']:8} {told[0]:>22} {told[1]:>22}")
    print(json.dumps({"question": "tokenize", "n_subwords": len(subwords), "rows": rows}))


if __name__ == "__main__":
    main()
