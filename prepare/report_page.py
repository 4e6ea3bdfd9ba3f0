"""The page of report.py: one file without scripts, which reaches no network. All text that comes
from the data is escaped: it may be anybody's."""

import html
import re

from parts import plots
from parts.configurator import ROOT, printable

ROWS = [  # what a table says of each split: its name, the key, how it is written
    ("tokens", "tokens", "{:,}".format),
    ("MB of text", "bytes", lambda n: f"{n / 1e6:,.2f}"),
    ("bytes per token", "bytes_per_token", "{:.3f}".format),
    ("documents", "documents", "{:,}".format),
    ("tokens that are learnt", "learnt", lambda n: f"{n or 0:,}"),
    ("rearranged pieces", "rearranged", "{:,}".format),
    ("special tokens", "special", "{:,}".format),
]
KINDS = {  # what meta.json counts -> what a line says of it
    "licences": "licences as the sources tell them, with their number of documents",
    "languages": "languages, with their number of documents",
    "masked": "secrets and addresses that were masked",
}
# The colours are those of the server's page.
THEME = re.search(r":root \{.*?\n\}", (ROOT / "parts/page.html").read_text(), re.S)[0]
STYLE = """
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1rem; max-width: 76rem;
  background: var(--page); color: var(--text); font: 16px/1.45 system-ui, sans-serif;
}
h1 { font-size: 1.3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
p { max-width: 48rem; overflow-wrap: anywhere; }
.quiet { color: var(--quiet); }
.row { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
.row > * { flex: 1 1 20rem; min-width: 0; }
figure {
  margin: 0; padding: .5rem; border: 1px solid var(--line); border-radius: .5rem;
  background: var(--sheet);
}
figcaption { font-weight: 600; }
svg { width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .2rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { text-align: left; font-weight: 600; }
.n { text-align: right; }
th, .n { white-space: nowrap; }
code, pre { font: .8125rem/1.5 var(--code); overflow-wrap: anywhere; white-space: pre-wrap; }
pre { margin: 0; max-height: 24rem; overflow-y: auto; }
.pair {
  display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; padding: .5rem; margin-bottom: .5rem;
  border: 1px solid var(--line); border-radius: .5rem; background: var(--sheet);
}
.pair b { font-size: .8125rem; color: var(--quiet); }
.a { background: light-dark(#cfe8e4, #1f4d47); }
.b { background: light-dark(#f5e3c3, #57431c); }
.c { background: light-dark(#dcdcf5, #3a3a66); }
.skipped { color: light-dark(#6b7471, #8f9b97); text-decoration: line-through; }
@media (max-width: 48rem) { .pair { grid-template-columns: 1fr; } }
"""
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def page(facts: dict, sizes: dict) -> str:
    """The page. facts: what report.json has; sizes: the tokens of each document, for each split."""
    name = facts["folder"]
    sections = [
        f"<h1>{escape(name)}</h1>",
        *(f"<p>{escape(f'{title}: {text}')}</p>" for title, text in sentences(facts)),
        splits(facts),
        pictures(facts, sizes),
        cleaning(facts),
        duplicates(facts["near_duplicates"]),
        origins(facts),
        tokens(facts["tokens"]),
        odd(facts["oddest"]),
        pairs(facts["pairs"]),
    ]
    body = "\n".join(section for section in sections if section)
    return PAGE.format(title=escape(name), style=THEME + STYLE, body=body)


def escape(text: object) -> str:
    """Text for the page. What a browser would obey rather than show, such as marks that turn the
    direction of writing, is written as Python writes it; white space stays."""
    text = "".join(c if c in "\n\t" else printable(c) for c in str(text))
    return html.escape(text)


def sentences(facts: dict) -> list[tuple[str, str]]:
    """What is worth a line in the terminal too: (what about, what)."""
    tokens, near = facts["tokens"], facts["near_duplicates"]
    size, used, said = facts["vocab_size"], tokens["used"], []
    if facts["source"]:
        language = f", {facts['language']}" if facts["language"] else ""
        said.append(("source", f"{facts['source']}{language}"))
    if written := facts.get("written"):
        state = "it has ended" if written["ended"] else "it goes on"
        count, documents = written["tokens"], written["documents"]
        told = f"{count:,} tokens of {documents:,} documents were ever written; {state}"
        said.append(("stream", f"{told}; train is what is kept of them"))
    shares = tokens["share_of_commonest"].items()
    commonest = ", ".join(f"the {n} commonest make up {100 * share:.0f} %" for n, share in shares)
    said.append(
        (
            "vocabulary",
            f"{size:,} tokens; train uses {used:,} ({100 * used / size:.1f} %), "
            f"{tokens['under_10']:,} of them under 10 times, and {tokens['never']:,} never; "
            f"{tokens['only_in_val']:,} occur in val alone; {commonest}",
        )
    )
    told_apart, prepared = (facts["splits"]["train"][key] for key in ("documents", "as_prepared"))
    if prepared:
        said.append(
            (
                "documents",
                f"{prepared:,} were prepared for train; {told_apart:,} are counted, since in "
                "rearranged text some cannot be told from the next one",
            )
        )
    for kind, about in KINDS.items():
        if found := facts[kind]:
            most = sorted(found.items(), key=lambda item: -item[1])
            more = f", and {len(most) - 5} more" if len(most) > 5 else ""
            said.append((about, ", ".join(f"{n[:40]} {c:,}" for n, c in most[:5]) + more))
    for name, count in list(facts["sources"].items())[:6]:
        density = count["bytes_per_token"]
        said.append((f"from {name}", f"{count['documents']:,} documents, {density} bytes a token"))
    said.append(
        (
            "near duplicates",
            f"{near['found']:,} of val's {near['val_documents']:,} documents have one in train, "
            f"{near['exact']:,} an exact one",
        )
    )
    return said


def dotted(token: str) -> str:
    """A token whose spaces can be counted."""
    return token.replace(" ", "·")


def split_rows(facts: dict) -> list[list[str]]:
    """The lines of a table: a name, train's number and val's."""
    both = facts["splits"]["train"], facts["splits"]["val"]
    return [
        [name, *(form(split[key]) for split in both)]
        for name, key, form in ROWS
        if any(split[key] for split in both)
    ]


# --- sections -------------------------------------------------------------------------------------


def table(head: list[str], rows: list[list], code: tuple[str, ...] = ("text", "name")) -> str:
    """A table. Numbers stand right, and columns that `code` names are set in a fixed width."""
    lines = ["<tr>" + "".join(f"<th>{escape(name)}</th>" for name in head) + "</tr>"]
    for row in rows:
        cells = []
        for name, value in zip(head, row):
            if name in code:
                cells.append(f"<td><code>{escape(value)}</code></td>")
            elif isinstance(value, (int, float)) or name in ("train", "val"):
                number = value if isinstance(value, str) else f"{value:,}"
                cells.append(f'<td class="n">{escape(number)}</td>')
            else:
                cells.append(f"<td>{escape(value)}</td>")
        lines.append("<tr>" + "".join(cells) + "</tr>")
    return '<div class="wide"><table>' + "\n".join(lines) + "</table></div>"


def section(title: str, text: str, *parts: str) -> str:
    return f'<h2>{escape(title)}</h2>\n<p class="quiet">{escape(text)}</p>\n' + "\n".join(parts)


def splits(facts: dict) -> str:
    both = facts["splits"]["train"], facts["splits"]["val"]
    rows = split_rows(facts)
    rows += [
        [f"tokens in a document: {name}", *(split["lengths"][name] for split in both)]
        for name in both[0]["lengths"]
    ]
    text = "Special tokens have no text, and are not counted in a document's length."
    if facts["splits"]["train"]["rearranged"]:
        text += (
            " Some of train is cut to pieces and rearranged, to teach filling in the middle. Its "
            "pieces were put back into order here, and joined to documents; about 1 document of "
            "100 cannot be told from the next one."
        )
    return section("Splits", text, table(["", "train", "val"], rows))


def pictures(facts: dict, sizes: dict) -> str:
    counts = facts["counts"]
    drawn = {
        "How often each token occurs": plots.zipf(counts),
        "How much the commonest tokens cover": plots.coverage(counts),
        "How long documents are": plots.lengths(sizes),
    }
    figures = (f"<figure><figcaption>{t}</figcaption>{svg}</figure>" for t, svg in drawn.items())
    return '<h2>Pictures</h2>\n<div class="row">' + "\n".join(figures) + "</div>"


def cleaning(facts: dict) -> str:
    if facts["rows"]:
        text = "What became of the rows that were read."
        return section("Rows", text, table(["", "rows"], list(facts["rows"].items())))
    if not facts["cleaning"]:
        return ""
    rows, older = [], True
    for rule, count in facts["cleaning"].items():
        if not count["documents"]:
            continue
        example = count.get("example") or {"name": "", "text": ""}
        older = older and "example" not in count
        megabytes = round(count["bytes"] / 1e6, 2)
        rows.append([rule, count["documents"], megabytes, example["name"], example["text"]])
    text = "What each rule dropped, with the first such document; its secrets are masked."
    if older:
        text += " This set is older than the examples: make it again to see them."
    return section("Cleaning", text, table(["rule", "documents", "MB", "name", "text"], rows))


def duplicates(near: dict) -> str:
    text = (
        f"Every document of val was compared with every one of train, by what prepare/clean.py "
        f"drops near duplicates with: {near['found']:,} of {near['val_documents']:,} have one in "
        f"train ({near['bytes']:,} bytes of val), {near['exact']:,} an exact one but for white "
        f"space. Of texts as short as a sentence only exact ones are found. The similarity is an "
        f"estimate of the share of text that both have."
    )
    rows = [
        [
            pair["similarity"],
            "\n".join(f"{pair[split]['split']}, token {pair[split]['token']:,}" for split in both),
            "\n---\n".join(pair[split]["text"] for split in both),
        ]
        for pair in near["shown"]
        for both in [("val", "train")]
    ]
    parts = [table(["similarity", "where", "text"], rows)] if rows else []
    return section("Near duplicates of val in train", text, *parts)


def origins(facts: dict) -> str:
    parts = [
        table([kind, "documents"], [[name, count] for name, count in facts[kind].items()])
        for kind in ("licences", "languages")
        if facts[kind]
    ]
    if facts["sources"]:
        rows = [
            [name, n["documents"], n["bytes"], n["tokens"], n["bytes_per_token"]]
            for name, n in facts["sources"].items()
        ]
        parts.append(table(["source", "documents", "bytes", "tokens", "bytes per token"], rows))
    if not parts:
        return ""
    text = "As the sources tell it, of the documents that were kept."
    return section("Where it comes from", text, f'<div class="row">{"".join(parts)}</div>')


def tokens(found: dict) -> str:
    titles = {
        "commonest": "The commonest",
        "rarest": "The rarest that train uses",
        "longest": "The longest",
    }
    tables = [
        f"<div><h2>{title}</h2>"
        + table(
            ["id", "text", "train", "val"],
            [[t["id"], dotted(t["text"]), t["train"], t["val"]] for t in found[key]],
        )
        + "</div>"
        for key, title in titles.items()
    ]
    never = ""
    if unused := found["never_used"]:
        more = found["never"] - len(unused)
        listed = " ".join(f"<code>{escape(dotted(token['text']))}</code>" for token in unused)
        never = (
            f"<h2>Never used in train</h2><p>{listed}{f' and {more:,} more' if more else ''}</p>"
        )
    return f'<h2>Tokens</h2>\n<div class="row">{"".join(tables)}</div>\n{never}'


def odd(documents: list[dict]) -> str:
    rows = [
        [d["kind"], d["value"], f"{d['split']}, token {d['token']:,}", d["tokens"], d["text"]]
        for d in documents
    ]
    text = "Three of each kind and split: look whether you want to train on them."
    return section(
        "The oddest documents", text, table(["what", "value", "where", "tokens", "text"], rows)
    )


def pairs(found: list[dict]) -> str:
    text = (
        "What train.py reads: at each place the model is given all of the input up to there, and "
        "learns the token of the target. A colour is a token; hold the mouse over it for its id."
    )
    if any(0 in pair["learnt"] for pair in found):
        text += " Targets that are struck out are not learnt."
    blocks = []
    for pair in found:
        spans = [span(n, *token) for n, token in enumerate(zip(pair["ids"], pair["texts"]))]
        targets = [
            span(n, i, text, learnt)
            for n, (i, text, learnt) in enumerate(
                zip(pair["ids"][1:], pair["texts"][1:], pair["learnt"]), 1
            )
        ]
        blocks.append(
            f'<div class="pair"><div><b>input, from token {pair["token"]:,} of train</b>'
            f"<pre>{''.join(spans[:-1])}</pre></div>"
            f"<div><b>target</b><pre>{''.join(targets)}</pre></div></div>"
        )
    return section("Inputs and targets", text, *blocks)


def span(number: int, id: int, text: str, learnt: int = 1) -> str:
    """A token in colour, newlines with a mark."""
    colour = "abc"[number % 3] if learnt else "skipped"
    marked = escape(text).replace("\n", "↵\n")
    return f'<span class="{colour}" title="{id}">{marked}</span>'
