"""Words that several modules share: lists of names, counted nouns."""


def count_of(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def pictures_were(count: int) -> str:
    return "1 picture was" if count == 1 else f"{count:,} pictures were"


def some(names: list[str], most: int = 6) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(map(str, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")
