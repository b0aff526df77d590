"""Reports: self-contained HTML pages of sentences, charts and tables."""

from stackbert.errors import need

need("report", "altair", "vl_convert", to="A report")
