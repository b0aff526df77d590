"""Reports: self-contained HTML pages of sentences, charts and tables."""
