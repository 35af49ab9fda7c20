"""Conversations as text: a tokenizer's chat template, a turn at a time.

A template renders a whole conversation. A memory has read the earlier turns already and needs only the end of the last
answer and the next message.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from hmt.text.batches import check_text
from hmt.text.encoding import TextEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]
"""A message as templates take it: "role" (system, user, assistant), "content", and "name" if it has one."""

MARK = "hmt-answer-stands-here"
"""Stands for an answer in a rendered conversation; no template changes it."""

RENDER_SECONDS = 10
"""Time limit for rendering a conversation; templates render in milliseconds."""


class ChatTemplate:
    """Token ids of the parts of a conversation.

    Control tokens in a message, such as `<|im_end|>`, are tokenized as the text they are, so that nobody can end a
    turn or speak for somebody else by typing them.

    Args:
        tokenizer: With a chat template.
        allow_control_tokens: Let control tokens in messages act.

    Raises:
        ValueError: If it has no chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, allow_control_tokens: bool = False) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError("the tokenizer has no chat template; take a model that was made for chat")
        self.tokenizer = tokenizer
        self._encoder = TextEncoder(tokenizer, allow_control_tokens)

    def opening(self, messages: Sequence[Message]) -> list[int]:
        """Encode a conversation from its beginning, up to the place of the answer.

        Raises:
            ValueError: If the template does not take these messages; says why.
        """
        return self._encode(self._render(messages, add_generation_prompt=True))

    def turn(self, message: str) -> list[int]:
        """Encode the next message of the user, up to the place of its answer; the last answer has ended.

        Raises:
            ValueError: If the template is not one that a conversation can be continued with.
        """
        return self._encode(self._after_mark([_user(message)]).removeprefix(self._ending))

    def ending(self) -> list[int]:
        """Return the ids between an answer and the next message; the first is the token that ends an answer."""
        return self._encode(self._ending)

    @cached_property
    def _ending(self) -> str:
        last, earlier = self._after_mark([]), self._after_mark([_user("next")])
        return last if earlier.startswith(last) else ""

    def _after_mark(self, more: list[Message]) -> str:
        """The text that the template writes after an answer, the end of that answer included."""
        conversation = [_user("first"), {"role": "assistant", "content": MARK}, *more]
        text = self._render(conversation, add_generation_prompt=bool(more))
        if text.count(MARK) != 1:
            raise ValueError("the tokenizer's chat template changes earlier answers; conversations cannot go on")
        return text.split(MARK)[1]

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        from jinja2 import TemplateError

        protected = [
            {name: text if name == "role" else self._encoder.protect(text) for name, text in message.items()}
            for message in messages
        ]
        try:
            text = _in_time(
                lambda: self.tokenizer.apply_chat_template(
                    protected, tokenize=False, add_generation_prompt=add_generation_prompt
                )
            )
        except TimeoutError as error:
            raise ValueError(f"the chat template was not rendered within {RENDER_SECONDS} seconds") from error
        except (TemplateError, TypeError, LookupError, AttributeError, ArithmeticError) as error:  # of its expressions
            raise ValueError(f"the chat template does not take these messages: {error}") from error
        assert isinstance(text, str)
        return text

    def _encode(self, text: str) -> list[int]:
        check_text("a message", text)
        return self._encoder.encode_protected(text)


def _in_time(render: Callable[[], Any]) -> Any:
    """Call a function that comes from a stranger's file and may never end.

    Raises:
        TimeoutError: If it takes more than `RENDER_SECONDS`; its thread then runs on until the process ends.
    """
    results: SimpleQueue[tuple[Any, Exception | None]] = SimpleQueue()

    def work() -> None:
        try:
            results.put((render(), None))
        except Exception as error:  # passed on to the caller
            results.put((None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        value, error = results.get(timeout=RENDER_SECONDS)
    except Empty:
        raise TimeoutError from None
    if error is not None:
        raise error
    return value


def _user(content: str) -> Message:
    return {"role": "user", "content": content}
