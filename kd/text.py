"""Words that several modules share: counted nouns, lists of names."""


def count_of(number: int, what: str) -> str:
    """Return a number and what it counts, in the plural unless it is one."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def pictures_were(count: int) -> str:
    """Return the beginning of a sentence about so many pictures."""
    return "1 picture was" if count == 1 else f"{count:,} pictures were"


def some(names: list[str], most: int = 6) -> str:
    """Return the first few names, and how many more there are."""
    return ", ".join(map(str, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def shown(name: str) -> str:
    """Return a name from outside in at most 120 characters, none of which a terminal or a page would act on."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name[:1000])
    return text if len(text) <= 120 else f"{text[:70]}…{text[-49:]}"
