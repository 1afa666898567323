"""Why a generative request is refused, in the words that OpenAI clients know.

Owns the errors of the text side. `code` and `param` go into the client's error body as they are.
"""

from __future__ import annotations

from backends.errors import BackendError


class BadRequest(BackendError):
    """A field has a value that it cannot have; `param` is the field."""

    status, code = 400, "invalid_value"


class MissingField(BadRequest):
    code = "missing_required_parameter"


class UnknownField(BadRequest):
    """Nothing here knows the field; ignoring it would answer another question."""

    code = "unknown_parameter"


class UnsupportedField(BadRequest):
    """The API has this field or value, this model or replica does not."""

    code = "unsupported_parameter"


class UnsupportedSurface(BadRequest):
    """A model that generates text is asked for something else."""

    code = "unsupported_operation"


class ContextTooLong(BadRequest):
    code = "context_length_exceeded"


class BadGrammar(BadRequest):
    """A regex or a schema that cannot be enforced; the message has the place in it."""

    code = "invalid_schema"


class BadTokenizer(BackendError):
    """The checkpoint's tokenizer cannot be used; its author must act."""

    code = "invalid_tokenizer"
