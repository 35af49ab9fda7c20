"""The model interface of lm-evaluation-harness, and the verb that runs its tasks."""

import importlib.util

if importlib.util.find_spec("lm_eval") is None:
    raise ImportError("running tasks of lm-evaluation-harness needs lm_eval, the extra lm-eval: pip install lm_eval")
