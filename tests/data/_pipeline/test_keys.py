import pytest

from trax_torch import data

STAGES = {
    "Map": lambda keys: data.Map(str.upper, keys=keys),
    "ConvertToUnicode": lambda keys: data.ConvertToUnicode(keys),
    "Tokenize": lambda keys: data.Tokenize(keys, vocab_type="char"),
}


@pytest.mark.parametrize("name", STAGES)
def test_a_key_that_an_example_lacks_is_refused(name):
    """Not passed over: the item would stay as it was, and nobody would know."""
    for example, keys in (({"text": "a"}, ["txt"]), (("a", "b"), [2]), (("a",), ["text"])):
        with pytest.raises(
            ValueError, match=rf"{name} needs each of its keys .* \[.*\], and an example has .*Name"
        ):
            list(STAGES[name](keys)([example]))


@pytest.mark.parametrize("name", STAGES)
def test_one_key_may_stand_alone(name):
    """Also a name of which another key is a part."""
    example = {"text": "a", "t": "b"}

    (alone,) = STAGES[name]("text")([example])
    (listed,) = STAGES[name](["text"])([example])

    assert str(alone) == str(listed)
    assert alone["t"] == "b"
    assert next(STAGES[name](0)([("a", "b")]))[1] == "b"
