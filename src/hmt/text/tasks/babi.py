"""bAbI facts scattered through books: stories of the authors' files, or of a small world made here; and BABILong."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from hmt.files import is_visible, kind_of, read_text
from hmt.text.documents import fingerprint, hash_split
from hmt.text.questions import Question, ask
from hmt.text.tables import TABLE_SUFFIXES, Row, table_rows
from hmt.text.tasks.haystack import Cell, Haystack, Needles, cells
from hmt.text.tasks.task import Source, Task

PEOPLE = ("Mary", "John", "Sandra", "Daniel")
PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
THINGS = ("apple", "football", "milk")
GOING = ("went to", "moved to", "travelled to", "journeyed to", "went back to")
TAKING = ("got", "grabbed", "picked up", "took")
LEAVING = ("dropped", "put down", "left", "discarded")

OWN = ("train", "test")
"""Splits of the authors."""

NUM_FACTS = {"qa1": 8, "qa2": 14, "qa3": 24}
"""Facts of a story that is made here, where there is room for them."""

FEWEST_FACTS = {"qa1": 1, "qa2": 2, "qa3": 3}
"""Facts without which there is nothing to ask."""

NUM_DRAWN = 90
"""Stories that are made for one context, at most; of these that is told which fits best."""

NEAR = 0.01
"""Share of the length by which the last supporting fact of a story that fits misses its depth, at most."""


LENGTHS = ("0k", "1k", "2k", "4k", "8k", "16k", "32k", "64k", "128k", "256k", "512k", "1M")
"""Configurations of BABILong, whose splits are its tasks."""

NUM_TASKS = 20
"""Tasks of bAbI: ten of them are in BABILong at every length, the others in its larger set."""


@dataclass(frozen=True)
class Story:
    """Facts, a question about them, and the indices of the facts that answer it."""

    facts: tuple[str, ...]
    question: str
    answer: str
    supporting: tuple[int, ...]


def babi(source: Source) -> Iterator[Question]:
    """Stories whose facts lie scattered in books, in their order.

    The last fact that a question rests on stands at the depth asked for, the facts before and after it anywhere before
    and after it. Stories are preferred that take at most half of the length and have room on both sides of that fact;
    where none has, the one that comes nearest to it is told.
    """
    variant = source.variant
    stories = list(_told(source)) if source.directory is not None else None
    choices = tuple(sorted({story.answer for story in stories})) if stories is not None else PLACES
    haystack = Haystack(source)
    fitting: dict[tuple[int, float], list[Story]] = {}
    for cell in cells(source.reading):
        rng = source.random(variant, cell)
        if stories is None:
            story = _made_to_fit(variant, source.split, haystack, cell, rng)
        else:
            place = (cell.length, cell.depth)
            if place not in fitting:
                misfits = [_misfit(story, haystack, cell) for story in stories]
                limit = max((False, NEAR), min(misfits))
                fitting[place] = [story for story, misfit in zip(stories, misfits, strict=True) if misfit <= limit]
            story = rng.choice(fitting[place])
        last = max(story.supporting)
        hidden = haystack.hide(Needles(story.facts[:last], story.facts[last], story.facts[last + 1 :]), cell, rng)
        yield Question(
            name=f"{variant}:{cell.length}:{cell.depth:g}:{cell.number}",
            source=f"{hidden.book}+{fingerprint(' '.join(story.facts))}",
            context=hidden.context,
            prompt=ask(story.question),
            answers=(story.answer,),
            choices=choices,
            supporting=tuple(hidden.ranges[index] for index in sorted(story.supporting)),
            length=cell.length,
            depth=cell.depth,
        )


def _misfit(story: Story, haystack: Haystack, cell: Cell) -> tuple[bool, float]:
    """Whether a story takes more than half of the length, and by which share its last supporting fact is misplaced."""
    last = max(story.supporting)
    before, asked, after = (
        haystack.length(facts) for facts in (story.facts[:last], story.facts[last : last + 1], story.facts[last + 1 :])
    )
    ahead = cell.depth * (cell.length - asked)
    behind = cell.length - asked - ahead
    return 2 * (before + asked + after) > cell.length, max(before - ahead, after - behind, 0) / cell.length


def _made_to_fit(variant: str, split: str, haystack: Haystack, cell: Cell, rng: random.Random) -> Story:
    """The first story made that fits, or else the one that does best; the longer it takes, the shorter they get."""
    found: list[tuple[tuple[bool, float], int, Story]] = []
    for number in range(NUM_DRAWN):
        story = made(variant, split, rng, 1 - number / NUM_DRAWN)
        found.append((_misfit(story, haystack, cell), number, story))
        if found[-1][0] <= (False, NEAR):
            return story
    return min(found, key=lambda one: one[:2])[2]


def _told(source: Source) -> Iterator[Story]:
    """Stories of the authors' files. Validation, which they lack, is a tenth of train."""

    def read(own: str | None) -> Iterator[Story]:
        files = {file.parent: file for file in source.files(None) if _is_of(file, own)}
        if not files:
            raise FileNotFoundError(f"{source.where} has no {source.variant}_*_{own}.txt; expected {source.task.local}")
        # The authors give 1,000 (en) and 10,000 (en-10k) questions for training: the most, where test is there too.
        whole = [folder for folder in files if all(any(folder.glob(f"{source.variant}_*_{one}.txt")) for one in OWN)]
        return stories_of(files[max(whole or files, key=lambda folder: folder.name)])

    def _is_of(file: Path, own: str | None) -> bool:
        return file.name.startswith(f"{source.variant}_") and file.name.endswith(f"_{own}.txt")

    return source.of_split(read, lambda story: " ".join(story.facts[:2]), OWN)


def stories_of(file: Path) -> Iterator[Story]:
    """Each question of a file of bAbI, with the facts told before it.

    Raises:
        ValueError: If a line is not one of such a file.
    """
    facts: list[str] = []
    place: dict[int, int] = {}
    for row, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        number, _, said = line.partition(" ")
        if not number.isdecimal():
            raise ValueError(f"{file}, line {row}, is no line of bAbI: it must begin with a number")
        if number == "1":
            facts, place = [], {}
        question, *answer = said.split("\t")
        if not answer:
            place[int(number)] = len(facts)
            facts.append(said.strip())
        elif len(answer) == 2:
            supporting = tuple(place[int(fact)] for fact in answer[1].split())
            yield Story(tuple(facts), question.strip(), answer[0], supporting)
        else:
            raise ValueError(f"{file}, line {row}, must give a question, its answer and the facts behind it")


def made(variant: str, split: str, rng: random.Random, share: float = 1.0) -> Story:
    """A story of a small world, by its rules; it belongs to the split by the hash of its facts.

    Args:
        variant: Of the questions.
        split: "train", "validation" or "test".
        rng: Makes it.
        share: Of the usual number of facts.

    Raises:
        ValueError: If this variant is only told in the authors' files.
    """
    if variant not in NUM_FACTS:
        raise ValueError(
            f"babi {variant} needs the authors' files: --hub_map babi=DIR; {', '.join(NUM_FACTS)} are made here"
        )
    num_facts = max(round(share * NUM_FACTS[variant]), FEWEST_FACTS[variant])
    while True:
        world = _World(rng)
        for _ in range(num_facts):
            world.go_on(with_things=variant != "qa1")
        story = world.asked(variant)
        if story is not None and hash_split(" ".join(story.facts)) == split:
            return story


@dataclass
class _World:
    """People who go about, and take things along. Each thing known is kept with the facts it rests on."""

    rng: random.Random
    facts: list[str] = field(default_factory=list)
    where: dict[str, tuple[str, int]] = field(default_factory=dict)
    held: dict[str, tuple[str, int]] = field(default_factory=dict)
    been: dict[str, list[tuple[str, frozenset[int]]]] = field(default_factory=dict)

    def go_on(self, with_things: bool) -> None:
        """One more thing happens."""
        person = self.rng.choice(PEOPLE)
        if not with_things or person not in self.where or self.rng.random() < 0.5:
            self._goes(person)
            return
        own = [thing for thing, (holder, _) in self.held.items() if holder == person]
        here = self.where[person][0]
        free = [t for t in THINGS if t not in self.held and (t not in self.been or self.been[t][-1][0] == here)]
        if own and (not free or self.rng.random() < 0.3):
            self._leaves(person, self.rng.choice(own))
        elif free:
            self._takes(person, self.rng.choice(free))
        else:
            self._goes(person)

    def _goes(self, person: str) -> None:
        now = self.where[person][0] if person in self.where else None
        place = self.rng.choice([place for place in PLACES if place != now])
        number = self._tell(f"{person} {self.rng.choice(GOING)} the {place}.")
        self.where[person] = (place, number)
        for thing, (holder, taken) in self.held.items():
            if holder == person:
                self.been[thing].append((place, frozenset({taken, number})))

    def _takes(self, person: str, thing: str) -> None:
        place, came = self.where[person]
        number = self._tell(f"{person} {self.rng.choice(TAKING)} the {thing}{self.rng.choice(('', ' there'))}.")
        self.held[thing] = (person, number)
        self._is_now(thing, place, frozenset({number, came}))

    def _leaves(self, person: str, thing: str) -> None:
        place, came = self.where[person]
        number = self._tell(f"{person} {self.rng.choice(LEAVING)} the {thing}{self.rng.choice(('', ' there'))}.")
        del self.held[thing]
        self._is_now(thing, place, frozenset({number, came}))

    def _is_now(self, thing: str, place: str, behind: frozenset[int]) -> None:
        known = self.been.setdefault(thing, [])
        if known and known[-1][0] == place:
            known.pop()
        known.append((place, behind))

    def _tell(self, fact: str) -> int:
        self.facts.append(fact)
        return len(self.facts) - 1

    def asked(self, variant: str) -> Story | None:
        """A question about the world as it is now; None where there is none to ask."""
        if variant == "qa1":
            person = self.rng.choice(sorted(self.where))
            place, number = self.where[person]
            return Story(tuple(self.facts), f"Where is {person}?", place, (number,))
        needed = 1 if variant == "qa2" else 2
        known = sorted(thing for thing, places in self.been.items() if len(places) >= needed)
        if not known:
            return None
        thing = self.rng.choice(known)
        now, behind = self.been[thing][-1]
        if variant == "qa2":
            return Story(tuple(self.facts), f"Where is the {thing}?", now, tuple(sorted(behind)))
        before, earlier = self.been[thing][-2]
        question = f"Where was the {thing} before the {now}?"
        return Story(tuple(self.facts), question, before, tuple(sorted(behind | earlier)))


def babilong(source: Source) -> Iterator[Question]:
    """Questions of BABILong as its authors scattered them; the choices are all answers of the subset.

    Raises:
        ValueError: If the subset is not a length and a task.
        FileNotFoundError: If a local copy lacks it.
    """
    subset = str(source.subset)
    if subset not in source.task.subsets:
        raise ValueError(
            f"task_subset of {source.task.name} must be LENGTH/TASK, of {', '.join(LENGTHS)} and qa1 to qa{NUM_TASKS}, "
            f"as in {source.task.subset}; got {subset!r}"
        )
    length, _, task = subset.partition("/")
    rows = source.of_split(lambda _: _scattered(source, length, task), lambda row: row["input"], source.task.splits)
    asked = [(row["input"], row["question"], row["target"].strip()) for row in rows]
    choices = tuple(sorted({answer for _, _, answer in asked}))
    for number, (context, question, answer) in enumerate(asked):
        yield Question(f"{subset}:{number}", fingerprint(context), context, ask(question), (answer,), choices)


def _scattered(source: Source, length: str, task: str) -> Iterator[Row]:
    """Rows of a length and a task: of the hub, or of the first folder of a local copy that has them."""
    root = source.task.directory
    if root is None:
        return replace(source, reading=replace(source.reading, subset=length)).rows_of(task)

    def names(file: Path) -> set[str]:
        return {*file.relative_to(root).parts[:-1], re.split("[.-]", file.name)[0]}

    tables = [file for file in root.rglob("*") if kind_of(file) in TABLE_SUFFIXES and is_visible(file, root)]
    found = sorted(file for file in tables if {length, task} <= names(file))
    if not found:
        raise FileNotFoundError(f"{root} has no {length}/{task} of {source.task.name}: expected {source.task.local}")
    alike = [file for file in found if (file.parent, kind_of(file)) == (found[0].parent, kind_of(found[0]))]
    return (row for file in alike for _, row in table_rows(file))


TASKS = (
    Task(
        name="babi",
        kind="questions",
        about="bAbI facts scattered through text (BABILong), at --depths in --context_lengths; subsets qa1 to qa5",
        source="Weston et al. (arXiv:1502.05698), scattered as in Kuratov et al., BABILong (arXiv:2406.10149)",
        licence="CC BY 3.0, or made here",
        length="any: --context_lengths 1k to 1m",
        columns=(),
        local="bAbI v1.2: qa1_*_train.txt and qa1_*_test.txt, ..., anywhere in it; qa1 to qa3 need none",
        splits=OWN,
        variants=("qa1", "qa2", "qa3", "qa4", "qa5"),
        made_here=True,
        questions=babi,
    ),
    Task(
        name="babilong",
        kind="questions",
        about="BABILong ready-made, --task_subset LENGTH/TASK; or a copy of the larger RMT-team/babilong-1k-samples",
        source="Kuratov et al., BABILong (arXiv:2406.10149)",
        licence="none stated (bAbI: CC BY 3.0)",
        length="0k to 1M tokens; 100 questions of each length and task (larger set: 1,000)",
        columns=("input", "question", "target"),
        local="the hub's tables by length and task: data/qa2/4k.json, 4k/qa2-*.parquet or qa2/4k-*.parquet, anywhere "
        "in it",
        splits=("test",),
        hub_id="RMT-team/babilong",
        subset="4k/qa1",
        subsets=tuple(f"{length}/qa{number}" for length in LENGTHS for number in range(1, NUM_TASKS + 1)),
        questions=babilong,
    ),
)
