"""What turns texts into ids and back, one room a kind of vocabulary.

`vocabulary` finds a file and reads it once; `words` cuts a text where letters end, `subword` cuts
words by a file of tensor2tensor's, `chars` needs no file, `bert` and `sentence_piece` ask their
libraries. `tokenizer` is a vocabulary with reserved ids before it. `tf_inputs` calls it.
"""

from trax_torch.data._vocabularies.tokenizer import Tokenizer

__all__ = ["Tokenizer"]
