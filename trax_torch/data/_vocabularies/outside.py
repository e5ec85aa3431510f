"""Ids of no vocabulary at all."""


def check_inside(ids: list[int], n: int, source: str) -> None:
    """Raises a ValueError for ids of which there are no texts."""
    outside = [i for i in ids if not 0 <= i < n]
    if outside:
        raise ValueError(
            f"There are {n} ids, 0 to {n - 1}, of {source}; got {outside[0]}"
            f"{f' and {len(outside) - 1} more that are outside' if outside[1:] else ''}. Give the "
            f"vocabulary and the n_reserved_ids that the texts were tokenized with."
        )
