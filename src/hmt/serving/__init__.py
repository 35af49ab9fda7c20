"""An OpenAI-compatible server: schema (what clients send and get), app (HTTP), engine (who answers, in which order)."""
