"""The proving ground: made-up tasks that only a memory can solve, and the recipe that teaches a small model its use."""
