"""What a tree shows of a beam search is what the search did."""

import re

import decoding_by_hand as by_hand
import pytest
import torch
from decoders import PROMPTS, VOCAB

from trax_torch.supervised import decoding

LINE = re.compile(r"(?P<before>(?:\|  |   )*)[|`]- (?P<rest>.+)")


def nodes_of(text):
    """Returns by the tokens that lead there what a tree's lines say: score and ranks."""
    found, path = {}, []
    for line in text.splitlines():
        match = LINE.fullmatch(line)
        token, score, *ranks = match["rest"].split("  ")
        path = [*path[: len(match["before"]) // 3], int(token)]
        found[tuple(path)] = (score, ranks)
    return found


@pytest.mark.parametrize("eos", [-1, 1])
@pytest.mark.parametrize(("n_beams", "n_groups"), [(3, 1), (4, 2)])
def test_each_line_is_a_beam_with_its_sum_of_log_probabilities(model, eos, n_beams, n_groups):
    """And each hypothesis stands at its end, with its rank and its score."""
    tree = decoding.BeamTree()
    settings = {
        "batch_size": len(PROMPTS),
        "n_beams": n_beams,
        "n_groups": n_groups,
        "eos_id": eos,
        "max_length": 5,
        "return_scores": True,
    }
    sequences, scores = decoding.beam_search(model, PROMPTS, tree=tree, **settings)
    without = decoding.beam_search(model, PROMPTS, **settings)

    assert torch.equal(sequences, without[0])
    assert torch.equal(scores, without[1])
    for row, prompt in enumerate(PROMPTS.tolist()):
        nodes = nodes_of(tree.row(row))
        for tokens, (score, _) in nodes.items():
            if tokens[-1] == eos:  # it never lived
                continue
            total = 0.0
            for i, token in enumerate(tokens):
                logits = torch.tensor(by_hand.logits_after(model, prompt + list(tokens[:i])))
                total += float(torch.log_softmax(logits, 0)[token])
            assert float(score) == pytest.approx(total, abs=0.006)
        ranked = {}
        for i, (tokens, value) in enumerate(
            zip(sequences[row].tolist(), scores[row].tolist(), strict=True), 1
        ):
            end = tokens.index(eos) + 1 if eos in tokens else len(tokens)
            ending = {1: "st", 2: "nd", 3: "rd"}.get(i, "th")
            ranked.setdefault(tuple(tokens[:end]), []).append(f"{i}{ending}: {value:.2f}")
        for tokens, (score, told) in nodes.items():
            said = told or ([score] if "th:" in score or ": " in score else [])
            assert ", ".join(ranked.get(tokens, [])) == "".join(said)
        assert ranked.keys() <= nodes.keys()
        assert len([t for t in nodes if len(t) == 1]) <= n_beams + (eos != -1) * n_beams


def test_all_rows_print_with_names_of_tokens(model):
    tree = decoding.BeamTree("abcdefg".__getitem__)
    assert str(tree) == "BeamTree of no search yet: beam_search(..., tree=tree) fills it"
    decoding.beam_search(model, PROMPTS, batch_size=3, max_length=2, eos_id=-1, tree=tree)

    lines = str(tree).splitlines()
    assert [line for line in lines if line.startswith("row")] == ["row 0", "row 1", "row 2"]
    assert all(re.search(r"- [a-g]  -\d", line) for line in lines if "- " in line)
    assert VOCAB == 7
    first = str(tree)
    decoding.beam_search(model, PROMPTS, batch_size=3, max_length=2, eos_id=-1, tree=tree)
    assert str(tree) == first  # of the last search alone
