"""What the doors call: a run, an evaluation, a conversation, and their reports."""
