"""Passages: how often lexical search finds what answers a question, beside BM25 and random passages.

    python benchmarks/passages.py --data DIR
    python benchmarks/passages.py --data DIR --sets needle --budgets 128 --methods lexical

No language model runs: a question is answered if its answer is among the tokens that were found. DIR holds what its
owners distribute: pg19-mini/{validation,test}/*.txt, musique/*.jsonl, qmsum/{val,test}.jsonl,
openroad_qa/{ORD-QA.jsonl,openroad_documentation.json}, babi/tasks_1-20_v1-2/en/*.txt. Every set is cut in two halves:
`--half tune` is what the defaults were chosen on, `--half test` what is reported.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import bm25s
import torch
import tyro
from environment import write
from torch import Tensor
from tqdm import tqdm

from hmt.memory import search
from hmt.memory.passages import SearchTables
from hmt.options import parse_counts
from hmt.pretrained import load_tokenizer
from hmt.terminal import format_table

NEEDLES = (
    ("The pass key is {48213}. Remember it.", "What is the pass key?"),
    ("Remember this: the secret number is {48213}.", "Which secret number were you asked to remember?"),
    ("One of the special magic numbers for Chicago is: {48213}.", "What is the special magic number for Chicago?"),
    ("The best thing to do in San Francisco is {eat a sandwich and sit in Dolores Park on a sunny day}.",
     "What is the most fun thing to do in San Francisco?"),
    ("My doctor's telephone number is {48213}, in case you need it.", "Do you know the phone number of my doctor?"),
    ("The train to Lisbon leaves from platform {48213} at noon.", "From which platform does the Lisbon train depart?"),
    ("Our dog is called {Biscuit} and he is afraid of thunder.", "What is the name of the dog that fears thunder?"),
    ("Agent Orlova hid the microfilm {under the third bench in the park}.",
     "Where is the microfilm that Orlova concealed?"),
    ("The access code to the laboratory is {48213}.", "I forgot the laboratory's access code. Can you tell me?"),
    ("The Pass Key is {48213}.", "tell me the pass key, please"),
    ("Elsa's birthday party will be held on {the fourteenth of March}.", "When does Elsa celebrate her birthday?"),
    ("The password of the wireless network is {48213}.", "network password?"),
)  # fmt: skip
"""A sentence, its answer in braces, and a question in other words; 48213 stands for a random number."""

ABSENT = (
    "What is the boiling point of krypton?",
    "Which graphics card does the laptop have?",
    "How many megapixels has the telephone's camera?",
    "What did the Martian ambassador say about photosynthesis?",
    "Who won the 1998 World Cup in football?",
    "What is the pass key?",
    "Which secret number were you asked to remember?",
    "What is the special magic number for Chicago?",
    "What is the wifi password?",
    "How do I install the Python package with pip?",
    "What is the most fun thing to do in San Francisco?",
    "From which platform does the Lisbon train depart?",
    "Where is the microfilm that Orlova concealed?",
    "What is Kubernetes used for?",
    "When does Elsa celebrate her birthday?",
    "Hello!",
    "Thank you, that was helpful.",
    "Write a haiku about database migrations.",
)
"""Questions about what no book here speaks of."""

ADJECTIVES = ("red", "old", "quiet", "golden", "northern", "broken", "early", "second")
NOUNS = ("fox", "harbor", "lamp", "garden", "engine", "letter", "bridge", "captain")


@dataclass(frozen=True)
class Case:
    """A question to a text.

    Attributes:
        text: Token ids, (T,) int32.
        query: Token ids of the question, (J,) int32.
        spans: First token and one past the last of each part of the answer.
        whole: True if every part must be found whole; otherwise the share of their tokens counts.
    """

    text: Tensor
    query: Tensor
    spans: Sequence[tuple[int, int]]
    whole: bool

    def found_by(self, runs: Sequence[tuple[int, int]], budget: int) -> float:
        """0 to 1, for runs of the text within the budget; shares are of what the budget can hold."""
        mask = torch.zeros(len(self.text), dtype=torch.bool)
        for start, end in runs:
            mask[start:end] = True
        assert int(mask.sum()) <= budget
        if self.whole:
            return float(all(bool(mask[start:end].all()) for start, end in self.spans))
        wanted = torch.zeros_like(mask)
        for start, end in self.spans:
            wanted[start:end] = True
        return int((mask & wanted).sum()) / min(budget, int(wanted.sum()))


class Material:
    """Texts as token ids.

    Attributes:
        data: Folder.
        tokenizer: Of a language model.
        half: Which half of every set.
    """

    def __init__(self, data: Path, tokenizer: Any, half: str) -> None:
        self.data, self.tokenizer, self.half = data, tokenizer, half
        self.pieces: list[str] = tokenizer.batch_decode([[number] for number in range(len(tokenizer))])
        self.tables = SearchTables(tokenizer, len(tokenizer))
        self.newlines = self.tables.newlines

    def encode(self, text: str) -> Tensor:
        """Token ids, (T,) int32."""
        return torch.tensor(self.tokenizer(text, verbose=False).input_ids, dtype=torch.int32)

    def decode(self, ids: Tensor) -> str:
        """The text of token ids."""
        return "".join(self.pieces[one] for one in ids.tolist())

    def encode_marked(self, text: str) -> tuple[Tensor, tuple[int, int]]:
        """Token ids of a text without its braces, and the span of what stands in them."""
        begin, end = text.index("{"), text.index("}") - 1
        encoded = self.tokenizer(text.replace("{", "").replace("}", ""), return_offsets_mapping=True)
        inside = [at for at, (low, high) in enumerate(encoded.offset_mapping) if high > begin and low < end]
        return torch.tensor(encoded.input_ids, dtype=torch.int32), (inside[0], inside[-1] + 1)

    @cache  # noqa: B019 (one object a run)
    def book(self) -> Tensor:
        """All books of this half, one after another, again and again up to a million tokens and some."""
        split = "validation" if self.half == "tune" else "test"
        paths = sorted((self.data / "pg19-mini" / split).glob("*.txt"))
        books = torch.cat([self.encode(path.read_text()) for path in paths])
        if len(books) < 1_200_000:
            more = sorted((self.data / "pg19-mini" / "train").glob("*.txt"))
            for path in more[::2] if self.half == "tune" else more[1::2]:
                books = torch.cat([books, self.encode(path.read_text())])
                if len(books) > 1_200_000:
                    break
        return books

    def excerpt(self, tokens: int, draw: random.Random) -> Tensor:
        """A random run of the books."""
        start = draw.randrange(len(self.book()) - tokens)
        return self.book()[start : start + tokens]

    def plant(self, text: Tensor, inserts: Sequence[tuple[int, Tensor]]) -> tuple[Tensor, list[int]]:
        """The text with ids inserted at places in order, each moved to the next line; where each begins."""
        ends = self.newlines[text.long()].nonzero()[:, 0] + 1
        parts, begins, last, length = [], [], 0, 0
        for place, ids in inserts:
            at = int(torch.searchsorted(ends, place).clamp(max=len(ends) - 1))
            at = max(int(ends[at]), last)
            parts += [text[last:at], ids]
            length += at - last
            begins.append(length)
            length += len(ids)
            last = at
        return torch.cat([*parts, text[last:]]), begins

    def lines(self, name: str) -> list[Any]:
        """The items of a file of JSON lines that are of this half."""
        items = [json.loads(line) for line in (self.data / name).read_text().splitlines()]
        return items[0::2] if self.half == "tune" else items[1::2]


def needles(material: Material, tokens: int, count: int) -> Iterator[Case]:
    """One sentence at a random depth."""
    draw = random.Random(tokens)
    for number in range(count):
        sentence, question = NEEDLES[number % len(NEEDLES)]
        needle, (start, end) = material.encode_marked(
            sentence.replace("48213", str(draw.randrange(10_000, 99_999))) + "\n"
        )
        haystack = material.excerpt(tokens - len(needle), draw)
        text, (at,) = material.plant(haystack, [(int(draw.random() * len(haystack)), needle)])
        yield Case(text, material.encode(question), [(at + start, at + end)], whole=True)


def pairs(material: Material, keys: int, tokens: int, count: int) -> Iterator[Case]:
    """Keys of two words, each word in several, with numbers."""
    draw = random.Random(keys)
    side = round(keys**0.5)
    for _ in range(count):
        names = [f"{one} {two}" for one in draw.sample(ADJECTIVES, side) for two in draw.sample(NOUNS, side)]
        draw.shuffle(names)
        told = [material.encode_marked(f"The code of the {name} is {{{draw.randrange(10**6)}}}.\n") for name in names]
        haystack = material.excerpt(tokens - sum(len(ids) for ids, _ in told), draw)
        places = sorted(draw.randrange(len(haystack)) for _ in told)
        text, begins = material.plant(haystack, [(place, ids) for place, (ids, _) in zip(places, told, strict=True)])
        asked = draw.randrange(len(names))
        start, end = told[asked][1]
        span = (begins[asked] + start, begins[asked] + end)
        yield Case(text, material.encode(f"What is the code of the {names[asked]}?"), [span], whole=True)


def babi(material: Material, task: str, tokens: int, count: int) -> Iterator[Case]:
    """Facts of a story on lines of a book; all that support the answer must be found."""
    draw = random.Random(task)
    split = "train" if material.half == "tune" else "test"
    (path,) = (material.data / "babi/tasks_1-20_v1-2/en").glob(f"{task}_*_{split}.txt")
    stories: list[tuple[list[tuple[int, str]], str, list[int]]] = []
    facts: list[tuple[int, str]] = []
    for line in path.read_text().splitlines():
        number, rest = line.split(" ", 1)
        if number == "1":
            facts = []
        if "\t" in rest:
            question, _, numbers = rest.split("\t")
            stories.append((list(facts), question.strip(), [int(one) for one in numbers.split()]))
        else:
            facts.append((int(number), rest.strip()))
    for story, question, support in draw.sample(stories, count):
        told = [material.encode(fact + "\n") for _, fact in story]
        haystack = material.excerpt(tokens, draw)
        places = sorted(draw.randrange(len(haystack)) for _ in told)
        text, begins = material.plant(haystack, list(zip(places, told, strict=True)))
        where = {fact: (begin, begin + len(ids)) for (fact, _), begin, ids in zip(story, begins, told, strict=True)}
        yield Case(text, material.encode(question), [where[number] for number in support], whole=True)


def documents(material: Material, parts: Sequence[str]) -> tuple[Tensor, list[tuple[int, int]]]:
    """Parts as one text, each on lines of its own, and where each is."""
    ids = [material.encode(part.strip() + "\n") for part in parts]
    ends = torch.tensor([len(one) for one in ids]).cumsum(0).tolist()
    return torch.cat(ids), [(end - len(one), end) for one, end in zip(ids, ends, strict=True)]


def musique(material: Material, together: bool) -> Iterator[Case]:
    """Questions over several paragraphs, to the 20 of their own or to all there are."""
    items = material.lines("musique/musique_ans_200.jsonl")

    def texts(item: Any) -> list[str]:
        return [f"{one['title']}: {one['paragraph_text']}" for one in item["paragraphs"]]

    everything = list(dict.fromkeys(text for item in items for text in texts(item)))
    if together:
        shared = documents(material, everything)
    for item in items:
        text, spans = shared if together else documents(material, texts(item))
        places = [
            spans[everything.index(texts(item)[number]) if together else number]
            for number, one in enumerate(item["paragraphs"])
            if one["is_supporting"]
        ]
        yield Case(text, material.encode(item["question"]), places, whole=False)


def qmsum(material: Material) -> Iterator[Case]:
    """Questions about a meeting, with the turns that answer them."""
    name = "val" if material.half == "tune" else "test"
    for line in (material.data / f"qmsum/{name}.jsonl").read_text().splitlines():
        meeting = json.loads(line)
        turns = [f"{turn['speaker']}: {turn['content']}" for turn in meeting["meeting_transcripts"]]
        text, spans = documents(material, turns)
        for item in meeting["specific_query_list"]:
            places = [
                (spans[int(low)][0], spans[min(int(high), len(spans) - 1)][1])
                for low, high in item["relevant_text_span"]
                if int(low) < len(spans)
            ]
            if places:
                yield Case(text, material.encode(item["query"]), places, whole=False)


def openroad(material: Material) -> Iterator[Case]:
    """Questions about a program, to its whole documentation."""
    sections = [
        section["content"]
        for source in json.loads((material.data / "openroad_qa/openroad_documentation.json").read_text())
        for section in source["knowledge"]
    ]
    names = [section.split("\n", 1)[0].removeprefix("id:") for section in sections]
    text, spans = documents(material, [section.split("\n", 1)[1] for section in sections])
    for item in material.lines("openroad_qa/ORD-QA.jsonl"):
        places = [spans[names.index(name)] for name in item["reference"]]
        yield Case(text, material.encode(item["question"].strip()), places, whole=False)


SETS: dict[str, Callable[[Material, int], Iterator[Case]]] = {
    "needle 2k": lambda material, count: needles(material, 2_000, count),
    "needle 8k": lambda material, count: needles(material, 8_000, count),
    "needle 32k": lambda material, count: needles(material, 32_000, count),
    "needle 128k": lambda material, count: needles(material, 128_000, count // 4),
    "needle 1M": lambda material, count: needles(material, 1_000_000, count // 8),
    "16 keys 8k": lambda material, count: pairs(material, 16, 8_000, count),
    "64 keys 32k": lambda material, count: pairs(material, 64, 32_000, count),
    "musique": lambda material, count: musique(material, together=False),
    "musique all": lambda material, count: musique(material, together=True),
    "qmsum": lambda material, count: qmsum(material),
    "openroad": lambda material, count: openroad(material),
    "babi qa1": lambda material, count: babi(material, "qa1", 8_000, count),
    "babi qa2": lambda material, count: babi(material, "qa2", 8_000, count),
}


class BM25:
    """BM25 (bm25s) over passages cut beforehand, by whole words without stop words.

    Attributes:
        size: Tokens of a passage: lines are joined up to here, and longer ones are cut.
        step: Tokens from one passage to the next; None to cut at lines instead.
    """

    def __init__(self, material: Material, size: int, step: int | None = None) -> None:
        self.material, self.size, self.step = material, size, step
        self.text: Tensor | None = None

    def cut(self, text: Tensor) -> list[tuple[int, int]]:
        """Passages of a text."""
        if self.step is not None:
            return [
                (start, min(start + self.size, len(text)))
                for start in range(0, max(len(text) - self.size + self.step, 1), self.step)
            ]
        runs: list[tuple[int, int]] = []
        start = end = 0
        for line in [*(self.material.newlines[text.long()].nonzero()[:, 0] + 1).tolist(), len(text)]:
            while line - start > self.size:
                cut = end if end > start else start + self.size
                runs.append((start, cut))
                start = end = cut
            end = line
        return [*runs, (start, end)] if end > start else runs

    def terms(self, ids: Tensor) -> list[str]:
        """The terms of a passage or a question."""
        return bm25s.tokenize(self.material.decode(ids), return_ids=False, show_progress=False)[0]

    def index(self, text: Tensor) -> None:
        """Index a text; the one before is forgotten."""
        self.text, self.runs = text, self.cut(text)
        self.engine = bm25s.BM25()
        self.engine.index([self.terms(text[start:end]) for start, end in self.runs], show_progress=False)

    def __call__(self, case: Case, budget: int) -> list[tuple[int, int]]:
        """The best passages that fit, the last of them cut."""
        if self.text is not case.text:
            self.index(case.text)
        asked = [term for term in self.terms(case.query) if term in self.engine.vocab_dict]
        if not asked:
            return []
        scores = torch.from_numpy(self.engine.get_scores(asked))
        chosen: list[tuple[int, int]] = []
        left = budget
        taken = torch.zeros(len(case.text), dtype=torch.bool)
        for number in scores.argsort(descending=True, stable=True).tolist():
            start, end = self.runs[number]
            while start < end and taken[start]:
                start += 1
            while end > start and taken[end - 1]:
                end -= 1
            if int(taken[start:end].sum()):
                continue
            end = min(end, start + left)
            taken[start:end] = True
            chosen.append((start, end))
            left -= end - start
            if not left:
                break
        return chosen


class Lexical:
    """Text recall as the library does it.

    Attributes:
        threshold: False to take the best passage however little it shares with the question.
        by_words: False to match token ids only.
    """

    def __init__(self, material: Material, threshold: bool = True, by_words: bool = True) -> None:
        self.tables, self.threshold, self.by_words = material.tables, threshold, by_words

    def find(self, text: Tensor, query: Tensor, budget: int) -> search.Found | None:
        """Its passage."""
        terms = self.tables.terms(query) if self.by_words else [frozenset({(token,)}) for token in query.tolist()]
        needed = search.EVIDENCE_PER_NAT, search.MISSING_WEIGHT
        if not self.threshold:
            search.EVIDENCE_PER_NAT = search.MISSING_WEIGHT = 0
        try:
            return search.find_passage(text, terms, budget, self.tables.newlines, self.tables.sentences)
        finally:
            search.EVIDENCE_PER_NAT, search.MISSING_WEIGHT = needed

    def __call__(self, case: Case, budget: int) -> list[tuple[int, int]]:
        """Its passage as a run."""
        found = self.find(case.text, case.query, budget)
        return [] if found is None else [(found.start, found.end)]


class Random:
    """One random passage."""

    def __init__(self) -> None:
        self.draw = random.Random(0)

    def __call__(self, case: Case, budget: int) -> list[tuple[int, int]]:
        """Anywhere."""
        start = self.draw.randrange(max(len(case.text) - budget, 0) + 1)
        return [(start, min(start + budget, len(case.text)))]


METHODS: dict[str, Callable[[Material], Callable[[Case, int], list[tuple[int, int]]]]] = {
    "lexical": lambda material: Lexical(material),
    "lexical, no threshold": lambda material: Lexical(material, threshold=False),
    "lexical, token ids": lambda material: Lexical(material, threshold=False, by_words=False),
    "bm25 words 32": lambda material: BM25(material, 32),
    "bm25 words 64": lambda material: BM25(material, 64),
    "bm25 words 128": lambda material: BM25(material, 128),
    "bm25 words 64/32": lambda material: BM25(material, 64, 32),
    "random": lambda material: Random(),
}
"""A number is the tokens of a passage, cut at lines; two are the tokens, and the steps they are cut in."""

LONG = 100_000
ON_LONG_TEXTS = ("lexical", "lexical, no threshold", "bm25 words 64", "random")
"""Methods that are run on texts above so many tokens: an index of a million takes BM25 many seconds."""

COMPARED = "lexical, no threshold"
"""The method that is compared with every other: those have no threshold either."""


def difference(one: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """Mean of one less the other, and its 95% interval by paired bootstrap."""
    pairs = torch.tensor(one, dtype=torch.float64) - torch.tensor(other, dtype=torch.float64)
    draws = torch.randint(len(pairs), (2_000, len(pairs)), generator=torch.Generator().manual_seed(0))
    low, high = torch.quantile(pairs[draws].mean(dim=1), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return float(pairs.mean()), low, high


def recall_rates(material: Material, count: int) -> dict[str, float]:
    """Share of queries that the text does not answer for which something is recalled, by kind and length of text."""
    draw = random.Random(0)
    method = Lexical(material)
    rates: dict[str, float] = {}
    book = material.book()
    questions = [case.query for case in qmsum(material)]
    for tokens in (2_000, 8_000, 32_000, 128_000, 1_000_000):
        relevant: dict[str, list[bool]] = {}
        for number in range(count):
            start = draw.randrange(len(book) - tokens - 64)
            # Far enough behind the text to be about something else.
            elsewhere = (start + tokens + 150_000) % (len(book) - 64)
            text = book[start : start + tokens]
            for kind, query in (
                ("the next 64 tokens", book[start + tokens : start + tokens + 64]),
                ("64 tokens of another book", book[elsewhere : elsewhere + 64]),
                ("a question about something else", material.encode(ABSENT[number % len(ABSENT)])),
                ("a question about a meeting", questions[number % len(questions)]),
            ):
                relevant.setdefault(kind, []).append(method.find(text, query, 128) is not None)
        rates |= {f"{kind}, {tokens} tokens": sum(values) / len(values) for kind, values in relevant.items()}
    return rates


def milliseconds(material: Material) -> dict[str, float]:
    """Processor time of one search in a million tokens, by tokens of the query; the median of nine."""
    method = Lexical(material)
    text = material.book()[:1_000_000]
    times: dict[str, float] = {}
    for length in (8, 32, 64, 128, 256):
        query = text[5_000 : 5_000 + length]
        method.find(text, query, 256)
        taken = []
        for _ in range(9):
            start = time.thread_time()
            method.find(text, query, 256)
            taken.append(1_000 * (time.thread_time() - start))
        times[str(length)] = round(statistics.median(taken), 1)
    return times


@dataclass
class Options:
    """Data sets, methods and budgets."""

    data: Path
    """Folder with the data sets."""
    half: Literal["tune", "test"] = "test"
    """Half of every set."""
    sets: str = ""
    """Sets whose names begin with one of these, separated by commas; all by default."""
    methods: str = "lexical,bm25,random"
    """Methods whose names begin with one of these."""
    budgets: str = "128,256,512"
    """Tokens to find."""
    count: int = 96
    """Questions of each set that is made up; a quarter and an eighth of it at 128k and 1M tokens."""
    model_name: str = "smollm2-135m"
    """Tokenizer."""


def main(options: Options) -> None:
    """Measure, print a table, write the numbers."""
    torch.set_num_threads(1)
    material = Material(options.data, load_tokenizer(options.model_name), options.half)
    budgets = parse_counts(options.budgets)
    methods = {
        name: make(material) for name, make in METHODS.items() if name.startswith(tuple(options.methods.split(",")))
    }
    results: dict[str, Any] = {"half": options.half, "budgets": budgets, "milliseconds": milliseconds(material)}
    results["recalled without an answer"] = recall_rates(material, options.count)
    results["sets"] = {}
    for title, make in SETS.items():
        if not title.startswith(tuple(options.sets.split(","))):
            continue
        cases = list(make(material, options.count))
        few = title.startswith("needle") and len(cases[0].text) > LONG
        used = {name: method for name, method in methods.items() if not few or name in ON_LONG_TEXTS}
        found: dict[str, list[list[float]]] = {name: [[] for _ in budgets] for name in used}
        for case in tqdm(cases, desc=title, disable=None):
            for name, method in used.items():
                for values, budget in zip(found[name], budgets, strict=True):
                    values.append(case.found_by(method(case, budget), budget))
        rows: dict[str, Any] = {}
        for name, columns in found.items():
            rows[name] = {"found": [round(statistics.mean(values), 3) for values in columns]}
            if COMPARED in found and name != COMPARED:
                pairs = zip(found[COMPARED], columns, strict=True)
                rows[name]["lexical is better by"] = [
                    [round(value, 3) for value in difference(one, other)] for one, other in pairs
                ]
        results["sets"][title] = {"n": len(cases), "methods": rows}
        table = [
            {"method": name, **{str(budget): value for budget, value in zip(budgets, row["found"], strict=True)}}
            for name, row in rows.items()
        ]
        heads = {"method": f"{title}, n = {len(cases)}", **{str(budget): str(budget) for budget in budgets}}
        sys.stdout.write(f"{format_table(table, heads)}\n\n")
        sys.stdout.flush()
    sys.stdout.write(f"written to {write('passages', results)}\n")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
