"""One page of HTML that shows a folder of results; it needs no network. It is made from the written files alone."""
