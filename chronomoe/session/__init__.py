"""Generation in chunks under session pressure: every signal measured, every state saved. Begin with `session.py`."""
