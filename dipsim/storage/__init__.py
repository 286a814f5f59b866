"""How weights lie in Flash, and what it costs to read them: read times, layouts, runs of adjacent columns."""
