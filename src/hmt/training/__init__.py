"""TEXT + MODEL -> BETTER MODEL: the curriculum, the optimizer step, what is saved of a run."""
