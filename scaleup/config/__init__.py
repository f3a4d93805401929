"""This package holds the run's configuration: typed, frozen, complete. `load` reads it, `schema` and `stages` say what
it may hold."""
