"""One home for what is written to disk: atomic files and folders, manifests, locks, redaction, run folders."""
