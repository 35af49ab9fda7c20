"""Memory and segment to logits: the wrapped backbone, the step, and the model that loops it."""
