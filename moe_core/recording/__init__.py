"""What every program that records a run does beside its training: it commits in a thread, and diagnoses what was committed."""
