"""A real model in the loop: loading, recording, evaluating and adapting it (extra `live`)."""
