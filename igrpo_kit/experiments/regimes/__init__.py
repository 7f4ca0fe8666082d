"""Where a draft pays: the revision cipher, natural tasks, and their tables."""
