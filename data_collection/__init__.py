"""Commands that make data: collect and convert."""
