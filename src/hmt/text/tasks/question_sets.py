"""Published sets of questions: from their authors' files or, in another form, from the hub."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hmt.files import read_json
from hmt.text.documents import Row, fingerprint, hash_split, split_files, table_rows
from hmt.text.questions import PASSAGE_BREAK, Question, ask, joined
from hmt.text.tasks.task import Source, Task, groups

DECISIONS = ("yes", "no", "maybe")

NUM_DISTRACTORS = 12
"""Passages beside the supporting ones of a hard question of eda_qa, as published."""


def pubmed_qa(source: Source) -> Iterator[Question]:
    """Questions about one of `fuse_size` abstracts of the same split.

    The split is that of the authors where their list of test items is there, else a hash of the item.
    """
    split_of = _pubmed_split(source)
    items = [
        item for item in _abstracts(source) if split_of(item["id"]) == source.split and item["decision"] in DECISIONS
    ]
    size = source.reading.fuse_size
    for start in range(0, len(items), size):
        together = items[start : start + size]
        for place, item in enumerate(together):
            context, supporting = joined([one["text"] for one in together], [place])
            yield Question(
                name=item["id"],
                source="+".join(one["id"] for one in together),
                context=context,
                prompt=ask(f"{item['question'].strip()} (yes, no or maybe)"),
                answers=(item["decision"],),
                choices=DECISIONS,
                supporting=supporting,
            )


def _abstracts(source: Source) -> Iterator[dict[str, str]]:
    """Items of the authors' file or the hub's rows, in one form."""
    letter = (source.subset or "").removeprefix("pqa_")[:1]
    if file := source.file(f"ori_pqa{letter}.json"):
        for _, row in table_rows(file):
            yield {
                "id": str(row["id"]),
                "question": row["QUESTION"],
                "text": "\n".join(row["CONTEXTS"]),
                "decision": row.get("final_decision", ""),
            }
        return
    for row in source.rows_of("train" if "train" in source.own_splits else None):
        yield {
            "id": str(row["pubid"]),
            "question": row["question"],
            "text": "\n".join(row["context"]["contexts"]),
            "decision": row.get("final_decision") or "",
        }


def _pubmed_split(source: Source) -> Callable[[str], str]:
    truth = source.file("test_ground_truth.json")
    if truth is None:
        return hash_split
    test = set(read_json(truth))
    # The authors' list tells test from train; a tenth of the rest is validation.
    return lambda name: "test" if name in test else "validation" if hash_split(name) == "validation" else "train"


def qasper(source: Source) -> Iterator[Question]:
    """Questions about whole papers; the paragraphs that the annotators marked are the supporting ones."""
    for paper in source.rows(lambda row: str(row["id"])):
        passages = [str(paper["title"]), str(paper["abstract"])]
        for section in _records(paper["full_text"]):
            passages += [text for text in (section["section_name"], *section["paragraphs"]) if text and text.strip()]
        for asked in _records(paper["qas"]):
            annotations = [one["answer"] for one in _records(asked["answers"])]
            answers = tuple(dict.fromkeys(text for one in annotations if (text := _qasper_answer(one))))
            if not answers:
                continue
            marked = {part for one in annotations for part in one.get("evidence") or ()}
            context, supporting = joined(passages, [i for i, passage in enumerate(passages) if passage in marked])
            prompt = ask(asked["question"])
            yield Question(asked["question_id"], str(paper["id"]), context, prompt, answers, (), supporting)


def _records(table: Any) -> list[dict[str, Any]]:
    """Records of a table: a list of them (authors), or a dictionary of columns (hub)."""
    if isinstance(table, dict):
        return [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
    return list(table)


def _qasper_answer(annotation: dict[str, Any]) -> str:
    if annotation.get("unanswerable"):
        return "unanswerable"
    if annotation.get("yes_no") is not None:
        return "yes" if annotation["yes_no"] else "no"
    return str(annotation.get("free_form_answer") or ", ".join(annotation.get("extractive_spans") or ()))


def eda_qa(source: Source) -> Iterator[Question]:
    """Questions with the passages of the OpenROAD documentation that answer them.

    In the variant simple the context is these passages; in hard they lie in random order among distractors. Questions
    that share a passage are of one split; a passage that no question rests on belongs to the split of its hash.
    """
    rows = [row for _, row in table_rows(source.needed_file("ORD-QA.jsonl"))]
    grouped = [fingerprint(group) for group in groups(rows, lambda row: row["reference"])]
    split_of = _balanced(grouped)
    spare = []
    if source.variant == "hard":
        referenced = {name for row in rows for name in row["reference"]}
        for part in read_json(source.needed_file("openroad_documentation.json")):
            spare += [
                _unnamed(passage["content"])
                for passage in part["knowledge"]
                if passage["id"] not in referenced and hash_split(passage["id"]) == source.split
            ]
    for row, group in zip(rows, grouped, strict=True):
        if split_of[group] != source.split:
            continue
        supporting = [_unnamed(text) for text in row["reference_content"]]
        order = [*supporting]
        if source.variant == "hard":
            rng = source.random(row["id"])
            order += rng.sample(spare, min(NUM_DISTRACTORS, len(spare)))
            rng.shuffle(order)
        context, ranges = joined(order, [order.index(text) for text in supporting])
        answers = (row["answer"].strip(),)
        yield Question(f"ORD-QA:{row['id']}", group, context, ask(row["question"]), answers, (), ranges)


def _unnamed(passage: str) -> str:
    """A passage without the line that names it."""
    head, _, body = passage.partition("\n")
    return (body if head.startswith("id:") else passage).strip()


def _balanced(names: Sequence[str]) -> dict[str, str]:
    """The split of each group: a tenth of the items each for validation and test, as nearly as whole groups allow.

    A few groups of eda_qa hold most of its items, so that a hash would leave splits all but empty. The largest group
    comes first, and each goes to the split that lacks most of its share.
    """
    sizes = Counter(names)
    lacking = {"train": 8 * len(names), "validation": len(names), "test": len(names)}  # in tenths of an item
    split_of = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], fingerprint(name))):
        split_of[name] = max(lacking, key=lambda split: lacking[split])
        lacking[split_of[name]] -= 10 * sizes[name]
    return split_of


def eda_corpus(source: Source) -> Iterator[Question]:
    """Question and answer pairs without a context; pairs that share a question or an answer are of one split."""
    pairs: dict[tuple[str, str], None] = {}
    for file in split_files(source.directory, None, (".csv",)) if source.directory is not None else []:
        for number, row in table_rows(file):
            texts = [text.strip() for text in list(row.values())[:2] if isinstance(text, str)]
            if len(texts) < 2:
                raise ValueError(f"{file}, row {number}, must have a question and an answer, got {row}")
            if all(texts):
                pairs[texts[0], texts[1]] = None
    if not pairs:
        raise FileNotFoundError(f"{source.where} holds no eda_corpus: expected {source.task.local}")
    named = groups(list(pairs), lambda pair: (f"1 {pair[0].lower()}", f"2 {pair[1].lower()}"))
    for (question, answer), group in zip(pairs, map(fingerprint, named), strict=True):
        if hash_split(group) == source.split:
            name = f"{group}:{fingerprint(question + answer)}"
            yield Question(name, group, "", ask(question).lstrip(), (answer,))


def musique(source: Source) -> Iterator[Question]:
    """Questions that need two to four of twenty paragraphs.

    Where a split is cut out of another, questions that rest on the same paragraph stay together.
    """
    group_of: dict[str, str] = {}

    def rows(own: str | None) -> list[Row]:
        found = [row for row in source.rows_of(own) if row.get("answer") and row.get("answerable", True)]
        named = groups(found, lambda row: _supporting(row) or [str(row["id"])])
        group_of.update((str(row["id"]), fingerprint(group)) for row, group in zip(found, named, strict=True))
        return found

    for row in source.of_split(rows, lambda row: group_of[str(row["id"])]):
        name, paragraphs = str(row["id"]), [_paragraph(one) for one in row["paragraphs"]]
        marked = [index for index, one in enumerate(row["paragraphs"]) if one.get("is_supporting")]
        context, supporting = joined(paragraphs, marked)
        answers = tuple(dict.fromkeys((row["answer"], *(row.get("answer_aliases") or ()))))
        yield Question(name, group_of[name], context, ask(row["question"]), answers, (), supporting)


def _supporting(row: Row) -> list[str]:
    return [one["paragraph_text"] for one in row["paragraphs"] if one.get("is_supporting")]


def _paragraph(row: Row) -> str:
    return f"{row['title']}\n{row['paragraph_text']}"


def qmsum(source: Source) -> Iterator[Question]:
    """Queries about meetings, general and specific; the turns that a specific one is about are known."""
    for row in source.rows(lambda row: fingerprint(PASSAGE_BREAK.join(_turns(row)))):
        turns = _turns(row)
        name = fingerprint(PASSAGE_BREAK.join(turns))
        queries = [*(row.get("general_query_list") or ()), *(row.get("specific_query_list") or ())]
        for number, query in enumerate(queries):
            about = [
                turn
                for first, last in query.get("relevant_text_span") or ()
                for turn in range(int(first), min(int(last) + 1, len(turns)))
            ]
            context, supporting = joined(turns, about)
            yield Question(f"{name}:{number}", name, context, ask(query["query"]), (query["answer"],), (), supporting)


def _turns(row: Row) -> list[str]:
    return [f"{turn['speaker']}: {turn['content'].strip()}" for turn in row["meeting_transcripts"]]


def narrativeqa(source: Source) -> Iterator[Question]:
    """Questions about a book or film script (variant story), or about its summary (variant summary)."""
    variant = source.variant
    for row in source.rows(lambda row: str(row["document"]["id"])):
        name, question = str(row["document"]["id"]), row["question"]["text"]
        text = row["document"]["summary"]["text"] if variant == "summary" else row["document"]["text"]
        answers = tuple(dict.fromkeys(answer["text"].strip() for answer in row["answers"]))
        yield Question(f"{name}:{fingerprint(question)}", name, str(text), ask(question), answers)


def chatqa2(source: Source) -> Iterator[Question]:
    """Long documents with an instruction or question at their end."""
    for row in source.rows(lambda row: fingerprint(_talk(row)[0])):
        context, question = _talk(row)
        given = row.get("answers") or row.get("answer") or ()
        given = [given] if isinstance(given, str) else given
        answers = tuple(str(one["text"] if isinstance(one, dict) else one).strip() for one in given)
        if any(answers):
            name = fingerprint(context)
            prompt = f"{PASSAGE_BREAK}{question}\n\nAssistant:"
            yield Question(f"{name}:{fingerprint(question)}", name, context, prompt, answers)


def _talk(row: Row) -> tuple[str, str]:
    """Document and question of a row: a column each, or both in the question, whose last paragraph then asks."""
    turn = str(row["question"]).strip().removeprefix("User:").removesuffix("Assistant:").strip()
    for column in ("sub-paragraphs", "document"):
        if row.get(column):
            return str(row[column]), turn
    context, _, question = turn.rpartition("\n\n")
    return context, question


TASKS = (
    Task(
        name="pubmed_qa",
        kind="questions",
        about="yes, no or maybe about --fuse_size abstracts of PubMed, 200 words each; 1,000 questions, 500 for test",
        authors="Jin et al. (arXiv:1909.06146)",
        licence="MIT",
        local="ori_pqal.json, with test_ground_truth.json for the official test items; or the hub's tables",
        read=pubmed_qa,
        splits=("train",),
        hub_id="qiaojin/PubMedQA",
        subset="pqa_labeled",
    ),
    Task(
        name="qasper",
        kind="questions",
        about="questions about whole papers, 4,000 words, with marked paragraphs; 2,593 train, 1,005 and 1,451",
        authors="Dasigi et al. (arXiv:2105.03011)",
        licence="CC BY 4.0",
        local="qasper-train-v0.3.json, qasper-dev-v0.3.json, qasper-test-v0.3.json, or the hub's tables",
        read=qasper,
        hub_id="allenai/qasper",
        revision="refs/convert/parquet",
    ),
    Task(
        name="eda_qa",
        kind="questions",
        about="90 questions about OpenROAD with 1 to 7 passages; --task_subset hard adds 12 distractors",
        authors="Pu et al. (arXiv:2407.15353)",
        licence="none stated",
        local="ORD-QA.jsonl, and openroad_documentation.json for the distractors of hard",
        read=eda_qa,
        splits=(),
        variants=("simple", "hard"),
    ),
    Task(
        name="eda_corpus",
        kind="questions",
        about="581 questions about OpenROAD with answers of 40 words, without a text",
        authors="Wu et al. (arXiv:2405.06676)",
        licence="CC BY 4.0",
        local="the authors' .csv files of question and answer pairs",
        read=eda_corpus,
        splits=(),
    ),
    Task(
        name="musique",
        kind="questions",
        about="questions of 2 to 4 steps over 20 paragraphs, 1,700 words; 19,938 train, 2,417 validation (here test)",
        authors="Trivedi et al. (arXiv:2108.00573)",
        licence="CC BY 4.0",
        local="musique_ans_v1.0_train.jsonl and musique_ans_v1.0_dev.jsonl, or one .jsonl, which is then split",
        read=musique,
        splits=("train", "validation"),
        hub_id="dgslibisey/MuSiQue",
    ),
    Task(
        name="qmsum",
        kind="questions",
        about="summaries of parts of meetings, 9,000 words; meetings: 162 train, 35 validation, 35 test",
        authors="Zhong et al. (arXiv:2104.05938)",
        licence="MIT",
        local="train.jsonl, val.jsonl, test.jsonl of the authors' data/ALL/jsonl",
        read=qmsum,
    ),
    Task(
        name="narrativeqa",
        kind="questions",
        about="questions about books and film scripts, 60,000 words, or their summaries (--task_subset summary)",
        authors="Kočiský et al. (arXiv:1712.07040)",
        licence="Apache-2.0",
        local="the hub's tables, train, validation and test",
        read=narrativeqa,
        hub_id="deepmind/narrativeqa",
        variants=("story", "summary"),
    ),
    Task(
        name="chatqa2",
        kind="questions",
        about="documents of up to 32,000 tokens with an instruction (--task_subset NarrativeQA_131072: 131,072)",
        authors="Xu et al., ChatQA 2 (arXiv:2407.14482)",
        licence="CC BY-NC 2.0",
        local="long_sft_QA_train.json, long_sft_QA_dev.json, or folders of these by configuration",
        read=chatqa2,
        splits=("train", "test"),
        hub_id="nvidia/ChatQA2-Long-SFT-data",
        subset="long_sft",
    ),
)
