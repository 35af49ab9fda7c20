"""The model interface of lm-evaluation-harness, and the verb that runs its tasks."""
