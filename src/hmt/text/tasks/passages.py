"""Tasks of plain text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

from hmt.files import kind_of, read_text
from hmt.text.documents import Document, file_documents, fingerprint, stdlib_documents
from hmt.text.tables import TABLE_SUFFIXES, missing_column, table_rows
from hmt.text.tasks.task import Source, Task

BLANK_LINE = " \n"
"""An empty line as the files of wikitext have it; in its rows on the hub it is an empty text."""


def whole_texts(source: Source) -> Iterator[Document]:
    """A document a file, or a row of a table."""
    return source.of_split(lambda own: _texts(source, own), lambda document: fingerprint(document.text))


def _texts(source: Source, own: str | None) -> Iterator[Document]:
    column = source.reading.text_column
    if source.directory is not None:
        for file in source.files(own):
            if kind_of(file) == ".json":
                for number, row in table_rows(file):
                    yield Document(f"{file.name}:{number}", _text_of(row, column, str(file)))
            elif kind_of(file) != ".csv":
                yield from file_documents(file, column, str(file.relative_to(source.directory)))
        return
    for number, row in enumerate(source.rows_of(own)):
        yield Document(f"{source.task.hub_id}:{number}", _text_of(row, column, str(source.task.hub_id)))


def _text_of(row: dict[str, object], column: str, where: str) -> str:
    if column not in row:
        raise ValueError(missing_column(where, column, list(row)))
    return str(row[column] or "")


def wikitext(source: Source) -> Iterator[Document]:
    """The articles of wikitext: its rows and lines are paragraphs."""
    return source.of_split(lambda own: _articles(_lines(source, own), source.task.name), lambda document: document.text)


def _lines(source: Source, own: str | None) -> Iterator[str]:
    """Lines of a split, each with its end, the same whether they come from the files or from rows."""
    column = source.reading.text_column
    if source.directory is None:
        yield from (_line(_text_of(row, column, source.where)) for row in source.rows_of(own))
        return
    files = source.files(own)
    raw = [file for file in files if kind_of(file) == ".raw"]
    if raw and len(raw) < len(files):  # a folder with both forms
        files = raw if "raw" in (source.subset or "") else [file for file in files if kind_of(file) != ".raw"]
    for file in files:
        if kind_of(file) in TABLE_SUFFIXES:
            for _, row in table_rows(file):
                yield from read_lines(_line(_text_of(row, column, str(file))))
        else:
            yield from read_lines(read_text(file))


def _line(text: str) -> str:
    return text if text.endswith("\n") else f"{text}\n" if text else BLANK_LINE


def read_lines(text: str) -> list[str]:
    """Lines of a text with their ends; only line feeds end them, unlike in `splitlines`."""
    lines = [f"{line}\n" for line in text.split("\n")]
    last = lines.pop()[:-1]
    return [*lines, last] if last else lines


def _articles(lines: Iterable[str], name: str) -> Iterator[Document]:
    """Lines put together to articles; each begins with its title, a line ` = Title = ` between blank ones.

    Formulas and legends of tables leave lines of the same form behind, but not between blank ones.
    """
    title, article = "", list[str]()
    before = this = ""
    for after in chain(lines, [""]):
        if _is_title(this) and not before.strip() and not after.strip():
            if any(line.strip() for line in article):
                yield Document(f"{name}:{title}", "".join(article[:-1]))
                article = article[-1:]  # the blank line above the title
            title = this.strip()[2:-2]
        article.append(this)
        before, this = this, after
    if any(line.strip() for line in article):
        yield Document(f"{name}:{title}", "".join(article))


def _is_title(line: str) -> bool:
    words = line.strip()
    one_each = words.startswith("= ") and words.endswith(" =") and len(words) > 4
    return one_each and not words.startswith("= =") and not words.endswith("= =")


TASKS = (
    Task(
        name="stdlib",
        kind="text",
        about="long modules of the standard library of the Python that runs",
        source="the Python Software Foundation; nothing is downloaded",
        licence="PSF-2.0",
        length="a file: 20 kB to 250 kB",
        columns=(),
        local="no copy needed",
        splits=(),
        made_here=True,
        documents=lambda source: stdlib_documents(source.split),
    ),
    Task(
        name="wikitext",
        kind="text",
        about="articles of Wikipedia (good and featured ones); whole articles, put together from their paragraphs",
        source="Merity et al., Pointer Sentinel Mixture Models (arXiv:1609.07843)",
        licence="CC BY-SA 3.0, GFDL",
        length="an article: 3,500 words; 600 train (wikitext-103: 28,475), 60 validation, 60 test",
        columns=("text",),
        local="wiki.train.tokens, wiki.valid.raw, ..., or train, validation, test tables of paragraphs, or folders of "
        "these by configuration",
        hub_id="Salesforce/wikitext",
        subset="wikitext-2-raw-v1",
        subsets=("wikitext-2-raw-v1", "wikitext-2-v1", "wikitext-103-raw-v1", "wikitext-103-v1"),
        documents=wikitext,
    ),
    Task(
        name="pg19",
        kind="text",
        about="whole books of Project Gutenberg published before 1919",
        source="Rae et al., Compressive Transformers (arXiv:1911.05507)",
        licence="Apache-2.0 (books: public domain)",
        length="a book: 69,000 words; 28,602 train, 50 validation, 100 test",
        columns=("short_book_title", "publication_date", "url", "text"),
        local="train, validation and test as folders with a .txt a book, or as tables",
        hub_id="emozilla/pg19",
        documents=whole_texts,
    ),
    Task(
        name="arxiv",
        kind="text",
        about="papers of arXiv as LaTeX, of the Pile (its first part for train)",
        source="Gao et al., The Pile (arXiv:2101.00027)",
        licence="each paper's own",
        length="a paper: 48 kB; 79,046 train, 2,434 validation, 2,407 test",
        columns=("text", "meta"),
        local="train, validation (val.json) and test (test.json) tables with a column text",
        hub_id="haritzpuerto/the_pile_00_arxiv",
        documents=whole_texts,
    ),
    Task(
        name="fineweb",
        kind="text",
        about="cleaned pages of the web; the task recite repeats passages of it",
        source="Penedo et al., The FineWeb Datasets (arXiv:2406.17557)",
        licence="ODC-By 1.0",
        length="a page: 3 kB; 15 million pages in sample-10BT (read it with --streaming)",
        columns=("text", "id", "dump", "url", "date", "file_path", "language", "language_score", "token_count"),
        local="tables with a column text",
        splits=("train",),
        hub_id="HuggingFaceFW/fineweb",
        subset="sample-10BT",
        documents=whole_texts,
    ),
)
