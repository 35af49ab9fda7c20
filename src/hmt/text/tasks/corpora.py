"""Tasks of plain text: modules of Python, articles, books, papers, pages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

from hmt.files import kind_of, read_text
from hmt.text.documents import (
    TABLE_SUFFIXES,
    Document,
    file_documents,
    fingerprint,
    split_files,
    stdlib_documents,
    table_rows,
    text_of,
)
from hmt.text.tasks.task import Source, Task

BLANK_LINE = " \n"
"""An empty line of a wikitext file; in the hub's rows it is an empty text."""


def whole_texts(source: Source) -> Iterator[Document]:
    """A document for each file, or for each row of a table."""
    return source.of_split(lambda own: _texts(source, own), lambda document: fingerprint(document.text))


def _texts(source: Source, own: str | None) -> Iterator[Document]:
    column = source.reading.text_column
    if source.directory is None:
        for number, row in enumerate(source.rows_of(own)):
            yield Document(f"{source.where}:{number}", text_of(row, column, source.where))
    else:
        for file in split_files(source.directory, own):
            yield from file_documents(file, column, str(file.relative_to(source.directory)))


def wikitext(source: Source) -> Iterator[Document]:
    """Articles of wikitext, whose rows and lines are paragraphs."""
    return source.of_split(lambda own: _articles(_lines(source, own)), lambda document: document.text)


def _lines(source: Source, own: str | None) -> Iterator[str]:
    """Lines of a split, each with its end, the same from files and from rows."""
    column = source.reading.text_column
    if source.directory is None:
        for row in source.rows_of(own):
            yield from _with_ends(text_of(row, column, source.where) or BLANK_LINE)
        return
    files = split_files(source.directory, own)
    raw = [file for file in files if kind_of(file) == ".raw"]
    if raw and len(raw) < len(files):  # a folder with both forms
        files = raw if "raw" in (source.subset or "") else [file for file in files if kind_of(file) != ".raw"]
    for file in files:
        if kind_of(file) in TABLE_SUFFIXES:
            for _, row in table_rows(file):
                yield from _with_ends(text_of(row, column, str(file)) or BLANK_LINE)
        else:
            yield from _with_ends(read_text(file))


def _with_ends(text: str) -> list[str]:
    r"""Lines that end with "\n" alone: wikitext holds other line separators within its lines."""
    return [f"{line}\n" for line in text.removesuffix("\n").split("\n")]


def _articles(lines: Iterable[str]) -> Iterator[Document]:
    """Articles, each from its title on: a line ` = Title = ` between blank ones, which formulas never are."""
    title, article = "", list[str]()
    before = this = ""
    for after in chain(lines, [""]):
        if _is_title(this) and not before.strip() and not after.strip():
            if any(line.strip() for line in article):
                yield Document(f"wikitext:{title}", "".join(article[:-1]))
                article = article[-1:]  # the blank line above the title
            title = this.strip()[2:-2]
        article.append(this)
        before, this = this, after
    if any(line.strip() for line in article):
        yield Document(f"wikitext:{title}", "".join(article))


def _is_title(line: str) -> bool:
    words = line.strip()
    one_each = words.startswith("= ") and words.endswith(" =") and len(words) > 4
    return one_each and not words.startswith("= =") and not words.endswith("= =")


TASKS = (
    Task(
        name="stdlib",
        kind="text",
        about="long modules of the running Python's standard library, 20 kB to 250 kB",
        authors="Python Software Foundation",
        licence="PSF-2.0",
        local="no copy needed",
        read=lambda source: stdlib_documents(source.split),
        splits=(),
        made_here=True,
    ),
    Task(
        name="wikitext",
        kind="text",
        about="whole articles of Wikipedia, 3,500 words; train 600 (wikitext-103: 28,475), validation 60, test 60",
        authors="Merity et al. (arXiv:1609.07843)",
        licence="CC BY-SA 3.0, GFDL",
        local="wiki.train.tokens, wiki.valid.raw, ..., or tables of paragraphs, or folders of these by configuration",
        read=wikitext,
        hub_id="Salesforce/wikitext",
        subset="wikitext-2-raw-v1",
    ),
    Task(
        name="pg19",
        kind="text",
        about="books of Project Gutenberg from before 1919, 69,000 words; train 28,602, validation 50, test 100",
        authors="Rae et al. (arXiv:1911.05507)",
        licence="Apache-2.0 (books: public domain)",
        local="train, validation and test as folders with a .txt for each book, or as tables",
        read=whole_texts,
        hub_id="emozilla/pg19",
    ),
    Task(
        name="arxiv",
        kind="text",
        about="papers of arXiv as LaTeX, 48 kB; train 79,046 (the first part), validation 2,434, test 2,407",
        authors="Gao et al., The Pile (arXiv:2101.00027)",
        licence="each paper's own",
        local="train, validation (val.json) and test (test.json) tables with a column text",
        read=whole_texts,
        hub_id="haritzpuerto/the_pile_00_arxiv",
    ),
    Task(
        name="fineweb",
        kind="text",
        about="pages of the web, 3 kB; 15 million in sample-10BT (read it with --streaming)",
        authors="Penedo et al. (arXiv:2406.17557)",
        licence="ODC-By 1.0",
        local="tables with a column text",
        read=whole_texts,
        splits=("train",),
        hub_id="HuggingFaceFW/fineweb",
        subset="sample-10BT",
    ),
)
