"""Images from a sentence, and their records."""
