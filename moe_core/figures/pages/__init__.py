"""What each page shows of a run, a module a page: its charts (FIGURES), and its tiles (TILES), the numbers above them, one large
and five beside it."""
