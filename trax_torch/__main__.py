"""`python -m trax_torch`: what there is, and language models of one's own text from a shell."""

from trax_torch import _command

if __name__ == "__main__":
    _command.main()
