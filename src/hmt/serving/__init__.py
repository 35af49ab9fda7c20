"""NUMBERS -> CLIENTS: the OpenAI protocol over HTTP."""
