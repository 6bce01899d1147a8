"""Rows in, micro-batches out: sources, formats, chat template, packing and the step loader."""
