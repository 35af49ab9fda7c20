"""Lexical search finds the passages of a text that share rare phrases with a query, and nothing otherwise."""

import pytest
import torch
from torch import Tensor

from hmt.memory.search import Vocabulary, find_passages

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


@pytest.mark.parametrize("place", [0, 7_000, 19_980])
def test_a_planted_sentence_is_found_by_some_of_its_words(place):
    text = planted(written(20_000), SENTENCE, place)
    query = torch.cat([written(6, seed=1), SENTENCE[4:6], written(3, seed=2), SENTENCE[9:11]])

    found = find_passages(text, query, 64, pieces=1)

    assert found.starts[0] <= place
    assert found.ends[0] >= place + len(SENTENCE)


@pytest.mark.parametrize("budget", [1, 5, 64, 256, 100_000])
@pytest.mark.parametrize("pieces", [1, 2, 4])
def test_passages_are_ordered_by_age_apart_and_within_the_budget(budget, pieces, newlines):
    text = planted(written(5_000), SENTENCE, 4_000, 1_000, 2_500, 2_530)

    found = find_passages(text, SENTENCE, budget, newlines=newlines, pieces=pieces, threshold=0)

    assert found.relevant
    assert (found.starts < found.ends).all()
    assert (found.ends[:-1] <= found.starts[1:]).all()
    assert found.starts[0] >= 0
    assert found.ends[-1] <= len(text)
    assert (found.ends - found.starts).sum() <= budget
    assert len(found.positions) == (found.ends - found.starts).sum()


@pytest.mark.parametrize("query", [torch.arange(940, 980), torch.tensor([1, 2])], ids=["new", "frequent"])
def test_nothing_is_found_for_words_that_are_nowhere_or_everywhere(query):
    assert not find_passages(written(20_000), query, 128).relevant


def test_of_equal_passages_the_newest_is_found():
    found = find_passages(planted(written(20_000), SENTENCE, 3_000, 9_000, 6_000), SENTENCE, 40, pieces=1)

    assert found.starts[0] <= 9_000 < found.ends[0]


def test_a_passage_begins_and_ends_with_a_line(newlines):
    text = planted(written(20_000), SENTENCE, 5_003)
    text[5_010] = text[5_022] = NEWLINE

    found = find_passages(text, SENTENCE, 100, newlines=newlines, pieces=1)

    assert text[found.starts[0] - 1] == NEWLINE
    assert text[found.ends[0] - 1] == NEWLINE


def test_sentences_bound_a_passage_where_no_line_ends_near(newlines):
    text = written(20_000)
    text[text == NEWLINE] = 1
    text[4::9] = 999
    sentences = torch.zeros(VOCABULARY, dtype=torch.bool)
    sentences[999] = True

    found = find_passages(
        planted(text, SENTENCE, 5_003), SENTENCE, 100, newlines=newlines, sentences=sentences, pieces=1
    )

    assert text[found.starts[0] - 1] == 999
    assert text[found.ends[0] - 1] == 999


def test_tokens_of_one_word_match_each_other():
    words = torch.arange(VOCABULARY)
    words[940:960] = SENTENCE

    text = planted(written(20_000), SENTENCE, 5_000)

    assert not find_passages(text, SENTENCE + 40, 64).relevant
    assert find_passages(text, SENTENCE + 40, 64, words=words, pieces=1).starts[0] <= 5_000


def test_a_rare_word_outweighs_many_frequent_ones():
    text = planted(written(20_000), torch.tensor([1, 2, 3, 4, 5, 6, 7]), 2_000)
    text[15_000] = 999

    found = find_passages(text, torch.tensor([5, 3, 999, 4, 2]), 32, pieces=1)

    assert found.starts[0] <= 15_000 < found.ends[0]


def test_ignored_words_have_no_weight_alone_or_in_phrases():
    words = torch.arange(VOCABULARY)
    words[900:915] = -1 - words[900:915]
    text = planted(written(20_000), SENTENCE, 5_000)

    assert not find_passages(text, SENTENCE[:15], 64, words=words, threshold=0).relevant
    assert find_passages(text, SENTENCE[:16], 64, words=words).relevant


def test_a_word_is_found_as_it_is_encoded_elsewhere():
    text = planted(written(20_000), SENTENCE, 5_000)
    spelled = [SENTENCE[3:5], SENTENCE[8:9]]

    found = find_passages(text, torch.tensor([950, 951]), 64, spellings=spelled, pieces=1)

    assert found.starts[0] <= 5_003 < 5_009 <= found.ends[0]


def test_a_word_in_several_tokens_weighs_as_much_as_one_token():
    text = planted(written(20_000), SENTENCE[3:5], 5_000)
    text[15_000], text[15_005] = 930, SENTENCE[3]

    found = find_passages(text, torch.tensor([950, 930]), 16, spellings=[SENTENCE[3:5]], pieces=1, threshold=0)

    assert found.starts[0] <= 5_000 < found.ends[0]


def test_two_words_outweigh_one_that_is_repeated():
    text = written(20_000)
    text[15_000:15_020:2] = 930
    text[5_000], text[5_005] = 930, 940

    found = find_passages(text, torch.tensor([930, 1, 940]), 32, pieces=1)

    assert found.starts[0] <= 5_000 < 5_005 < found.ends[0]


def test_sentences_of_a_line_longer_than_the_budget_stay_together(newlines):
    text = planted(written(20_000), SENTENCE, 5_010)
    text[5_000:5_400][text[5_000:5_400] == NEWLINE] = 1
    text[5_009:5_400:20] = 999
    sentences = torch.zeros(VOCABULARY, dtype=torch.bool)
    sentences[999] = True

    found = find_passages(text, SENTENCE[3:5], 128, newlines=newlines, sentences=sentences, pieces=8)

    assert 100 < (found.ends - found.starts).max() <= 128


def test_a_line_longer_than_a_piece_is_found_whole(newlines):
    text = planted(written(20_000), SENTENCE, 5_003)
    text[4_980:5_100] = text[4_980:5_100].masked_fill(text[4_980:5_100] == NEWLINE, 1)
    text[4_979] = text[5_100] = NEWLINE

    found = find_passages(text, SENTENCE, 128, newlines=newlines, pieces=8)

    assert (4_980, 5_101) in zip(found.starts.tolist(), found.ends.tolist(), strict=True)


def test_the_vocabulary_says_which_tokens_are_one_word_and_what_they_end():
    pieces = ["key", " Key", " the", ".", ".\n", " keys", '."', "\n\n"]

    tables = Vocabulary.of(pieces)

    assert tables.words[0] == tables.words[1] != tables.words[5]
    assert (tables.words < 0).tolist() == [False, False, True, True, True, False, True, True]
    assert tables.newlines.tolist() == [False, False, False, False, True, False, False, True]
    assert tables.sentences.tolist() == [False, False, False, True, True, False, True, False]


@pytest.mark.parametrize(("tokens", "asked"), [(0, 4), (40, 0), (0, 0), (1, 1), (40, 1), (40, 2), (2, 40)])
def test_short_texts_and_short_queries(tokens, asked):
    text, query = written(tokens), written(max(tokens, asked))[:asked]

    found = find_passages(text, query, 64, threshold=0)

    assert (found.ends <= tokens).all()
    assert found.relevant or min(tokens, asked) <= 2


def test_a_text_shorter_than_the_budget_may_be_found_whole():
    found = find_passages(SENTENCE, SENTENCE[3:6], 64, pieces=1)

    assert (int(found.starts[0]), int(found.ends[0])) == (0, len(SENTENCE))


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
def test_the_search_is_pure(dtype):
    text, query = planted(written(20_000), SENTENCE, 5_000).to(dtype), SENTENCE[:6].to(dtype)
    kept = text.clone(), query.clone()

    first, second = (find_passages(text, query, 128) for _ in range(2))

    assert torch.equal(text, kept[0])
    assert torch.equal(query, kept[1])
    assert torch.equal(first.starts, second.starts)
    assert torch.equal(first.scores, second.scores)
    assert first.starts.dtype == torch.int64


@pytest.mark.parametrize("wrong", [{"budget": 0}, {"budget": 8, "pieces": 0}])
def test_a_budget_below_one_token_is_refused(wrong):
    with pytest.raises(ValueError, match=next(name for name in wrong)):
        find_passages(SENTENCE, SENTENCE, **wrong)
