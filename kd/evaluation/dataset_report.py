"""What ``kd.evaluation.dataset_check`` has found, as one HTML page without scripts, and as lines of text. All names are escaped."""

import html
from typing import Any

from kd.evaluation.dataset_check import MOST_CLASSES, MOST_NAMED, MOST_PAIRS

CSS = """
.kd-check { color: var(--body-text-color); line-height: 1.5; overflow-wrap: anywhere; }
.kd-check h3 { margin: 24px 0 6px; font-size: 1.05rem; font-weight: 600; }
.kd-check p { margin: 0 0 8px; }
.kd-check small, .kd-check .kd-quiet { color: var(--body-text-color-subdued); }
.kd-check ol { list-style: none; margin: 0; padding: 0; }
.kd-check ol li { margin: 0 0 10px; padding: 10px 14px; border-left: 4px solid #8a8f98; border-radius: 6px;
  background: color-mix(in srgb, #8a8f98 12%, transparent); }
.kd-check ol li[data-rank=high] { border-color: #b91c1c; background: color-mix(in srgb, #b91c1c 11%, transparent); }
.kd-check ol li[data-rank=middle] { border-color: #d97706; background: color-mix(in srgb, #d97706 11%, transparent); }
.kd-check li p { margin: 2px 0 0; }
.kd-check .kd-wide { overflow-x: auto; }
.kd-check table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9375rem; width: 100%; margin: 0; }
.kd-check :is(th, td) { text-align: right; padding: 5px 0 5px 14px; border: 0; border-bottom: 1px solid var(--border-color-primary); }
.kd-check :is(th, td):first-child { text-align: left; padding-left: 0; font-weight: 400; }
.kd-check thead th { color: var(--body-text-color-subdued); font-size: .8125rem; font-weight: 600; }
.kd-check .kd-few { font-weight: 700; }
.kd-sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(340px, 100%), 1fr)); gap: 10px 20px; }
.kd-sheet figure, .kd-twins figure { margin: 0; min-width: 0; }
.kd-sheet img, .kd-twins img { display: block; max-width: 100%; height: auto; margin: 0; border-radius: 6px; background: #fff; }
.kd-sheet figcaption, .kd-twins figcaption { font-size: .875rem; }
.kd-twins { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(230px, 100%), 1fr)); gap: 14px 20px; }
.kd-check ul { margin: 0; padding-left: 20px; }
"""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Check of @title</title><style>
:root { color-scheme: light dark; --body-text-color: #1c1917; --body-text-color-subdued: #575149; --border-color-primary: #d3cec7; --page: #faf9f7; }
@media (prefers-color-scheme: dark) { :root { --body-text-color: #f3f1ee; --body-text-color-subdued: #d3cec7; --border-color-primary: #433e38; --page: #12100e; } }
body { font-family: ui-sans-serif, system-ui, sans-serif; background: var(--page); color: var(--body-text-color); max-width: 960px; margin: 0 auto; padding: 24px 16px; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; }
@css</style></head><body><h1>Check of @title</h1>@body</body></html>
"""

RANKS = ((5.0, "high", "Serious"), (1.0, "middle", "Worth a look"), (0.0, "low", "Minor"))
"""From so many points on, its name and its word."""


def page(found: dict[str, Any]) -> str:
    """The whole page; it needs nothing else."""
    parts = {"title": html.escape(found["dataset"]), "css": CSS, "body": body(found)}
    text = PAGE
    for name in ("css", "title", "body"):  # the body last: its words are not to be looked through for marks
        text = text.replace(f"@{name}", parts[name])
    return text


def body(found: dict[str, Any]) -> str:
    """The findings as HTML, the worst problem first."""
    sections = (summary, problems, counts, sheet, duplicates, teacher, unreadable)
    return f'<div class="kd-check">{"".join(section(found) for section in sections)}</div>'


def ranked(points: float) -> tuple[str, str]:
    """A problem's rank, and its word."""
    return next((name, word) for least, name, word in RANKS if points >= least)


def lead(found: dict[str, Any]) -> str:
    """How much was looked at and what its sizes are, in two sentences."""
    sizes, splits = found["sizes"], found["pictures_in_all"]
    each = ", ".join(f"{count:,} {name}" for name, count in splits.items())
    small, middle, large = (" x ".join(map(str, sizes[name])) for name in ("smallest", "median", "largest"))
    classes = f"{len(found['classes'])} classes" if found["classes"] else "no labels"
    return (
        f"{sum(splits.values()):,} pictures ({each}), {classes}. Sizes: {small} to {large}, median {middle} pixels; "
        f"{sizes['grey']:,} are grey."
    )


def summary(found: dict[str, Any]) -> str:
    notes = "".join(f"<p><small>{html.escape(note)}</small></p>" for note in found["notes"])
    return f"<p>{html.escape(lead(found))}</p>{notes}"


def problems(found: dict[str, Any]) -> str:
    if not found["problems"]:
        return "<h3>No problems</h3><p>Nothing was found that would spoil a result.</p>"
    rows = []
    for one in found["problems"]:
        rank, word = ranked(one["points"])
        what, why, do = (html.escape(one[name]) for name in ("what", "why", "do"))
        rows.append(f'<li data-rank="{rank}"><b>{what}</b> <small>{word}</small><p>{why}</p><p>{do}</p></li>')
    return f"<h3>Problems, the worst first</h3><ol>{''.join(rows)}</ol>"


def counts(found: dict[str, Any]) -> str:
    """A table of pictures a class and split."""
    if not found["classes"]:
        return ""
    head = "".join(f'<th scope="col">{name}</th>' for name in found["counts"])
    rows = "".join(
        f'<tr><th scope="row">{html.escape(label)}</th>{"".join(_number(count) for count in each)}</tr>'
        for label, *each in zip(found["classes"], *found["counts"].values(), strict=True)
    )
    return (
        f'<h3>Pictures a class</h3><div class="kd-wide"><table><thead><tr><th scope="col">class</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _number(count: int) -> str:
    return f"<td>{count:,}</td>" if count else '<td class="kd-few">none</td>'


def sheet(found: dict[str, Any]) -> str:
    """A strip of pictures for each class."""
    strips = found["pictures"]["sheet"]
    figures = "".join(
        f'<figure><figcaption>{html.escape(name)}</figcaption><img alt="Training pictures: {html.escape(name)}" src="{html.escape(address)}"></figure>'
        for name, address in strips.items()
    )
    more = len(found["classes"]) - MOST_CLASSES
    rest = f"<p><small>And {more} more classes.</small></p>" if more > 0 else ""
    return f'<h3>Some of each class</h3><div class="kd-sheet">{figures}</div>{rest}'


def duplicates(found: dict[str, Any]) -> str:
    """The pairs, each with its pictures."""
    pairs = found["duplicates"]
    if not pairs:
        return "<h3>No duplicates</h3><p>No two pictures are the same photo, as far as can be told.</p>"
    figures = "".join(map(_twins, pairs, found["pictures"]["pairs"]))
    more = len(pairs) - MOST_PAIRS
    rest = f"<p><small>And {more:,} more pairs; the JSON has them all.</small></p>" if more > 0 else ""
    return (
        f'<h3>Duplicates: {len(pairs):,} pair{"s" * (len(pairs) > 1)}</h3><div class="kd-twins">{figures}</div>{rest}'
    )


def _twins(pair: dict[str, Any], address: str) -> str:
    words = "<br>".join(html.escape(in_words(pair[side])) for side in ("one", "other"))
    kind = "The same file" if pair["kind"] == "exact" else "The same photo"
    conflict = "<br><b>Two labels</b>" if pair["conflict"] else ""
    return f'<figure><img alt="{kind}, twice" src="{html.escape(address)}"><figcaption>{words}<br><small>{kind}</small>{conflict}</figcaption></figure>'


def in_words(picture: dict[str, Any]) -> str:
    """ "train, coat: 17.jpg"."""
    label = f", {picture['label']}" if picture["label"] else ""
    return f"{picture['split']}{label}: {picture['name']}"


def teacher(found: dict[str, Any]) -> str:
    """The teacher's accuracy, which classes it mixes up, and which of its classes is which of the dataset's."""
    if not (one := found["teacher"]):
        return ""
    if one["problem"] or one["accuracy"] is None:
        return matched(one["labels"])
    rows = "".join(f"<li>{html.escape(line)}</li>" for line in confused(one))
    said = "".join(f"<p><small>{html.escape(words)}</small></p>" for words in one["said"])
    return f"<h3>The teacher</h3><p>{html.escape(accuracy(one))}</p><ul>{rows}</ul>{said}{matched(one['labels'])}"


def matched(rows: list[dict[str, Any]]) -> str:
    """A table of the dataset's classes and the teacher's, unless all have the same names."""
    if all(row["teacher"] == row["class"] for row in rows):
        return ""
    cells = "".join(
        f'<tr><th scope="row">{html.escape(row["class"])}</th><td>{html.escape(row["teacher"] or "none")}</td>'
        f"<td>{html.escape(row['found'])}</td>{_number(row['pictures'])}</tr>"
        for row in rows
    )
    return (
        '<h3>Which class is which</h3><p>Another one is said with the label map: "class=teacher class".</p><div class="kd-wide">'
        '<table><thead><tr><th scope="col">class</th><th scope="col">of the teacher</th><th scope="col">found by</th>'
        f'<th scope="col">training pictures</th></tr></thead><tbody>{cells}</tbody></table></div>'
    )


def accuracy(one: dict[str, Any]) -> str:
    return f"{one['name']} is right on {one['accuracy']:.1%} of the validation pictures."


def confused(one: dict[str, Any]) -> list[str]:
    return [f"{row['count']} of {row['of']} {row['truth']} taken for {row['answer']}" for row in one["confused"]]


def unreadable(found: dict[str, Any]) -> str:
    """The files that cannot be read, each with the reason, which names it."""
    files = found["unreadable"]
    if not files:
        return ""
    rows = "".join(
        f"<li>{html.escape(one['split'])}{html.escape(', ' + one['label'] if one['label'] else '')}: {html.escape(one['reason'])}</li>"
        for one in files[:MOST_NAMED]
    )
    more = f"<p><small>And {len(files) - MOST_NAMED:,} more.</small></p>" if len(files) > MOST_NAMED else ""
    return f"<h3>Files that cannot be read</h3><ul>{rows}</ul>{more}"


def lines(found: dict[str, Any]) -> list[str]:
    """The findings as text, without the table of counts."""
    said = [lead(found), *found["notes"], ""]
    for nth, one in enumerate(found["problems"], start=1):
        word = ranked(one["points"])[1].lower()
        said += [f"{nth}. {one['what']} ({word})", f"   {one['why']}", f"   {one['do']}"]
    said += [] if found["problems"] else ["No problems were found."]
    for pair in found["duplicates"][:MOST_PAIRS]:
        kind = "same file " if pair["kind"] == "exact" else "same photo"
        conflict = "  two labels" if pair["conflict"] else ""
        said.append(f"{kind}  {in_words(pair['one'])}  =  {in_words(pair['other'])}{conflict}")
    said += [f"unreadable  {one['split']}: {one['reason']}" for one in found["unreadable"][:MOST_NAMED]]
    if (one := found["teacher"]) and not one["problem"] and one["accuracy"] is not None:
        said += [accuracy(one), *(f"  {line}" for line in confused(one))]
    return said


def as_json(found: dict[str, Any]) -> dict[str, Any]:
    """The findings without the pictures."""
    return {name: value for name, value in found.items() if name != "pictures"}
