"""Text from tokens as they are generated, one piece at a time."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from transformers.generation import BaseStreamer

from hmt.terminal import escaped

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""Decoders write this in place of bytes that are no character, or not yet one."""

UNFINISHED_BYTES = 3
"""Longest beginning of a UTF-8 character. Decoders write `UNFINISHED` once for all of it or once a byte."""

WINDOW_TOKENS = 16
"""Tokens of context that a decoder keeps when it writes nothing but invalid bytes."""


class Detokenizer:
    """Decodes tokens one by one, holding back nothing but an unfinished character.

    Only the newest tokens are decoded again for each new one, so the time for a token does not grow with the text.

    Args:
        tokenizer: Decodes; special tokens are left out.
        context: Token ids before the first one, for decoders that strip a leading space at the start of a text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._window = list(context[-WINDOW_TOKENS:])
        self._boundary = len(self._window)
        self._returned = len(self._decode(self._window))

    def add(self, token: int) -> str:
        """Return the text that is complete with this token; often empty within a character of several tokens."""
        self._window.append(token)
        text = self._decode(self._window)
        complete = len(text) - self._unfinished(text)
        piece = text[self._returned : complete]
        self._returned = max(self._returned, complete)
        if piece and complete == len(text):
            # The tokens of one piece back are context enough, and begin where a character does.
            del self._window[: self._boundary]
            self._boundary = len(self._window)
            self._returned = len(self._decode(self._window))
        elif len(self._window) > 2 * WINDOW_TOKENS:  # nothing but invalid bytes, or tokens without text
            del self._window[:-WINDOW_TOKENS]
            self._boundary = 0
            text = self._decode(self._window)
            self._returned = len(text) - self._unfinished(text)
        return piece

    def finish(self) -> str:
        """Return the rest; an unfinished character becomes U+FFFD."""
        piece = self._decode(self._window)[self._returned :]
        self._returned += len(piece)
        return piece

    def peek(self, token: int) -> str:
        """Return the text of a token that may come next, as it would read there."""
        before = self._decode(self._window).rstrip(UNFINISHED)
        return self._decode([*self._window, token])[len(before) :]

    def _unfinished(self, text: str) -> int:
        """Characters at the end of the decoded window that may change once the last one is finished."""
        run = len(text) - len(text.rstrip(UNFINISHED))
        # Some decoders write all of a run of bytes as U+FFFD until its last character is finished.
        may_be_one_character = len(self._window) - self._boundary <= UNFINISHED_BYTES
        return run if may_be_one_character else min(run, UNFINISHED_BYTES)

    def _decode(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


class StopStrings:
    """Passes text on up to the first stop string, holding back nothing but a possible beginning of one.

    Args:
        stops: Strings that end the text and are not part of it.

    Attributes:
        found: True once a stop string has come.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self.found = False
        self._stops = tuple(stops)
        self._held = ""

    def add(self, text: str) -> str:
        """Return the text that is certainly not part of a stop string."""
        if self.found:
            return ""
        self._held += text
        places = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        self.found = bool(places)
        ready = min(places) if places else self._first_possible_stop()
        piece, self._held = self._held[:ready], "" if self.found else self._held[ready:]
        return piece

    def finish(self) -> str:
        """Return the rest, as no more text will come."""
        piece, self._held = self._held, ""
        return piece

    def _first_possible_stop(self) -> int:
        """Place of the earliest unfinished stop string; the length of the held text if there is none."""
        longest = max(map(len, self._stops), default=1)
        for place in range(max(len(self._held) - longest + 1, 0), len(self._held)):
            if any(stop.startswith(self._held[place:]) for stop in self._stops):
                return place
        return len(self._held)


class TerminalStreamer(BaseStreamer):
    """Writes the text of new tokens to a file as they are generated.

    Args:
        tokenizer: Decodes the tokens.
        file: Text file to write to; standard output by default.

    Attributes:
        first_token: Time of `time.perf_counter` at the first new token; 0 before.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, file: TextIO | None = None) -> None:
        self._tokenizer = tokenizer
        self._file = sys.stdout if file is None else file
        self._detokenizer: Detokenizer | None = None
        self.first_token = 0.0

    def put(self, value: Tensor) -> None:
        """Skip the prompt, which comes first; write what each token (1,) completes."""
        if self._detokenizer is None:
            self._detokenizer = Detokenizer(self._tokenizer)
        else:
            self.first_token = self.first_token or time.perf_counter()
            self._write("".join(map(self._detokenizer.add, value.flatten().tolist())))

    def end(self) -> None:
        """Write what was held back, and end the line."""
        held = "" if self._detokenizer is None else self._detokenizer.finish()
        self._write(f"{held}\n")
        self._detokenizer = None

    def _write(self, text: str) -> None:
        # A terminal is shown control characters escaped: a text must not move its cursor.
        self._file.write(escaped(text) if self._file.isatty() else text)
        self._file.flush()
