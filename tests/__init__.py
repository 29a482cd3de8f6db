"""The project's tests; `tiny` and `fakes` hold what they share."""
