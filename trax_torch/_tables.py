"""Text for people: tables, and amounts of bytes. This room knows nothing of what they tell."""

from collections.abc import Sequence


class Text(str):
    """A text of several lines that is shown as it is at a prompt, too."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """Returns rows below a head, column by column.

    Args:
      head: names of columns.
      rows: each as long as the head.
      numbers: which columns hold numbers, and so end at one place.

    Example:
      >>> print(table(['layer', 'weights'], [['Dense', '12'], ['Relu', '0']], numbers=[1]))
      layer  weights
      --------------
      Dense       12
      Relu         0
    """
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = [_line(row, widths, numbers) for row in (head, *rows)]
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * (len(widths) - 1)), *lines[1:]])


def _line(row: Sequence[str], widths: Sequence[int], numbers: Sequence[int]) -> str:
    cells = [c.rjust(w) if i in numbers else c.ljust(w) for i, (c, w) in _numbered(row, widths)]
    return "  ".join(cells).rstrip()


def _numbered(row: Sequence[str], widths: Sequence[int]) -> list[tuple[int, tuple[str, int]]]:
    return list(enumerate(zip(row, widths, strict=True)))


def items(pairs: Sequence[tuple[str, str]]) -> Text:
    """Returns a line for each pair of a name and what it is.

    Example:
      >>> items([('step', '3'), ('device', 'cpu')])
      step    3
      device  cpu
    """
    width = max(len(name) for name, _ in pairs)
    return Text("\n".join(f"{name.ljust(width)}  {what}" for name, what in pairs))


def amount(n_bytes: float) -> str:
    """Returns an amount of bytes in the unit that fits, each a thousand times the one before.

    Example:
      >>> amount(164), amount(49400), amount(1.25e9)
      ('164 bytes', '49.4 kB', '1.2 GB')
    """
    if n_bytes < 1000:
        return f"{n_bytes:.0f} bytes"
    power = 1
    while power < 4 and n_bytes >= 999.95 * 1000**power:
        power += 1
    return f"{n_bytes / 1000**power:,.1f} {('kB', 'MB', 'GB', 'TB')[power - 1]}"
