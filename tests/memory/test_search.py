"""Lexical search finds the passage of a text that shares rare words with a query, and nothing otherwise."""

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from hmt.memory.passages import SearchTables
from hmt.memory.search import Found, Term, find_passage

VOCABULARY = 1000
NEWLINE = 0
SENTENCE = torch.arange(900, 920)
"""A sentence of words that no text has elsewhere."""


def written(tokens: int, seed: int = 0) -> Tensor:
    """A text whose words are as unevenly frequent as in a language, in lines of 12 tokens; tokens 900 on are free."""
    frequencies = 1 / torch.arange(1.0, 900.0)
    generator = torch.Generator().manual_seed(seed)
    ids = 1 + torch.multinomial(frequencies, max(tokens, 1), replacement=True, generator=generator)
    ids[11::12] = NEWLINE
    return ids[:tokens].int()


def planted(text: Tensor, sentence: Tensor, *places: int) -> Tensor:
    """The text with a sentence written over it at each place."""
    text = text.clone()
    for place in places:
        text[place : place + len(sentence)] = sentence
    return text


@pytest.fixture
def newlines() -> Tensor:
    table = torch.zeros(VOCABULARY, dtype=torch.bool)
    table[NEWLINE] = True
    return table


def terms(query: Tensor) -> list[Term]:
    """Each token as a word of one spelling."""
    return [frozenset({(token,)}) for token in query.tolist()]


def find(text: Tensor, query: Tensor, budget: int, *tables: Tensor) -> Found:
    """The passage, which there must be."""
    found = find_passage(text, terms(query), budget, *tables)
    assert found is not None
    assert 0 <= found.start < found.end <= min(len(text), found.start + budget)
    assert found.score > 0
    return found


@pytest.mark.parametrize("place", [0, 7_000, 19_980])
def test_a_planted_sentence_is_found_by_some_of_its_words(place: int) -> None:
    text = planted(written(20_000), SENTENCE, place)
    query = torch.cat([written(6, seed=1), SENTENCE[4:6], written(3, seed=2), SENTENCE[9:11]])

    found = find(text, query, 64)

    assert found.start <= place + 4
    assert found.end >= place + 11


@pytest.mark.parametrize("budget", [20, 64, 256, 100_000])
def test_a_passage_stays_within_the_budget(budget: int, newlines: Tensor) -> None:
    for tables in ((), (newlines,)):
        found = find(planted(written(5_000), SENTENCE, 4_000, 1_000, 2_500, 2_530), SENTENCE, budget, *tables)
        assert 0 < found.end - found.start <= budget


@pytest.mark.parametrize("query", [torch.arange(940, 980), torch.tensor([1, 2])], ids=["new", "frequent"])
def test_nothing_is_found_for_words_that_are_nowhere_or_everywhere(query: Tensor) -> None:
    assert find_passage(written(20_000), terms(query), 128) is None


def test_one_word_in_common_is_not_enough_in_a_long_text() -> None:
    query = torch.cat([torch.arange(940, 942), SENTENCE[:1]])
    for tokens, relevant in ((1_000, True), (100_000, False)):
        found = find_passage(planted(written(tokens), SENTENCE, 500), terms(query), 128)
        assert (found is not None) == relevant


def test_of_equal_passages_the_newest_is_found() -> None:
    found = find(planted(written(20_000), SENTENCE, 3_000, 9_000, 6_000), SENTENCE, 40)

    assert found.start <= 9_000 < found.end


def test_a_passage_begins_and_ends_with_a_line_or_a_sentence_of_a_long_line(newlines: Tensor) -> None:
    text = planted(written(20_000), SENTENCE, 5_003)
    lines = find(text, SENTENCE, 100, newlines)
    assert text[lines.start - 1] == text[lines.end - 1] == NEWLINE

    text[text == NEWLINE] = 1
    text[4::9] = 999
    sentences = torch.zeros(VOCABULARY, dtype=torch.bool)
    sentences[999] = True
    found = find(planted(text, SENTENCE, 5_003), SENTENCE, 100, newlines, sentences)
    assert text[found.start - 1] == text[found.end - 1] == 999


def test_what_follows_a_match_has_more_of_the_passage_than_what_precedes_it() -> None:
    found = find(planted(written(20_000), SENTENCE, 5_000), SENTENCE[:2], 100)

    assert 0 < 5_000 - found.start < found.end - 5_002


def test_a_rare_word_outweighs_many_frequent_ones() -> None:
    text = planted(written(20_000), torch.tensor([1, 2, 3, 4, 5, 6, 7]), 2_000)
    text[15_000] = 999

    found = find(text, torch.tensor([5, 3, 999, 4, 2]), 32)

    assert found.start <= 15_000 < found.end


def test_two_words_outweigh_one_that_is_repeated() -> None:
    text = written(20_000)
    text[15_000:15_020:2] = 930
    text[5_000], text[5_005] = 930, 940

    found = find(text, torch.tensor([930, 1, 940]), 32)

    assert found.start <= 5_000 < 5_005 < found.end


@pytest.mark.parametrize("apart", ["words", "lines"])
def test_words_stand_together_as_in_the_query_or_in_one_line(apart: str, newlines: Tensor) -> None:
    text = written(20_000)
    near, far = 5_004, 15_004
    text[[near, near + 1]] = torch.tensor([930, 940], dtype=torch.int32)
    text[[far, far + (5 if apart == "words" else 9)]] = torch.tensor([930, 940], dtype=torch.int32)
    tables = () if apart == "words" else (newlines,)
    text[far + 7] = NEWLINE

    found = find(text, torch.tensor([930, 940]), 32, *tables)

    assert found.start <= near < found.end


def test_a_word_is_found_in_every_spelling_and_counts_as_one() -> None:
    text = planted(written(20_000), SENTENCE[3:5], 5_000)
    text[15_000] = int(SENTENCE[3])
    word = frozenset({(950,), tuple(SENTENCE[3:5].tolist())})

    found = find_passage(text, [word], 64)

    assert found is not None
    assert found.start <= 5_000 < 5_001 < found.end


def test_a_tokenizer_tells_words_lines_and_sentences(tokenizer: PreTrainedTokenizerFast) -> None:
    tables = SearchTables(tokenizer, len(tokenizer) + 5)

    def one(text: str) -> int:
        (token,) = tokenizer(text, add_special_tokens=False)["input_ids"]
        return int(token)

    assert tables.newlines.nonzero()[:, 0].tolist() == [one("\n")]
    assert {one("."), one("!"), one("?")} <= set(tables.sentences.nonzero()[:, 0].tolist())
    query = torch.tensor(tokenizer("What is the Key of the key?", add_special_tokens=False)["input_ids"])
    key, again = tables.terms(query)
    assert key == again  # whatever its case
    assert tuple(tokenizer(" KEY", add_special_tokens=False)["input_ids"]) in key
    assert tables.terms(query[:0]) == []


@pytest.mark.parametrize(("tokens", "asked"), [(0, 4), (40, 0), (0, 0), (1, 1), (40, 1), (2, 40)])
def test_short_texts_and_short_queries(tokens: int, asked: int) -> None:
    found = find_passage(written(tokens), terms(written(max(tokens, asked))[:asked]), 64)

    assert found is None or 0 <= found.start < found.end <= tokens


def test_a_text_shorter_than_the_budget_is_found_whole() -> None:
    found = find(SENTENCE, SENTENCE[3:6], 64)

    assert (found.start, found.end) == (0, len(SENTENCE))


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
def test_the_search_is_pure(dtype: torch.dtype) -> None:
    text = planted(written(20_000), SENTENCE, 5_000).to(dtype)
    kept = text.clone()

    assert find(text, SENTENCE[:6], 128) == find(text, SENTENCE[:6], 128)
    assert torch.equal(text, kept)
