"""Models: where they come from (`sources`, `builtin`), what the plan must know (`facts`), loading (`load`)."""
