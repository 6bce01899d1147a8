"""Settings: composing them, checking them, and the only place that turns a `_target_` into an object."""
