"""One self-contained HTML file from any results: read (source), drawn (charts), listed (listing, texts), told (view),
and put together (document) so that nothing in it is loaded from a network and no string of a result can act."""
