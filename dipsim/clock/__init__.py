"""What depends on the clock: caches, guesses, streams and drafts meet while a run goes on."""
