"""bAbI facts scattered through text, as in BABILong: stories of the authors' files, or of a small world made here."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hmt.files import read_text
from hmt.text.documents import fingerprint, hash_split, split_files
from hmt.text.questions import Question, ask
from hmt.text.tasks.haystack import Cell, Haystack, cells
from hmt.text.tasks.task import Source, Task

PEOPLE = ("Mary", "John", "Sandra", "Daniel")
PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
THINGS = ("apple", "football", "milk")
GOING = ("went to", "moved to", "travelled to", "journeyed to", "went back to")
TAKING = ("got", "grabbed", "picked up", "took")
LEAVING = ("dropped", "put down", "left", "discarded")

OWN_SPLITS = ("train", "test")
NUM_FACTS = {"qa1": (1, 8), "qa2": (2, 14), "qa3": (3, 24)}
"""Fewest and most facts of the stories that are made here."""

CANDIDATES = 60
"""Stories that are tried for one context."""


@dataclass(frozen=True)
class Story:
    """Facts, a question about them, and the indices of the facts that answer it."""

    facts: tuple[str, ...]
    question: str
    answer: str
    supporting: tuple[int, ...]


def babi(source: Source) -> Iterator[Question]:
    """Stories whose facts lie scattered in text, in their order.

    The last supporting fact stands at the depth asked for, the facts before and after it anywhere before and after it.
    Of some candidates the first is taken that has room for them, or else the one that misses the depth least.
    """
    variant = source.variant
    stories = list(_authored(source)) if source.directory is not None else None
    choices = PLACES if stories is None else tuple(sorted({story.answer for story in stories}))
    haystack = Haystack(source)
    for cell in cells(source.reading):
        rng = source.random(variant, cell)
        if stories is None:
            candidates = [made(variant, source.split, rng) for _ in range(CANDIDATES)]
        else:
            candidates = rng.sample(stories, min(CANDIDATES, len(stories)))
        story = min(candidates, key=lambda story: _misplaced(story, haystack, cell))
        last = max(story.supporting)
        book, context, ranges = haystack.hide(story.facts[:last], story.facts[last], story.facts[last + 1 :], cell, rng)
        yield Question(
            name=f"{variant}:{cell.length}:{cell.depth:g}:{cell.number}",
            source=f"{book}+{fingerprint(' '.join(story.facts))}",
            context=context,
            prompt=ask(story.question),
            answers=(story.answer,),
            choices=choices,
            supporting=tuple(ranges[index] for index in sorted(story.supporting)),
            length=cell.length,
            depth=cell.depth,
        )


def _misplaced(story: Story, haystack: Haystack, cell: Cell) -> float:
    """Tokens by which the last supporting fact must miss its depth."""
    last = max(story.supporting)
    room = cell.length - haystack.size(story.facts[last])
    before, after = haystack.sizes(story.facts[:last]), haystack.sizes(story.facts[last + 1 :])
    return max(before - cell.depth * room, after - (1 - cell.depth) * room, 0)


def _authored(source: Source) -> Iterator[Story]:
    """Stories of the authors' files; validation, which they lack, is a tenth of train."""
    assert source.directory is not None
    files = [f for f in split_files(source.directory, None) if f.name.startswith(f"{source.variant}_")]

    def read(own: str | None) -> Iterator[Story]:
        found = {file.parent: file for file in files if file.name.endswith(f"_{own}.txt")}
        if not found:
            raise FileNotFoundError(f"{source.where} has no {source.variant}_*_{own}.txt; expected {source.task.local}")
        # The authors give 1,000 (en) and 10,000 (en-10k) questions for training: the most, where test is there too.
        whole = [folder for folder in found if sum(file.parent == folder for file in files) == len(OWN_SPLITS)]
        return stories_of(found[max(whole or found, key=lambda folder: folder.name)])

    return source.of_split(read, lambda story: " ".join(story.facts[:2]), OWN_SPLITS)


def stories_of(file: Path) -> Iterator[Story]:
    """Each question of a file of bAbI, with the facts before it.

    Raises:
        ValueError: If a line is not one of such a file.
    """
    facts: list[str] = []
    index_of: dict[int, int] = {}
    for row, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        number, _, rest = line.partition(" ")
        statement, *answer = rest.split("\t")
        if not number.isdecimal() or len(answer) not in (0, 2):
            raise ValueError(f"{file}, line {row}, must be a number and a fact, or a question, its answer and facts")
        if number == "1":
            facts, index_of = [], {}
        if answer:
            supporting = tuple(index_of[int(fact)] for fact in answer[1].split())
            yield Story(tuple(facts), statement.strip(), answer[0], supporting)
        else:
            index_of[int(number)] = len(facts)
            facts.append(statement.strip())


def made(variant: str, split: str, rng: random.Random) -> Story:
    """A story of a small world; it belongs to the split by the hash of its facts.

    Raises:
        ValueError: If only the authors' files have stories of this variant.
    """
    if variant not in NUM_FACTS:
        raise ValueError(
            f"babi {variant} needs the authors' files: --hub_map babi=DIR; {', '.join(NUM_FACTS)} are made here"
        )
    while True:
        world = _World(rng)
        for _ in range(rng.randint(*NUM_FACTS[variant])):
            world.go_on(with_things=variant != "qa1")
        story = world.asked(variant)
        if story is not None and hash_split(" ".join(story.facts)) == split:
            return story


@dataclass
class _World:
    """People who go about, and take things along.

    Attributes:
        rng: Draws all that happens.
        facts: What happened, in order.
        where: Place of each person, and the fact that tells it.
        held: Holder of each thing that is held, and the fact that tells it.
        been: Places of each thing, each with the facts that tell it.
    """

    rng: random.Random
    facts: list[str] = field(default_factory=list)
    where: dict[str, tuple[str, int]] = field(default_factory=dict)
    held: dict[str, tuple[str, int]] = field(default_factory=dict)
    been: dict[str, list[tuple[str, frozenset[int]]]] = field(default_factory=dict)

    def go_on(self, with_things: bool) -> None:
        """One more thing happens: somebody takes or leaves a thing, or else goes somewhere."""
        person = self.rng.choice(PEOPLE)
        things = [thing for thing in THINGS if self._in_reach(thing, person)]
        if with_things and things and self.rng.random() < 0.5:
            self._take_or_leave(person, self.rng.choice(things))
        else:
            self._go(person)

    def _in_reach(self, thing: str, person: str) -> bool:
        if person not in self.where:
            return False
        if thing in self.held:
            return self.held[thing][0] == person
        return thing not in self.been or self.been[thing][-1][0] == self.where[person][0]

    def _go(self, person: str) -> None:
        now = self.where[person][0] if person in self.where else None
        place = self.rng.choice([place for place in PLACES if place != now])
        went = self._tell(f"{person} {self.rng.choice(GOING)} the {place}.")
        self.where[person] = (place, went)
        for thing, (holder, took) in self.held.items():
            if holder == person:
                self.been[thing].append((place, frozenset({took, went})))

    def _take_or_leave(self, person: str, thing: str) -> None:
        verb = self.rng.choice(LEAVING if thing in self.held else TAKING)
        fact = self._tell(f"{person} {verb} the {thing}{self.rng.choice(('', ' there'))}.")
        if thing in self.held:
            del self.held[thing]
        else:
            self.held[thing] = (person, fact)
        place, came = self.where[person]
        known = self.been.setdefault(thing, [])
        if known and known[-1][0] == place:
            known.pop()
        known.append((place, frozenset({fact, came})))

    def _tell(self, fact: str) -> int:
        self.facts.append(fact)
        return len(self.facts) - 1

    def asked(self, variant: str) -> Story | None:
        """A question about the world as it is now; None where there is none to ask."""
        facts = tuple(self.facts)
        if variant == "qa1":
            person = self.rng.choice(sorted(self.where))
            place, went = self.where[person]
            return Story(facts, f"Where is {person}?", place, (went,))
        needed = 1 if variant == "qa2" else 2
        known = sorted(thing for thing, places in self.been.items() if len(places) >= needed)
        if not known:
            return None
        thing = self.rng.choice(known)
        now, behind = self.been[thing][-1]
        if variant == "qa2":
            return Story(facts, f"Where is the {thing}?", now, tuple(sorted(behind)))
        before, earlier = self.been[thing][-2]
        return Story(facts, f"Where was the {thing} before the {now}?", before, tuple(sorted(behind | earlier)))


TASKS = (
    Task(
        name="babi",
        kind="questions",
        about="bAbI facts scattered through text (--task_subset qa1 to qa5), at --depths in --context_lengths",
        authors="Weston et al. (arXiv:1502.05698), scattered as in BABILong (arXiv:2406.10149)",
        licence="CC BY 3.0, or made here",
        local="bAbI v1.2: qa1_*_train.txt and qa1_*_test.txt, ..., anywhere in it; qa1 to qa3 need none",
        read=babi,
        splits=OWN_SPLITS,
        variants=("qa1", "qa2", "qa3", "qa4", "qa5"),
        made_here=True,
    ),
)
