"""Models of transformers are decoded as they are, and their tokens are those of `generate`."""

import copy
import functools
import pickle
import sys

import pytest
import torch

pytest.importorskip("transformers", minversion="5.0")

import hugging_face as hf

from trax_torch import layers as tl
from trax_torch.interop import huggingface
from trax_torch.supervised import decoding

CAUSAL = [hf.gpt2, hf.llama, hf.mistral, hf.gemma3, hf.opt, hf.gpt_neo]
ENCODING = [hf.t5, hf.bart]
FAMILIES = [pytest.param(functools.partial(hf.of_family, name), id=name) for name in hf.FAMILIES]
EVERY = [*CAUSAL, hf.bloom, *ENCODING, hf.marian, *FAMILIES]

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def greedy(model, inputs, batch_size, n_tokens, **settings):
    return decoding.autoregressive_sample(
        model, inputs, batch_size, temperature=0.0, max_length=n_tokens, **settings
    )


def padded(make, tokens):
    """Tokens of rows of several lengths, as a tokenizer gives them, and which of them count."""
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0
    mask[2, :5] = 0
    if make in ENCODING:
        mask = mask.flip(1)
    return {"input_ids": tokens.masked_fill(mask == 0, 0), "attention_mask": mask}


@pytest.mark.parametrize("make", EVERY)
def test_greedy_tokens_are_those_of_generate(make):
    model, inputs = make(), hf.random_tokens(3, 7)

    hf.assert_same(greedy(model, inputs, 3, 12), hf.generate(model, inputs, 12))


@pytest.mark.parametrize("make", EVERY)
def test_beams_are_those_of_generate_where_lengths_count_for_nothing(make):
    """With length_penalty=0 on both sides; what they divide by is another number elsewhere."""
    model, inputs = make(), hf.random_tokens(3, 7)
    want = hf.generate(model, inputs, 10, num_beams=3, num_return_sequences=3, length_penalty=0.0)

    beams = decoding.beam_search(model, inputs, 3, 3, max_length=10, length_penalty=0.0)

    hf.assert_same(beams.flatten(0, 1), want)


@pytest.mark.parametrize("make", [hf.gpt2, hf.llama])
def test_penalties_and_banned_tokens_are_those_of_generate(make):
    """Greedy and with beams; and a processor of transformers does what it does there."""
    model, inputs = make(), hf.random_tokens(3, 7)
    theirs = {"repetition_penalty": 1.6, "bad_words_ids": [[5], [9]]}
    ours = {"repetition_penalty": 1.6, "banned": [5, 9]}
    processors = hf.transformers.LogitsProcessorList(
        [
            hf.transformers.RepetitionPenaltyLogitsProcessor(1.6),
            hf.transformers.SuppressTokensLogitsProcessor([5, 9], device="cpu"),
        ]
    )
    want = hf.generate(model, inputs, 12, **theirs)

    hf.assert_same(greedy(model, inputs, 3, 12, **ours), want)
    hf.assert_same(greedy(model, inputs, 3, 12, logits_processor=processors), want)
    beams = decoding.beam_search(model, inputs, 3, 3, max_length=10, length_penalty=0.0, **ours)
    searching = {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 0.0}
    hf.assert_same(beams.flatten(0, 1), hf.generate(model, inputs, 10, **searching, **theirs))


@pytest.mark.parametrize("make", [*CAUSAL, *ENCODING])
def test_padded_rows_are_decoded_as_generate_does(make):
    model, inputs = make(), padded(make, hf.random_tokens(3, 7))
    tokens, mask = inputs["input_ids"], inputs["attention_mask"]
    beams = {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 0.0}

    hf.assert_same(greedy(model, inputs, 3, 12), hf.generate(model, tokens, 12, mask))
    hf.assert_same(
        decoding.beam_search(model, inputs, 3, 3, max_length=9, length_penalty=0.0).flatten(0, 1),
        hf.generate(model, tokens, 9, mask, **beams),
    )


@pytest.mark.parametrize("make", CAUSAL)
def test_prompt_lengths_are_of_rows_padded_on_the_right(make):
    model, tokens = make(), hf.random_tokens(3, 7)
    lengths = [4, 7, 2]

    together = greedy(model, tokens, 3, 8, prompt_lengths=lengths)

    for row, n in enumerate(lengths):
        hf.assert_same(together[row : row + 1], hf.generate(model, tokens[row : row + 1, :n], 8))


@pytest.mark.parametrize("make", [hf.llama, hf.mistral, hf.t5])
def test_a_stream_without_an_end_goes_on_as_long_as_it_is_asked(make):
    model, inputs = make(), padded(make, hf.random_tokens(3, 7))
    stream = decoding.autoregressive_sample_stream(model, inputs, 3, temperature=0.0)
    tokens = torch.cat([next(stream) for _ in range(12)], dim=1)
    want = hf.generate(model, inputs["input_ids"], 12, inputs["attention_mask"], eos_token_id=-1)

    assert torch.equal(tokens, want)


def test_symbols_are_those_of_the_model_and_a_calls_own_go_before():
    model, inputs = hf.llama(), hf.random_tokens(4, 5)
    free = greedy(model, inputs, 4, 12, eos_id=-1)
    ends = [int(free[0, 3]), int(free[1, 5])]
    model.generation_config.eos_token_id = ends
    model.generation_config.pad_token_id = 7

    tokens = greedy(model, inputs, 4, 12)

    hf.assert_same(tokens[:1, :4], free[:1, :4])
    is_end = torch.isin(free, torch.tensor(ends))
    for row in range(4):
        n = int(is_end[row].nonzero()[0]) + 1 if is_end[row].any() else 12
        assert torch.equal(tokens[row, :n], free[row, :n])
        assert (tokens[row, n:] == 7).all()
    assert torch.equal(greedy(model, inputs, 4, 12, eos_id=-1), free)
    start = torch.full((4, 1), 9)
    assert torch.equal(
        greedy(model, inputs, 4, 5, eos_id=-1, start_id=9),
        greedy(model, torch.cat([start, inputs], 1), 4, 5, eos_id=-1),
    )


def test_beams_end_at_any_of_several_symbols():
    model, inputs = hf.llama(), hf.random_tokens(3, 5)
    free = decoding.beam_search(model, inputs, 3, 2, max_length=8, eos_id=-1)
    ends = sorted({int(free[0, 0, 2]), int(free[1, 1, 4]), int(free[2, 0, 5])})
    model.generation_config.eos_token_id = ends
    settings = {"num_beams": 2, "num_return_sequences": 2, "length_penalty": 0.0}
    want = hf.generate(model, inputs, 8, **settings)
    beams = decoding.beam_search(model, inputs, 3, 2, max_length=8, length_penalty=0.0)

    for mine, theirs in zip(beams.flatten(0, 1).tolist(), want.tolist(), strict=True):
        n = next((i + 1 for i, token in enumerate(theirs) if token in ends), len(theirs))
        assert mine[:n] == theirs[:n]


def test_a_causal_model_without_inputs_begins_with_its_bos_token():
    model = hf.llama()

    begun = torch.ones(2, 1, dtype=torch.long)

    assert torch.equal(greedy(model, None, 2, 6, eos_id=-1), greedy(model, begun, 2, 6, eos_id=-1))
    model.generation_config.bos_token_id = None
    with pytest.raises(ValueError, match="LlamaForCausalLM has no bos_token_id.* Give inputs, or"):
        greedy(model, None, 2, 6)


def test_a_model_is_between_calls_and_tokens_as_it_was():
    model, inputs = hf.gpt2().train(), hf.random_tokens(1, 5)
    names = list(model.state_dict())
    stream = decoding.autoregressive_sample_stream(model, inputs, temperature=0.0, max_length=9)
    other = decoding.autoregressive_sample_stream(
        model, inputs[:, :3], temperature=0.0, max_length=9
    )
    taken = [(int(next(stream)), int(next(other))) for _ in range(9)]

    assert model.training
    assert list(model.state_dict()) == names
    model.eval()
    for n, tokens in zip((5, 3), zip(*taken, strict=True), strict=True):
        want = hf.generate(model, inputs[:, :n], 9, eos_token_id=-1)
        assert list(tokens) == want[0].tolist()
    assert torch.equal(
        copy.deepcopy(model)(inputs).logits, pickle.loads(pickle.dumps(model))(inputs).logits
    )


def test_a_layer_gives_the_logits_that_the_model_gives():
    tokens, source = hf.random_tokens(2, 5), hf.random_tokens(2, 6, seed=6)
    causal, encoding = hf.llama(), hf.t5()

    assert torch.equal(huggingface.as_layer(causal)(tokens), causal(tokens).logits)
    assert torch.equal(
        huggingface.as_layer(encoding)((source, tokens)),
        encoding(input_ids=source, decoder_input_ids=tokens).logits,
    )
    assert huggingface.as_layer(causal).name == "LlamaForCausalLM"


def test_models_inside_layers_and_compiled_ones_are_found():
    model, inputs = hf.llama(), hf.random_tokens(2, 4)
    want = greedy(model, inputs, 2, 6)

    for other in (tl.as_layer(model), huggingface.as_layer(model), torch.compile(model)):
        assert torch.equal(greedy(other, inputs, 2, 6), want)


@pytest.mark.parametrize("make", [hf.gpt2, hf.bart])
def test_learned_positions_end_and_rows_that_have_ended_need_none(make):
    model = make()
    n_places = huggingface.as_layer(model).module.n_places
    inputs = hf.random_tokens(1, n_places - 3 if make is hf.gpt2 else 5)
    n_tokens = 4 if make is hf.gpt2 else n_places

    tokens = greedy(model, inputs, 1, n_tokens, eos_id=-1)

    assert tokens.shape == (1, n_tokens)
    with pytest.raises(ValueError, match=f"built for {n_places} .*ask for at most {n_tokens} tok"):
        greedy(model, inputs, 1, n_tokens + 1, eos_id=-1)
    assert torch.equal(greedy(model, inputs, 1, 100, eos_id=int(tokens[0, 0])), tokens[:, :1])
    if make is hf.gpt2:
        with pytest.raises(ValueError, match="give a shorter one"):
            greedy(model, hf.random_tokens(1, n_places + 1), 1, 1)


def test_a_short_row_goes_on_where_a_long_one_has_ended_at_its_last_position():
    model, tokens = hf.gpt2(n_positions=8), hf.random_tokens(2, 7)
    first = greedy(model, tokens, 2, 1, eos_id=-1)
    together = greedy(model, tokens, 2, 5, eos_id=int(first[0]), prompt_lengths=[7, 3])

    alone = greedy(model, tokens[1:, :3], 1, 5, eos_id=int(first[0]))
    assert torch.equal(together[1:, : alone.shape[1]], alone)
    assert alone.shape[1] > 3


def test_what_generate_would_choose_by_other_rules_is_told_once():
    model, inputs = hf.bart(forced_eos_token_id=2), hf.random_tokens(1, 4)

    with pytest.warns(UserWarning, match="forced_eos_token_id=2, which decoding does not follow"):
        greedy(model, inputs, 1, 3)
    greedy(model, inputs, 1, 3)


def test_what_cannot_be_decoded_is_refused_by_name():
    config = hf.transformers.MambaConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1)
    body = hf.llama().model

    with pytest.raises(TypeError, match="mamba needs LinearAttentionLayer. Use its own generate"):
        greedy(hf.made(hf.transformers.MambaForCausalLM, config), [[1]], 1, 2)
    with pytest.raises(TypeError, match="gives logits; got LlamaModel. Load it with AutoModelFor"):
        greedy(body, [[1]], 1, 2)
    with pytest.raises(TypeError, match="of transformers is needed.* got Linear"):
        huggingface.as_layer(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="takes position_ids; BloomForCausalLM counts for itself"):
        greedy(hf.bloom(), [[3, 4]] * 2, 2, 2, prompt_lengths=[1, 2])
    with pytest.raises(ValueError, match="of LlamaForCausalLM tells of the next one. Decode in"):
        greedy(hf.llama(), [[3, 4]], 1, 2, eval_mode=True)
    with pytest.raises(ValueError, match="LlamaForCausalLM has at least one token; got one that"):
        greedy(hf.llama(), [[3, 4]] * 2, 2, 2, prompt_lengths=[0, 2])
    with pytest.raises(ValueError, match="source of T5.*told by its tokens, 0"):
        greedy(hf.t5(), [[3, 4]], 1, 2, prompt_lengths=[1])
    with pytest.raises(tl.LayerError, match="Token id 50 is outside the vocabulary of 50"):
        greedy(hf.llama(), [[3, 50]], 1, 2)


def test_a_mapping_of_inputs_is_what_a_tokenizer_gives():
    model, ids = hf.llama(), hf.random_tokens(1, 3)
    mask = torch.tensor([[0, 1, 1]])

    with pytest.raises(ValueError, match=r"have 'input_ids', .* got \['ids'\]"):
        greedy(model, {"ids": ids}, 1, 2)
    with pytest.raises(ValueError, match=r"as large as the tokens, \(1, 3\); got \(1, 2\)"):
        greedy(model, {"input_ids": ids, "attention_mask": mask[:, 1:]}, 1, 2)
    with pytest.raises(ValueError, match="attention_mask of inputs tells prompt_lengths"):
        greedy(model, {"input_ids": ids, "attention_mask": mask}, 1, 2, prompt_lengths=[1])
    assert torch.equal(
        greedy(model, {"input_ids": ids, "attention_mask": mask}, 1, 4),
        greedy(model, {"input_ids": ids[:, 1:]}, 1, 4),
    )


def test_no_library_is_needed_to_tell_that_a_model_is_none_of_its():
    for name in ("transformers.modeling_utils", "transformers"):
        held = sys.modules.pop(name)
        try:
            assert not huggingface.is_model(torch.nn.Linear(1, 1))
        finally:
            sys.modules[name] = held
