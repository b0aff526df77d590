"""One self-contained HTML file of a run, several runs or a comparison."""
